"""Mixtures of linear VAEs (of factor analysers), solved exactly on incomplete data by EM.

A linear VAE with one more latent, the component: ``p(x) = sum_c pi_c N(x; b_c, W_c W_c' + psi_c)``. Whatever cells are
observed, the likelihood of a row, and of each of its cells given the others, has a closed form.

Shape letters: M members, C components, B rows, F features, L latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple, Self

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from vaeimpute.batching import row_slices
from vaeimpute.gaussian.factor_analysis import (
    FactorAnalysis,
    conditional,
    fit_factor_analysis,
    log_likelihood_given,
    posterior,
)
from vaeimpute.gaussian.statistics import Statistics, e_step, m_step
from vaeimpute.persistence import Fitted

N_COMPONENTS = (1, 4, 8, 16)
RANKS = (1, 2, 4, 8, 12, 20)  # of a single component
_RANK = 6  # of each of several
_ROWS_PER_COMPONENT = 20
_MIN_ROWS = 8  # below, one component and one factor are enough
_WORST = -300.0  # log-likelihood: one row in ruins must not decide how many components there are


class Mixture(Fitted):
    """Parameters: ``log_weight`` (..., C) and the components' linear VAEs stacked, ``W`` (..., C, F, L) and so on.

    Parameters
    ----------
    log_weight : Tensor of shape (..., C), optional
    components : FactorAnalysis, optional
    """

    log_weight: Tensor
    W: Tensor
    b: Tensor
    psi: Tensor

    buffer_names = ("log_weight", *FactorAnalysis._fields)

    def __init__(self, log_weight: Tensor | None = None, components: FactorAnalysis | None = None) -> None:
        super().__init__(log_weight=log_weight, **(components._asdict() if components else {}))

    @property
    def components(self) -> FactorAnalysis:
        """The linear VAEs."""
        return FactorAnalysis(self.W, self.b, self.psi)

    @property
    def numbers_per_row(self) -> int:
        """Numbers held at once for a row whose likelihood is computed."""
        C, F, L = self.b.numel() // self.b.shape[-1], self.b.shape[-1], self.W.shape[-1]
        return C * (F + L * L)

    @classmethod
    def stack(cls, mixtures: Sequence[Mixture]) -> Self:
        """Mixtures of the same size with a leading axis of members."""
        parts = zip(*(mixture.components for mixture in mixtures), strict=True)
        return cls(torch.stack([m.log_weight for m in mixtures]), FactorAnalysis(*map(torch.stack, parts)))

    def flatten(self) -> Mixture:
        """The members (M, C, ...) as one mixture of all their components (M * C, ...), each member alike."""
        weight = (self.log_weight - math.log(len(self.log_weight))).flatten()
        return Mixture(weight, FactorAnalysis(*(p.flatten(0, 1) for p in self.components)))


def _log_joint(values: Tensor, observed: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor, Tensor]:
    """``log pi_c + log p_c(x_O)`` of each row, (..., C, B), and mean and Cholesky factor of its latent's posterior."""
    if len(values) > 1 and (observed == observed[:1]).all():  # one mask, one posterior precision for all rows
        observed = observed[:1]
    m, chol = posterior(values, observed, mixture.components)
    log_px = log_likelihood_given(values, observed, mixture.components, m, chol)
    return mixture.log_weight.unsqueeze(-1) + log_px, m, chol


def log_likelihood(values: Tensor, observed: Tensor, mixture: Mixture) -> Tensor:
    """Exact log-likelihood of the observed cells of each row, (..., B), in bounded memory.

    Examples
    --------
    >>> components = FactorAnalysis(torch.zeros(2, 1, 1), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1))
    >>> mixture = Mixture(torch.tensor([0.5, 0.5]).log(), components)
    >>> log_likelihood(torch.tensor([[1.0], [0.0]]), torch.tensor([[True], [False]]), mixture)
    tensor([-1.4852,  0.0000])
    """
    rows = row_slices(len(values), mixture.numbers_per_row)
    return torch.cat([torch.logsumexp(_log_joint(values[r], observed[r], mixture)[0], -2) for r in rows], -1)


class LeaveOneOut(NamedTuple):
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


def leave_one_out(values: Tensor, observed: Tensor, mixture: Mixture) -> LeaveOneOut:
    """What the rest of its row says of each cell, in closed form: no cell has a say in what is expected of it.

    With the precision ``Lambda`` of the observed cells and residuals ``r = x - b``, cell j given the others is
    ``N(x_j - (Lambda r)_j / Lambda_jj, 1 / Lambda_jj)``; Woodbury gives both for all cells from the row's posterior.

    Parameters
    ----------
    values, observed : Tensor of shape (B, F)
    mixture : Mixture
    """
    log_w, m, chol = _log_joint(values, observed, mixture)
    W_t = mixture.W.transpose(-1, -2)
    explained = _explained(chol, W_t)
    mean, psi = m @ W_t + mixture.b.unsqueeze(-2), mixture.psi.unsqueeze(-2)
    left = (1 - explained / psi).clamp(min=1e-9)  # psi_j Lambda_jj
    mean = torch.where(observed, values - (values - mean) / left, mean)
    variance = torch.where(observed, psi / left, psi + explained)
    own = torch.where(observed, _log_normal(values, mean, variance), 0)
    return LeaveOneOut(mean, variance, (log_w.unsqueeze(-1) - own).log_softmax(-3))


