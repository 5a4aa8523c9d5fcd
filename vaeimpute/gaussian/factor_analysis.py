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

RANKS = (1, 2, 4, 8, 12, 20, 32)
FLOORS = (1e-2, 1e-3, 1e-4)
_MIN_GAIN = 0.005  # a richer model must lower the held-out error by this share


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

    def per_head(self) -> FactorAnalysis:
        """The same models with an axis after the members', to broadcast against (M, H, B, F)."""
        W, b, psi = self
        return FactorAnalysis(W.unsqueeze(-3), b.unsqueeze(-2), psi.unsqueeze(-2))


class ConditionalGaussian(NamedTuple):
    """What a row's observed cells tell of all its cells.

    Attributes
    ----------
    mean, variance : Tensor of shape (..., B, F)
    inverse : Tensor of shape (..., B, L, L)
        Of the Cholesky factor of the posterior precision that gave them.
    """

    mean: Tensor
    variance: Tensor
    inverse: Tensor


def posterior(values: Tensor, observed: Tensor, model: FactorAnalysis) -> tuple[Tensor, Tensor]:
    """Exact posterior of the latent given the observed cells.

    ``P = I + sum_{j in O} w_j w_j' / psi_j = L L'``, ``m = P^-1 sum_{j in O} w_j (x_j - b_j) / psi_j``.

    Parameters
    ----------
    values, observed : Tensor of shape (..., B, F)
        Cells and which of them count; what is stored in the other cells has no influence.
    model : FactorAnalysis
        Parameters with leading dimensions that broadcast against those of `values`.

    Returns
    -------
    m : Tensor of shape (..., B, L)
        Posterior mean.
    chol : Tensor of shape (..., B, L, L)
        Lower Cholesky factor of the posterior precision P.
    """
    rank = model.rank
    P = ((observed / model.psi.unsqueeze(-2)) @ _outer(model.W)).unflatten(-1, (rank, rank))
    chol = torch.linalg.cholesky(P + torch.eye(rank, dtype=P.dtype, device=P.device))
    return torch.cholesky_solve(_precision_weighted(values, observed, model).unsqueeze(-1), chol).squeeze(-1), chol


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
    eye = torch.eye(model.rank, dtype=chol.dtype, device=chol.device).expand_as(chol)
    inverse = torch.linalg.solve_triangular(chol, eye, upper=False)
    # The posterior covariance times w_j w_j': one product for all cells of all rows.
    spread = (inverse.transpose(-1, -2) @ inverse).flatten(-2) @ _outer(model.W).transpose(-1, -2)
    return ConditionalGaussian(_decode(m, model), spread.clamp(min=0) + model.psi.unsqueeze(-2), inverse)


def conditional_mean(values: Tensor, observed: Tensor, model: FactorAnalysis, inverse: Tensor) -> Tensor:
    """The mean alone, for other values (M, H, B, F) in the same observed cells: `inverse` is that of `conditional`."""
    h = _precision_weighted(values, observed, model).transpose(1, 2)  # (M, B, H, L)
    return _decode((h @ inverse.transpose(-1, -2) @ inverse).transpose(1, 2), model)


def _decode(z: Tensor, model: FactorAnalysis) -> Tensor:
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
    values: Tensor, observed: Tensor, rank: int, floor: Tensor | float = 1e-2, n_iter: int = 30, tol: float = 1e-6
) -> FactorAnalysis:
    """Fit a linear VAE by EM on the observed cells, in float64.

    The M-step is a ridge regression per column (a standard normal prior on the loadings), `floor` bounds the noise
    variance and enters as one pseudo-row, and each sweep ends with the parameter expansion of PX-EM (Liu, Rubin and
    Wu, Biometrika 1998), which lets the latent's own mean and covariance move and saves most of the sweeps.

    Parameters
    ----------
    values, observed : Tensor of shape (n, F)
        Standardised cells and which of them are observed.
    rank : int
        Number of latent dimensions.
    floor : float or Tensor of shape (F,)
        Smallest noise variance.
    n_iter : int
        Largest number of sweeps.
    tol : float
        Stop when no noise variance or offset moves by more than this in a sweep.

    Returns
    -------
    FactorAnalysis
        Parameters in float64 on the device of `values`.
    """
    values = torch.where(observed, values, 0).double()
    floor = torch.as_tensor(floor, dtype=torch.float64, device=values.device).expand(values.shape[1])
    model = _principal_start(values, observed, rank, floor)
    prior = torch.tensor([1.0] * rank + [1e-6], dtype=torch.float64, device=values.device)
    eye = torch.eye(rank, dtype=torch.float64, device=values.device)
    for _ in range(n_iter):
        statistics = _statistics(values, observed, model)
        W, b, psi = m_step(statistics, model.psi, prior, floor)
        moment = statistics.latent / len(values)
        mean_z = moment[:rank, rank]
        cov_z = moment[:rank, :rank] - torch.outer(mean_z, mean_z) + 1e-9 * eye
        new = FactorAnalysis(W @ torch.linalg.cholesky(cov_z), b + W @ mean_z, psi)
        moved = max((new.psi - model.psi).abs().max().item(), (new.b - model.b).abs().max().item())
        model = new
        if moved < tol:
            break
    return model


