"""The exact model: on linear-Gaussian data every weight is the likelihood, and what is fitted is what is true."""

from __future__ import annotations

import pytest
import torch
from toy import RandomTensors, factor_analysis, numeric_table, rows_of

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, conditional, posterior
from vaeimpute.gaussian.factor_analysis import log_likelihood as exact_log_likelihood
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.tables.fit import fit_ensemble
from vaeimpute.tables.models import JointVAE, Sizes
from vaeimpute.training.runtime import make_generator
from vaeimpute.training.schedule import TimeBudget
from vaeimpute.vae import objective
from vaeimpute.vae.inference import Ensemble, impute, log_likelihood

M, B, D, RANK = 3, 40, 6, 2


@pytest.fixture
def random():
    return RandomTensors()


@pytest.fixture
def backbone(random):
    """One linear VAE per member."""
    return FactorAnalysis(random.normal(M, D, RANK), random.normal(M, D), 0.05 + random.uniform(M, D))


@pytest.fixture
def rows(random):
    """Values and observed, (M, B, D); one row without cells, and one with all."""
    values, observed = 2 * random.normal(M, B, D), random.mask(M, B, D, rate=0.6)
    observed[:, 0], observed[:, 1] = False, True
    return values, observed


@pytest.fixture(params=[16, 0], ids=["with networks", "without"])
def untrained(request, backbone):
    """The joint model as it starts: the linear VAE, and networks whose last layers are zero, or none."""
    sizes = Sizes(M, RANK, request.param, 2, 0.1, -6.0)
    model = JointVAE(sizes, [CellSpec("gaussian")] * D, make_generator(1)).double()
    model.start(backbone)
    return model.eval()


