"""linear: against the multivariate Gaussian conditioned by hand, scikit-learn's factor analysis, and invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import FactorAnalysis
from torch.distributions import MultivariateNormal

from vaeimpute.gaussian.factor_analysis import Linear, choose_linear, conditional, fit_linear, log_likelihood, posterior

F64 = torch.float64


def random_linear(n_features, rank, generator, *, lead=()):
    """A linear VAE with loadings, offsets and noise of all sizes."""
    W = torch.randn(*lead, n_features, rank, dtype=F64, generator=generator)
    b = torch.randn(*lead, n_features, dtype=F64, generator=generator)
    psi = 0.05 + torch.rand(*lead, n_features, dtype=F64, generator=generator)
    return Linear(W, b, psi)


def table(n, n_features, rank, *, missing=0.2, seed=0):
    """Rows of a known linear VAE, with holes at random."""
    g = torch.Generator().manual_seed(seed)
    linear = random_linear(n_features, rank, g)
    z = torch.randn(n, rank, dtype=F64, generator=g)
    noise = torch.randn(n, n_features, dtype=F64, generator=g)
    values = z @ linear.W.T + linear.b + noise * linear.psi.sqrt()
    observed = torch.rand(n, n_features, generator=g) >= missing
    return values, observed, linear


def covariance(linear):
    return linear.W @ linear.W.T + torch.diag(linear.psi)


sizes = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**31))  # columns, rank, seed


@given(sizes)
@settings(max_examples=25, deadline=None)
def test_posterior_conditional_and_likelihood_are_those_of_the_gaussian(size):
    n_features, rank, seed = size
    values, observed, linear = table(5, n_features, rank, missing=0.4, seed=seed)
    values[~observed] = torch.nan  # what is stored in a hole has no influence
    m, chol = posterior(values, observed, linear)
    mean, variance, _ = conditional(values, observed, linear)
    log_p = log_likelihood(values, observed, linear)
    sigma = covariance(linear)
    for i, o in enumerate(observed):
        S, r = sigma[o][:, o], (values[i] - linear.b)[o]
        gain = torch.linalg.solve(S, linear.W[o]).T  # of the latent
        eye = torch.eye(rank, dtype=F64)
        torch.testing.assert_close(m[i], gain @ r)
        torch.testing.assert_close(torch.cholesky_inverse(chol[i]), eye - gain @ linear.W[o])
        # A new measurement of every cell: its own noise is fresh even where it was observed.
        torch.testing.assert_close(mean[i], linear.b + linear.W @ gain @ r)
        spread = linear.W @ (eye - gain @ linear.W[o]) @ linear.W.T
        torch.testing.assert_close(variance[i], spread.diagonal() + linear.psi)
        hidden = ~o
        cross = torch.linalg.solve(S, sigma[o][:, hidden]).T
        torch.testing.assert_close(mean[i, hidden], linear.b[hidden] + cross @ r)
        by_hand = sigma[hidden][:, hidden] - cross @ sigma[o][:, hidden]
        torch.testing.assert_close(variance[i, hidden], by_hand.diagonal())
        expected = MultivariateNormal(linear.b[o], S).log_prob(values[i, o]) if o.any() else torch.tensor(0.0).double()
        torch.testing.assert_close(log_p[i], expected)


def test_evidence_obeys_the_chain_rule():
    values, _, linear = table(6, 4, 2)
    full = torch.ones(6, 4, dtype=torch.bool)
    total = torch.zeros(6, dtype=F64)
    for column in range(4):
        before = full.clone()
        before[:, column:] = False
        mean, variance, _ = conditional(values, before, linear)
        total += torch.distributions.Normal(mean, variance.sqrt()).log_prob(values)[:, column]
    torch.testing.assert_close(log_likelihood(values, full, linear), total)


@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_leading_dimensions_equal_loops(lead):
    g = torch.Generator().manual_seed(1)
    linear = random_linear(5, 2, g, lead=lead)
    values = torch.randn(*lead, 7, 5, dtype=F64, generator=g)
    observed = torch.rand(*lead, 7, 5, generator=g) < 0.6
    for function in (posterior, conditional, lambda *a: (log_likelihood(*a),)):
        for index in np.ndindex(*lead):
            alone = function(values[index], observed[index], Linear(*(p[index] for p in linear)))
            for stacked, single in zip(function(values, observed, linear), alone, strict=True):
                torch.testing.assert_close(stacked[index], single)


def test_precision_is_an_argument():
    values, observed, linear = table(4, 3, 2)
    low = linear.to(torch.float32)
    assert all(p.dtype == torch.float32 for p in low)
    assert low.rank == linear.rank == 2
    mean, _, _ = conditional(values.float(), observed, low)
    torch.testing.assert_close(mean.double(), conditional(values, observed, linear)[0], rtol=1e-4, atol=1e-4)


def objective(values, observed, linear, floor):
    """What EM climbs: likelihood, a standard normal prior on the loadings, one pseudo-row of noise at the floor."""
    prior = -0.5 * linear.W.square().sum() - 0.5 * (linear.psi.log() + floor / linear.psi).sum()
    return (log_likelihood(values, observed, linear).sum() + prior).item()


@pytest.mark.parametrize(("rank", "missing"), [(1, 0.0), (2, 0.3), (4, 0.3), (4, 0.6)])
def test_every_sweep_climbs(rank, missing):
    values, observed, _ = table(300, 6, 2, missing=missing, seed=rank)
    climb = [
        objective(values, observed, fit_linear(values, observed, rank, 1e-3, n_iter, tol=0.0), 1e-3)
        for n_iter in (*range(10), 15, 25)
    ]
    # Parameter expansion climbs the likelihood, which is all but a small prior of the sum.
    assert np.diff(climb).min() > -0.02 * rank
    assert climb[-1] > climb[0] + 1


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_complete_data_give_scikit_learns_factor_analysis(rank):
    g = torch.Generator().manual_seed(rank)
    W = torch.randn(10, rank, dtype=F64, generator=g)
    values = torch.randn(400, rank, dtype=F64, generator=g) @ W.T + torch.randn(400, 10, dtype=F64, generator=g)
    peer = FactorAnalysis(rank, tol=1e-8, max_iter=2000, svd_method="lapack").fit(values.numpy())
    linear = fit_linear(values, torch.ones_like(values, dtype=torch.bool), rank, 1e-8, n_iter=300, tol=1e-9)
    ours = log_likelihood(values, torch.ones_like(values, dtype=torch.bool), linear).mean().item()
    # What is left is the prior on the loadings, of the order of 1 / n^2.
    assert ours == pytest.approx(peer.score(values.numpy()), abs=1e-4)
    np.testing.assert_allclose(covariance(linear).numpy(), peer.get_covariance(), atol=0.05)


def test_incomplete_data_recover_the_truth():
    values, observed, truth = table(10_000, 6, 2, missing=0.3, seed=4)
    linear = fit_linear(values, observed, 2, 1e-4, 60)
    torch.testing.assert_close(covariance(linear), covariance(truth), rtol=0.1, atol=0.1)
    torch.testing.assert_close(linear.b, truth.b, rtol=0, atol=0.1)
    # Maximum likelihood: above the truth on its own rows, by about half a nat per parameter in all.
    gain = (log_likelihood(values, observed, linear) - log_likelihood(values, observed, truth)).sum().item()
    assert 0 < gain < 30


def test_order_of_rows_does_not_matter():
    values, observed, _ = table(200, 5, 2)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    one, other = (fit_linear(v, o, 2) for v, o in ((values, observed), (values[order], observed[order])))
    torch.testing.assert_close(covariance(one), covariance(other), rtol=1e-8, atol=1e-8)


def test_chunks_of_rows_do_not_matter(monkeypatch):
    values, observed, _ = table(100, 5, 2)
    whole = fit_linear(values, observed, 2)
    monkeypatch.setattr("vaeimpute.gaussian.factor_analysis._CHUNK", 7)
    torch.testing.assert_close(tuple(fit_linear(values, observed, 2)), tuple(whole))


def test_noise_stays_above_the_floor():
    values, observed, _ = table(100, 4, 1)
    floor = torch.tensor([0.5, 2.0, 1e-3, 1e-3], dtype=F64)
    assert (fit_linear(values, observed, 2, floor).psi >= floor).all()


def test_holes_have_no_influence_on_the_fit():
    values, observed, _ = table(100, 4, 2)
    filled = torch.where(observed, values, torch.nan)
    torch.testing.assert_close(tuple(fit_linear(filled, observed, 2)), tuple(fit_linear(values, observed, 2)))


def _all_missing(values, observed):
    observed[:, 1] = False


def _constant(values, observed):
    values[:, 1] = 0.0


def _empty_rows(values, observed):
    observed[::2] = False


def _nothing(values, observed):
    observed[:] = False


def _twins(values, observed):
    values[:, 1] = values[:, 0]


def _never_together(values, observed):
    observed[::2, :2] = False
    observed[1::2, 2:] = False


@pytest.mark.parametrize("rank", [1, 2, 9])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 4), (50, 1), (50, 4)])
@pytest.mark.parametrize("spoil", [None, _all_missing, _constant, _empty_rows, _nothing, _twins, _never_together])
def test_odd_tables_do_not_break(shape, rank, spoil):
    values, observed, _ = table(*shape, 1)
    if spoil is not None:
        if shape[1] == 1 and spoil in (_all_missing, _constant, _twins):
            pytest.skip("needs two columns")
        spoil(values, observed)
    linear = fit_linear(values, observed, rank, 1e-4)
    assert linear.W.shape == (shape[1], rank)
    mean, variance, _ = conditional(values, observed, linear)
    for tensor in (*linear, mean, variance, log_likelihood(values, observed, linear)):
        assert tensor.isfinite().all()
    assert (linear.psi >= 1e-4).all()


def held_out_cells(observed, seed):
    return observed & (torch.rand(observed.shape, generator=torch.Generator().manual_seed(seed)) < 0.15)


@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_true_rank_is_chosen(rank, seed):
    g = torch.Generator().manual_seed(seed)
    W = torch.linalg.qr(torch.randn(16, rank, dtype=F64, generator=g))[0] * 3
    truth = Linear(W, torch.zeros(16, dtype=F64), torch.full((16,), 0.1, dtype=F64))
    values = torch.randn(1500, rank, dtype=F64, generator=g) @ truth.W.T
    values += truth.psi.sqrt() * torch.randn(1500, 16, dtype=F64, generator=g)
    observed = torch.rand(1500, 16, generator=g) < 0.9
    floor = torch.full((16,), 1e-2, dtype=F64)
    chosen, chosen_floor = choose_linear(values, observed, held_out_cells(observed, seed), floor)
    assert chosen == rank
    torch.testing.assert_close(chosen_floor, floor)  # noise of 0.1 supports no smaller one


@pytest.mark.parametrize(("noise", "expected"), [(0.1, 1e-2), (1e-6, 1e-4)])
def test_the_floor_follows_the_noise(noise, expected):
    g = torch.Generator().manual_seed(0)
    values = torch.randn(600, 2, dtype=F64, generator=g) @ torch.randn(2, 8, dtype=F64, generator=g)
    values += noise**0.5 * torch.randn(600, 8, dtype=F64, generator=g)
    values = values / values.std(0)
    observed = torch.ones(600, 8, dtype=torch.bool)
    floor = torch.full((8,), 1e-2, dtype=F64)
    floor[0] = 0.5  # a floor above the ladder, as classes have, stays
    _, chosen = choose_linear(values, observed, held_out_cells(observed, 0), floor)
    assert chosen[0] == 0.5
    torch.testing.assert_close(chosen[1:], torch.full((7,), expected, dtype=F64))


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 5), (4, 3)])
def test_tiny_tables_get_a_rank(shape):
    values, observed, _ = table(*shape, 1)
    held_out = torch.zeros_like(observed)
    rank, floor = choose_linear(values, observed, held_out, torch.full(shape[1:], 1e-2, dtype=F64))
    assert rank == 1
    assert floor.shape == shape[1:]
