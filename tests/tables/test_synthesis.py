"""Sequential trees: what a column is given those before it, and from uniform numbers alone."""

from __future__ import annotations

import numpy as np
import pytest

from vaeimpute.tables.synthesis import _LEAF, SequentialTrees


def uniform(n, n_columns, seed=1):
    return np.random.default_rng(seed).uniform(size=(n, n_columns))


def trees(*columns, classes=(), seed=0):
    return SequentialTrees(np.column_stack(columns).astype(float), classes, seed)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_one_column_is_drawn_from_its_distribution(rng):
    x = rng.gamma(2.0, size=500)
    drawn = trees(x).sample(uniform(50_000, 1))[:, 0]
    assert drawn.mean() == pytest.approx(x.mean(), abs=4 * x.std() / 50_000**0.5)
    levels = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose((drawn <= np.quantile(x, levels)[:, None]).mean(1), levels, atol=0.01)
    assert (drawn.min(), drawn.max()) == (x.min(), x.max())


def test_the_mean_of_a_leaf_is_that_of_its_cells(rng):
    """Exactly, over all uniform numbers, so that what many leaves add up to has no bias."""
    x = np.repeat([0.0, 1.0], _LEAF)
    y = rng.exponential(size=2 * _LEAF) + 5 * x
    grid = (np.arange(20_000) + 0.5) / 20_000
    first = np.repeat([0.25, 0.75], len(grid))
    drawn = trees(x, y).sample(np.column_stack([first, np.tile(grid, 2)]))
    for value in (0, 1):
        assert drawn[drawn[:, 0] == value, 1].mean() == pytest.approx(y[x == value].mean(), abs=1e-6)


def test_moments_of_a_linear_table(rng):
    rows = rng.normal(size=(3000, 2)) @ [[1.0, 2.0, -1.0], [0.5, 0.0, 1.0]] + 0.5 * rng.normal(size=(3000, 3))
    drawn = trees(*rows.T).sample(uniform(30_000, 3))
    sd = rows.std(0)
    assert (np.abs(drawn.mean(0) - rows.mean(0)) < 0.03 * sd).all()
    np.testing.assert_allclose(drawn.var(0), rows.var(0), rtol=0.05)
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.corrcoef(rows.T), atol=0.05)


def test_values_that_repeat_keep_their_frequency_and_nothing_stands_between_them(rng):
    x = np.where(rng.uniform(size=2000) < 0.56, 0.0, rng.exponential(size=2000) + 1)
    steps = rng.integers(5, size=2000) * 0.25
    drawn = trees(x, steps).sample(uniform(20_000, 2))
    assert (drawn[:, 0] == 0).mean() == pytest.approx((x == 0).mean(), abs=0.015)
    assert not ((drawn[:, 0] > 0) & (drawn[:, 0] < x[x > 0].min())).any()
    assert set(drawn[:, 1]) == set(steps)


# ---- what depends on what ----------------------------------------------------------------------------------------


def test_nothing_depends_on_an_independent_column(rng):
    rows = rng.normal(size=(2000, 3))
    drawn = trees(*rows.T).sample(uniform(20_000, 3))
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.06  # that of 2,000 rows, and a tree's


def test_a_class_that_follows_from_its_parent_does_so_in_every_draw(rng):
    parent = rng.integers(4, size=500)
    child = np.array([2, 0, 1, 2])[parent]
    drawn = trees(parent, child, classes=(0, 1)).sample(uniform(5000, 2)).astype(int)
    np.testing.assert_array_equal(drawn[:, 1], np.array([2, 0, 1, 2])[drawn[:, 0]])
    np.testing.assert_allclose(np.bincount(drawn[:, 0]) / 5000, np.bincount(parent) / 500, atol=0.02)


def test_numbers_stay_among_the_cells_of_their_leaf(rng):
    """A column of three far heaps, which a class tells apart: none is drawn for the class of another."""
    label = rng.integers(3, size=300)
    number = 100 * label + rng.uniform(size=300)
    drawn = trees(number, label, classes=(1,)).sample(uniform(5000, 2))
    inside = drawn[:, 0] - 100 * drawn[:, 1]
    assert (inside >= 0).all()
    assert (inside <= 1).all()


def test_leaves_hold_ten_rows(rng):
    rows = rng.normal(size=(400, 2))
    rows[:, 1] = rows[:, 0]  # a tree could go on to single rows
    column = trees(*rows.T)._columns[1]
    assert np.unique(column._leaf, return_counts=True)[1].min() >= _LEAF


# ---- privacy, and whence numbers come ----------------------------------------------------------------------------


def test_no_training_row_is_copied_on_continuous_data(rng):
    """A row comes back whole if all its cells do, which ends of leaves alone can: one of 2 m numbers each."""
    rows = rng.normal(size=(600, 3)) @ rng.normal(size=(3, 3))
    drawn = trees(*rows.T).sample(uniform(20_000, 3))
    assert not np.intersect1d(drawn @ [1, np.e, np.pi], rows @ [1, np.e, np.pi]).size
    share = np.isin(drawn, rows).mean(0)
    assert (share <= 1 / _LEAF + 0.01).all()


def test_rows_come_from_the_uniform_numbers_alone(rng):
    rows, state = rng.normal(size=(100, 3)), np.random.get_state()[1].copy()  # noqa: NPY002
    one, same = trees(*rows.T), trees(*rows.T)
    u = uniform(50, 3)
    np.testing.assert_array_equal(one.sample(u), same.sample(u))
    np.testing.assert_array_equal(one.sample(u[7:9]), one.sample(u)[7:9])
    assert (one.sample(u) != one.sample(uniform(50, 3, seed=2))).any()
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("n", [1, 2, 15])
def test_few_rows_are_drawn_from_all_of_them(rng, n):
    rows = rng.normal(size=(n, 2))
    drawn = trees(*rows.T).sample(uniform(200, 2))
    assert (drawn >= rows.min(0)).all()
    assert (drawn <= rows.max(0)).all()
    assert trees(rows[:, 0]).sample(np.array([[0.0], [1 - 1e-16]]))[:, 0].tolist() == [
        rows[:, 0].min(),
        rows[:, 0].max(),
    ]
