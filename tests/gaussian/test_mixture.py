"""Mixtures: closed forms meet plain Gaussian algebra, and EM finds what made the data."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from vaeimpute.batching import row_slices
from vaeimpute.gaussian import factor_analysis
from vaeimpute.gaussian.factor_analysis import FactorAnalysis
from vaeimpute.gaussian.mixture import (
    Mixture,
    choose_mixture,
    fit_mixture,
    leave_block_out,
    leave_one_out,
    log_likelihood,
)
from vaeimpute.persistence import from_state, to_state


@pytest.fixture
def mixture():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    b = 2 * torch.randn(3, 5, generator=generator, dtype=torch.float64)
    psi = 0.1 + torch.rand(3, 5, generator=generator, dtype=torch.float64)
    return Mixture(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log(), FactorAnalysis(W, b, psi))


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    observed = torch.rand(40, 5, generator=generator) < 0.7
    observed[0], observed[1] = True, False
    return x, observed


def dense(mixture, columns):
    """The components' Gaussians over some columns."""
    W, b, psi = mixture.components
    cov = W @ W.transpose(1, 2) + torch.diag_embed(psi)
    return MultivariateNormal(b[:, columns], cov[:, columns][:, :, columns])


def test_log_likelihood_is_that_of_the_dense_gaussians(mixture, rows):
    for x, o in zip(*rows, strict=True):
        want = 0.0
        if o.any():
            want = torch.logsumexp(mixture.log_weight + dense(mixture, o).log_prob(x[o]), 0).item()
        assert log_likelihood(x[None], o[None], mixture).item() == pytest.approx(want, abs=1e-10)


def test_what_is_hidden_does_not_matter(mixture, rows):
    x, o = rows
    other = torch.where(o, x, 1e6)
    torch.testing.assert_close(log_likelihood(other, o, mixture), log_likelihood(x, o, mixture))


def test_one_mask_for_all_rows_is_a_short_cut_only(mixture, rows):
    x = rows[0]
    o = torch.tensor([True, False, True, True, False]).expand(len(x), -1)
    one_by_one = torch.cat([log_likelihood(x[i : i + 1], o[i : i + 1], mixture) for i in range(len(x))])
    torch.testing.assert_close(log_likelihood(x, o, mixture), one_by_one)


def test_batches_of_rows_do_not_matter(mixture, rows):
    x, o = (part.repeat(3000, 1) for part in rows)
    assert len(list(row_slices(len(x), mixture.numbers_per_row))) > 1
    torch.testing.assert_close(log_likelihood(x, o, mixture), log_likelihood(*rows, mixture).repeat(3000))


def test_members_are_stacked_and_their_components_are_one_mixture(mixture, rows):
    W, b, psi = mixture.components
    other = Mixture(mixture.log_weight.flip(0), FactorAnalysis(-W, b + 1, psi))
    stack = Mixture.stack([mixture, other])
    members = log_likelihood(*rows, stack)
    torch.testing.assert_close(members, torch.stack([log_likelihood(*rows, part) for part in (mixture, other)]))
    mean = torch.logsumexp(members, 0) - math.log(2)  # of their densities
    torch.testing.assert_close(log_likelihood(*rows, stack.flatten()), mean)


def test_a_mixture_comes_back(mixture, rows):
    copy = from_state(*to_state({"m": mixture}), {"Mixture": Mixture}, torch.device("cpu"))["m"]
    assert torch.equal(log_likelihood(*rows, copy), log_likelihood(*rows, mixture))


def test_leave_one_out_is_a_ratio_of_likelihoods(mixture, rows):
    x, o = rows
    rest = leave_one_out(x, o, mixture)
    own = -0.5 * ((x - rest.mean).square() / rest.variance + (2 * math.pi * rest.variance).log())
    got = torch.logsumexp(rest.log_weight + own, 0)
    for j in range(5):
        without, with_it = o.clone(), o.clone()
        without[:, j], with_it[:, j] = False, True
        want = log_likelihood(x, with_it, mixture) - log_likelihood(x, without, mixture)
        torch.testing.assert_close(got[:, j], want)


