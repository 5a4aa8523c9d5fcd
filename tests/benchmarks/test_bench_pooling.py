"""benchmarks.pooling: the law's truth, the yardstick, resumption, and a page that says what the lines say."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from bench_toys import invoke, lines_of

from benchmarks import pooling, report
from benchmarks.pooling_methods import METHODS, as_numbers, augmented


def line(method, estimate, fmi, **rest) -> dict:
    """A line whose intervals reach .1 to both sides."""
    estimates = np.array(list(pooling.truth().values())) + estimate
    made = {"task": "pooling", "rows": 50, "mechanism": "mcar", "seed": 0, "method": method, "draws": 20}
    ends = {"low": [*(estimates - 0.1)], "high": [*(estimates + 0.1)]}
    return made | {"estimate": [*estimates]} | ends | {"fmi": [fmi] * len(estimates), "seconds": 1.0} | rest


def test_analyses_of_a_large_table_find_the_truth():
    table = as_numbers(pooling.make(200_000, 0))
    for analysis in pooling.ANALYSES:
        estimates, variances, _ = analysis(table)
        errors = np.sqrt(np.diag(variances) if np.ndim(variances) else variances)
        true = [pooling.truth()[name] for name in analysis.estimands]
        assert (np.abs(estimates - np.array(true)) < 4 * errors).all(), analysis.estimands
    assert tuple(pooling.truth()) == pooling.ESTIMANDS


def test_regression_is_least_squares():
    rng = np.random.default_rng(0)
    x, y = pd.Series(rng.normal(size=30)), pd.Series(rng.normal(size=30))
    slope, variance, df = pooling.regression(y, x)
    r = np.corrcoef(x, y)[0, 1]
    assert df == 28
    assert slope[0] / np.sqrt(variance[0, 0]) == pytest.approx(r * np.sqrt(28 / (1 - r**2)))


@pytest.mark.parametrize(("mechanism", "shares"), [("mcar", [0.3] * 6), ("mar", [0, 0.4, 0.4, 0.4, 0, 0.4])])
def test_shares_of_hidden_cells(mechanism, shares):
    table = pooling.make(4000, 1)
    X = pooling.hide(table, mechanism, 1)
    np.testing.assert_allclose(X.isna().mean(), shares, atol=0.03)
    assert X.notna().any(axis=1).all()
    assert X.dtypes.equals(table.dtypes)
    assert not X.equals(pooling.hide(table, mechanism, 2))


def test_augmentation_predicts_as_regression_does():
    """One column of two is missing: the posterior of its regression on the other is centred at least squares."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    X = np.column_stack([x, 3 + 2 * x + rng.normal(size=40)])
    X[:12, 1] = np.nan
    drawn = np.stack(augmented(X, 400, rng, thin=3))
    slope, intercept = np.polyfit(x[12:], X[12:, 1], 1)
    s2 = ((X[12:, 1] - intercept - slope * x[12:]) ** 2).sum() / 26
    leverage = 1 / 28 + (x[:12] - x[12:].mean()) ** 2 / ((x[12:] - x[12:].mean()) ** 2).sum()
    sd = np.sqrt(s2 * (1 + leverage) * 27 / 25)  # of the predictive t with 27 degrees of freedom, within a few percent
    np.testing.assert_allclose(drawn[:, :12, 1].mean(axis=0), intercept + slope * x[:12], atol=4 * sd.max() / 20)
    np.testing.assert_allclose(drawn[:, :12, 1].std(axis=0), sd, rtol=0.2)
    assert (drawn[:, 12:] == X[12:]).all()


@pytest.mark.parametrize("method", METHODS)
def test_methods_give_numbers_to_analyse(method):
    complete = pooling.make(60, 0)
    X = pooling.hide(complete, "mcar", 0)
    tables = METHODS[method](complete, X, 2, 0)
    numbers = as_numbers(X)
    assert len(tables) == 2
    for table in tables:
        assert table.dtypes.eq(float).all()
        assert table.where(numbers.notna()).equals(numbers) or method == "full data"
        assert table.notna().all(axis=None) or method == "complete cases"
    assert set(pooling.answers(tables)) == {"estimate", "low", "high", "fmi"}


def test_runs_resume_and_failures_are_lines(tmp_path, monkeypatch):
    out = tmp_path / "new" / "pooling.jsonl"
    arguments = ["--rows", 50, "--replicates", 1, "--draws", 2, "--jobs", 1, "--out", out]
    invoke(pooling.main, *arguments, "--methods", "full data")
    monkeypatch.setitem(METHODS, "vaeimpute", lambda *args, max_iter: [1 / 0])
    said = invoke(pooling.main, *arguments, "--methods", "full data,vaeimpute", "--set", "max_iter=3")
    assert "2 of 4 lines are in" in said
    assert "2 lines failed" in said
    lines = lines_of(out)
    assert [each["method"] for each in lines] == ["full data"] * 2 + ["vaeimpute[max_iter=3]"] * 2
    assert lines[2]["error"] == "ZeroDivisionError: division by zero"
    assert len(lines[0]["low"]) == len(pooling.ESTIMANDS)
    assert invoke(pooling.main, "--report", "--out", out).startswith("| n, cells | method |")


def test_the_report_shows_the_table_between_its_markers(tmp_path):
    out, readme = tmp_path / "pooling.jsonl", tmp_path / "README.md"
    lines = [
        line("full data", 0.0, 0.0),
        line("full data", 0.0, 0.0, seed=1),
        line("normal", 9.0, 0.4),
        line("normal", 0.05, 0.4),  # replaces the one before
        line("normal", 0.2, 0.4, seed=1),
        line("vaeimpute", 0.05, 0.2),
        line("vaeimpute", 9.0, 0.2, seed=1, error="ValueError: no"),
    ]
    out.write_text("".join(json.dumps(made) + "\n" for made in lines))
    readme.write_text(report.TEMPLATE + "\n<!-- pooling:begin -->\nNo results yet.\n<!-- pooling:end -->\n")
    invoke(report.main, "--results", out, "--readme", readme)
    rows = readme.read_text().partition("<!-- pooling:begin -->")[2].splitlines()
    shown = {row.split(" | ")[1]: row.split(" | ")[2:] for row in rows if row.startswith("| 50, MCAR | ")}
    assert list(shown) == ["full data", "normal", "vaeimpute"]
    assert shown["full data"][:2] == ["2", "1.000 ± 0.000"]
    assert shown["normal"][:2] == ["2", "0.500 ± 0.500"]
    assert shown["normal"][4:8] == ["0.125"] * 4
    assert shown["normal"][8:11] == ["1.000"] * 3
    assert shown["vaeimpute"][0] == "1"
    assert shown["vaeimpute"][8:11] == ["1.000", "0.500", "0.500"]
    assert "| 50, MCAR, normal | 50.0, +0.125 |" in "\n".join(rows)
