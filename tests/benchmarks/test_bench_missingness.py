"""The study of self-masked cells: a line each, not twice, and their table."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import missingness


@pytest.fixture
def small(monkeypatch):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(60, 1)) + rng.normal(size=(60, 3)), columns=list("abc"))
    monkeypatch.setattr(missingness, "table_of", lambda name, seed: table)
    monkeypatch.setattr(missingness, "DRAWS", 2)


def test_errors_are_in_standard_deviations_of_the_complete_columns():
    truth = pd.DataFrame({"a": np.arange(20.0), "b": np.arange(20.0)})
    observed = np.ones((20, 2), dtype=bool)
    observed[:8] = False
    sd = truth["a"].std(ddof=0)
    points = truth.add([sd, -sd])
    found = missingness.judged(truth, observed, points, [truth + sd, truth - sd])
    assert found == pytest.approx({"bias": 0, "abs_bias": 1, "bias_of_draws": 0, "rmse": 1, "covered": 1}, abs=1e-12)


def test_lines_are_written_once_and_reported(small, tmp_path):
    cases = [
        dict(zip(missingness.KEY, ("missingness", "toy", "mnar@1", assumption, 0), strict=True))
        for assumption in missingness.ASSUMPTIONS
    ]
    out = tmp_path / "lines.jsonl"
    assert missingness.run_lines(cases, out) == 0
    assert missingness.run_lines(cases, out) == 0
    lines = missingness.read_lines(out)
    assert [line["missingness"] for line in lines] == ["random", "self"]
    assert lines[0]["slope"] == 0 != lines[1]["slope"]
    page = missingness.report(lines)
    assert "| held-out, mnar@1, self | 1 |" in page
    assert "| toy, mnar@1, random |" in page


def test_a_failure_is_a_line_that_is_tried_again(small, tmp_path):
    case = dict(zip(missingness.KEY, ("missingness", "toy", "no such", "self", 0), strict=True))
    for _ in range(2):
        assert missingness.run_lines([case], tmp_path / "lines.jsonl") == 1
    assert "KeyError" in missingness.read_lines(tmp_path / "lines.jsonl")[1]["error"]
