"""benchmarks.cells: errors are where they are said to be, and every method looks for them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks import cells

SLOPES = np.array([1.0, 2.0, -1.0])


@pytest.fixture
def table() -> pd.DataFrame:
    """Two numbers, and two classes that say the same: two wrong cells are never the majority."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 3, 200)
    colour, fruit = np.array(["red", "green", "blue"])[code], np.array(["apple", "pear", "plum"])[code]
    x, y = code + 0.1 * rng.normal(size=(2, 200))
    return pd.DataFrame({"x": x, "y": y, "colour": colour, "fruit": fruit})


@pytest.mark.parametrize("kind", ["shift", "swap"])
def test_errors_of_numbers_are_where_they_are_said_to_be(kind):
    X = np.random.default_rng(0).normal(size=(400, 5))
    new, wrong = cells.contaminate(X, kind, np.random.default_rng(1))
    assert wrong.mean() == pytest.approx(cells.CONTAMINATION, abs=0.02)
    np.testing.assert_array_equal(new != X, wrong)
    if kind == "swap":
        assert all(np.isin(new[:, j], X[:, j]).all() for j in range(5))
    else:
        shift = np.abs(new - X)[wrong] / np.broadcast_to(X.std(0), X.shape)[wrong]
        assert shift.min() >= 3
        assert shift.max() <= 5


def test_errors_of_classes_are_other_categories(table):
    new, wrong = cells.replace_classes(table, ["colour", "fruit"], np.random.default_rng(1))
    assert wrong.mean() == pytest.approx(cells.CONTAMINATION, abs=0.03)
    np.testing.assert_array_equal((new != table)[["colour", "fruit"]].to_numpy(), wrong)
    assert set(new["colour"]) <= set(table["colour"])
    pd.testing.assert_series_equal(new["x"], table["x"])


@pytest.mark.parametrize("contaminated", [False, True])
@pytest.mark.parametrize("method", ["z", "fa"])
def test_peers_find_wrong_cells(table, method, contaminated):
    typo, shift = cells.Protocol("typo", contaminated), cells.Protocol("shift", contaminated)
    line = cells.judge_classes("toy", table[:100], table[100:].reset_index(drop=True), 0, method, typo)
    assert line["auroc"] > (0.3 if method == "z" else 0.9)
    assert 0 <= line["repair_error"] <= 1
    X = line_of_numbers()
    line = cells.judge_numbers("toy", X[:100], X[100:], 0, method, shift)
    assert line["auroc"] > 0.9
    assert line["repair_rmse"] < 9


@pytest.mark.parametrize("contaminated", [False, True])
def test_ours_misses_no_wrong_cell_where_the_others_tell_it(table, contaminated):
    """Three cells tell each class, two each number to a tenth; an error is thirty times that."""
    typo, shift = cells.Protocol("typo", contaminated), cells.Protocol("shift", contaminated)
    line = cells.judge_classes("toy", table[:100], table[100:].reset_index(drop=True), 0, "vaeimpute", typo)
    assert (line["auroc"], line["repair_error"]) == (1, 0)
    X = line_of_numbers()
    line = cells.judge_numbers("toy", X[:100], X[100:], 0, "vaeimpute", shift)
    assert line["auroc"] == 1
    plain = cells.judge_numbers("toy", X[:100], X[100:], 0, "z", shift)["repair_rmse"]
    best = rmse_of_the_true_repair(X[:100], X[100:])
    assert line["repair_rmse"] < (plain if contaminated else 1.5 * best)


def line_of_numbers() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 1)) * SLOPES + 0.1 * rng.normal(size=(200, 3))


def rmse_of_the_true_repair(train: np.ndarray, test: np.ndarray) -> float:
    """The error of who knows the Gaussian that the rows are from, and which cells are wrong."""
    wrong = cells.contaminate(test, "shift", cells._rng("toy", "shift", 0))[1]
    covariance, errors = np.outer(SLOPES, SLOPES) + 0.01 * np.eye(3), []
    for row, bad in zip(test, wrong, strict=True):
        gain = covariance[np.ix_(bad, ~bad)] @ np.linalg.inv(covariance[np.ix_(~bad, ~bad)])
        errors.append((gain @ row[~bad] - row[bad]) / train.std(0)[bad])
    return float(np.sqrt((np.concatenate(errors) ** 2).mean()))
