"""Peers that train networks: GAIN, the plain VAE of tutorials, MIWAE. On `Design`'s matrix: classes one-hot."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks.design import Design

if TYPE_CHECKING:
    from torch import Tensor, nn, optim

__all__ = ["gain", "miwae", "plain_vae"]


def gain(X: pd.DataFrame, seed: int, n_steps: int = 10_000) -> pd.DataFrame:
    """GAIN (Yoon et al. 2018) with its published settings: hint rate 0.9, alpha 100, batch 128, 10,000 steps.

    Numbers are scaled to [0, 1], both networks have two hidden layers as wide as the table; one pass fills the cells.
    """
    torch, design = _torch(seed), Design(X)
    matrix = design.encode(X)
    low, span = np.nanmin(matrix, axis=0), np.maximum(np.ptp(np.nan_to_num(matrix), axis=0), 1e-6)
    x, m = _tensors((matrix - low) / span)
    d = x.shape[1]
    generator, critic = _perceptron(2 * d, d, d, d), _perceptron(2 * d, d, d, d)
    steps = [torch.optim.Adam(network.parameters(), 1e-3) for network in (critic, generator)]
    for _ in range(n_steps):
        rows = torch.randint(len(x), (min(128, len(x)),))
        a, o = x[rows], m[rows]
        guess, hint = generator(_with_noise(a, o)).sigmoid(), o * (torch.rand_like(o) < 0.9)
        for step, fake in zip(steps, (guess.detach(), guess), strict=True):
            p = critic(torch.cat([torch.where(o > 0, a, fake), hint], 1)).sigmoid().clamp(1e-7, 1 - 1e-7)
            unmask = -(o * p.log() + (1 - o) * (1 - p).log()).mean()
            deceive = 100 * (o * (a - fake) ** 2).sum() / o.sum() - ((1 - o) * p.log()).mean()
            _descend(step, deceive if fake is guess else unmask)
    with torch.no_grad():
        return design.restore(X, generator(_with_noise(x, m)).sigmoid().double().numpy() * span + low)


def plain_vae(X: pd.DataFrame, seed: int, n_epochs: int = 300, latent_dim: int = 8) -> pd.DataFrame:
    """VAE of tutorials: trained on mean-filled rows as if they were complete, the reconstruction fills missing cells.

    Two layers of 128, unit-variance Gaussian cells, Adam 1e-3, batch 64.
    """
    torch, design = _torch(seed), Design(X)
    x, _ = _tensors(design.encode(X), fill_with_mean=True)
    encoder = _perceptron(x.shape[1], 128, 128, 2 * latent_dim)
    decoder = _perceptron(latent_dim, 128, 128, x.shape[1])
    step = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)
    for _ in range(n_epochs):
        for rows in torch.randperm(len(x)).split(64):
            mean, log_sd = encoder(x[rows]).chunk(2, 1)
            z = mean + log_sd.exp() * torch.randn_like(mean)
            kl = (mean**2 + (2 * log_sd).exp() - 1 - 2 * log_sd).sum(1) / 2
            _descend(step, (((decoder(z) - x[rows]) ** 2).sum(1) / 2 + kl).mean())
    with torch.no_grad():
        return design.restore(X, decoder(encoder(x)[:, :latent_dim]).double().numpy())


def miwae(X: pd.DataFrame, seed: int, n_epochs: int = 500, n_draws: int = 1000) -> pd.DataFrame:
    """MIWAE (Mattei and Frellsen 2019) as published: 3 x 128, 10 latents, Student cells, K = 20, Adam 1e-3, batch 64.

    Differs in L = 1,000 draws at imputation (there 10,000), in 500 epochs or 10,000 steps, whichever is less, and in
    classes, one-hot as further numbers.
    """
    torch, design = _torch(seed), Design(X)
    x, m = _tensors(design.encode(X))
    encoder = _perceptron(x.shape[1], 128, 128, 128, 20)
    decoder = _perceptron(10, 128, 128, 128, 3 * x.shape[1])
    step = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)
    for _ in range(min(n_epochs, 10_000 // -(-len(x) // 64))):
        for rows in torch.randperm(len(x)).split(64):
            log_w, _ = _importance(encoder, decoder, x[rows], m[rows], 20)
            _descend(step, -log_w.logsumexp(0).mean())
    filled = []
    with torch.no_grad():
        for rows in torch.arange(len(x)).split(16):
            log_w, mean = _importance(encoder, decoder, x[rows], m[rows], n_draws)
            filled.append(torch.einsum("kb,kbd->bd", log_w.softmax(0), mean))
    return design.restore(X, torch.cat(filled).double().numpy())


def _importance(
    encoder: nn.Module, decoder: nn.Module, x: Tensor, observed: Tensor, n_draws: int
) -> tuple[Tensor, Tensor]:
    """Log-weights (K, B) of draws from the encoder, and the decoder's means (K, B, D)."""
    from torch.distributions import Normal, StudentT
    from torch.nn.functional import softplus

    mean, raw = encoder(x).chunk(2, 1)
    q, prior = Normal(mean, softplus(raw) + 1e-4, validate_args=False), Normal(0.0, 1.0)
    z = q.rsample((n_draws,))
    location, scale, df = decoder(z).chunk(3, 2)
    log_px = StudentT(softplus(df) + 3, location, softplus(scale) + 1e-3, validate_args=False).log_prob(x)
    return (log_px * observed).sum(2) + (prior.log_prob(z) - q.log_prob(z)).sum(2), location


def _with_noise(x: Tensor, observed: Tensor) -> Tensor:
    """GAIN's input: small noise in the missing cells, and beside it what is observed."""
    import torch

    return torch.cat([torch.where(observed > 0, x, 0.01 * torch.rand_like(x)), observed], 1)


def _torch(seed: int) -> ModuleType:
    """Import the module where it is used, because it takes seconds, and seed it."""
    import torch

    torch.manual_seed(seed)
    return torch


def _tensors(matrix: np.ndarray, *, fill_with_mean: bool = False) -> tuple[Tensor, Tensor]:
    """Matrix with its missing cells filled by zero or the column mean, and 1 where it is observed, as float32."""
    import torch

    observed = ~np.isnan(matrix)
    filling = np.nanmean(matrix, axis=0) if fill_with_mean else 0.0
    return torch.tensor(np.where(observed, matrix, filling)).float(), torch.tensor(observed).float()


def _perceptron(*widths: int) -> nn.Module:
    from torch import nn

    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def _descend(optimizer: optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
