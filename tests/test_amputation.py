"""amputation: rates, which cells are hidden, determinism, and what is never done."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vaeimpute.amputation import MECHANISMS, ampute

ALL = sorted(MECHANISMS)


@pytest.fixture(scope="module")
def table() -> np.ndarray:
    """2,000 correlated rows: skewed, discrete, constant-free."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((2000, 3)) @ rng.standard_normal((3, 9)) + 0.3 * rng.standard_normal((2000, 9))
    X[:, 1], X[:, 2], X[:, 3] = np.exp(X[:, 1]), np.round(X[:, 2]), X[:, 3] > 0
    return X


def logits(causes, hidden):
    """Logits of the cells that are hidden, as a regression finds them."""
    causes = (causes - causes.mean(axis=0)) / causes.std(axis=0)
    return LogisticRegression(C=1e6).fit(causes, hidden).decision_function(causes)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("mechanism", ALL)
def test_realised_rate(table, mechanism, rate):
    observed = ampute(table, rate, mechanism, random_state=0)
    maskable = observed[:, ~observed.all(axis=0)] if mechanism == "mar" else observed
    # Five standard errors of a share of n independent cells; blocks end within a rectangle's width of the target.
    tolerance = 5 * np.sqrt(rate * (1 - rate) / maskable.size)
    assert abs((~maskable).mean() - rate) < tolerance


@pytest.mark.parametrize("mechanism", ["mcar", "mar", "mnar", "mnar_quantile"])
def test_realised_rate_of_each_column(table, mechanism):
    hidden = ~ampute(table, 0.3, mechanism, random_state=1)
    rates = hidden.mean(axis=0)[hidden.any(axis=0)]
    np.testing.assert_allclose(rates, 0.3, atol=5 * np.sqrt(0.3 * 0.7 / len(table)))


@pytest.mark.parametrize("mechanism", ALL)
@pytest.mark.parametrize("state", [3, np.random.RandomState, np.random.default_rng], ids=["int", "RandomState", "rng"])
def test_deterministic_and_global_rng_untouched(table, mechanism, state):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (ampute(table, 0.3, mechanism, random_state=state if state == 3 else state(3)) for _ in range(2))
    other = ampute(table, 0.3, mechanism, random_state=4)
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert one.dtype == bool


@pytest.mark.parametrize("mechanism", ALL)
def test_input_is_not_written_and_missing_stays_missing(table, mechanism):
    X = table.copy()
    X[:50, 0] = np.nan
    X.setflags(write=False)
    assert not ampute(X, 0.3, mechanism, random_state=0)[:50, 0].any()


def test_mcar_does_not_depend_on_values(table):
    np.testing.assert_array_equal(ampute(table, random_state=0), ampute(np.zeros_like(table), random_state=0))


def test_mar_drivers_stay_observed_and_drive(table):
    observed = ampute(table, 0.3, "mar", random_state=0, drivers=[0, 4], strength=3.0)
    assert observed[:, [0, 4]].all()
    assert not observed[:, [1, 2, 3, 5, 6, 7, 8]].all(axis=0).any()
    for j in (1, 2, 3, 5, 6, 7, 8):  # a logistic function of them, whose logits have that standard deviation
        assert logits(table[:, [0, 4]], ~observed[:, j]).std() == pytest.approx(3.0, rel=0.15)


def test_mar_ignores_the_values_it_hides(table):
    changed = table.copy()
    changed[:, [1, 2, 3, 5, 6, 7, 8]] *= -7.0
    one, two = (ampute(X, 0.3, "mar", random_state=0, drivers=[0, 4]) for X in (table, changed))
    np.testing.assert_array_equal(one, two)


