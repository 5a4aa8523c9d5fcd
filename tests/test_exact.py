"""The exact model: on linear-Gaussian data every weight is the evidence, and what is fitted is what is true."""

from __future__ import annotations

import pytest
import torch

from vaeimpute.gaussian import factor_analysis as linear
from vaeimpute.likelihoods.families import CellSpec
from vaeimpute.tables.data import Table
from vaeimpute.tables.fit import fit_table
from vaeimpute.tables.models import JointVAE, ModelConfig
from vaeimpute.vae import objective
from vaeimpute.vae.inference import draw, impute, log_evidence

F64 = torch.float64
M, B, D, RANK = 3, 40, 6, 2


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def backbone():
    """One linear VAE per member."""
    W, b = torch.randn(M, D, RANK, dtype=F64), torch.randn(M, D, dtype=F64)
    return linear.Linear(W, b, 0.05 + torch.rand(M, D, dtype=F64))


@pytest.fixture
def untrained(backbone):
    """The joint reading as it starts: the linear VAE, and networks whose last layers are zero."""
    model = JointVAE(ModelConfig(M, RANK, 16, 2, 0.1, -6.0), [CellSpec("gaussian")] * D).double()
    values, observed = rows()
    model.start(backbone, values[0], observed[0])
    return model.eval()


def rows():
    values = 2 * torch.randn(M, B, D, dtype=F64)
    observed = torch.rand(M, B, D) < 0.6
    observed[:, 0], observed[:, 1] = False, True
    return values, observed