def test_leave_one_out_does_not_see_the_cell(mixture, rows):
    x, o = rows
    changed = x.clone()
    changed[:, 2] += 7.0
    for one, two in zip(leave_one_out(x, o, mixture), leave_one_out(changed, o, mixture), strict=True):
        torch.testing.assert_close(one[..., 2], two[..., 2])


def test_a_block_is_told_by_the_rest(mixture, rows):
    x, o = rows
    block = torch.tensor([1, 3])
    rest = leave_one_out(x, o.index_fill(1, block, False), mixture)  # all that is known of it
    for one, two in zip(leave_block_out(x, o, mixture, block), rest, strict=True):
        torch.testing.assert_close(one, two[..., block])


CENTRES = torch.tensor([[-2.0, 0.0, 1.0], [2.0, 1.0, -1.0]], dtype=torch.float64)
NOISE = 0.8


def truth():
    """Two round clusters."""
    W, psi = torch.zeros(2, 3, 1, dtype=torch.float64), torch.full((2, 3), NOISE**2, dtype=torch.float64)
    return Mixture(torch.full((2,), 0.5, dtype=torch.float64).log(), FactorAnalysis(W, CENTRES, psi))


def clusters(n=600, missing=0.0, seed=0):
    """Rows of the same, which are observed, and the cluster of each."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    noise = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return CENTRES[label] + NOISE * noise, torch.rand(n, 3, generator=generator) >= missing, label


def component(x, o, mixture):
    """The most likely component of each row, the first being the one at the left."""
    log_px = mixture.log_weight.unsqueeze(1) + factor_analysis.log_likelihood(x, o, mixture.components)
    return mixture.b[:, 0].argsort().argsort()[log_px.argmax(0)]


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_em_finds_the_clusters_as_well_as_who_knows_them(missing):
    mixture = fit_mixture(*clusters(missing=missing)[:2], 2, rank=1, floor=0.01)
    x, o, label = clusters(20_000, missing, seed=1)
    found, optimal = ((component(x, o, m) == label).double().mean().item() for m in (mixture, truth()))
    assert found > optimal - 0.01
    torch.testing.assert_close(mixture.log_weight.exp(), torch.full((2,), 0.5, dtype=torch.float64), atol=0.03, rtol=0)
    # Below the truth on fresh rows, by about half a nat per parameter (21) in all of the training rows.
    lost = (log_likelihood(x, o, truth()) - log_likelihood(x, o, mixture)).mean().item()
    assert 0 < lost < 3 * 21 / 2 / 600


def test_fewer_distinct_rows_than_components():
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(20, 1)
    mixture = fit_mixture(x, torch.ones_like(x, dtype=torch.bool), 4, rank=1)
    assert torch.isfinite(log_likelihood(x, torch.ones_like(x, dtype=torch.bool), mixture)).all()


def test_em_does_not_look_into_missing_cells():
    x, o, _ = clusters(missing=0.3)
    one, two = (fit_mixture(torch.where(o, x, hidden), o, 2, rank=1) for hidden in (0.0, 99.0))
    torch.testing.assert_close(one.components.b, two.components.b)


def test_more_components_only_where_they_help():
    x, o, _ = clusters()
    held_out = torch.arange(len(x)) % 4 == 0
    assert choose_mixture(x, o, held_out, 0.01)[0] > 1
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    assert choose_mixture(plain, o[:200], held_out[:200], 0.01)[0] == 1


@pytest.mark.parametrize(("n", "n_features"), [(2, 1), (3, 4), (5, 40)])
def test_few_rows(n, n_features):
    x = torch.randn(n, n_features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    o = torch.ones(n, n_features, dtype=torch.bool)
    for n_components in (1, 2):
        assert log_likelihood(x, o, fit_mixture(x, o, n_components)).isfinite().all()
