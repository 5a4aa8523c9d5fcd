"""belief: the average over sets of believed cells, against all sets written out, and what it must never do."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from vaeimpute.anomaly.cellwise import Cells, doubtful

D = 4
LOADING = torch.tensor([1.0, -1.0, 1.0, 0.8], dtype=torch.float64)
COVARIANCE = torch.outer(LOADING, LOADING) + 0.1 * torch.eye(D, dtype=torch.float64)
PRICE = torch.tensor([4.0, 5.0, 4.0, 4.5], dtype=torch.float64)
COLUMNS = torch.arange(D)


def log_normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + (2 * math.pi * variance).log())


def given(values, believed):
    """Every cell given the believed others, in a multivariate normal, cell by cell."""
    mean, log_density = torch.zeros_like(values), torch.zeros_like(values)
    for i, j in itertools.product(range(len(values)), range(D)):
        others = [k for k in range(D) if k != j and believed[i, k]]
        w = torch.linalg.solve(COVARIANCE[others][:, others], COVARIANCE[others, j])
        mean[i, j] = w @ values[i, others]
        log_density[i, j] = log_normal(values[i, j], mean[i, j], COVARIANCE[j, j] - w @ COVARIANCE[others, j])
    return Cells(mean, log_density)


def by_hand(x):
    """The same average over all sets with one doubted cell at most beside the asked one."""
    answers, densities = [], []
    for j in range(D):
        weights, means, logs = [], [], []
        for wrong in [None, *(k for k in range(D) if k != j)]:
            believed = torch.tensor([[k not in (j, wrong) for k in range(D)]])
            kept = [k for k in range(D) if believed[0, k]]
            S = COVARIANCE[kept][:, kept]
            log_p = torch.distributions.MultivariateNormal(torch.zeros(len(kept)).double(), S).log_prob(x[0, kept])
            said = given(x, believed)
            weights.append(log_p - (0 if wrong is None else PRICE[wrong]))
            means.append(said.answers[0, j])
            logs.append(said.log_density[0, j])
        weight = torch.stack(weights).log_softmax(0)
        answers.append((weight.exp() * torch.stack(means)).sum())
        densities.append(torch.logsumexp(weight + torch.stack(logs), 0))
    return torch.stack(answers), torch.stack(densities)


@pytest.mark.parametrize("error", [1.5, 3.0, 8.0])
def test_one_error_is_averaged_as_by_hand(error):
    x = torch.tensor([[1.0, -1.0, 1.0, 0.8]], dtype=torch.float64)
    x[0, 2] += error
    said = doubtful(given, x, torch.ones(1, D, dtype=torch.bool), PRICE, COLUMNS)
    answers, densities = by_hand(x)
    torch.testing.assert_close(said.answers[0], answers, atol=0.05, rtol=0)
    torch.testing.assert_close(said.log_density[0], densities, atol=0.1, rtol=0.02)


def test_ordinary_rows_are_left_to_the_rest_of_their_row():
    x = torch.tensor([[1.0, -1.0, 1.0, 0.8]], dtype=torch.float64)
    observed = torch.ones(1, D, dtype=torch.bool)
    plain, said = given(x, observed), doubtful(given, x, observed, PRICE + 20, COLUMNS)
    torch.testing.assert_close(said.answers, plain.answers)
    torch.testing.assert_close(said.log_density, plain.log_density)


def test_an_error_keeps_its_own_score_and_spoils_no_other():
    x = torch.tensor([[1.0, -1.0, 1.0, 0.8]], dtype=torch.float64)
    observed = torch.ones(1, D, dtype=torch.bool)
    clean = given(x, observed)
    for error in (10.0, 1e3, 1e6):
        wrong = x.clone()
        wrong[0, 1] += error
        said = doubtful(given, wrong, observed, PRICE, COLUMNS)
        assert said.log_density[0, 1] < -100
        others = [0, 2, 3]
        assert (said.log_density[0, others] - clean.log_density[0, others]).abs().max() < 1
        torch.testing.assert_close(said.answers[0], clean.answers[0], atol=0.2, rtol=0)


@pytest.mark.parametrize("observed", [[False] * 4, [True, False, False, False], [True, False, True, True]])
def test_holes_are_answered_for_and_have_no_say(observed):
    observed = torch.tensor([observed, [True] * 4])
    x = torch.tensor([[1.0, -1.0, 1.0, 0.8], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    said = doubtful(given, x, observed, PRICE, COLUMNS)
    assert torch.isfinite(said.answers).all()
    assert torch.isfinite(said.log_density).all()
    spoiled = torch.where(observed, x, 1e3)
    other = doubtful(given, spoiled, observed, PRICE, COLUMNS)
    torch.testing.assert_close(other.answers, said.answers)
    torch.testing.assert_close(other.log_density[observed], said.log_density[observed])