def antithetic(n_draws):
    """Noise that comes with its mirror image, so that its mean is zero."""
    noise = torch.randn(n_draws // 2, RANK, dtype=F64)
    return torch.cat([noise, -noise])


@pytest.mark.parametrize("n_draws", [1, 2, 7, 100])
def test_every_weight_is_the_evidence(untrained, backbone, n_draws):
    values, observed = rows()
    _, log_w = untrained.draws(values, observed, torch.randn(n_draws, RANK, dtype=F64))
    evidence = linear.log_likelihood(values, observed, backbone)
    assert log_w.shape == (M, n_draws, B)
    torch.testing.assert_close(log_w, evidence.unsqueeze(1).expand_as(log_w), rtol=0, atol=1e-10)
    for bound in (objective.elbo, objective.iwae):
        torch.testing.assert_close(bound(log_w), evidence, rtol=0, atol=1e-10)


def test_a_row_without_cells_has_evidence_zero(untrained):
    values, observed = rows()
    _, log_w = untrained.draws(values, torch.zeros_like(observed), torch.randn(4, RANK, dtype=F64))
    torch.testing.assert_close(log_w, torch.zeros_like(log_w), rtol=0, atol=1e-10)


def test_imputations_are_conditional_means(untrained, backbone):
    values, observed = rows()
    answers = untrained.answers(values, observed, antithetic(20))
    mean, *_ = linear.conditional(values, observed, backbone)
    torch.testing.assert_close(answers, mean, rtol=0, atol=1e-10)


def test_encoding_is_the_posterior_mean(untrained, backbone):
    values, observed = rows()
    m, _ = linear.posterior(values, observed, backbone)
    torch.testing.assert_close(untrained.encode(values, observed), m, rtol=0, atol=1e-10)


def test_draws_have_the_conditional_covariance(untrained, backbone):
    values, observed = (t[:, 5:6] for t in rows())
    params, _ = untrained.draws(values, observed, torch.randn(20_000, RANK, dtype=F64))
    means = params.detach().unflatten(-1, (D, 2))[..., 0]  # (M, K, 1, D)
    _, chol = linear.posterior(values, observed, backbone)
    expected = backbone.W @ torch.cholesky_inverse(chol[:, 0]) @ backbone.W.transpose(-1, -2)
    for m in range(M):
        torch.testing.assert_close(means[m, :, 0].T.cov(), expected[m], rtol=0.05, atol=0.05)


def test_what_a_hole_holds_has_no_influence(untrained):
    values, observed = rows()
    noise = torch.randn(5, RANK, dtype=F64)
    for one, other in zip(
        untrained.draws(values, observed, noise),
        untrained.draws(torch.where(observed, values, 1e3), observed, noise),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_gradient_of_the_start_is_the_gradient_of_the_evidence(untrained, backbone):
    """With the exact posterior as the proposal the decoder climbs the evidence itself (Fisher's identity)."""
    values, observed = rows()
    leaves = linear.Linear(*(p.clone().requires_grad_() for p in backbone))
    expected = torch.autograd.grad(linear.log_likelihood(values, observed, leaves).sum(), leaves.b)[0]
    _, log_w = untrained.draws(values, observed, antithetic(10))
    ours = torch.autograd.grad(objective.elbo(log_w).sum(), untrained.decoder_b)[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


# ---- fitted on a table whose truth is known ----------------------------------------------------------------------

N = 16_000  # at 4,000 the exact fit alone misses the truth by two percent of a standard deviation


@pytest.fixture(scope="module")
def truth():
    """Standardised columns of rank 2, with neither weak nor near-exact relations."""
    g = torch.Generator().manual_seed(0)
    W = torch.randn(D, RANK, dtype=F64, generator=g)
    psi = 0.1 + 0.3 * torch.rand(D, dtype=F64, generator=g)
    W *= ((1 - psi) / W.square().sum(1)).sqrt().unsqueeze(1)
    return linear.Linear(W, torch.zeros(D, dtype=F64), psi)


@pytest.fixture(scope="module")
def fresh(truth):
    """Rows that the model is fitted on, and as many that it never saw."""
    g = torch.Generator().manual_seed(1)
    values = torch.randn(2 * N, RANK, dtype=F64, generator=g) @ truth.W.T
    values += truth.psi.sqrt() * torch.randn(2 * N, D, dtype=F64, generator=g)
    observed = torch.rand(2 * N, D, generator=g) >= 0.2
    return values, observed


@pytest.fixture(scope="module")
def fitted(fresh):
    values, observed = fresh
    stored = torch.where(observed, values, 0)[:N]
    table = Table(stored, observed[:N], ["numeric"] * D, [0] * D)
    return fit_table(table, seed=0, dtype=torch.float32)[0]


def unseen(fresh, n=1000):
    values, observed = fresh
    return torch.where(observed, values, 0)[-n:].float(), observed[-n:]


@pytest.mark.slow
def test_fitted_evidence_is_the_true_likelihood(fitted, fresh, truth):
    values, observed = unseen(fresh, N)
    ours = log_evidence(fitted, values, observed).double()
    expected = linear.log_likelihood(values.double(), observed, truth)
    assert (ours - expected).mean().abs() < 0.02
    assert (ours - expected).std() < 0.25


@pytest.mark.slow
def test_fitted_imputations_are_the_true_conditional_means(fitted, fresh, truth):
    values, observed = unseen(fresh, N)
    mean, *_ = linear.conditional(values.double(), observed, truth)
    error = (impute(fitted, values, observed).double() - mean)[~observed]
    assert error.square().mean().sqrt() < 0.02  # of a standard deviation
    # In units of what nobody can know: the share of the error that the fit adds.
    full = fresh[0][-N:]
    unknown = (full - mean)[~observed].square().mean()
    ours = (full - impute(fitted, values, observed).double())[~observed].square().mean()
    assert ours < 1.01 * unknown


@pytest.mark.slow
def test_fitted_draws_have_the_true_conditional_spread(fitted, fresh, truth):
    values, observed = unseen(fresh, 300)
    torch.manual_seed(0)
    draws = draw(fitted, values, observed, 200).double()  # (S, n, D)
    _, variance, _ = linear.conditional(values.double(), observed, truth)
    hidden = ~observed
    ratio = draws.var(0)[hidden] / variance[hidden]
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.1)
    # Cells hidden together vary together: correlations within a row, over all pairs.
    _, chol = linear.posterior(values.double(), observed, truth)
    cov = truth.W @ torch.cholesky_inverse(chol) @ truth.W.T + torch.diag(truth.psi)
    centred = draws - draws.mean(0)
    ours = torch.einsum("snd,sne->nde", centred, centred) / (len(draws) - 1)
    pair = (hidden.unsqueeze(-1) & hidden.unsqueeze(-2)).triu(1)
    strong = pair & (cov.abs() > 0.1)
    assert strong.sum() > 20
    assert (ours[strong] * cov[strong] > 0).double().mean() > 0.9
    slope = (ours[pair] * cov[pair]).sum() / cov[pair].square().sum()
    assert slope > 0.3
