"""Masks: every second row stays as it is, the others lose cells at rates of their own; nothing missing is shown."""

from __future__ import annotations

import math

import pytest
import torch
from toy import RandomTensors

from vaeimpute.vae.masking import random_mask_of_half


def masked(observed, seed=0, max_hidden=0.7):
    return random_mask_of_half(observed, RandomTensors(seed).generator, max_hidden=max_hidden)


def test_a_missing_cell_is_never_visible():
    observed = RandomTensors().mask(2, 300, 5, rate=0.6)
    before = observed.clone()
    for seed in range(5):
        assert not (masked(observed, seed) & ~observed).any()
    assert torch.equal(observed, before)
    assert not masked(torch.zeros_like(observed)).any()


def test_masks_come_from_the_generator_alone():
    observed = torch.ones(2, 40, 5, dtype=torch.bool)
    state = torch.get_rng_state()
    once, again, other = (masked(observed, seed) for seed in (0, 0, 1))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(state, torch.get_rng_state())


def test_rows_are_hidden_at_rates_of_their_own():
    """Rates are uniform: all numbers of hidden cells are as likely."""
    n, d = 40_000, 9
    hidden = ~masked(torch.ones(n, d, dtype=torch.bool), max_hidden=1.0)[1::2]
    shares = torch.bincount(hidden.sum(-1), minlength=d + 1) / len(hidden)
    assert (shares - 1 / (d + 1)).abs().max() < 5 * math.sqrt(0.25 / len(hidden))


@pytest.mark.parametrize("max_hidden", [0.0, 0.3, 0.7])
def test_half_of_the_largest_share_is_hidden_in_every_second_row(max_hidden):
    n, d = 20_000, 10
    hidden = ~masked(torch.ones(n, d, dtype=torch.bool), max_hidden=max_hidden)
    assert not hidden[::2].any()
    share = hidden[1::2].double().mean().item()
    assert share == pytest.approx(max_hidden / 2, abs=5 * max_hidden / math.sqrt(6 * n) + 1e-3)


def test_members_lose_cells_of_their_own():
    one, other = masked(torch.ones(2, 400, 5, dtype=torch.bool))
    assert not torch.equal(one, other)
