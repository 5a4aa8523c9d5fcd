"""benchmarks.synthesis: the scores know what can be known of synthetic rows, and the lines resume."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks import synthesis_scores as scores

COLOURS = pd.CategoricalDtype(["blue", "green", "red", "white"])


def rows(n: int, seed: int, shift: float = 0.0, slope: float = 2.0) -> pd.DataFrame:
    """Two numbers on a line, a whole number, and a class that follows the first; "white" never occurs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n)
    frame = pd.DataFrame({"x": x, "y": slope * x + rng.standard_normal(n) + shift, "n": rng.poisson(3.0, n) * 1.0})
    frame["colour"] = pd.Series(np.array(["blue", "green", "red"])[np.digitize(x, [-1, 0])]).astype(COLOURS)
    return frame


def test_the_classifier_is_at_chance_on_one_distribution_and_sees_a_shift():
    pytest.importorskip("lightgbm")
    auc = scores.classifier_auc(rows(300, 0), rows(300, 1))
    assert abs(auc - 0.5) < 4 * np.sqrt(1 / 300 / 6)  # standard error of an AUC at chance, some folds' noise on top
    assert scores.classifier_auc(rows(300, 0), rows(300, 1, shift=10)) > 0.98


def test_the_classifier_sees_numbers_off_the_grid_and_a_rare_class():
    pytest.importorskip("lightgbm")
    between, white = rows(300, 1), rows(300, 1)
    between["n"] += np.random.default_rng(2).uniform(-0.4, 0.4, 300)
    white["colour"] = white["colour"].where(white.index % 3 > 0, "white")
    assert scores.classifier_auc(rows(300, 0), between) > 0.95
    assert scores.classifier_auc(rows(300, 0), white) > 0.6


@pytest.mark.parametrize("model", ["trees", "linear"])
def test_rows_without_the_relation_predict_worse(model):
    pytest.importorskip("lightgbm")
    test = rows(300, 0)
    for target in ("y", "colour"):
        broken = rows(300, 1)
        broken[target] = broken[target].sample(frac=1, random_state=0, ignore_index=True)
        good, bad = (scores.predictive_error(made, test, target, model) for made in (rows(300, 1), broken))
        assert good < 0.8 * bad


@pytest.mark.parametrize("model", ["trees", "linear"])
def test_synthetic_rows_of_one_class_predict_that_class(model):
    pytest.importorskip("lightgbm")
    test, one = rows(90, 0), rows(90, 1)
    one["colour"] = pd.Series(["red"] * 90).astype(COLOURS)
    wrong = (test["colour"] != "red").mean()
    assert scores.predictive_error(one, test, "colour", model) == pytest.approx(np.sqrt(2 * wrong))


def test_shapes_are_one_minus_the_distance_of_the_columns():
    real = pd.DataFrame({"x": [0.0, 1, 2, 3], "c": pd.Categorical(list("aabb"), ["a", "b", "c"])})
    made = pd.DataFrame({"x": [2.0, 3, 4, 5], "c": pd.Categorical(list("abcc"), ["a", "b", "c"])})
    assert scores.column_shapes(real, real) == 1
    assert scores.column_shapes(real, made) == pytest.approx(1 - (2 / 4 + 1 / 2) / 2)


def test_pairs_are_one_minus_the_distance_of_correlations_and_tables():
    real = pd.DataFrame({"x": [0.0, 1, 2, 3], "y": [0.0, 1, 2, 3], "c": pd.Categorical(list("aabb"))})
    made = real.assign(y=[3.0, 2, 1, 0])
    assert scores.column_pairs(real, real) == 1
    assert scores.column_pairs(real, made) == pytest.approx(1 - (2 / 2 + 0 + 1) / 3)  # x with y, x with c, y with c
    assert scores.column_pairs(real, real.assign(x=-9.0)) == pytest.approx(1 - (1 / 2 + 1 + 0) / 3)  # no correlation


def test_the_energy_distance_grows_with_a_shift_and_knows_no_unit():
    real = rows(200, 0)
    distances = [scores.energy_distance(real, rows(200, 1, shift=shift)) for shift in (0, 1, 3)]
    assert 0 < distances[0] < distances[1] < distances[2]
    assert scores.energy_distance(real, real) == pytest.approx(0, abs=1e-12)
    scaled = [frame.assign(y=100 * frame["y"]) for frame in (real, rows(200, 1))]
    assert scores.energy_distance(*scaled) == pytest.approx(distances[0])


def test_near_copies_are_found():
    train, test = rows(400, 0), rows(400, 1)
    assert scores.near_copies(train, test, test) == pytest.approx(0.05)
    assert 0.01 < scores.near_copies(train, test, rows(400, 2)) < 0.12
    assert scores.near_copies(train, test, train.assign(x=train["x"] + 1e-6)) == 1
    half = pd.concat([train[:200], rows(200, 2)])
    assert scores.near_copies(train, test, half) == pytest.approx(0.53, abs=0.03)


def test_where_real_rows_repeat_a_repeated_row_is_no_copy():
    """Classes only, two thirds of the test rows are training rows: a copy counts .05 for each of those."""
    train, test = (rows(400, seed)[["n", "colour"]] for seed in (0, 1))
    same = scores.exact_copies(train, test)
    assert same > 0.9
    assert scores.near_copies(train, test, test) == pytest.approx(0.05)
    assert scores.near_copies(train, test, train) == pytest.approx(0.05 / same)


def test_exact_copies_are_counted():
    train = rows(50, 0)
    mixed = pd.concat([train[:10], rows(30, 1)])
    assert scores.exact_copies(train, mixed) == 0.25
    assert scores.exact_copies(train, mixed.assign(x=mixed["x"] + 1e-6)) == 0
