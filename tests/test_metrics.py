"""metrics: against closed forms, brute force and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vaeimpute import metrics


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_mean_filling_scores_one(rng):
    truth = rng.gamma(2.0, size=(500, 4)) * [1.0, 10.0, 1e-6, 1e6]
    imputed, hidden = np.broadcast_to(truth.mean(axis=0), truth.shape), np.ones(truth.shape, dtype=bool)
    assert metrics.nrmse(truth, imputed, hidden) == pytest.approx(1.0)
    np.testing.assert_allclose(metrics.column_nrmse(truth, imputed, hidden), 1.0)


@pytest.mark.parametrize("metric", [metrics.nrmse, metrics.nmae])
def test_errors_are_free_of_units(rng, metric):
    truth, imputed = rng.standard_normal((2, 100, 3))
    hidden = rng.random((100, 3)) < 0.3
    scale, shift = np.array([1.0, 1e3, 1e-3]), np.array([0.0, 5.0, -7.0])
    assert metric(truth * scale + shift, imputed * scale + shift, hidden) == pytest.approx(
        metric(truth, imputed, hidden)
    )


def test_pooled_error_weighs_columns_by_their_hidden_cells(rng):
    truth, imputed = rng.standard_normal((2, 100, 3))
    hidden = rng.random((100, 3)) < [0.1, 0.3, 0.6]
    weights = hidden.sum(axis=0)
    by_column = metrics.column_nrmse(truth, imputed, hidden)
    assert metrics.nrmse(truth, imputed, hidden) == pytest.approx(np.sqrt(np.average(by_column**2, weights=weights)))
    by_column = metrics.column_nmae(truth, imputed, hidden)
    assert metrics.nmae(truth, imputed, hidden) == pytest.approx(np.average(by_column, weights=weights))


def test_only_hidden_cells_count(rng):
    truth = rng.standard_normal((50, 2))
    hidden = rng.random((50, 2)) < 0.3
    imputed = np.where(hidden, truth, 99.0)
    assert metrics.nrmse(truth, imputed, hidden) == metrics.nmae(truth, imputed, hidden) == 0


def test_nothing_to_judge_is_nan_without_warnings():
    truth = np.array([[1.0, 0.1, np.nan], [2.0, 0.1, np.nan], [4.0, 0.1, np.nan]])
    hidden = np.array([[False, True, True]] * 3)
    assert math.isnan(metrics.nrmse(truth, truth, hidden))
    assert np.isnan(metrics.column_nmae(truth, truth, hidden)).all()
    empty = np.empty((0, 2))
    assert math.isnan(metrics.nmae(empty, empty, empty.astype(bool)))
    assert math.isnan(metrics.category_error(truth, truth, np.zeros((3, 3), dtype=bool)))
    assert math.isnan(metrics.balanced_accuracy([], []))
    assert math.isnan(metrics.interval_coverage([], np.empty((20, 0))))
    assert math.isnan(metrics.interval_width(np.empty((20, 0))))


def test_true_values_that_are_missing_do_not_count():
    truth = np.array([[0.0], [2.0], [np.nan]])
    assert metrics.nrmse(truth, [[1.0], [2.0], [50.0]], np.ones((3, 1), dtype=bool)) == pytest.approx(math.sqrt(0.5))


def test_class_metrics(rng):
    truth = np.array(["a"] * 90 + ["b"] * 9 + ["c"])
    common = np.full(100, "a")
    assert metrics.category_error(truth, common, np.ones(100, dtype=bool)) == pytest.approx(0.1)
    assert metrics.balanced_accuracy(truth, common) == pytest.approx(1 / 3)
    assert metrics.balanced_accuracy(truth, truth) == 1
    order = rng.permutation(100)
    guess = rng.choice(["a", "b", "c"], 100)
    assert metrics.balanced_accuracy(truth, guess) == pytest.approx(
        metrics.balanced_accuracy(truth[order], guess[order])
    )


def test_crps_of_a_gaussian(rng):
    y = np.array([-2.0, 0.0, 0.5, 3.0])
    draws = rng.standard_normal((200_000, 1)) + np.zeros(4)
    density, below = np.exp(-(y**2) / 2) / math.sqrt(2 * math.pi), np.array([(1 + math.erf(v / 2**0.5)) / 2 for v in y])
    exact = y * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi)
    np.testing.assert_allclose(metrics.crps_from_draws(y, draws), exact, atol=0.01)


def test_crps_equals_the_double_sum(rng):
    y, draws = rng.standard_normal(5), rng.standard_normal((7, 5))
    pairs = np.abs(draws[:, None] - draws[None]).sum(axis=(0, 1)) / (2 * 7 * 6)
    np.testing.assert_allclose(metrics.crps_from_draws(y, draws), np.abs(draws - y).mean(axis=0) - pairs)


def test_crps_is_unbiased_in_the_number_of_draws(rng):
    y = rng.standard_normal(40_000)
    few, many = (metrics.crps_from_draws(y, rng.standard_normal((m, len(y)))).mean() for m in (2, 50))
    assert few == pytest.approx(many, abs=0.02)
    assert many == pytest.approx(1 / math.sqrt(math.pi), abs=0.02)


def test_crps_of_one_draw_is_the_absolute_error():
    np.testing.assert_array_equal(metrics.crps_from_draws([1.0, 5.0], [[3.0, 5.0]]), [2.0, 0.0])


@pytest.mark.parametrize("m", [19, 20, 100])
def test_coverage_is_nominal_when_truth_and_draws_agree(rng, m):
    truth, draws = rng.standard_exponential(20_000), rng.standard_exponential((m, 20_000))
    assert metrics.interval_coverage(truth, draws) == pytest.approx(0.9, abs=5 * math.sqrt(0.09 / 20_000))


def test_width_of_gaussian_intervals(rng):
    draws = 3.0 * rng.standard_normal((50_000, 2))
    assert metrics.interval_width(draws) == pytest.approx(3.0 * 2 * 1.6449, rel=0.02)
    assert metrics.interval_width(draws, level=0.5) == pytest.approx(3.0 * 2 * 0.6745, rel=0.02)


@pytest.mark.parametrize("distance", [metrics.energy_distance, metrics.sliced_wasserstein])
def test_distances_of_samples(rng, distance):
    A, B = rng.standard_normal((2, 1500, 3))
    assert distance(A, A) == pytest.approx(0.0, abs=1e-9)
    assert distance(A, rng.permutation(A)) == pytest.approx(0.0, abs=1e-9)
    assert distance(A, B) == pytest.approx(distance(B, A))
    assert 0 < distance(A, B) < distance(A, B + 0.5) < distance(A, B + 1.0)


def test_energy_distance_is_the_mean_over_pairs(rng):
    A, B = rng.standard_normal((30, 2)), rng.standard_normal((20, 2)) + 1

    def mean_distance(U, V):
        return np.linalg.norm(U[:, None] - V[None], axis=2).mean()

    exact = 2 * mean_distance(A, B) - mean_distance(A, A) - mean_distance(B, B)
    assert metrics.energy_distance(A, B) == pytest.approx(exact, abs=1e-6)


def test_sliced_wasserstein_of_a_shift(rng):
    # A shift by v moves every projection by theta.v, and E (theta.v)^2 = |v|^2 / d.
    A, shift = rng.standard_normal((200, 4)), np.array([3.0, 0.0, 4.0, 0.0])
    assert metrics.sliced_wasserstein(A, A + shift, n_projections=20_000) == pytest.approx(2.5, rel=0.02)


def test_sliced_wasserstein_of_unequal_sizes():
    assert metrics.sliced_wasserstein([[0.0], [1.0]], [[0.0], [0.0], [1.0], [1.0]]) == 0
    assert metrics.sliced_wasserstein([[0.0]], [[-1.0], [1.0]]) == 1


def test_global_rng_untouched(rng):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    metrics.sliced_wasserstein(rng.standard_normal((5, 2)), rng.standard_normal((5, 2)))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_errors_teach():
    ones = np.ones((2, 2))
    with pytest.raises(ValueError, match="one shape"):
        metrics.nrmse(ones, ones, np.ones((2, 1), dtype=bool))
    with pytest.raises(ValueError, match="must be Boolean"):
        metrics.nrmse(ones, ones, ones)
    with pytest.raises(ValueError, match=r"draws must be \(m, n_cells\)"):
        metrics.crps_from_draws([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="level must be in"):
        metrics.interval_width(ones, level=90)
    with pytest.raises(ValueError, match="equal width"):
        metrics.energy_distance(ones, np.ones((2, 3)))