def test_mar_leaves_a_third_of_the_columns_by_default(table):
    assert ampute(table, 0.3, "mar", random_state=0).all(axis=0).sum() == 3


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_mnar_is_a_logistic_function_of_what_it_hides(table, strength):
    hidden = ~ampute(table, 0.3, "mnar", random_state=0, strength=strength)
    for j in range(table.shape[1]):
        found = logits(table[:, [j]], hidden[:, j])
        assert found.std() == pytest.approx(strength, abs=0.3)
        assert np.corrcoef(found, table[:, j])[0, 1] == pytest.approx(1)


@pytest.mark.parametrize("mechanism", ["mnar", "mnar_quantile"])
def test_mnar_hides_larger_values(table, mechanism):
    observed = ampute(table, 0.3, mechanism, random_state=0)
    for j in range(table.shape[1]):
        assert table[~observed[:, j], j].mean() > table[observed[:, j], j].mean()


def test_mnar_strength_zero_is_mcar(table):
    hidden = ~ampute(table, 0.3, "mnar", random_state=0, strength=0.0)
    gaps = [table[hidden[:, j], j].mean() - table[:, j].mean() for j in range(9)] / table.std(axis=0)
    assert np.abs(gaps).max() < 5 / np.sqrt(0.3 * len(table))


def test_mnar_quantile_hides_in_the_tail_only(table):
    observed = ampute(table, 0.2, "mnar_quantile", random_state=0, tail=0.25)
    for j in range(table.shape[1]):
        assert table[~observed[:, j], j].min() >= np.quantile(table[:, j], 0.75, method="lower")


def test_one_block_is_a_rectangle():
    observed = ampute(np.zeros((100, 10)), 0.02, "block", random_state=0, block_rows=0.05, block_columns=0.4)
    rows, columns = np.nonzero(~observed)
    assert 0 < (~observed).sum() <= 5 * 4 + 3
    for row in np.unique(rows):
        hidden = np.sort(columns[rows == row])
        assert len(hidden) <= 8
        assert (np.diff(hidden) == 1).all()


@pytest.mark.parametrize("mechanism", ALL)
def test_no_row_and_no_column_is_lost(mechanism):
    X = np.random.default_rng(0).standard_normal((40, 3))
    for seed in range(20):
        observed = ampute(X, 0.9, mechanism, random_state=seed, **({"tail": 1.0} if "quantile" in mechanism else {}))
        assert observed.any(axis=0).all()
        assert observed.any(axis=1).all()


def test_a_single_column_keeps_its_rate():
    assert 0.2 < (~ampute(np.arange(500.0)[:, None], 0.3, random_state=0)).mean() < 0.4


def test_degenerate_tables():
    assert ampute(np.ones((5, 2)), 0.0).all()
    assert ampute(np.ones((1, 1)), 0.5, random_state=0).all()
    assert ampute(np.empty((0, 3)), 0.5, random_state=0).shape == (0, 3)
    constant = np.full((400, 3), 0.1)
    assert 0.2 < (~ampute(constant, 0.3, "mnar", random_state=0)).mean() < 0.4
    empty_column = np.column_stack([np.full(10, np.nan), np.arange(10.0)])
    np.testing.assert_array_equal(ampute(empty_column, 0.3, "mnar", random_state=0).any(axis=0), [False, True])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 1.0}, "rate must be in"),
        ({"mechanism": "random"}, "mechanism must be one of"),
        ({"mechanism": "mnar_quantile", "rate": 0.6}, "tail must be in"),
        ({"mechanism": "mar", "drivers": [9]}, "drivers must name"),
        ({"mechanism": "mar", "drivers": []}, "drivers must name"),
    ],
)
def test_errors_teach(table, arguments, message):
    with pytest.raises(ValueError, match=message):
        ampute(table, random_state=0, **arguments)


def test_errors_about_the_table():
    with pytest.raises(ValueError, match="classes as integer codes"):
        ampute([["red", 1.0]])
    with pytest.raises(ValueError, match="2 dimensions"):
        ampute([1.0, 2.0])
    with pytest.raises(ValueError, match="at least 2 columns"):
        ampute([[1.0], [2.0]], mechanism="mar")
