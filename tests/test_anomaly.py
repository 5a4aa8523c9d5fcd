"""benchmarks.anomaly: honest splits, errors where they are said to be, runs that resume and survive failures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from benchmarks import anomaly, cells, run


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    """Two small sets with strange rows, and a constant column."""
    (tmp_path / "anomaly").mkdir()
    for seed, name in enumerate(("one", "two")):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(120, 1))
        X = np.column_stack([z, 2 * z, -z, np.zeros(120)]) + [0.1, 0.1, 0.1, 0] * rng.normal(size=(120, 4))
        y = np.arange(120) < 12
        X[y, 1] += 9
        np.savez(tmp_path / "anomaly" / f"{name}.npz", X=X, y=y)
    monkeypatch.setenv("VAEIMPUTE_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def table() -> pd.DataFrame:
    """Two numbers, and two classes that say the same: two wrong cells are never the majority."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 3, 200)
    colour, fruit = np.array(["red", "green", "blue"])[code], np.array(["apple", "pear", "plum"])[code]
    x, y = code + 0.1 * rng.normal(size=(2, 200))
    return pd.DataFrame({"x": x, "y": y, "colour": colour, "fruit": fruit})


def invoke(out: Path, *arguments: str) -> list[dict]:
    result = CliRunner().invoke(anomaly.main, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_rows_to_fit_and_rows_to_score_are_different_rows(folder):
    X, y = anomaly.load("one", 2000)
    assert X.shape == (120, 3)  # the constant column is gone
    train, test, strange = anomaly.split(X, y, 0)
    assert len(train) == 54
    assert strange.sum() == 12
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])[:, 0]), np.sort(X[:, 0]))
    np.testing.assert_array_equal(np.sort(test[strange][:, 0]), np.sort(X[y][:, 0]))


def test_large_sets_keep_their_share_of_outliers(folder):
    X, y = anomaly.load("one", 100)
    assert len(X) == 100
    assert y.sum() == 12  # there are no thirty


@pytest.mark.parametrize("method", anomaly.DEFAULT_METHODS)
def test_every_method_finds_what_is_strange(folder, method):
    for protocol in ("semi", "unsupervised", "missing"):
        line = anomaly.run_one(dict(zip(anomaly.KEY, ("one", protocol, 0.0, 2000, 0, method), strict=True)))
        assert line["auroc"] > (0.5 if method in ("ecod", "norm", "ocsvm") else 0.8)
        assert 0 <= line["ap"] <= 1
        assert protocol != "missing" or line["flagged"] == pytest.approx(0.05, abs=0.02)  # of complete rows


def test_a_run_resumes_and_survives_a_failing_method(folder, tmp_path, monkeypatch):
    def broken(X, seed, polluted):
        raise RuntimeError("no luck")

    monkeypatch.setitem(anomaly.METHODS, "flaky", broken)
    out = tmp_path / "lines.jsonl"
    arguments = ("--sets", "one,two", "--methods", "flaky,knn", "--protocols", "semi")
    lines = invoke(out, *arguments)
    assert [line.get("error") for line in lines] == ["RuntimeError: no luck", None] * 2
    out.write_text(out.read_text() + '{"set": "on')  # killed in the middle of a line
    monkeypatch.setitem(anomaly.METHODS, "flaky", anomaly.METHODS["norm"])
    again = invoke(out, *arguments)
    assert again[:4] == lines
    assert [line["method"] for line in again[4:]] == ["flaky", "flaky"]
    assert len(anomaly.read(out)) == 4
    assert "| flaky |" in anomaly.report(anomaly.read(out))


def test_the_command_of_all_benchmarks_leads_here(folder, tmp_path):
    out = tmp_path / "lines.jsonl"
    arguments = f"--task anomaly --sets one --methods norm --protocols semi --out {out}".split()
    assert CliRunner().invoke(run.main, arguments, catch_exceptions=False).exit_code == 0
    assert [line["protocol"] for line in anomaly.read(out)] == ["semi"]


def test_p_values_protocol(folder, tmp_path):
    out = tmp_path / "lines.jsonl"
    lines = invoke(out, "--sets", "one", "--protocols", "p-values", "--seeds", "0,1")
    for line in lines:
        assert line["ks_p"] > 0.001
        assert 0 <= line["false_discoveries"] <= 1
        assert line["power"] > 0.9
    report = anomaly.report(lines)
    assert "(1 sets, 2 seeds)" in report
    assert "auroc" not in report


@pytest.mark.parametrize("kind", ["shift", "swap"])
def test_errors_of_numbers_are_where_they_are_said_to_be(kind):
    X = np.random.default_rng(0).normal(size=(400, 5))
    new, wrong = cells.corrupt(X, kind, np.random.default_rng(1))
    assert wrong.mean() == pytest.approx(cells.CORRUPTED, abs=0.02)
    np.testing.assert_array_equal(new != X, wrong)
    if kind == "swap":
        assert all(np.isin(new[:, j], X[:, j]).all() for j in range(5))
    else:
        shift = np.abs(new - X)[wrong] / np.broadcast_to(X.std(0), X.shape)[wrong]
        assert shift.min() >= 3
        assert shift.max() <= 5


def test_errors_of_classes_are_other_levels(table):
    new, wrong = cells.typo(table, ["colour", "fruit"], np.random.default_rng(1))
    assert wrong.mean() == pytest.approx(cells.CORRUPTED, abs=0.03)
    np.testing.assert_array_equal((new != table)[["colour", "fruit"]].to_numpy(), wrong)
    assert set(new["colour"]) <= set(table["colour"])
    pd.testing.assert_series_equal(new["x"], table["x"])


@pytest.mark.parametrize("polluted", [False, True])
@pytest.mark.parametrize("method", cells.METHODS)
def test_every_method_finds_wrong_cells(table, method, polluted):
    line = cells.classes("toy", table[:100], table[100:].reset_index(drop=True), 0, method, "typo", polluted)
    assert line["auroc"] > (0.3 if method == "z" else 0.9)
    assert line["repair_error"] < (0.3 if method == "vaeimpute" else 1.01)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 1)) * [1.0, 2.0, -1.0] + 0.1 * rng.normal(size=(200, 3))
    line = cells.numbers("toy", X[:100], X[100:], 0, method, "shift", polluted)
    assert line["auroc"] > 0.9
    assert line["repair_rmse"] < (0.5 if method == "vaeimpute" else 9)
