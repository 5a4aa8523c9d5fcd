"""benchmarks.m3: sets, mask and error are those of the published protocol, and the page says what the lines say."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_toys import invoke, lines_of
from click.testing import CliRunner

from benchmarks import m3, report


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone whose yacht has 40 rows, a blank line and a row that lacks a value; iris holds a letter."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 1)) * [1, 5, -2] + rng.normal(size=(40, 3))
    rows = [f"  {a:.4f}\t{b:.4f} {c:.4f}  1" for a, b, c in X]
    for name, lines in (("yacht", [*rows[:20], "", "7 8 9", *rows[20:]]), ("iris", ["1 2 3", "1 b 3"])):
        file = tmp_path / "clone" / "uci" / "raw_data" / name / "data" / "data.txt"
        file.parent.mkdir(parents=True)
        file.write_text("\n".join(lines) + "\n")
    return tmp_path / "clone"


def constants(X, seed, *, mean=0.0):
    return {"mean": np.where(np.isnan(X), mean, X), "median": np.where(np.isnan(X), 1.0, X)}


def line(name, mean, median, **rest) -> dict:
    made = {"task": m3.TASK, "set": name, "seed": 0, "method": "vaeimpute", "rows": 10, "columns": 3, "cores": 1}
    return made | {"mae_mean": mean, "mae_median": median, "mae_means": 2.0, "seconds": 2.0} | rest


def test_the_mask_is_that_of_the_repository():
    """utils/utils.py draws ``torch.FloatTensor(cells, 1).uniform_()`` after ``torch.manual_seed``, row by row."""
    for seed in (0, 3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            known = (torch.FloatTensor(37 * 5, 1).uniform_() < 0.7).view(-1)
        np.testing.assert_array_equal(m3.observed_cells((37, 5), seed), known.numpy().reshape(37, 5))


def test_columns_are_scaled_by_all_rows_and_the_last_is_left_out(clone):
    X = m3.load(clone, "yacht")
    assert X.shape == (40, 3)
    np.testing.assert_allclose([X.min(0), X.max(0)], [[0] * 3, [1] * 3], atol=1e-12)


def test_the_error_is_that_of_hidden_cells_times_ten():
    truth = np.array([[0.0, 0.5], [1.0, 0.0], [0.25, 1.0], [0.5, 0.75]])
    hidden = ~m3.observed_cells(truth.shape, 0)
    assert 0 < hidden.sum() < truth.size
    made = m3.measure(truth, 0, {"mean": 0.2}, constants)
    assert made["mae_mean"] == pytest.approx(10 * np.mean([abs(x - 0.2) for x in truth[hidden]]))
    assert made["mae_median"] == pytest.approx(10 * np.mean([1 - x for x in truth[hidden]]))
    means = [truth[~hidden[:, j], j].mean() for j in (0, 1)]
    errors = [abs(truth[i, j] - means[j]) for i, j in zip(*hidden.nonzero(), strict=True)]
    assert made["mae_means"] == pytest.approx(10 * np.mean(errors))
    assert (made["rows"], made["columns"], made["hidden"]) == (4, 2, hidden.sum())


def test_both_points_come_from_one_fit(clone):
    X = m3.load(clone, "yacht")
    hidden = ~m3.observed_cells(X.shape, 0)
    completed = m3.by_vaeimpute(np.where(hidden, np.nan, X), 0, max_iter=2)
    for filled in completed.values():
        np.testing.assert_array_equal(filled[~hidden], X[~hidden])
        assert np.isfinite(filled).all()
    assert (completed["mean"] != completed["median"])[hidden].any()


def test_the_command_resumes_and_a_set_that_fails_ends_nothing(clone, tmp_path):
    out = tmp_path / "new" / "m3.jsonl"
    arguments = ("--data", clone, "--set", "max_iter=2", "--cores", 1, "--out", out)
    invoke(m3.main, *arguments, "--sets", "yacht")
    first = out.read_text()
    (made,) = lines_of(out)
    assert (made["set"], made["seed"], made["method"]) == ("yacht", 0, "vaeimpute[max_iter=2]")
    assert 0 < made["mae_median"] < 10
    assert made["seconds"] > 0

    assert "1 lines failed" in invoke(m3.main, *arguments, "--sets", "iris,yacht")
    assert out.read_text().startswith(first)
    assert "could not convert string to float" in lines_of(out)[1]["error"]
    assert len(lines_of(out)) == 2

    again = partial(m3.run_lines, clone, ["yacht"], out=out, complete=constants)
    assert again([0, 1], {"max_iter": 2}) == 1  # the line of seed 0 is there; the stub knows no such parameter
    assert again([0], {}) == 0  # other settings are other lines
    assert [(made["seed"], made["method"]) for made in lines_of(out)[2:]] == [
        (1, "vaeimpute[max_iter=2]"),
        (0, "vaeimpute"),
    ]


def test_a_folder_without_the_sets_says_where_they_are(tmp_path):
    for arguments in (["--data", str(tmp_path / "nowhere")], []):
        result = CliRunner().invoke(m3.main, arguments)
        assert result.exit_code == 2
        assert "git clone https://github.com/Alleinx/M3-IMPUTE" in " ".join(result.output.split())


def test_published_numbers_are_whole_rows_with_known_best():
    assert {len(row) for row in m3.PUBLISHED.values()} == {len(m3.METHODS)}
    assert len(m3.PUBLISHED) == 24
    best = {name: min(m3.PUBLISHED[name]) for name in ("yacht", "naval", "libras", "diabetes", "kin8nm")}
    assert best == {"yacht": 1.33, "naval": 0.04, "libras": 0.10, "diabetes": 1.17, "kin8nm": 2.49}


def test_the_report_shows_the_tables_between_its_markers(tmp_path):
    out, readme = tmp_path / "m3.jsonl", tmp_path / "README.md"
    lines = [
        line("iris", 0.9, 9.0),
        line("iris", 0.9, 0.74, seed=0),  # replaces the one before
        line("iris", 0.74, 0.9, seed=1),
        line("yacht", 1.334, 2.66),
        line("wine", 9.0, 9.0, error="ValueError: no"),
        line("naval", 0.08, 0.04, method="vaeimpute[max_iter=2]"),
    ]
    out.write_text("".join(json.dumps(made) + "\n" for made in lines))
    page = report.TEMPLATE + "\n## M3-Impute's table\n\n<!-- m3:begin -->\nNo results yet.\n<!-- m3:end -->\n"
    readme.write_text(page)
    invoke(report.main, "--results", tmp_path / "*.none", "--readme", readme)
    assert readme.read_text() == page

    invoke(report.main, "--results", out, "--readme", readme)
    rows = readme.read_text().partition("<!-- m3:begin -->")[2].splitlines()
    assert "**vaeimpute** (2 of 24 sets, seeds 0/1, cores 1)" in rows
    assert "| yacht | 10×3 | 1.33 | m3-impute | 1.33 | 1.33 | 2.66 | 0.96 | 2 |" in rows
    assert "| iris | 10×3 | 0.82 | grape | 0.82 | 0.82 | 0.82 | 0.93 | 2 |" in rows
    assert "| naval | 10×3 | 0.04 | hyperimpute | 0.06 | 0.08 | 0.04 | 0.87 | 2 |" in rows
    ratio = math.sqrt(0.82 / 0.82 * 2.66 / 1.33)
    assert f"| our median | {ratio:.3f} | 0, 1 | {ratio:.3f} | 0, 1 |" in rows
    assert "| our median | 1.000 | 0, 1 | 0.667 | 1, 0 |" in rows
    assert not [row for row in rows if row.startswith("| wine ")]
    assert readme.read_text().partition("<!-- m3:begin -->")[0] == page.partition("<!-- m3:begin -->")[0]


def test_a_set_below_the_best_published_is_in_bold():
    assert "| iris | 10×3 | 0.82 | grape | 0.82 | **0.81** | 0.82 |" in m3.report([line("iris", 0.814, 0.816)])
