"""Noise that is hashed from rows: uniform and independent, and the row's own in any company."""

from __future__ import annotations

import pytest
import torch
from toy import RandomTensors

from vaeimpute.vae.noise import row_keys, row_normal, row_uniform

N = 20_000


def grid():
    """Rows of small whole numbers, which differ in few bits."""
    place = torch.arange(N)
    return torch.stack([place % 10, place // 10 % 10, place // 100], 1).double()


def keys_of(values, observed=None):
    return row_keys(values, torch.ones_like(values, dtype=torch.bool) if observed is None else observed)


KEYS = {
    "random": lambda: keys_of(RandomTensors().normal(N, 3)),
    "whole numbers": lambda: keys_of(grid()),
    "one row": lambda: keys_of(torch.ones(N, 3)),
    "no cells": lambda: keys_of(torch.ones(N, 3), torch.zeros(N, 3, dtype=torch.bool)),
    "counted": lambda: torch.arange(N),
}


@pytest.fixture(params=KEYS)
def keys(request):
    return KEYS[request.param]()


def test_rows_have_keys_of_their_own(keys):
    assert len(keys.unique()) == N


def test_numbers_are_uniform(keys):
    """Kolmogorov's statistic is above 1.95 for one sample of a thousand."""
    for j, u in enumerate(row_uniform(keys, 4, 0, 3).T):
        assert ((u > 0) & (u < 1)).all()
        distance = (u.sort().values - (torch.arange(N) + 0.5) / N).abs().max().item()
        assert distance * N**0.5 < 1.95, j


def test_numbers_of_columns_rows_and_seeds_are_independent(keys):
    """Pearson's chi-square of pairs in 10 x 10 boxes: 99 degrees of freedom, sd 14."""
    first = row_uniform(keys, 3, 0, 1)
    pairs = [(first[:, 0], first[:, 1]), (first[:, 1], first[:, 2]), (first[:-1, 0], first[1:, 0])]
    pairs += [(first[:, 0], row_uniform(keys, 3, *seeds)[:, 0]) for seeds in [(0, 2), (1, 1), (1, 0), (0,), ()]]
    for one, other in pairs:
        box = (10 * one).long() * 10 + (10 * other).long()
        count = torch.bincount(box, minlength=100)
        expected = len(one) / 100
        assert ((count - expected).square() / expected).sum().item() < 99 + 4 * 14


def test_normal_numbers_have_the_moments_of_a_normal(keys):
    x = row_normal(keys, 3, 5)
    assert x.isfinite().all()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        error = (x**power).mean(0) - moment
        assert (error.abs() < 4.5 * (x**power).std(0) / N**0.5).all()


def test_more_numbers_begin_with_the_same():
    keys = KEYS["random"]()[:9]
    assert torch.equal(row_uniform(keys, 7, 1)[:, :3], row_uniform(keys, 3, 1))


# ---- company -----------------------------------------------------------------------------------------------------


def test_a_row_has_the_same_key_in_any_batch_and_order():
    values, observed = grid()[:500], ~RandomTensors().mask(500, 3, rate=0.1)
    observed[:, 2], values[:, 2] = True, torch.arange(500)
    whole, order = row_keys(values, observed), RandomTensors().order(500)
    assert torch.equal(row_keys(values[order], observed[order]), whole[order])
    assert torch.equal(row_keys(values[:1], observed[:1]), whole[:1])


def test_equal_rows_of_one_call_have_other_keys_and_the_first_has_its_own():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [1.0, 2.0]])
    keys = keys_of(values)
    assert len(keys.unique()) == 4
    assert torch.equal(keys_of(values[:2]), keys[:2])
    assert torch.equal(keys_of(values[[2, 3, 0, 1]]), keys[[0, 2, 3, 1]])  # counted in their order


def test_keys_see_observed_cells_and_which_they_are():
    values = torch.tensor([[1.0, 2.0], [1.0, 7.0], [7.0, 1.0], [2.0, 1.0]])
    observed = torch.tensor([[True, False], [True, False], [False, True], [True, True]])
    each = torch.cat([row_keys(values[[i]], observed[[i]]) for i in range(4)])
    assert each[0] == each[1]
    assert len(each.unique()) == 3
    assert torch.equal(keys_of(torch.tensor([[0.0, 1.0]])), keys_of(torch.tensor([[-0.0, 1.0]])))
    assert torch.equal(keys_of(values[:1].double()), keys_of(values[:1]))
