"""The linear VAE (factor analysis), solved exactly on incomplete data by EM.

``x = W z + b + e`` with ``z ~ N(0, I_k)`` and ``e_j ~ N(0, psi_j)``. For a row with observed set O the posterior is
exact, ``q(z | x_O) = N(m, P^-1)``, and so are the bound, the conditional means and the imputations. Every function
takes any leading dimensions: EM calls them on one table, the model on a stack of members.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from vaeimpute.batching import row_slices
from vaeimpute.gaussian.statistics import Statistics, e_step, m_step

FLOORS = (1e-2, 1e-3, 1e-4)


class FactorAnalysis(NamedTuple):
    """Parameters of a linear VAE: loadings ``W`` (..., F, L), offsets ``b`` (..., F) and noise ``psi`` (..., F)."""

    W: Tensor
    b: Tensor
    psi: Tensor

    @property
    def rank(self) -> int:
        """Number of latent dimensions L."""
        return self.W.shape[-1]

    def to(self, dtype: torch.dtype) -> FactorAnalysis:
        """The same model in another precision."""
        return FactorAnalysis(*(p.to(dtype) for p in self))


class ConditionalGaussian(NamedTuple):
    """What a row's observed cells tell of all its cells: mean and variance (..., B, F)."""

    mean: Tensor
    variance: Tensor


