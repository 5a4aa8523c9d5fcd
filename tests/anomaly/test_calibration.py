"""Calibration: scores of rows with different missing cells, and of cells of different columns, made comparable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from vaeimpute.anomaly.calibration import CellCalibration, MaskCalibration, RowCalibration, baseline_nll, surprisal
from vaeimpute.persistence import from_state, to_state


def null_table(n, n_features, missing, seed):
    """Masks, and negative log-likelihoods of a Gaussian of uneven noise: half a chi-squared with |O| degrees."""
    rng = np.random.default_rng(seed)
    observed = rng.random((n, n_features)) >= missing * rng.random((n, 1))
    sd = np.geomspace(0.1, 10, n_features)
    terms = 0.5 * np.log(2 * np.pi * sd**2) + 0.5 * rng.standard_normal((n, n_features)) ** 2
    return np.where(observed, terms, 0).sum(1), observed


@given(st.integers(4, 30), st.floats(0.0, 0.8), st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_scores_are_standardised_under_the_null(n_features, missing, seed):
    calibration = MaskCalibration.fit(*null_table(4000, n_features, missing, seed))
    nll, observed = null_table(4000, n_features, missing, seed + 1)
    score = calibration.score(nll, observed)[observed.any(1)]
    assert abs(score.mean()) < 0.1
    assert score.std() == pytest.approx(1.0, abs=0.2)


def test_scores_do_not_depend_on_the_number_of_missing_cells():
    calibration = MaskCalibration.fit(*null_table(20_000, 20, 1.0, 0))
    nll, observed = null_table(20_000, 20, 1.0, 1)
    score, count = calibration.score(nll, observed), observed.sum(1)
    for low, high in [(5, 9), (9, 13), (13, 17), (17, 21)]:
        rows = (low <= count) & (count < high)
        assert abs(score[rows].mean()) < 0.15
        assert score[rows].std() == pytest.approx(1.0, abs=0.15)
    assert abs(np.corrcoef(score, count)[0, 1]) < 0.05 < abs(np.corrcoef(nll, count)[0, 1])


def test_outliers_stand_out_whatever_is_missing():
    nll, observed = null_table(3000, 10, 0.8, 0)
    calibration = MaskCalibration.fit(nll, observed)
    some = observed.sum(1) >= 3
    assert (calibration.score(nll + 20, observed)[some] > 3).mean() > 0.99
    assert (np.diff([calibration.score(nll + extra, observed)[some] for extra in (0, 1, 2)], axis=0) > 0).all()


@pytest.mark.parametrize("n_features", [41, 400])
def test_with_more_cells_than_rows_variances_still_are_a_ridge_regression_that_is_not_negative(n_features):
    """By its conditions: the gradient vanishes where a coefficient is positive, and pulls it below zero elsewhere."""
    nll, observed = null_table(40, n_features, 0.8, 0)
    calibration = MaskCalibration.fit(nll, observed)
    bits = np.column_stack([observed, np.ones(40)])
    squares = (nll - bits @ calibration.location) ** 2
    coef = calibration.variance / squares.mean()
    gradient = bits.T @ (squares / squares.mean() - bits @ coef) - np.append(coef[:-1], 0)
    assert coef[:-1].min() >= 0
    np.testing.assert_allclose(gradient[coef > 0], 0, atol=1e-6)
    assert gradient.max() < 1e-6


def test_rows_with_nothing_observed_score_zero():
    nll, observed = null_table(200, 5, 0.5, 0)
    observed[:3] = False
    score = MaskCalibration.fit(nll, observed).score(np.where(observed.any(1), nll, 123.0), observed)
    assert (score[:3] == 0).all()
    assert (score[3:] != 0).all()


def test_complete_rows_keep_their_order():
    nll, observed = null_table(500, 6, 0.0, 0)
    score = MaskCalibration.fit(nll, observed).score(nll, observed)
    np.testing.assert_allclose(score, (nll - nll.mean()) / nll.std(), atol=1e-6)


@pytest.mark.parametrize("nll", [np.zeros(10), np.full(10, -7.0), np.full(10, 1e12)], ids=str)
def test_a_constant_likelihood_is_not_anomalous(nll):
    observed = np.ones((10, 3), dtype=bool)
    score = MaskCalibration.fit(nll, observed).score(nll, observed)
    assert np.isfinite(score).all()
    assert np.abs(score).max() < 1


def test_the_baseline_is_the_mean_over_observed_cells():
    log_px = np.array([[-1.0, np.nan, np.nan], [-3.0, -5.0, np.nan]])
    observed = np.array([[True, False, False], [True, True, False]])
    np.testing.assert_array_equal(baseline_nll(log_px, observed), [2.0, 5.0, 0.0])


def inliers(n, n_features, missing, seed):
    """One score and mask per row, and the member that has not seen it."""
    nll, observed = null_table(n, n_features, missing, seed)
    return nll[None], observed, np.arange(n) % 4


@pytest.fixture(scope="module")
def calibration():
    return RowCalibration.fit(*inliers(4000, 10, 0.8, 0))


def test_surprisal_is_minus_log_of_the_tail():
    reference = np.random.default_rng(0).exponential(size=20_000)
    score = np.linspace(0, 9, 10)
    np.testing.assert_allclose(surprisal(reference, score), score, atol=0.35)  # the tail of an exponential is exp(-s)
    assert (np.diff(surprisal(reference, np.linspace(0, 20, 300))) >= 0).all()


def test_a_score_that_all_share_is_neither_anomalous_nor_the_most_normal():
    assert surprisal(np.zeros(1000), np.zeros(1))[0] == pytest.approx(np.log(2), abs=0.01)


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_surprisal_depends_on_ranks_within_the_body(seed):
    rng = np.random.default_rng(seed)
    reference, score = rng.normal(size=500), rng.normal(size=50)
    body = score < np.quantile(reference, 0.95)
    np.testing.assert_allclose(
        surprisal(np.exp(reference), np.exp(score))[body], surprisal(reference, score)[body], atol=0.02
    )


def test_p_values_are_uniform_under_the_null(calibration):
    scores, observed, _ = inliers(2000, 10, 0.8, 1)
    combined = calibration.combined(np.repeat(scores[:, None], 4, axis=1), observed)
    p = calibration.p_values(combined, observed)
    assert kstest(p, "uniform").pvalue > 0.01
    share = observed.mean(1)
    for low, high in [(0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.1)]:  # fair whatever is missing
        rows = (low <= share) & (share < high)
        assert (p[rows] <= 0.1).mean() == pytest.approx(0.1, abs=0.04)


def test_p_values_fall_as_rows_get_more_anomalous(calibration):
    scores, observed, _ = inliers(100, 10, 0.5, 1)
    p = []
    for extra in (0, 2, 5, 500):
        combined = calibration.combined(np.repeat((scores + extra)[:, None], 4, axis=1), observed)
        p.append(calibration.p_values(combined, observed))
    assert (np.diff(p, axis=0) <= 0).all()
    assert (p[-1] < 0.01).all()


def test_a_row_with_several_masks_is_one_rows_worth_of_evidence():
    scores, observed, member = inliers(100, 6, 0.0, 0)
    row = np.tile(np.arange(100), 5)
    copies = RowCalibration.fit(np.tile(scores, 5), np.tile(observed, (5, 1)), np.tile(member, 5), row)
    new = np.full((1, 4, 1), 1e6)
    p = copies.p_values(copies.combined(new, observed[:1]), observed[:1])
    assert p.item() == pytest.approx(1 / 101)


def test_several_scores_add_up():
    scores, observed, member = inliers(2000, 6, 0.0, 0)
    rng = np.random.default_rng(0)
    both = RowCalibration.fit(np.concatenate([scores, rng.normal(size=scores.shape)]), observed, member)
    new = np.array([[[30.0, 30.0, -9.0]], [[0.0, 9.0, 0.0]]])  # (2 scores, 1 member, 3 rows)
    first, second, third = both.combined(new, observed[:3])[0]
    assert third < first < second


def test_row_calibration_comes_back(calibration):
    copy = from_state(*to_state({"c": calibration}), {"RowCalibration": RowCalibration}, torch.device("cpu"))["c"]
    scores, observed, _ = inliers(50, 10, 0.5, 1)
    combined = copy.combined(scores[:, None], observed)
    np.testing.assert_array_equal(combined, calibration.combined(scores[:, None], observed))
    np.testing.assert_array_equal(copy.surprisal(combined, observed), calibration.surprisal(combined, observed))


def test_p_values_of_exchangeable_scores_are_uniform_on_their_grid():
    """Exactly, however few the rows and whatever the scores: k of n + 1 of them are at most k / (n + 1)."""
    rng = np.random.default_rng(0)
    n, n_new, repeats = 19, 50, 100
    complete, p = np.ones((n + n_new, 2), dtype=bool), []
    for _ in range(repeats):
        score = np.exp(2 * rng.normal(size=(1, n + n_new)))
        calibration = RowCalibration.fit(score[:, :n], complete[:n], np.zeros(n, dtype=int))
        combined = calibration.combined(score[:, None, n:], complete[n:])
        p.append(calibration.p_values(combined, complete[n:]))
    p = np.array(p)
    np.testing.assert_allclose(p * (n + 1), np.rint(p * (n + 1)))
    for level in np.arange(1, n + 1) / (n + 1):
        share = (p <= level + 1e-9).mean(1)  # of rows that share their reference, hence the error from the repeats
        assert share.mean() == pytest.approx(level, abs=4 * share.std() / repeats**0.5)


@pytest.mark.parametrize("n_scores", [1, 3])
@pytest.mark.parametrize("disagreement", [0.1, 1.0])
def test_p_values_are_fair_where_members_and_scores_differ(n_scores, disagreement):
    """Each member errs in its own way; a reference row has the score of the one that has not seen it.

    The more they differ, the nearer their average is to one half: fewer rows than alpha are below alpha.
    """
    rng = np.random.default_rng(0)
    n = 4000
    (own, observed, member), noise = inliers(2 * n, 10, 0.8, 0), rng.normal(size=(n_scores, 4, 2 * n))
    scores = own[:, None] * np.arange(1, n_scores + 1)[:, None, None] + disagreement * noise
    reference = scores[:, member[:n], np.arange(n)]
    calibration = RowCalibration.fit(reference, observed[:n], member[:n])
    p = calibration.p_values(calibration.combined(scores[..., n:], observed[n:]), observed[n:])
    for level in (0.01, 0.05, 0.1, 0.25):
        error = 5 * (2 * level * (1 - level) / n) ** 0.5
        assert (p <= level).mean() < level + error
        assert disagreement == 1 or (p <= level).mean() > level - error


def test_the_surprisal_of_inliers_is_exponential(calibration):
    """A share e^-s of new inliers is above s, and a quantile says so in one number."""
    scores, observed, _ = inliers(4000, 10, 0.8, 1)
    found = calibration.surprisal(calibration.combined(scores[:, None], observed), observed)
    for s in (0.1, 0.5, 1.0, 2.0, 3.0, 4.0):
        share = np.exp(-s)
        assert (found > s).mean() == pytest.approx(share, abs=5 * (2 * share * (1 - share) / 4000) ** 0.5)
    for level in (0.5, 0.9, 0.95):
        assert calibration.quantile(level) == pytest.approx(-np.log(1 - level), abs=0.1)


@pytest.mark.parametrize("n", [200, 20_000])
@pytest.mark.parametrize(
    "draw", [np.random.Generator.normal, np.random.Generator.exponential, np.random.Generator.standard_cauchy]
)
def test_cells_are_calibrated(draw, n):
    """A share e^-s of the reference cells is above s, and of new ones; a higher score is never less surprising."""
    rng = np.random.default_rng(0)
    reference, new = draw(rng, size=n), draw(rng, size=n)
    calibration = CellCalibration.fit(reference)
    for cells in (reference, new):
        found = calibration.surprisal(torch.as_tensor(cells)).numpy()
        for s in (0.1, 0.5, 1.0, 2.0, 2.9):
            share = np.exp(-s)
            assert (found > s).mean() == pytest.approx(share, abs=5 * (2 * share * (1 - share) / n) ** 0.5 + 1 / n)
    ordered = calibration.surprisal(torch.linspace(-50, 50, 5000, dtype=torch.float64))
    assert (ordered.diff() >= 0).all()
    assert ordered.isfinite().all()
    assert (ordered >= 0).all()


def test_cell_calibration_keeps_shape_and_precision_and_comes_back():
    calibration = CellCalibration.fit(np.random.default_rng(0).normal(size=10_000))
    scores = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    found = calibration.surprisal(scores)
    assert (found.shape, found.dtype) == (scores.shape, scores.dtype)
    copy = from_state(*to_state({"c": calibration}), {"CellCalibration": CellCalibration}, torch.device("cpu"))["c"]
    assert torch.equal(copy.surprisal(scores), found)
    assert len(calibration.reference) < 10_000  # more tell no more


def test_without_reference_cells_nothing_is_known():
    assert CellCalibration.fit(np.empty(0)).surprisal(torch.tensor([0.0])).isfinite().all()


def test_where_all_share_the_highest_score_surprisal_stays_in_proportion():
    """There is no tail to learn a scale from; a score one nat higher is one nat more surprising, not 1e12."""
    calibration = CellCalibration.fit(np.zeros(100))
    low, high = calibration.surprisal(torch.tensor([1.0, 3.0])).tolist()
    assert high - low == pytest.approx(2)
    nll, observed = np.full(100, 2.0), np.ones((100, 3), dtype=bool)
    rows = RowCalibration.fit(nll[None], observed, np.zeros(100, dtype=int))
    assert rows.surprisal(rows.combined(np.full((1, 1, 1), 10.0), observed[:1]), observed[:1])[0] < 1e5


@given(st.floats(0, 20))
def test_cells_do_not_get_more_surprising_than_less_likely(more):
    calibration = CellCalibration.fit(np.random.default_rng(0).normal(size=1000))
    low, high = calibration.surprisal(torch.tensor([3.0, 3.0 + more], dtype=torch.float64)).tolist()
    assert high - low <= more + 1e-9