def leave_block_out(values: Tensor, observed: Tensor, mixture: Mixture, block: Tensor) -> LeaveOneOut:
    """What the rest of its row says of each feature of a block (G,) whose features tell one another: (..., C, B, G).

    Parameters
    ----------
    values, observed : Tensor of shape (B, F)
    mixture : Mixture
    block : int Tensor of shape (G,)
    """
    b, psi = (part.index_select(-1, block).unsqueeze(-2) for part in (mixture.b, mixture.psi))
    log_w, m, chol = _log_joint(values, observed.index_fill(-1, block, False), mixture)
    W_t = mixture.W.index_select(-2, block).transpose(-1, -2)
    mean, explained = m @ W_t + b, _explained(chol, W_t)
    log_w = log_w.log_softmax(-2).unsqueeze(-1)
    return LeaveOneOut(mean, (psi + explained).expand_as(mean), log_w.expand_as(mean))


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
        every row with another value there the greatest outlier.
    seed : int
        Of k-means.
    n_iter, tol : int, float
        Largest number of sweeps; stop when a row gains less than `tol` nats on average.
    """
    start = fit_factor_analysis(values, observed, min(rank, max(1, values.shape[1] - 1)), floor)
    if n_components == 1:
        return Mixture(start.b.new_zeros(1), FactorAnalysis(*(p.unsqueeze(0) for p in start)))
    values = torch.where(observed, values, 0).double()
    filled = torch.where(observed, values, conditional(values, observed, start)[0])
    n_clusters = min(n_components, len(filled.unique(dim=0)))  # the other components start at the whole table's
    labels = KMeans(n_clusters, n_init=2, random_state=seed).fit_predict(filled.cpu().numpy())
    clusters = [filled[labels == c] for c in range(n_components)]
    parts = [_principal(rows, start) for rows in clusters]
    components = FactorAnalysis(*map(torch.stack, zip(*parts, strict=True)))
    weight = torch.tensor([len(rows) + 1.0 for rows in clusters]).to(values)
    mixture = Mixture((weight / weight.sum()).log(), components)
    floor = torch.as_tensor(floor, dtype=torch.float64, device=values.device).expand(values.shape[1])
    best = -math.inf
    for _ in range(n_iter):
        mixture, bound = _sweep(values, observed, mixture, floor)
        if bound - best < tol * len(values):
            break
        best = bound
    return mixture


def _principal(rows: Tensor, shared: FactorAnalysis, pseudo: float = 2.0) -> FactorAnalysis:
    """Mean, principal axes and noise of a cluster, drawn a little to those of the table."""
    rank, b = shared.rank, rows.mean(0) if len(rows) else shared.b
    centred, weight = rows - b, 1 / (len(rows) + pseudo)
    padded = torch.cat([centred * weight**0.5, shared.W.T * (pseudo * weight) ** 0.5])  # its square is the covariance
    axes, scales, _ = torch.linalg.svd(padded.T, full_matrices=False)
    W = 0.9 * axes[:, :rank] * scales[:rank].clamp(min=0.03)
    W = torch.nn.functional.pad(W, (0, rank - W.shape[1]))
    variance = padded.square().sum(0) + pseudo * weight * shared.psi
    return FactorAnalysis(W, b, torch.maximum(variance - W.square().sum(1), 0.1 * variance))


def _sweep(values: Tensor, observed: Tensor, mixture: Mixture, floor: Tensor) -> tuple[Mixture, float]:
    """One EM step, and the log-likelihood before it."""
    C, F, L = mixture.W.shape
    bound = 0.0

    def expected(rows: slice) -> Statistics:
        nonlocal bound
        log_w, m, chol = _log_joint(values[rows], observed[rows], mixture)
        bound += torch.logsumexp(log_w, 0).sum().item()
        return e_step(values[rows], observed[rows], m, chol, responsibility=torch.softmax(log_w, 0))

    statistics = reduce(Statistics.plus, map(expected, row_slices(len(values), C * (F + 2 * (L + 1) ** 2))))
    components = FactorAnalysis(*m_step(statistics, mixture.psi, floor.new_ones(L + 1), floor))
    count = statistics.n_rows + 1
    return Mixture((count / count.sum()).log(), components), bound


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
        trial = log_likelihood(values[held_out], observed[held_out], mixture).clamp(min=_WORST).mean().item()
        if trial > best:
            best, chosen = trial, (n_components, rank)
    return chosen
