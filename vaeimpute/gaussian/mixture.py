"""Mixtures of linear VAEs (of factor analysers), solved exactly on incomplete data by EM.

A linear VAE with one more latent, the component: ``p(x) = sum_c pi_c N(x; b_c, W_c W_c' + psi_c)``. Whatever cells are
observed, the likelihood of a row, and of each of its cells given the others, has a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from vaeimpute.gaussian.factor_analysis import Linear, conditional, fit_linear, log_likelihood, posterior

N_COMPONENTS = (1, 4, 8, 16)
RANKS = (1, 2, 4, 8, 12, 20)  # of a single component
_RANK = 6  # of each of several
_ROWS_PER_COMPONENT = 20
_MIN_ROWS = 8  # below, one component and one factor are enough
_CELLS = 2**22  # components times rows times features at once
_WORST = -300.0  # log-likelihood: one row in ruins must not decide how many components there are


class Mixture(NamedTuple):
    """Parameters: ``log_weight`` (..., C) and the components' linear VAEs stacked, ``W`` (..., C, F, L) and so on."""

    log_weight: Tensor
    linear: Linear

    def to(self, dtype: torch.dtype) -> Mixture:
        """The same model in another precision."""
        return Mixture(self.log_weight.to(dtype), self.linear.to(dtype))


def log_joint(values: Tensor, observed: Tensor, mixture: Mixture) -> Tensor:
    """``log pi_c + log p_c(x_O)`` of the observed cells of each row, (..., C, B)."""
    if len(values) > 1 and (observed == observed[:1]).all():  # one mask, one posterior precision for all rows
        observed = observed[:1]
    return mixture.log_weight.unsqueeze(-1) + log_likelihood(values, observed, mixture.linear)


def log_evidence(values: Tensor, observed: Tensor, mixture: Mixture) -> Tensor:
    """Exact log-likelihood of the observed cells of each row, (..., B), in bounded memory.

    Examples
    --------
    >>> linear = Linear(torch.zeros(2, 1, 1), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
    >>> mixture = Mixture(torch.tensor([0.5, 0.5]).log(), linear)
    >>> log_evidence(torch.tensor([[1.0], [0.0]]), torch.tensor([[True], [False]]), mixture)
    tensor([-1.4852,  0.0000])
    """
    rows = chunks(len(values), mixture.linear.b.numel())
    return torch.cat([torch.logsumexp(log_joint(values[r], observed[r], mixture), -2) for r in rows], -1)