def _principal_start(values: Tensor, observed: Tensor, rank: int, floor: Tensor) -> FactorAnalysis:
    """Leading eigenvectors of the covariance of what is observed (missing cells at the column mean)."""
    count = observed.sum(0).clamp(min=1)
    b = values.sum(0) / count
    centred = torch.where(observed, values - b, 0)
    weight = observed.double()
    cov = (centred.T @ centred) / (weight.T @ weight).clamp(min=1)
    eigenvalues, vectors = torch.linalg.eigh(cov)
    scale = eigenvalues[-rank:].clamp(min=1e-3).sqrt()
    W = vectors[:, -rank:] * scale * 0.9
    W = torch.nn.functional.pad(W, (rank - W.shape[1], 0))  # more latents than columns have nothing to say
    psi = torch.maximum(cov.diagonal() - W.square().sum(1), torch.maximum(floor, 0.1 * cov.diagonal()))
    return FactorAnalysis(W, b, psi)


def _statistics(values: Tensor, observed: Tensor, model: FactorAnalysis) -> Statistics:
    """Those of all rows, in bounded memory."""
    parts = (
        e_step(values[rows], observed[rows], *posterior(values[rows], observed[rows], model))
        for rows in row_slices(len(values), values.shape[1] + 4 * (model.rank + 1) ** 2)
    )
    return reduce(Statistics.plus, parts)


def choose_factor_analysis(
    values: Tensor,
    observed: Tensor,
    held_out: Tensor,
    floor: Tensor,
    *,
    weight: Tensor | None = None,
    max_rows: int = 1500,
    n_iter: int = 25,
) -> tuple[int, Tensor]:
    """Choose rank and noise floor by the squared error on held-out cells.

    Ranks are tried from small to large, then smaller noise floors at the best rank; a richer choice must lower the
    error by 0.5%. The floor has to follow the data: tables with near-exact relations lose accuracy to a floor that
    noisy ones need.

    Parameters
    ----------
    values, observed, held_out : Tensor of shape (n, F)
        Cells, which are known, and which of the known ones are kept from the fit.
    floor : Tensor of shape (F,)
        Largest floor per feature; those above the first of ``FLOORS`` stay as they are.
    weight : Tensor of shape (F,), optional
        Weight of each feature's squared error (so that a class counts once, not once per level).
    max_rows, n_iter : int
        Rows and sweeps of each trial.

    Returns
    -------
    rank : int
    floor : Tensor of shape (F,)
    """
    values, observed, held_out = values[:max_rows], observed[:max_rows], held_out[:max_rows]
    weight = torch.ones_like(floor) if weight is None else weight

    def error(rank: int, candidate: Tensor) -> float:
        model = fit_factor_analysis(values, observed & ~held_out, rank, candidate, n_iter)
        m, _ = posterior(values, observed & ~held_out, model)
        miss = torch.where(held_out, values - (m @ model.W.T + model.b), 0).square()
        return (miss.sum(0) * weight).sum().item()

    n_features = values.shape[1]
    best_rank, best_floor = 1, floor
    best = error(1, floor)
    for rank in [r for r in RANKS[1:] if r < n_features]:
        trial = error(rank, floor)
        if trial < best * (1 - _MIN_GAIN):
            best, best_rank = trial, rank
        elif rank >= 4 * best_rank:
            break
    for level in FLOORS[1:]:
        candidate = torch.where(floor <= FLOORS[0], floor.clamp(max=level), floor)
        trial = error(best_rank, candidate)
        if trial >= best * (1 - _MIN_GAIN):
            break
        best, best_floor = trial, candidate
    return best_rank, best_floor
