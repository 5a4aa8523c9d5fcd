"""Masks: the same cells whatever the batch, at their rate and independent; nothing missing is ever shown."""

from __future__ import annotations

import math

import pytest
import torch
from toy import RandomTensors

from vaeimpute.vae.masking import HeldOutCells, random_mask, random_mask_of_half

N, D, M, RATE = 20_000, 6, 3, 0.1
FIVE_SIGMA = 5 * math.sqrt(RATE * (1 - RATE) / N)  # of a column of N independent cells


@pytest.fixture(scope="module")
def held_out():
    return HeldOutCells(RATE, M, seed=0)


@pytest.fixture(scope="module")
def cells(held_out):
    """Of all rows, (M, N, D)."""
    return held_out(torch.arange(N), D)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_each_column_of_each_member_is_held_out_at_the_rate(rate, seed):
    shares = HeldOutCells(rate, M, seed)(torch.arange(N), D).double().mean(1)
    assert (shares - rate).abs().max() <= 5 * math.sqrt(rate * (1 - rate) / N)


def test_a_row_has_the_same_cells_alone_and_in_any_batch(held_out, cells):
    order = RandomTensors().order(N)
    assert torch.equal(held_out(order, D), cells[:, order])
    for row in (0, 7, N - 1):
        assert torch.equal(held_out(torch.tensor([row]), D)[:, 0], cells[:, row])
    twice = held_out(torch.tensor([5, 5, 3]), D)
    assert torch.equal(twice[:, 0], twice[:, 1])
    assert held_out(torch.arange(0), D).shape == (M, 0, D)


def test_members_may_have_rows_of_their_own(held_out, cells):
    rows = RandomTensors().integers(N, M, 50)
    assert torch.equal(held_out(rows, D), torch.stack([cells[m, rows[m]] for m in range(M)]))


def test_more_columns_or_members_change_nothing_of_the_first(held_out, cells):
    assert torch.equal(held_out(torch.arange(N), D + 3)[..., :D], cells)
    assert torch.equal(HeldOutCells(RATE, M + 2, seed=0)(torch.arange(N), D)[:M], cells)


def test_members_columns_and_rows_do_not_tell_of_each_other(cells):
    """Correlations of all pairs of columns and members, and of rows at some distance, are those of chance."""
    flat = cells.double().transpose(0, 1).flatten(1)  # (N, M * D)
    sigma = 1 / math.sqrt(N)
    between = torch.corrcoef(flat.T) - torch.eye(M * D)
    assert between.abs().max() < 5 * sigma
    assert between.square().mean().sqrt() < 1.5 * sigma
    for lag in (1, 2, 64, 1024):
        for ahead in (flat, flat.roll(1, 1)):  # in the same column, and in the next
            product = ((flat[lag:] - RATE) * (ahead[:-lag] - RATE)).mean(0) / (RATE * (1 - RATE))
            assert product.abs().max() < 5 * sigma


def test_held_out_cells_of_a_row_are_as_many_as_of_independent_ones(cells):
    """Binomial: none may be in too few rows, or two too often side by side."""
    counts = torch.bincount(cells.sum(-1).flatten(), minlength=D + 1) / (M * N)
    for k, share in enumerate(counts.tolist()):
        expected = math.comb(D, k) * RATE**k * (1 - RATE) ** (D - k)
        assert abs(share - expected) < 5 * math.sqrt(expected / (M * N)) + 1 / (M * N)


@pytest.mark.parametrize("other", [1, 2, 10**9, 2**31 - 1])
def test_another_seed_holds_out_other_cells(cells, other):
    """Both are held out at the product of the rates."""
    both = cells & HeldOutCells(RATE, M, other)(torch.arange(N), D)
    assert both.double().mean().item() == pytest.approx(RATE**2, abs=5 * RATE / math.sqrt(M * N * D))


def test_nothing_grows_with_the_table(held_out):
    """Rows far beyond any array are as good as the first."""
    assert not any(isinstance(value, torch.Tensor) for value in vars(held_out).values())
    far = held_out(10**15 + torch.arange(N), D).double().mean(1)
    assert (far - RATE).abs().max() < FIVE_SIGMA


# ---- masks of a step of the training -----------------------------------------------------------------------------


MASKS = {
    "random_mask": lambda observed, generator: random_mask(observed, generator, max_hidden=0.7, hide_all=0.1),
    "random_mask_of_half": lambda observed, generator: random_mask_of_half(observed, generator, max_hidden=0.7),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_missing_cell_is_never_visible(mask):
    random = RandomTensors()
    observed = random.mask(2, 300, 5, rate=0.6)
    before = observed.clone()
    for _ in range(5):
        assert not (mask(observed, random.generator) & ~observed).any()
    assert torch.equal(observed, before)
    assert not mask(torch.zeros_like(observed), random.generator).any()


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_come_from_the_generator_alone(mask):
    observed = torch.ones(2, 40, 5, dtype=torch.bool)
    state = torch.get_rng_state()
    once, again, other = (mask(observed, RandomTensors(seed).generator) for seed in (0, 0, 1))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("hide_all", [0.0, 0.1, 1.0])
def test_rows_are_hidden_at_rates_of_their_own(hide_all):
    """Rates are uniform: all numbers of hidden cells are as likely, but for the rows that keep nothing."""
    n, d = 20_000, 9
    hidden = ~random_mask(
        torch.ones(n, d, dtype=torch.bool), RandomTensors().generator, max_hidden=1.0, hide_all=hide_all
    )
    shares = torch.bincount(hidden.sum(-1), minlength=d + 1) / n
    expected = torch.full((d + 1,), (1 - hide_all) / (d + 1))
    expected[d] += hide_all
    assert (shares - expected).abs().max() < 5 * math.sqrt(0.25 / n)


@pytest.mark.parametrize("max_hidden", [0.0, 0.3, 0.7])
def test_half_of_the_largest_share_is_hidden(max_hidden):
    n, d = 20_000, 10
    observed = torch.ones(n, d, dtype=torch.bool)
    hidden = ~random_mask(observed, RandomTensors().generator, max_hidden=max_hidden)
    assert hidden.double().mean().item() == pytest.approx(max_hidden / 2, abs=5 * max_hidden / math.sqrt(12 * n) + 1e-3)
    half = ~random_mask_of_half(observed, RandomTensors().generator, max_hidden=max_hidden)
    assert not half[::2].any()  # every second row stays as it is
    assert half[1::2].double().mean().item() == pytest.approx(max_hidden / 2, abs=0.01)
