"""Cellwise contamination: the average over clean masks, against all masks written out, and what it must never do."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from vaeimpute.anomaly.cellwise import GivenOthers, average_over_clean_masks

D = 4
LOADING = torch.tensor([1.0, -1.0, 1.0, 0.8], dtype=torch.float64)
COVARIANCE = torch.outer(LOADING, LOADING) + 0.1 * torch.eye(D, dtype=torch.float64)
LOG_ODDS = torch.tensor([4.0, 5.0, 4.0, 4.5], dtype=torch.float64)
COLUMNS = torch.arange(D)


def log_normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + (2 * math.pi * variance).log())


def given(values, clean):
    """Every cell given the clean others, in a multivariate normal, cell by cell."""
    mean, log_px = torch.zeros_like(values), torch.zeros_like(values)
    for i, j in itertools.product(range(len(values)), range(D)):
        others = [k for k in range(D) if k != j and clean[i, k]]
        w = torch.linalg.solve(COVARIANCE[others][:, others], COVARIANCE[others, j])
        mean[i, j] = w @ values[i, others]
        log_px[i, j] = log_normal(values[i, j], mean[i, j], COVARIANCE[j, j] - w @ COVARIANCE[others, j])
    return GivenOthers(mean, log_px)


def by_hand(x):
    """The same average over all masks with one wrong cell at most beside the one that is predicted."""
    expectations, log_px = [], []
    for j in range(D):
        weights, means, logs = [], [], []
        for wrong in [None, *(k for k in range(D) if k != j)]:
            clean = torch.tensor([[k not in (j, wrong) for k in range(D)]])
            kept = [k for k in range(D) if clean[0, k]]
            S = COVARIANCE[kept][:, kept]
            log_p = torch.distributions.MultivariateNormal(torch.zeros(len(kept)).double(), S).log_prob(x[0, kept])
            pred = given(x, clean)
            weights.append(log_p - (0 if wrong is None else LOG_ODDS[wrong]))
            means.append(pred.expectations[0, j])
            logs.append(pred.log_px[0, j])
        weight = torch.stack(weights).log_softmax(0)
        expectations.append((weight.exp() * torch.stack(means)).sum())
        log_px.append(torch.logsumexp(weight + torch.stack(logs), 0))
    return torch.stack(expectations), torch.stack(log_px)


@pytest.mark.parametrize("error", [1.5, 3.0, 8.0])
def test_one_error_is_averaged_as_by_hand(error):
    x = torch.tensor([[1.0, -1.0, 1.0, 0.8]], dtype=torch.float64)
    x[0, 2] += error
    pred = average_over_clean_masks(given, x, torch.ones(1, D, dtype=torch.bool), LOG_ODDS, COLUMNS)
    expectations, log_px = by_hand(x)
    torch.testing.assert_close(pred.expectations[0], expectations, atol=0.05, rtol=0)
    torch.testing.assert_close(pred.log_px[0], log_px, atol=0.1, rtol=0.02)


def test_cells_of_inliers_are_left_to_the_rest_of_their_row():
    x = torch.tensor([[1.0, -1.0, 1.0, 0.8]], dtype=torch.float64)
    observed = torch.ones(1, D, dtype=torch.bool)
    plain, pred = given(x, observed), average_over_clean_masks(given, x, observed, LOG_ODDS + 20, COLUMNS)
    torch.testing.assert_close(pred.expectations, plain.expectations)
    torch.testing.assert_close(pred.log_px, plain.log_px)


def test_an_error_keeps_its_own_score_and_spoils_no_other():
    x = torch.tensor([[1.0, -1.0, 1.0, 0.8]], dtype=torch.float64)
    observed = torch.ones(1, D, dtype=torch.bool)
    plain = given(x, observed)
    for error in (10.0, 1e3, 1e6):
        wrong = x.clone()
        wrong[0, 1] += error
        pred = average_over_clean_masks(given, wrong, observed, LOG_ODDS, COLUMNS)
        assert pred.log_px[0, 1] < -100
        others = [0, 2, 3]
        assert (pred.log_px[0, others] - plain.log_px[0, others]).abs().max() < 1
        torch.testing.assert_close(pred.expectations[0], plain.expectations[0], atol=0.2, rtol=0)


@pytest.mark.parametrize("observed", [[False] * 4, [True, False, False, False], [True, False, True, True]])
def test_missing_cells_are_predicted_and_have_no_say(observed):
    observed = torch.tensor([observed, [True] * 4])
    x = torch.tensor([[1.0, -1.0, 1.0, 0.8], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    pred = average_over_clean_masks(given, x, observed, LOG_ODDS, COLUMNS)
    assert torch.isfinite(pred.expectations).all()
    assert torch.isfinite(pred.log_px).all()
    spoiled = torch.where(observed, x, 1e3)
    other = average_over_clean_masks(given, spoiled, observed, LOG_ODDS, COLUMNS)
    torch.testing.assert_close(other.expectations, pred.expectations)
    torch.testing.assert_close(other.log_px[observed], pred.log_px[observed])


def test_log_odds_may_differ_from_row_to_row():
    x = torch.tensor([[1.0, -1.0, 4.0, 0.8]], dtype=torch.float64).expand(3, -1)
    observed = torch.ones(3, D, dtype=torch.bool)
    log_odds = LOG_ODDS + torch.tensor([[0.0], [2.0], [9.0]])
    pred = average_over_clean_masks(given, x, observed, log_odds, COLUMNS)
    for row in range(3):
        alone = average_over_clean_masks(given, x[:1], observed[:1], log_odds[row], COLUMNS)
        torch.testing.assert_close(pred.expectations[row], alone.expectations[0])
        torch.testing.assert_close(pred.log_px[row], alone.log_px[0])


def test_rows_do_not_depend_on_their_company():
    g = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(20, D, dtype=torch.float64, generator=g)
    observed = torch.rand(20, D, generator=g) < 0.8
    together = average_over_clean_masks(given, x, observed, LOG_ODDS, COLUMNS)
    alone = [average_over_clean_masks(given, x[[i]], observed[[i]], LOG_ODDS, COLUMNS) for i in range(20)]
    torch.testing.assert_close(together.expectations, torch.cat([row.expectations for row in alone]))
    torch.testing.assert_close(together.log_px, torch.cat([row.log_px for row in alone]))
