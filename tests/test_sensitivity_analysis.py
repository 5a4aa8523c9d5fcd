"""An analysis at many shifts: what differs is the shifts' doing, and a linear one tips where arithmetic says."""

import numpy as np
import pandas as pd
import pytest

from vaeimpute import Sensitivity, VAEImputer, sensitivity


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    z = rng.normal(size=120)
    X = pd.DataFrame(
        {"a": 0.6 + z, "b": z + rng.normal(size=120), "c": np.where(z + rng.normal(size=120) > 0, "y", "n")}
    )
    return X.mask(rng.random(X.shape) < 0.3)


@pytest.fixture(scope="module")
def fitted(X):
    return VAEImputer(random_state=0, max_iter=10).fit(X)


def mean_of_a(table):
    return table["a"].mean(), 0.1**2


@pytest.fixture(scope="module")
def answers(fitted, X):
    return sensitivity(fitted, X, mean_of_a, {"a": np.linspace(-0.6, 0.6, 5)}, 4, random_state=0)


def test_one_row_a_shift(answers):
    assert list(answers.table) == ["a", "parameter", "estimate", "std_error", "low", "high", "p_value", "fmi"]
    assert answers.table["a"].tolist() == pytest.approx([-0.6, -0.3, 0, 0.3, 0.6], abs=1e-12)
    assert repr(answers).count("\n") == 5
    assert "<table" in answers._repr_html_()


def test_a_linear_analysis_moves_and_tips_where_arithmetic_says(answers, X):
    """Each shift adds the same to the estimate; its interval reaches a value between two shifts."""
    slope = X["a"].isna().mean() * X["a"].std(ddof=0)
    np.testing.assert_allclose(np.diff(answers.table["estimate"]), 0.3 * slope, rtol=1e-9)
    np.testing.assert_allclose(answers.table["std_error"], answers.table["std_error"][0], rtol=1e-9)
    base = answers.table.set_index("a").loc[0]
    for null in (base.low - 0.5 * slope, base.low - 0.1 * slope, base.low + 0.3 * slope):
        assert answers.tipping_points(null)["a"] == pytest.approx((null - base.low) / slope, abs=1e-6)
    assert answers.tipping_points(base.high - 0.4 * slope)["a"] == pytest.approx(-0.4, abs=1e-6)
    assert answers.tipping_points(base.high + 0.2 * slope)["a"] == pytest.approx(0.2, abs=1e-6)
    assert answers.tipping_points(base.low - 2 * slope) == {"a": None}


def test_the_nearest_of_two_tipping_points_counts():
    rows = pd.DataFrame(
        {"s": [-2.0, -1, 0, 1, 2], "parameter": "p", "low": [1.0, -1, -2, -3, -4], "high": [9.0, 8, 1, 0.5, -1]}
    )
    assert Sensitivity(rows, ["s"]).tipping_points() == {"s": pytest.approx(4 / 3)}
    assert Sensitivity(rows[:4], ["s"]).tipping_points() == {"s": -1.5}
    assert Sensitivity(rows.iloc[::-1], ["s"]).tipping_points() == {"s": pytest.approx(4 / 3)}
    assert Sensitivity(rows[2:3], ["s"]).tipping_points() == {"s": None}


def test_the_same_seed_gives_the_same_answers_and_no_shift_is_missing_at_random(answers, fitted, X):
    again = sensitivity(fitted, X, mean_of_a, {"a": [0.0]}, 4, random_state=0)
    pd.testing.assert_frame_equal(again.table, answers.table[answers.table["a"] == 0].reset_index(drop=True))


def test_all_combinations_of_columns_and_classes(fitted, X):
    def analysis(table):
        return pd.Series({"a": table["a"].mean(), "share": (table["c"] == "y").mean()}), pd.Series(
            {"a": 0.01, "share": 0.01}
        )

    answers = sensitivity(fitted, X, analysis, {"a": [-0.5, 0.5], "c": {"y": [0, 3]}}, 3, random_state=0, level=0.9)
    assert answers.shifted == ["a", "c: y"]
    assert len(answers.table) == 2 * 2 * 2
    share = answers.table[answers.table["parameter"] == "share"].groupby("c: y")["estimate"].mean()
    assert share[3] > share[0] + 0.02
    assert set(answers.tipping_points(parameter="a")) == {"a", "c: y"}
    with pytest.raises(ValueError, match="parameter must be one of"):
        answers.tipping_points()


@pytest.mark.parametrize(
    ("shifts", "error", "message"),
    [
        ({}, ValueError, "shifts must name a column"),
        ({"a": 0.5}, ValueError, r"shifts\['a'\] must be a sequence of finite numbers"),
        ({"a": [0, np.inf]}, ValueError, r"shifts\['a'\] must be a sequence of finite numbers"),
        ({"c": {"y": ["much"]}}, TypeError, r"shifts\['c'\]\['y'\] must be a sequence of numbers"),
        ({"income": [0.5]}, ValueError, "no column of the training table"),
    ],
)
def test_shifts_that_cannot_be_used_are_refused(fitted, X, shifts, error, message):
    with pytest.raises(error, match=message):
        sensitivity(fitted, X, mean_of_a, shifts, 2)


def test_the_picture_has_a_line_for_each_shift_of_the_others(answers):
    figure = pytest.importorskip("matplotlib.figure")
    ax = answers.plot(ax=figure.Figure().subplots())
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), answers.table["estimate"])
    assert ax.get_xlabel() == "shift of the hidden a"
    both = pd.concat([answers.table.assign(b=shift) for shift in (0.0, 1.0)])
    drawn = Sensitivity(both, ["a", "b"]).plot(ax=figure.Figure().subplots())
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == ["b 0", "b 1"]
