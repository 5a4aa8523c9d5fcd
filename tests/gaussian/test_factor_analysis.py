"""Factor analysis: against the multivariate Gaussian by hand, scikit-learn's factor analysis, and invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import decomposition
from torch.distributions import MultivariateNormal

from vaeimpute.batching import row_slices
from vaeimpute.gaussian.factor_analysis import (
    FactorAnalysis,
    conditional,
    fit_factor_analysis,
    log_likelihood,
    posterior,
    widened,
)

F64 = torch.float64


def random_model(n_features, rank, generator, *, lead=()):
    """A linear VAE with loadings, offsets and noise of all sizes."""
    W = torch.randn(*lead, n_features, rank, dtype=F64, generator=generator)
    b = torch.randn(*lead, n_features, dtype=F64, generator=generator)
    psi = 0.05 + torch.rand(*lead, n_features, dtype=F64, generator=generator)
    return FactorAnalysis(W, b, psi)


def table(n, n_features, rank, *, missing=0.2, seed=0):
    """Rows of a known linear VAE, with missing cells."""
    g = torch.Generator().manual_seed(seed)
    model = random_model(n_features, rank, g)
    z = torch.randn(n, rank, dtype=F64, generator=g)
    noise = torch.randn(n, n_features, dtype=F64, generator=g)
    values = z @ model.W.T + model.b + noise * model.psi.sqrt()
    observed = torch.rand(n, n_features, generator=g) >= missing
    return values, observed, model


def covariance(model):
    return model.W @ model.W.T + torch.diag(model.psi)


sizes = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**31))  # columns, rank, seed


@given(sizes)
@settings(max_examples=25, deadline=None)
def test_posterior_conditional_and_likelihood_are_those_of_the_gaussian(size):
    n_features, rank, seed = size
    values, observed, model = table(5, n_features, rank, missing=0.4, seed=seed)
    values[~observed] = torch.nan  # what is stored in a missing cell has no influence
    m, chol = posterior(values, observed, model)
    mean, variance = conditional(values, observed, model)
    log_p = log_likelihood(values, observed, model)
    sigma = covariance(model)
    for i, o in enumerate(observed):
        S, r = sigma[o][:, o], (values[i] - model.b)[o]
        gain = torch.linalg.solve(S, model.W[o]).T  # of the latent
        eye = torch.eye(rank, dtype=F64)
        torch.testing.assert_close(m[i], gain @ r)
        torch.testing.assert_close(torch.cholesky_inverse(chol[i]), eye - gain @ model.W[o])
        # A new measurement of every cell: its own noise is fresh even where it was observed.
        torch.testing.assert_close(mean[i], model.b + model.W @ gain @ r)
        dispersion = model.W @ (eye - gain @ model.W[o]) @ model.W.T
        torch.testing.assert_close(variance[i], dispersion.diagonal() + model.psi)
        hidden = ~o
        cross = torch.linalg.solve(S, sigma[o][:, hidden]).T
        torch.testing.assert_close(mean[i, hidden], model.b[hidden] + cross @ r)
        by_hand = sigma[hidden][:, hidden] - cross @ sigma[o][:, hidden]
        torch.testing.assert_close(variance[i, hidden], by_hand.diagonal())
        expected = MultivariateNormal(model.b[o], S).log_prob(values[i, o]) if o.any() else torch.tensor(0.0).double()
        torch.testing.assert_close(log_p[i], expected)


def test_the_likelihood_obeys_the_chain_rule():
    values, _, model = table(6, 4, 2)
    full = torch.ones(6, 4, dtype=torch.bool)
    total = torch.zeros(6, dtype=F64)
    for column in range(4):
        before = full.clone()
        before[:, column:] = False
        mean, variance = conditional(values, before, model)
        total += torch.distributions.Normal(mean, variance.sqrt()).log_prob(values)[:, column]
    torch.testing.assert_close(log_likelihood(values, full, model), total)


@pytest.mark.parametrize("lead", [(3,), (2, 3)])
def test_leading_dimensions_equal_loops(lead):
    g = torch.Generator().manual_seed(1)
    model = random_model(5, 2, g, lead=lead)
    values = torch.randn(*lead, 7, 5, dtype=F64, generator=g)
    observed = torch.rand(*lead, 7, 5, generator=g) < 0.6
    for function in (posterior, conditional, lambda *a: (log_likelihood(*a),)):
        for index in np.ndindex(*lead):
            alone = function(values[index], observed[index], FactorAnalysis(*(p[index] for p in model)))
            for stacked, single in zip(function(values, observed, model), alone, strict=True):
                torch.testing.assert_close(stacked[index], single)


def test_precision_is_an_argument():
    values, observed, model = table(4, 3, 2)
    low = model.to(torch.float32)
    assert all(p.dtype == torch.float32 for p in low)
    assert low.rank == model.rank == 2
    mean, _ = conditional(values.float(), observed, low)
    torch.testing.assert_close(mean.double(), conditional(values, observed, model)[0], rtol=1e-4, atol=1e-4)


def objective(values, observed, model, floor):
    """What EM climbs: likelihood, a standard normal prior on the loadings, one pseudo-row of noise at the floor."""
    prior = -0.5 * model.W.square().sum() - 0.5 * (model.psi.log() + floor / model.psi).sum()
    return (log_likelihood(values, observed, model).sum() + prior).item()


@pytest.mark.parametrize(("rank", "missing"), [(1, 0.0), (2, 0.3), (4, 0.3), (4, 0.6)])
def test_every_sweep_climbs(rank, missing):
    values, observed, _ = table(300, 6, 2, missing=missing, seed=rank)
    climb = [
        objective(values, observed, fit_factor_analysis(values, observed, rank, 1e-3, n_iter, tol=0.0), 1e-3)
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
    peer = decomposition.FactorAnalysis(rank, tol=1e-8, max_iter=2000, svd_method="lapack").fit(values.numpy())
    model = fit_factor_analysis(values, torch.ones_like(values, dtype=torch.bool), rank, 1e-8, n_iter=300, tol=1e-9)
    ours = log_likelihood(values, torch.ones_like(values, dtype=torch.bool), model).mean().item()
    # What is left is the prior on the loadings, of the order of 1 / n^2.
    assert ours == pytest.approx(peer.score(values.numpy()), abs=1e-4)
    np.testing.assert_allclose(covariance(model).numpy(), peer.get_covariance(), atol=0.05)


def test_incomplete_data_recover_the_truth():
    values, observed, truth = table(10_000, 6, 2, missing=0.3, seed=4)
    model = fit_factor_analysis(values, observed, 2, 1e-4, 60)
    torch.testing.assert_close(covariance(model), covariance(truth), rtol=0.1, atol=0.1)
    torch.testing.assert_close(model.b, truth.b, rtol=0, atol=0.1)
    # Maximum likelihood: above the truth on its own rows, by about half a nat per parameter in all.
    gain = (log_likelihood(values, observed, model) - log_likelihood(values, observed, truth)).sum().item()
    assert 0 < gain < 30


def test_order_of_rows_does_not_matter():
    values, observed, _ = table(200, 5, 2)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    one, other = (fit_factor_analysis(v, o, 2) for v, o in ((values, observed), (values[order], observed[order])))
    torch.testing.assert_close(covariance(one), covariance(other), rtol=1e-8, atol=1e-8)


def test_batches_of_rows_do_not_matter():
    """So many latents that the rows do not fit into one: in another order they meet other rows."""
    values, observed, _ = table(1000, 5, 2)
    rank, order = 40, torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert len(list(row_slices(1000, 4 * rank**2))) > 2
    one, other = (
        fit_factor_analysis(v, o, rank, n_iter=3) for v, o in ((values, observed), (values[order], observed[order]))
    )
    torch.testing.assert_close(covariance(one), covariance(other), rtol=1e-8, atol=1e-8)


def test_a_fit_goes_on_from_where_it_was():
    values, observed, _ = table(200, 5, 2)
    half = fit_factor_analysis(values, observed, 2, n_iter=4, tol=0.0)
    on = fit_factor_analysis(values, observed, 2, n_iter=3, tol=0.0, start=half)
    torch.testing.assert_close(tuple(on), tuple(fit_factor_analysis(values, observed, 2, n_iter=7, tol=0.0)))
    assert not torch.equal(on.W, half.W)


def test_the_end_of_a_fit_is_its_fixed_point():
    values, observed, _ = table(200, 5, 2)
    end = fit_factor_analysis(values, observed, 2, n_iter=500, tol=1e-12)
    torch.testing.assert_close(
        covariance(fit_factor_analysis(values, observed, 2, n_iter=1, start=end)), covariance(end), rtol=0, atol=1e-4
    )


def test_a_wider_start_keeps_the_narrow_fit_and_adds_what_is_left():
    """The rest of rows that a second factor moves points along this factor."""
    values, observed, truth = table(2000, 6, 2, missing=0.1)
    narrow = fit_factor_analysis(values, observed, 1, n_iter=100)
    wide = widened(narrow, values, observed, 2)
    assert torch.equal(wide.W[:, :1], narrow.W)
    assert torch.equal(wide.b, narrow.b)
    assert torch.equal(wide.psi, narrow.psi)
    both = torch.linalg.qr(truth.W)[0]
    added = wide.W[:, 1] / wide.W[:, 1].norm()
    assert (both.T @ added).norm() > 0.9  # within the plane of the true loadings
    before, after = (
        log_likelihood(values, observed, fit_factor_analysis(values, observed, 2, n_iter=5, start=start)).sum()
        for start in (narrow._replace(W=torch.nn.functional.pad(narrow.W, (0, 1))), wide)
    )
    assert after > before + 100  # without a direction of its own, a latent of zeros stays one


@pytest.mark.parametrize("rank", [2, 5, 9])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 4), (50, 4)])
def test_a_wider_start_of_odd_tables_does_not_break(shape, rank):
    """More latents than columns or rows: those that have nothing to say are zero."""
    values, observed, _ = table(*shape, 1)
    wide = widened(fit_factor_analysis(values, observed, 1), values, observed, rank)
    assert wide.rank == rank
    assert (wide.W != 0).any(0).sum() <= 1 + min(shape)
    assert all(part.isfinite().all() for part in (*wide, *fit_factor_analysis(values, observed, rank, start=wide)))


def test_noise_stays_above_the_floor():
    values, observed, _ = table(100, 4, 1)
    floor = torch.tensor([0.5, 2.0, 1e-3, 1e-3], dtype=F64)
    assert (fit_factor_analysis(values, observed, 2, floor).psi >= floor).all()


def test_missing_cells_have_no_influence_on_the_fit():
    values, observed, _ = table(100, 4, 2)
    filled = torch.where(observed, values, torch.nan)
    torch.testing.assert_close(
        tuple(fit_factor_analysis(filled, observed, 2)), tuple(fit_factor_analysis(values, observed, 2))
    )


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
    model = fit_factor_analysis(values, observed, rank, 1e-4)
    assert model.W.shape == (shape[1], rank)
    mean, variance = conditional(values, observed, model)
    for tensor in (*model, mean, variance, log_likelihood(values, observed, model)):
        assert tensor.isfinite().all()
    assert (model.psi >= 1e-4).all()