def antithetic(random, n_draws):
    """Noise that comes with its mirror image, so that its mean is zero."""
    noise = random.normal(n_draws // 2, RANK)
    return torch.cat([noise, -noise])


@pytest.mark.parametrize("n_draws", [1, 2, 7, 100])
def test_every_weight_is_the_likelihood(untrained, backbone, rows, random, n_draws):
    values, observed = rows
    _, log_w = untrained.importance_samples(values, observed, random.normal(n_draws, RANK))
    expected = exact_log_likelihood(values, observed, backbone)
    assert log_w.shape == (M, n_draws, B)
    torch.testing.assert_close(log_w, expected.unsqueeze(1).expand_as(log_w), rtol=0, atol=1e-10)
    for bound in (objective.elbo, objective.iwae):
        torch.testing.assert_close(bound(log_w), expected, rtol=0, atol=1e-10)


def test_a_row_without_cells_has_log_likelihood_zero(untrained, rows, random):
    values, observed = rows
    _, log_w = untrained.importance_samples(values, torch.zeros_like(observed), random.normal(4, RANK))
    torch.testing.assert_close(log_w, torch.zeros_like(log_w), rtol=0, atol=1e-10)


def test_imputations_are_conditional_means(untrained, backbone, rows, random):
    values, observed = rows
    expectations = untrained.expectations(values, observed, antithetic(random, 20))
    mean, *_ = conditional(values, observed, backbone)
    torch.testing.assert_close(expectations, mean, rtol=0, atol=1e-10)


def test_encoding_is_the_posterior_mean(untrained, backbone, rows):
    values, observed = rows
    m, _ = posterior(values, observed, backbone)
    torch.testing.assert_close(untrained.encode(values, observed), m, rtol=0, atol=1e-10)


def test_draws_have_the_conditional_covariance(untrained, backbone, rows, random):
    values, observed = (t[:, 5:6] for t in rows)
    params, _ = untrained.importance_samples(values, observed, random.normal(20_000, RANK))
    means = params.detach().unflatten(-1, (D, 2))[..., 0]  # (M, K, 1, D)
    _, chol = posterior(values, observed, backbone)
    expected = backbone.W @ torch.cholesky_inverse(chol[:, 0]) @ backbone.W.transpose(-1, -2)
    for m in range(M):
        torch.testing.assert_close(means[m, :, 0].T.cov(), expected[m], rtol=0.05, atol=0.05)


def test_what_a_missing_cell_holds_has_no_influence(untrained, rows, random):
    values, observed = rows
    noise = random.normal(5, RANK)
    for one, other in zip(
        untrained.importance_samples(values, observed, noise),
        untrained.importance_samples(torch.where(observed, values, 1e3), observed, noise),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_gradient_of_the_start_is_the_gradient_of_the_likelihood(untrained, backbone, rows, random):
    """With the exact posterior as the proposal the decoder climbs the likelihood itself (Fisher's identity)."""
    values, observed = rows
    leaves = FactorAnalysis(*(p.clone().requires_grad_() for p in backbone))
    expected = torch.autograd.grad(exact_log_likelihood(values, observed, leaves).sum(), leaves.b)[0]
    _, log_w = untrained.importance_samples(values, observed, antithetic(random, 10))
    ours = torch.autograd.grad(objective.elbo(log_w).sum(), untrained.decoder_b)[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


# ---- fitted on a table whose truth is known ----------------------------------------------------------------------

N = 16_000  # at 4,000 the exact fit alone misses the truth by two percent of a standard deviation
SEEN_BY_NONE = 4000  # rows


@pytest.fixture(scope="module")
def truth():
    return factor_analysis(D, RANK)


@pytest.fixture(scope="module")
def fresh(truth):
    """Rows that the models are fitted to, and others that they never saw."""
    return rows_of(truth, N + SEEN_BY_NONE)


@pytest.fixture(scope="module")
def fitted(fresh):
    table = numeric_table(*(part[:N] for part in fresh))
    return fit_ensemble(table, seed=0, dtype=torch.float32, budget=TimeBudget())[0]


def unseen(fresh, n):
    values, observed = fresh
    return torch.where(observed, values, 0)[-n:].float(), observed[-n:]


@pytest.mark.slow
def test_fitted_log_likelihood_is_the_true_one(fitted, fresh, truth):
    values, observed = unseen(fresh, SEEN_BY_NONE)
    ours = log_likelihood(fitted, values, observed).double()
    expected = exact_log_likelihood(values.double(), observed, truth)
    assert (ours - expected).mean().abs() < 0.02
    assert (ours - expected).std() < 0.25


@pytest.mark.slow
def test_fitted_imputations_are_the_true_conditional_means(fitted, fresh, truth):
    values, observed = unseen(fresh, SEEN_BY_NONE)
    mean = conditional(values.double(), observed, truth).mean
    imputed = impute(fitted, values, observed).double()
    assert (imputed - mean)[~observed].square().mean().sqrt() < 0.02  # of a standard deviation
    # In units of what nobody can know: the share of the error that the fit adds.
    full = fresh[0][-SEEN_BY_NONE:]
    unknown = (full - mean)[~observed].square().mean()
    assert (full - imputed)[~observed].square().mean() < 1.01 * unknown


def drawn_and_true_covariances(ensemble, fresh, truth):
    """Covariance of all cells of a row as drawn and in truth, and which pairs are missing together, (n, D, D)."""
    values, observed = unseen(fresh, 300)
    draws = ensemble.draw(values, observed, 200, 0)  # (S, n, D)
    centred = draws - draws.mean(0)
    ours = torch.einsum("snd,sne->nde", centred, centred) / (len(draws) - 1)
    _, chol = posterior(values.double(), observed, truth)
    exact = truth.W @ torch.cholesky_inverse(chol) @ truth.W.T + torch.diag(truth.psi)
    hidden = ~observed
    return ours, exact, hidden.unsqueeze(-1) & hidden.unsqueeze(-2)


def slope(ours, exact, pair):
    """Least squares of the drawn on the true covariances, over all pairs of different cells: the law says one."""
    pair = pair.triu(1)
    return ((ours[pair] * exact[pair]).sum() / exact[pair].square().sum()).item()


@pytest.fixture(scope="module")
def covariances(fitted, fresh, truth):
    return drawn_and_true_covariances(fitted, fresh, truth)


@pytest.mark.slow
def test_fitted_draws_have_the_true_conditional_variance(covariances):
    ours, exact, pair = covariances
    own = pair & torch.eye(D, dtype=torch.bool)
    assert (ours[own] / exact[own]).mean().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_cells_that_are_missing_together_vary_together(covariances):
    ours, exact, pair = covariances
    strong = pair.triu(1) & (exact.abs() > 0.1)
    assert strong.sum() > 20
    assert (ours[strong] * exact[strong] > 0).double().mean() > 0.9


@pytest.mark.slow
def test_draws_of_the_joint_model_alone_have_the_true_covariance(fitted, fresh, truth):
    one = torch.ones_like(fitted.stacking_weight)
    alone = Ensemble(fitted.joint, fitted.conditional, stacking_weight=one)
    assert slope(*drawn_and_true_covariances(alone, fresh, truth)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_drawn_covariance_of_cells_missing_together_is_the_true_one(covariances):
    assert slope(*covariances) == pytest.approx(1.0, abs=0.1)