def chunks(n: int, cost: int) -> list[slice]:
    """Slices of n rows, of which each takes `cost` numbers, that keep the memory bounded."""
    size = max(1, _CELLS // max(cost, 1))
    return [slice(start, start + size) for start in range(0, n, size)]


class CellDensity(NamedTuple):
    """Every cell given the *other* observed cells of its row, each of shape (..., C, B, F).

    Attributes
    ----------
    mean, variance : Tensor
        Of each component's Gaussian.
    log_weight : Tensor
        Of the components, as far as the other cells say.
    """

    mean: Tensor
    variance: Tensor
    log_weight: Tensor


def leave_one_out(values: Tensor, observed: Tensor, mixture: Mixture) -> CellDensity:
    """What the rest of its row says of each cell, in closed form: no cell has a say in what is expected of it.

    With the precision ``Lambda`` of the observed cells and residuals ``r = x - b``, cell j given the others is
    ``N(x_j - (Lambda r)_j / Lambda_jj, 1 / Lambda_jj)``; Woodbury gives both for all cells from the row's posterior.

    Parameters
    ----------
    values, observed : Tensor of shape (B, F)
    mixture : Mixture
    """
    linear = mixture.linear
    m, chol = posterior(values, observed, linear)
    W_t = linear.W.transpose(-1, -2)
    explained = _explained(chol, W_t)
    mean, psi = m @ W_t + linear.b.unsqueeze(-2), linear.psi.unsqueeze(-2)
    left = (1 - explained / psi).clamp(min=1e-9)  # psi_j Lambda_jj
    mean = torch.where(observed, values - (values - mean) / left, mean)
    variance = torch.where(observed, psi / left, psi + explained)
    log_w = log_joint(values, observed, mixture).unsqueeze(-1)
    own = torch.where(observed, _log_normal(values, mean, variance), 0)
    return CellDensity(mean, variance, (log_w - own).log_softmax(-3))


def leave_block_out(values: Tensor, observed: Tensor, mixture: Mixture, block: Tensor) -> CellDensity:
    """What the rest of its row says of each feature of a block (G,) whose features tell one another: (..., C, B, G).

    Parameters
    ----------
    values, observed : Tensor of shape (B, F)
    mixture : Mixture
    block : int Tensor of shape (G,)
    """
    W, b, psi = mixture.linear
    own = Linear(W.index_select(-2, block), b.index_select(-1, block), psi.index_select(-1, block))
    rest = observed.index_fill(-1, block, False)
    m, chol = posterior(values, rest, mixture.linear)
    W_t = own.W.transpose(-1, -2)
    explained = _explained(chol, W_t)
    log_w = log_joint(values, rest, mixture).log_softmax(-2).unsqueeze(-1)
    return CellDensity(m @ W_t + own.b.unsqueeze(-2), own.psi.unsqueeze(-2) + explained, log_w.expand_as(explained))


def _explained(chol: Tensor, W_t: Tensor) -> Tensor:
    """``w_j' P^-1 w_j`` of each feature, (..., B, F), from the factors of P (..., B, L, L)."""
    return torch.linalg.solve_triangular(chol, W_t.unsqueeze(-3), upper=False).square().sum(-2)


def _log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((x - mean).square() / variance + (2 * math.pi * variance).log())


def fit_mixture(
    values: Tensor,
    observed: Tensor,
    n_components: int,
    rank: int = _RANK,
    floor: Tensor | float = 0.05,
    *,
    seed: int = 0,
    n_iter: int = 30,
    tol: float = 1e-4,
) -> Mixture:
    """Fit a mixture of linear VAEs by EM on the observed cells, in float64.

    Components start at the clusters of k-means on the rows filled by a single linear VAE, with that model's loadings.
    Loadings and offsets have standard normal priors; `floor` bounds the noise variance and enters as one pseudo-row.

    Parameters
    ----------
    values, observed : Tensor of shape (n, F)
        Standardised cells and which of them are observed.
    n_components, rank : int
    floor : float or Tensor of shape (F,)
        Smallest noise variance. Scores want more than imputation does: a component that is certain of a cell makes
        every row with another value there the strangest.
    seed : int
        Of k-means.
    n_iter, tol : int, float
        Largest number of sweeps; stop when a row gains less than `tol` nats on average.
    """
    start = fit_linear(values, observed, min(rank, max(1, values.shape[1] - 1)), floor)
    if n_components == 1:
        return Mixture(start.b.new_zeros(1), Linear(*(p.unsqueeze(0) for p in start)))
    values = torch.where(observed, values, 0).double()
    filled = torch.where(observed, values, conditional(values, observed, start)[0])
    n_clusters = min(n_components, len(filled.unique(dim=0)))  # the other components start at the whole table's
    labels = KMeans(n_clusters, n_init=2, random_state=seed).fit_predict(filled.cpu().numpy())
    clusters = [filled[labels == c] for c in range(n_components)]
    parts = [_principal(rows, start) for rows in clusters]
    linear = Linear(*(torch.stack(p) for p in zip(*parts, strict=True)))
    weight = torch.tensor([len(rows) + 1.0 for rows in clusters]).to(values)
    mixture = Mixture((weight / weight.sum()).log(), linear)
    floor = torch.as_tensor(floor, dtype=torch.float64, device=values.device).expand(values.shape[1])
    best = -math.inf
    for _ in range(n_iter):
        mixture, bound = _sweep(values, observed, mixture, floor)
        if bound - best < tol * len(values):
            break
        best = bound
    return mixture


def _principal(rows: Tensor, shared: Linear, pseudo: float = 2.0) -> Linear:
    """Mean, principal axes and noise of a cluster, drawn a little to those of the table."""
    rank, b = shared.rank, rows.mean(0) if len(rows) else shared.b
    centred, weight = rows - b, 1 / (len(rows) + pseudo)
    padded = torch.cat([centred * weight**0.5, shared.W.T * (pseudo * weight) ** 0.5])  # its square is the covariance
    axes, scales, _ = torch.linalg.svd(padded.T, full_matrices=False)
    W = 0.9 * axes[:, :rank] * scales[:rank].clamp(min=0.03)
    W = torch.nn.functional.pad(W, (0, rank - W.shape[1]))
    variance = padded.square().sum(0) + pseudo * weight * shared.psi
    return Linear(W, b, torch.maximum(variance - W.square().sum(1), 0.1 * variance))


def _sweep(values: Tensor, observed: Tensor, mixture: Mixture, floor: Tensor) -> tuple[Mixture, float]:
    """One EM step, and the log-likelihood before it."""
    linear = mixture.linear
    C, F, L = linear.W.shape
    G, R = values.new_zeros(C, F, (L + 1) ** 2), values.new_zeros(C, F, L + 1)
    n_cells, sxx, count, bound = values.new_zeros(C, F), values.new_zeros(C, F), values.new_zeros(C), 0.0
    for rows in chunks(len(values), C * F):
        x, o = values[rows], observed[rows]
        log_w = log_joint(x, o, mixture)
        share = torch.softmax(log_w, 0)  # (C, B)
        m, chol = posterior(x, o, linear)
        z1 = torch.nn.functional.pad(m, (0, 1), value=1.0)
        S = z1.unsqueeze(-1) * z1.unsqueeze(-2)
        S[..., :L, :L] += torch.cholesky_inverse(chol)
        cells = share.unsqueeze(1) * o.double().T  # (C, F, B)
        G += cells @ S.flatten(-2)
        R += (share.unsqueeze(1) * x.T) @ z1
        n_cells += cells.sum(-1)
        sxx += share @ x.square()
        count += share.sum(1)
        bound += torch.logsumexp(log_w, 0).sum().item()
    G = G.unflatten(-1, (L + 1, L + 1))
    coef = torch.linalg.solve(G + torch.diag_embed(linear.psi.unsqueeze(-1).expand(-1, -1, L + 1)), R)
    rss = sxx - 2 * (coef * R).sum(-1) + (coef * (G @ coef.unsqueeze(-1)).squeeze(-1)).sum(-1)
    psi = torch.maximum((rss + floor) / (n_cells + 1), floor)
    log_weight = ((count + 1) / (count + 1).sum()).log()
    return Mixture(log_weight, Linear(coef[..., :-1], coef[..., -1], psi)), bound


def choose_mixture(
    values: Tensor,
    observed: Tensor,
    held_out: Tensor,
    floor: Tensor | float = 0.05,
    *,
    components: Sequence[int] = N_COMPONENTS,
    seed: int = 0,
) -> tuple[int, int]:
    """Number of components and rank by the likelihood of held-out rows.

    Parameters
    ----------
    values, observed : Tensor of shape (n, F)
    held_out : bool Tensor of shape (n,)
    components : sequence of int
        Numbers of components to try, as far as there are rows for them.

    Returns
    -------
    n_components, rank : int
    """
    n, n_features = values.shape
    if n < _MIN_ROWS:
        return 1, 1
    several = [(c, _RANK) for c in components if c > 1 and n >= c * _ROWS_PER_COMPONENT]
    one = 1 in components or not several
    single = [(1, rank) for rank in RANKS if rank == 1 or rank < n_features] if one else []
    best, chosen = -math.inf, (1, 1)
    for n_components, rank in single + several:
        mixture = fit_mixture(values[~held_out], observed[~held_out], n_components, rank, floor, seed=seed)
        trial = log_evidence(values[held_out], observed[held_out], mixture).clamp(min=_WORST).mean().item()
        if trial > best:
            best, chosen = trial, (n_components, rank)
    return chosen
