"""The bounds against their orderings, plain gradients, and the linear-Gaussian model in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence
from toy import F64, RandomTensors

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, log_likelihood, posterior
from vaeimpute.vae import objective

numbers = st.floats(-50, 50)


@pytest.fixture
def random():
    return RandomTensors()


def some_log_w(values):
    return torch.tensor(values, dtype=F64).unsqueeze(-1)


@given(st.lists(numbers, min_size=1, max_size=8))
@settings(deadline=None)
def test_elbo_lies_below_iwae_and_both_inside_the_weights(values):
    log_w = some_log_w(values)
    elbo, iwae = objective.elbo(log_w).item(), objective.iwae(log_w).item()
    assert min(values) - 1e-9 <= elbo <= iwae + 1e-9 <= max(values) + 2e-9


@given(st.lists(numbers, min_size=2, max_size=8))
@settings(deadline=None)
def test_more_draws_tighten_the_bound(values):
    """The mean over all subsets of K - 1 draws lies below the bound of the K draws (Burda et al. 2016, theorem 1)."""
    subsets = [objective.iwae(some_log_w(values[:i] + values[i + 1 :])).item() for i in range(len(values))]
    assert sum(subsets) / len(subsets) <= objective.iwae(some_log_w(values)).item() + 1e-9


@given(numbers, st.integers(1, 9))
@settings(deadline=None)
def test_equal_weights_give_their_value(value, n_draws):
    log_w = torch.full((2, n_draws, 3), value, dtype=F64)
    for bound in (objective.elbo, objective.iwae):
        torch.testing.assert_close(bound(log_w), torch.full((2, 3), value, dtype=F64))


def test_bounds_survive_huge_weights():
    log_w = torch.tensor([[-1e30, 1e30], [-1e30, -1e30]], dtype=F64)
    assert objective.iwae(log_w).isfinite().all()


def test_log_normal_is_torchs(random):
    x, mean, log_scale = random.normal(3, 5, 4)
    expected = Normal(mean, log_scale.exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(objective.log_normal(x, mean, log_scale), expected)
    torch.testing.assert_close(objective.log_normal(x), Normal(0.0, 1.0).log_prob(x).sum(-1))


def test_weights_count_observed_cells_only(random):
    log_px = random.normal(2, 3, 5, 4)
    observed = random.mask(2, 5, 4, rate=0.5)
    log_pz, log_qz = random.normal(2, 2, 3, 5)
    expected = (log_px * observed.unsqueeze(1)).sum(-1) + log_pz - log_qz
    hidden = torch.where(observed.unsqueeze(1), log_px, math.inf).requires_grad_()
    log_w = objective.log_weights(hidden, observed, log_pz, log_qz)
    torch.testing.assert_close(log_w, expected)
    log_w.sum().backward()
    assert torch.equal(hidden.grad, observed.unsqueeze(1).expand_as(log_px).double())


def test_kl_is_torchs(random):
    mean_q, log_q, mean_p, log_p = random.normal(4, 6, 3)
    q, p = (Independent(Normal(m, s.exp()), 1) for m, s in ((mean_q, log_q), (mean_p, log_p)))
    torch.testing.assert_close(objective.kl_normal(mean_q, log_q, mean_p, log_p), kl_divergence(q, p))


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4))
@settings(deadline=None)
def test_kl_is_not_negative(parameters):
    mean_q, log_q, mean_p, log_p = torch.tensor(parameters, dtype=F64).view(4, 1)
    assert objective.kl_normal(mean_q, log_q, mean_p, log_p) >= -1e-9
    assert objective.kl_normal(mean_q, log_q, mean_q, log_q) == 0


# ---- gradients, on x = a z + c + e with z ~ N(0, 1), e ~ N(0, s^2) and q(z) = N(mu, e^(2 tau)) -------------------

X, SCALE = 1.3, 0.8


def toy(noise, mu=0.9, tau=-0.2, *, detach=True):
    """Leaves of decoder and encoder (one per row), latents and log-weights of the toy model."""
    leaves = [torch.full(noise.shape[1:], v, dtype=F64, requires_grad=True) for v in (0.7, 0.1, mu, tau)]
    a, c, mu, tau = (leaf.unsqueeze(-1) for leaf in leaves)
    z = mu + tau.exp() * noise.unsqueeze(-1)  # (K, B, 1)
    m, t = (mu.detach(), tau.detach()) if detach else (mu, tau)
    log_px = objective.log_normal(torch.full_like(z, X), a * z + c, math.log(SCALE))
    return leaves, z, log_px + objective.log_normal(z) - objective.log_normal(z, m, t)


@pytest.mark.parametrize("n_draws", [1, 2, 8])
def test_decoder_gradient_is_exactly_that_of_the_bound(random, n_draws):
    noise = random.normal(n_draws, 50)
    leaves, z, log_w = toy(noise)
    ours = torch.autograd.grad(objective.iwae_loss(log_w, z).sum(), leaves[:2])
    leaves, _, log_w = toy(noise)
    plain = torch.autograd.grad(-objective.iwae(log_w).sum(), leaves[:2])
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("n_draws", [1, 3, 10])
def test_encoder_gradient_is_that_of_the_bound_in_expectation(random, n_draws):
    n_rows = 100_000
    leaves, z, log_w = toy(random.normal(n_draws, n_rows))
    ours = torch.stack(torch.autograd.grad(objective.iwae_loss(log_w, z).sum(), leaves[2:]))
    leaves, _, log_w = toy(random.normal(n_draws, n_rows), detach=False)
    plain = torch.stack(torch.autograd.grad(-objective.iwae(log_w).sum(), leaves[2:]))
    error = (ours.mean(1) - plain.mean(1)).abs()
    assert (error < 5 * ((ours.var(1) + plain.var(1)) / n_rows).sqrt()).all()
    assert (plain.mean(1).abs() > 5 * (plain.var(1) / n_rows).sqrt()).all()  # there is something to find
    if n_draws == 10:
        assert (ours.var(1) < plain.var(1)).all()  # what the second reparameterisation is for


def test_encoder_rests_at_the_exact_posterior(random):
    precision = 1 + 0.7**2 / SCALE**2
    mu = 0.7 * (X - 0.1) / SCALE**2 / precision
    leaves, z, log_w = toy(random.normal(6, 20), mu, -0.5 * math.log(precision))
    exact = Normal(0.1, math.hypot(0.7, SCALE)).log_prob(torch.tensor(X, dtype=F64))
    torch.testing.assert_close(log_w, exact.expand_as(log_w))
    for grad in torch.autograd.grad(objective.iwae_loss(log_w, z).sum(), leaves[2:]):
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-12)


def test_one_draw_is_the_elbo(random):
    _, z, log_w = toy(random.normal(1, 10))
    torch.testing.assert_close(objective.iwae_loss(log_w, z), -objective.elbo(log_w))
    torch.testing.assert_close(objective.iwae(log_w), objective.elbo(log_w))


# ---- the conditional bound ---------------------------------------------------------------------------------------


def test_conditional_bound_is_the_conditional_likelihood_under_exact_posteriors(random):
    """``E_q(z|x_O) log p(x_R | z) - KL(q(z|x_O) || q(z|x_K)) = log p(x_R | x_K)``."""
    backbone = FactorAnalysis(random.normal(5, 1), random.normal(5), random.uniform(5) + 0.1)
    values = random.normal(30, 5)
    observed = random.mask(30, 5, rate=0.8)
    kept = observed & random.mask(30, 5, rate=0.5)
    (mean_q, chol_q), (mean_p, chol_p) = (posterior(values, o, backbone) for o in (observed, kept))
    log_q, log_p = (-chol.squeeze(-1).log() for chol in (chol_q, chol_p))
    kl = objective.kl_normal(mean_q, log_q, mean_p, log_p)
    bounds = []
    for sign in (-1, 1):  # log p(x | z) is a square in z: two points have its exact mean
        z = mean_q + sign * log_q.exp()
        log_px = Normal(z @ backbone.W.T + backbone.b, backbone.psi.sqrt()).log_prob(values)
        bounds.append(objective.conditional_bound(log_px, observed & ~kept, kl))
    expected = log_likelihood(values, observed, backbone) - log_likelihood(values, kept, backbone)
    torch.testing.assert_close((bounds[0] + bounds[1]) / 2, expected)


def test_conditional_bound_counts_hidden_cells_only():
    hidden = torch.tensor([[True, False], [False, False]])
    log_px = torch.tensor([[-1.5, math.nan], [math.inf, math.nan]], dtype=F64)
    kl = torch.tensor([0.25, 0.5], dtype=F64)
    assert objective.conditional_bound(log_px, hidden, kl).tolist() == [-1.75, -0.5]
