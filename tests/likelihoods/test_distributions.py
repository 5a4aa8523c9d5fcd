"""Distributions that PyTorch lacks: densities integrate to one, samples obey the cdf."""

from __future__ import annotations

import math

import pytest
import torch

from vaeimpute.likelihoods.distributions import (
    DiscreteDistribution,
    bin_of,
    by_category,
    draw_index,
    normal_log_density,
    pick,
)
from vaeimpute.training.runtime import make_generator

F64 = torch.float64
N = 20_000


@pytest.fixture
def g():
    return make_generator(0)


def test_normal_density_is_pytorchs(g):
    x, mean, log_scale = torch.randn(3, 50, dtype=F64, generator=g)
    expected = torch.distributions.Normal(mean, log_scale.exp()).log_prob(x)
    torch.testing.assert_close(normal_log_density(x, mean, log_scale), expected)
    torch.testing.assert_close(normal_log_density(x), torch.distributions.Normal(0.0, 1.0).log_prob(x))


POINTS = torch.tensor([[-1.0, 0.0, 2.0], [0.0, 0.5, 1.0]], dtype=F64)


def discrete(logits):
    return DiscreteDistribution(logits, POINTS, (POINTS[:, 1:] + POINTS[:, :-1]) / 2, POINTS.diff().amin(1))


def test_discrete_numbers_are_a_categorical_over_their_values(g):
    logits = torch.randn(2, 3, dtype=F64, generator=g)
    distribution = discrete(logits)
    p = logits.softmax(-1)
    torch.testing.assert_close(distribution.log_prob(POINTS.T).exp().T, p)
    torch.testing.assert_close(distribution.cdf(POINTS.T).T, p.cumsum(-1))
    torch.testing.assert_close(distribution.mean, (p * POINTS).sum(-1))
    drawn = distribution.sample((N,), generator=g)
    share = torch.stack([(drawn == value).double().mean(0) for value in POINTS.T], -1)
    torch.testing.assert_close(share, p, atol=5 * 0.5 / N**0.5, rtol=0)


def test_beside_the_values_there_is_less_the_farther_the_less():
    values = torch.tensor([[0.0], [0.1], [0.2], [0.3]], dtype=F64).expand(-1, 2)
    log_prob = discrete(torch.zeros(2, 3, dtype=F64)).log_prob(values)
    assert log_prob[0].tolist() == pytest.approx([-math.log(3)] * 2)
    assert (log_prob.diff(dim=0)[:, 0] < 0).all()
    assert discrete(torch.zeros(2, 3, dtype=F64)).log_prob(torch.full((1, 2), 1e30, dtype=F64)).isfinite().all()


@pytest.mark.parametrize("lead", [(), (7,), (2, 3)])
def test_bins_are_those_of_a_search_by_hand(lead, g):
    cuts = torch.randn(4, 5, dtype=F64, generator=g).sort(-1).values
    values = torch.randn(*lead, 4, dtype=F64, generator=g)
    index = bin_of(values, cuts)
    assert torch.equal(index, (values.unsqueeze(-1) >= cuts).sum(-1))
    table = torch.arange(24, dtype=F64).view(4, 6)
    assert torch.equal(pick(table.expand(*lead, 4, 6), index), table[torch.arange(4), index])


def test_indices_are_drawn_as_often_as_they_should(g):
    logits = torch.tensor([[0.0, -1e4, 1.0, 2.0], [-1e4, -1e4, 5.0, -1e4]]).log_softmax(-1)
    index = draw_index(logits.expand(50_000, -1, -1), g)
    share = torch.nn.functional.one_hot(index, 4).double().mean(0)
    torch.testing.assert_close(share, logits.exp().double(), atol=0.01, rtol=0)
    assert (share[logits < -100] == 0).all()


@pytest.mark.parametrize("width", [1, 2, 8, 9, 40])
@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax])
def test_a_softmax_of_few_categories_is_a_softmax(function, width, g):
    logits = torch.randn(3, 5, width, dtype=F64, generator=g)
    torch.testing.assert_close(by_category(function, logits), function(logits, -1))
