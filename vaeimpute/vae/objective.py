"""The bounds, as pure functions of the two tensors ``log_px`` (M, K, B, D) and ``log_w`` (M, K, B)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vaeimpute.likelihoods.distributions import normal_log_density


def log_normal(x: Tensor, mean: Tensor | float = 0.0, log_scale: Tensor | float = 0.0) -> Tensor:
    """Log-density of a diagonal Gaussian, summed over the last axis."""
    return normal_log_density(x, mean, log_scale).sum(-1)


def log_weights(log_px: Tensor, observed: Tensor, log_pz: Tensor, log_qz: Tensor) -> Tensor:
    """Importance weights ``log_w = sum_observed log_px + log p(z) - log q(z)``.

    Parameters
    ----------
    log_px : Tensor of shape (..., K, B, D)
        Log-likelihood of each cell under each draw; anything finite where the cell is hidden.
    observed : Tensor of shape (..., B, D)
        True where a cell counts.
    log_pz, log_qz : Tensor of shape (..., K, B)
        Log-density of each draw under the prior and under the proposal.

    Returns
    -------
    Tensor of shape (..., K, B)
    """
    # `where`, never a product: inf * 0 is NaN.
    return torch.where(observed.unsqueeze(-3), log_px, 0).sum(-1) + log_pz - log_qz


def elbo(log_w: Tensor) -> Tensor:
    """Evidence lower bound, ``mean_K log_w`` (Kingma and Welling 2014), per row."""
    return log_w.mean(-2)


def iwae(log_w: Tensor) -> Tensor:
    """Importance-weighted bound, ``logsumexp_K log_w - log K`` (Burda et al. 2016, eq. 8), per row.

    Examples
    --------
    >>> iwae(torch.tensor([[-1.0], [-1.0]]))
    tensor([-1.])
    """
    return torch.logsumexp(log_w, -2) - math.log(log_w.shape[-2])


def iwae_loss(log_w: Tensor, z: Tensor) -> Tensor:
    """Surrogate whose gradient is the IWAE gradient, doubly reparameterised for whatever made `z`.

    The decoder gets ``sum_k w_k grad log_w_k`` and the encoder ``sum_k w_k^2 grad_z log_w_k`` (Tucker et al. 2019,
    eq. 8), whose signal does not vanish as K grows. `log_w` must see the proposal's parameters detached.

    Parameters
    ----------
    log_w : Tensor of shape (..., K, B)
    z : Tensor of shape (..., K, B, L)
        The reparameterised draws that `log_w` was computed from.

    Returns
    -------
    Tensor of shape (..., B)
        Minus the bound, up to a constant in the parameters.
    """
    w = torch.softmax(log_w.detach(), -2)
    if z.requires_grad:
        z.register_hook(lambda grad: grad * w.unsqueeze(-1))
    return -(w * log_w).sum(-2)


def kl_normal(mean_q: Tensor, log_scale_q: Tensor, mean_p: Tensor, log_scale_p: Tensor) -> Tensor:
    """``KL(q || p)`` of diagonal Gaussians, summed over the last axis.

    Examples
    --------
    >>> zero = torch.zeros(1)
    >>> kl_normal(zero, zero, zero, zero).item()
    0.0
    """
    ratio = log_scale_q - log_scale_p
    return (0.5 * (torch.exp(2 * ratio) + ((mean_q - mean_p) * torch.exp(-log_scale_p)).square() - 1) - ratio).sum(-1)


def conditional_bound(log_px: Tensor, hidden: Tensor, kl: Tensor) -> Tensor:
    """``E_q(z|x_O) log p(x_R | z, x_K) - KL(q(z|x_O) || q(z|x_K))`` (Ivanov et al. 2019, eq. 7), per row.

    Parameters
    ----------
    log_px : Tensor of shape (..., B, D)
        Log-likelihood of each cell under one draw from ``q(z | x_O)``.
    hidden : Tensor of shape (..., B, D)
        The set R: observed cells that the decoder does not see.
    kl : Tensor of shape (..., B)
    """
    return torch.where(hidden, log_px, 0).sum(-1) - kl