def posterior(
    values: Tensor, observed: Tensor, model: FactorAnalysis, columns: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Exact posterior of the latent given the observed cells.

    ``P = I + sum_{j in O} w_j w_j' / psi_j = L L'``, ``m = P^-1 sum_{j in O} w_j (x_j - b_j) / psi_j``.

    Parameters
    ----------
    values, observed : Tensor of shape (..., B, F)
        Cells and which of them count; what is stored in the other cells has no influence.
    model : FactorAnalysis
        Parameters with leading dimensions that broadcast against those of `values`.
    columns : int Tensor of shape (F,), optional
        If features share columns, the column of each: `observed` is then of columns, (B, D), and `values` are zero
        where they are missing. Sums over features become sums over columns.

    Returns
    -------
    m : Tensor of shape (..., B, L)
        Posterior mean.
    chol : Tensor of shape (..., B, L, L)
        Lower Cholesky factor of the posterior precision P.
    """
    rank = model.rank
    if columns is None:
        P = (observed / model.psi.unsqueeze(-2)) @ _outer(model.W)
        weighted = _precision_weighted(values, observed, model)
    else:
        of_feature = model.W / model.psi.unsqueeze(-1)
        parts = torch.cat([_outer(model.W) / model.psi.unsqueeze(-1), of_feature * model.b.unsqueeze(-1)], -1)
        of_column = parts.new_zeros(observed.shape[-1], parts.shape[-1]).index_add_(0, columns, parts)
        P, offset = (observed.to(values) @ of_column).split([rank * rank, rank], -1)
        weighted = values @ of_feature - offset
    P = P.unflatten(-1, (rank, rank))
    chol = torch.linalg.cholesky(P + torch.eye(rank, dtype=P.dtype, device=P.device))
    return torch.cholesky_solve(weighted.unsqueeze(-1), chol).squeeze(-1), chol


def _outer(W: Tensor) -> Tensor:
    """``w_j w_j'`` of each feature, (..., F, L * L)."""
    return (W.unsqueeze(-1) * W.unsqueeze(-2)).flatten(-2)


def _precision_weighted(values: Tensor, observed: Tensor, model: FactorAnalysis) -> Tensor:
    """``sum_{j in O} w_j (x_j - b_j) / psi_j``, (..., B, L)."""
    W, b, psi = model
    return torch.where(observed, (values - b.unsqueeze(-2)) / psi.unsqueeze(-2), 0) @ W


def conditional(values: Tensor, observed: Tensor, model: FactorAnalysis) -> ConditionalGaussian:
    """Mean and variance of every cell given the observed cells of its row (the noise of the cell included).

    ``W m + b`` and ``w_j' P^-1 w_j + psi_j``.
    """
    m, chol = posterior(values, observed, model)
    return ConditionalGaussian(decode(m, model), cell_variance(torch.cholesky_inverse(chol), model))


def cell_variance(cov: Tensor, model: FactorAnalysis) -> Tensor:
    """``w_j' C w_j + psi_j`` of every cell, (..., B, F), given the latent's posterior covariance C (..., B, L, L)."""
    spread = cov.flatten(-2) @ _outer(model.W).transpose(-1, -2)  # one product for all cells of all rows
    return spread.clamp(min=0) + model.psi.unsqueeze(-2)


def decode(z: Tensor, model: FactorAnalysis) -> Tensor:
    """``W z + b``, (..., B, F)."""
    return z @ model.W.transpose(-1, -2) + model.b.unsqueeze(-2)


def log_likelihood(values: Tensor, observed: Tensor, model: FactorAnalysis) -> Tensor:
    """Exact log-likelihood of the observed cells of each row, in nats, of shape (..., B).

    Woodbury: ``-2 log p = |O| log 2 pi + sum_O log psi + log |P| + sum_O r^2 / psi - m' P m``.

    Examples
    --------
    >>> model = FactorAnalysis(torch.zeros(1, 1), torch.zeros(1), torch.ones(1))
    >>> round(log_likelihood(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), model).item(), 4)
    -0.9189
    """
    return log_likelihood_given(values, observed, model, *posterior(values, observed, model))


def log_likelihood_given(values: Tensor, observed: Tensor, model: FactorAnalysis, m: Tensor, chol: Tensor) -> Tensor:
    """The same where the posterior ``m, chol`` of the latent is at hand."""
    psi = model.psi.unsqueeze(-2)
    residual = torch.where(observed, values - model.b.unsqueeze(-2), 0)
    fit = (residual.square() / psi).sum(-1) - (chol.transpose(-1, -2) @ m.unsqueeze(-1)).square().sum((-1, -2))
    log_det = 2 * chol.diagonal(dim1=-2, dim2=-1).log().sum(-1) + (observed * (2 * math.pi * psi).log()).sum(-1)
    return -0.5 * (log_det + fit)


def fit_factor_analysis(
    values: Tensor,
    observed: Tensor,
    rank: int,
    floor: Tensor | float = 1e-2,
    n_iter: int = 30,
    tol: float = 1e-6,
    start: FactorAnalysis | None = None,
    columns: Tensor | None = None,
) -> FactorAnalysis:
    """Fit a linear VAE by EM on the observed cells.

    The M-step is a ridge regression per column (a standard normal prior on the loadings), `floor` bounds the noise
    variance and enters as one pseudo-row, and each sweep ends with the parameter expansion of PX-EM (Liu, Rubin and
    Wu, Biometrika 1998), which lets the latent's own mean and covariance move and saves most of the sweeps.

    Parameters
    ----------
    values, observed : Tensor of shape (n, F)
        Standardised cells and which of them are observed. Sums over rows have the precision of `values`, the small
        systems of the M-step are solved in float64.
    rank : int
        Number of latent dimensions.
    floor : float or Tensor of shape (F,)
        Smallest noise variance.
    n_iter : int
        Largest number of sweeps.
    tol : float
        Stop when no noise variance or offset moves by more than this in a sweep.
    start : FactorAnalysis, optional
        Where to begin, of this rank: a fit to other rows, or what `widened` gives. Principal directions if None.
    columns : int Tensor of shape (F,), optional
        Column of each feature, if features of one are observed together.

    Returns
    -------
    FactorAnalysis
        Parameters on the device and in the precision of `values`.
    """
    values = torch.where(observed, values, 0)
    floor = torch.as_tensor(floor, dtype=torch.float64, device=values.device).expand(values.shape[1])
    model = _principal_start(values, observed, rank, floor) if start is None else start
    prior = torch.tensor([1.0] * rank + [1e-6], dtype=torch.float64, device=values.device)
    eye = torch.eye(rank, dtype=torch.float64, device=values.device)
    if columns is not None:
        one_of_each = torch.zeros_like(columns[: int(columns.max()) + 1])
        observed = observed[:, one_of_each.scatter_(0, columns, torch.arange(len(columns), device=columns.device))]
    for _ in range(n_iter):
        statistics = _statistics(values, observed, model, columns).double()
        W, b, psi = m_step(statistics, model.psi.double(), prior, floor)
        moment = statistics.latent / len(values)
        mean_z = moment[:rank, rank]
        cov_z = moment[:rank, :rank] - torch.outer(mean_z, mean_z) + 1e-9 * eye
        new = FactorAnalysis(W @ torch.linalg.cholesky(cov_z), b + W @ mean_z, psi).to(values.dtype)
        moved = torch.maximum((new.psi - model.psi).abs().max(), (new.b - model.b).abs().max())
        model = new
        if moved < tol:
            break
    return model


def widened(model: FactorAnalysis, values: Tensor, observed: Tensor, rank: int) -> FactorAnalysis:
    """A start of a larger rank: principal directions of what a smaller one leaves of the observed cells."""
    m, _ = posterior(values, observed, model)
    residual = torch.where(observed, values - decode(m, model), 0)
    directions, scale = _principal_directions(residual, observed, rank - model.rank)
    return FactorAnalysis(torch.cat([model.W, directions * scale], 1), model.b, model.psi)


def _principal_start(values: Tensor, observed: Tensor, rank: int, floor: Tensor) -> FactorAnalysis:
    """Principal directions of what is observed, around the column means."""
    b = values.sum(0) / observed.sum(0).clamp(min=1)
    centred = torch.where(observed, values - b, 0)
    directions, scale = _principal_directions(centred, observed, rank)
    W = directions * scale * 0.9
    variance = centred.square().sum(0) / observed.sum(0).clamp(min=1)
    psi = torch.maximum(variance - W.square().sum(1), torch.maximum(floor.to(W), 0.1 * variance))
    return FactorAnalysis(W, b, psi)


def _principal_directions(centred: Tensor, observed: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors (F, L) of the covariance of what is observed, and the roots of their eigenvalues (L,).

    More latents than columns or rows have nothing to say: their directions are zero.
    """
    n, n_features = centred.shape
    if n_features <= n:  # of the covariance by pairs of observed cells
        weight = observed.to(centred.dtype)
        eigenvalues, vectors = torch.linalg.eigh(((centred.T @ centred) / (weight.T @ weight).clamp(min=1)).double())
        most = min(rank, n_features)
        directions = vectors[:, n_features - most :]
    else:  # missing cells at the mean: the same eigenvectors from the smaller matrix of the rows
        filled = (centred / observed.double().mean(0).clamp(min=1 / n).sqrt()).double()
        eigenvalues, vectors = torch.linalg.eigh(filled @ filled.T / n)
        most = min(rank, n)
        directions = torch.nn.functional.normalize(filled.T @ vectors[:, n - most :], dim=0)
    scale = eigenvalues[len(eigenvalues) - most :].clamp(min=1e-3).sqrt()
    missing = rank - most
    pad = torch.nn.functional.pad
    return pad(directions, (missing, 0)).to(centred), pad(scale, (missing, 0)).to(centred)


def _statistics(values: Tensor, observed: Tensor, model: FactorAnalysis, columns: Tensor | None) -> Statistics:
    """Those of all rows, in bounded memory."""
    slices = row_slices(len(values), values.shape[1] + 4 * (model.rank + 1) ** 2)
    batches = ((values[rows], observed[rows]) for rows in slices)
    return reduce(
        Statistics.plus, (e_step(*rows, *posterior(*rows, model, columns), columns=columns) for rows in batches)
    )
