"""Trimmed EM: a fit to rows of which some are outliers, and some cells wrong, is the fit to the others."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score
from toy import factor_analysis as toy_model
from toy import rows_of

from vaeimpute.gaussian import factor_analysis
from vaeimpute.gaussian.mixture import fit_mixture, log_likelihood
from vaeimpute.gaussian.trimmed import fit_trimmed, trimmed_share

F64 = torch.float64
FLOOR = torch.full((6,), 0.05, dtype=F64)
TRUTH = toy_model()


def fitted(x, o, off_lattice=None):
    """A fit of one member, which does not see every fourth row."""
    off = torch.zeros_like(o) if off_lattice is None else off_lattice
    return fit_trimmed(x, o, off, [torch.arange(len(x)) % 4 != 0], FLOOR, trimmed_share(len(x)), seed=0)


def lost(mixture):
    """Nats per fresh row below the truth."""
    x, o = rows_of(TRUTH, 5000, 0.0, seed=9)
    return (factor_analysis.log_likelihood(x, o, TRUTH) - log_likelihood(x, o, mixture)).mean().item()


def spoiled(n, share, low, high, seed):
    """Rows of the truth, a share of which are replaced by rows from a box; all cells are there."""
    x, o = rows_of(TRUTH, n, 0.0, seed)
    g = torch.Generator().manual_seed(seed + 100)
    outlier = torch.rand(n, generator=g) < share
    box = low + (high - low) * torch.rand(n, 6, dtype=F64, generator=g)
    return torch.where(outlier.unsqueeze(1), box, x), o, outlier


@pytest.mark.parametrize("share", [0.1, 0.3])
@pytest.mark.parametrize(("low", "high"), [(-3, 3), (2, 8)], ids=["around", "beside"])
def test_outliers_in_training_are_outliers_after_it(share, low, high):
    """The likelihood tells them as well as the true one does; beside the rest, a plain fit finds room for them."""
    x, o, _ = spoiled(800, share, low, high, 0)
    trimmed = fitted(x, o).rows[0]
    x, o, outlier = spoiled(4000, share, low, high, 1)
    auc, optimal = (
        roc_auc_score(outlier, -log_px)
        for log_px in (log_likelihood(x, o, trimmed), factor_analysis.log_likelihood(x, o, TRUTH))
    )
    assert auc > optimal - 0.01


@pytest.mark.parametrize("size", [4.0, 10.0])
def test_a_wrong_cell_costs_a_row_that_cell_only(size):
    x, o = rows_of(TRUTH, 800, 0.1)
    wrong = o & (torch.rand(800, 6, generator=torch.Generator().manual_seed(0)) < 0.05)
    dirty = torch.where(wrong, x + size, x)
    found = fitted(dirty, o)
    assert not (found.clean & ~o).any()
    assert (found.clean & ~wrong).sum() > 0.95 * (o & ~wrong).sum()
    assert (found.clean & wrong).sum() < 0.6 * wrong.sum()
    assert lost(found.cells[0]) < 0.25 * lost(fit_mixture(dirty, o, 1, 2, FLOOR))


def test_what_is_off_its_lattice_is_wrong_and_the_rest_of_its_column_right():
    x, o = rows_of(TRUTH, 400, 0.1)
    x[0, 0] = x[1, 1] = 8.0  # both are far, but only one stands in a column that has its errors elsewhere
    o[:2, :2] = True
    off = torch.zeros_like(o)
    off[5:25, 0] = True
    clean = fitted(x, o, off).clean
    assert not clean[5:25, 0].any()
    assert clean[0, 0]
    assert not clean[1, 1]


def test_members_see_their_own_rows_only():
    x, o = rows_of(TRUTH, 400, 0.1)
    blind = torch.arange(400) % 4 == 0  # what the first member must not see
    other = torch.where(blind.unsqueeze(1), x.roll(4, 0) + 0.3, x)
    one, two = (fit_trimmed(v, o, torch.zeros_like(o), [~blind], FLOOR, 0.35, 0).rows[0] for v in (x, other))
    assert one.b.shape == two.b.shape  # but for the size, which held-out rows choose
    torch.testing.assert_close(one.b, two.b)


def test_of_many_rows_fewer_are_left_out():
    shares = [trimmed_share(n) for n in (10, 100, 1000, 100_000)]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[-1] < shares[0] < 0.5
