"""The linear VAE (factor analysis), solved exactly on incomplete data by EM.

``x = W z + b + e`` with ``z ~ N(0, I_k)`` and ``e_j ~ N(0, psi_j)``. For a row with observed set O the posterior is
exact, ``q(z | x_O) = N(m, P^-1)``, and so are the bound, the conditional means and the imputations. Every function
takes any leading dimensions: EM calls them on one table, the model on a stack of members.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

RANKS = (1, 2, 4, 8, 12, 20, 32)
FLOORS = (1e-2, 1e-3, 1e-4)
_MIN_GAIN = 0.005  # a richer model must lower the held-out error by this share
_CHUNK = 8192  # rows per E-step, so that the memory does not grow with the table


class Linear(NamedTuple):
    """Parameters of a linear VAE: loadings ``W`` (..., F, L), offsets ``b`` (..., F) and noise ``psi`` (..., F)."""

    W: Tensor
    b: Tensor
    psi: Tensor

    @property
    def rank(self) -> int:
        """Number of latent dimensions L."""
        return self.W.shape[-1]

    def to(self, dtype: torch.dtype) -> Linear:
        """The same model in another precision."""
        return Linear(*(p.to(dtype) for p in self))

    def per_head(self) -> Linear:
        """The same models with an axis after the members', to broadcast against (M, H, B, F)."""
        W, b, psi = self
        return Linear(W.unsqueeze(-3), b.unsqueeze(-2), psi.unsqueeze(-2))


class Conditional(NamedTuple):
    """Mean and variance of every cell (..., B, F) given the kept ones, and the `inverse` (..., B, L, L) of the factor
    of the posterior precision that gave them."""

    mean: Tensor
    variance: Tensor
    inverse: Tensor


def posterior(values: Tensor, observed: Tensor, linear: Linear) -> tuple[Tensor, Tensor]:
    """Exact posterior of the latent given the observed cells.

    ``P = I + sum_{j in O} w_j w_j' / psi_j = L L'``, ``m = P^-1 sum_{j in O} w_j (x_j - b_j) / psi_j``.

    Parameters
    ----------
    values, observed : Tensor of shape (..., B, F)
        Cells and which of them count; what is stored in the other cells has no influence.
    linear : Linear
        Parameters with leading dimensions that broadcast against those of `values`.

    Returns
    -------
    m : Tensor of shape (..., B, L)
        Posterior mean.
    chol : Tensor of shape (..., B, L, L)
        Lower Cholesky factor of the posterior precision P.
    """
    rank = linear.rank
    P = ((observed / linear.psi.unsqueeze(-2)) @ _outer(linear.W)).unflatten(-1, (rank, rank))
    chol = torch.linalg.cholesky(P + torch.eye(rank, dtype=P.dtype, device=P.device))
    return torch.cholesky_solve(_evidence(values, observed, linear).unsqueeze(-1), chol).squeeze(-1), chol


def _outer(W: Tensor) -> Tensor:
    """``w_j w_j'`` of each feature, (..., F, L * L)."""
    return (W.unsqueeze(-1) * W.unsqueeze(-2)).flatten(-2)


def _evidence(values: Tensor, observed: Tensor, linear: Linear) -> Tensor:
    """``sum_{j in O} w_j (x_j - b_j) / psi_j``, (..., B, L)."""
    W, b, psi = linear
    return torch.where(observed, (values - b.unsqueeze(-2)) / psi.unsqueeze(-2), 0) @ W


def conditional(values: Tensor, observed: Tensor, linear: Linear) -> Conditional:
    """Mean and variance of every cell given the observed cells of its row (the noise of the cell included).

    ``W m + b`` and ``w_j' P^-1 w_j + psi_j``.
    """
    m, chol = posterior(values, observed, linear)
    eye = torch.eye(linear.rank, dtype=chol.dtype, device=chol.device).expand_as(chol)
    inverse = torch.linalg.solve_triangular(chol, eye, upper=False)
    # The posterior covariance times w_j w_j': one product for all cells of all rows.
    spread = (inverse.transpose(-1, -2) @ inverse).flatten(-2) @ _outer(linear.W).transpose(-1, -2)
    return Conditional(_cells(m, linear), spread.clamp(min=0) + linear.psi.unsqueeze(-2), inverse)


def conditional_mean(values: Tensor, observed: Tensor, linear: Linear, inverse: Tensor) -> Tensor:
    """The mean alone, for other values (M, H, B, F) in the same observed cells: `inverse` is that of `conditional`."""
    h = _evidence(values, observed, linear).transpose(1, 2)  # (M, B, H, L)
    return _cells((h @ inverse.transpose(-1, -2) @ inverse).transpose(1, 2), linear)


def _cells(z: Tensor, linear: Linear) -> Tensor:
    """``W z + b``, (..., B, F)."""
    return z @ linear.W.transpose(-1, -2) + linear.b.unsqueeze(-2)


def log_likelihood(values: Tensor, observed: Tensor, linear: Linear) -> Tensor:
    """Exact log-likelihood of the observed cells of each row, in nats, of shape (..., B).

    Woodbury: ``-2 log p = |O| log 2 pi + sum_O log psi + log |P| + sum_O r^2 / psi - m' P m``.

    Examples
    --------
    >>> linear = Linear(torch.zeros(1, 1), torch.zeros(1), torch.ones(1))
    >>> round(log_likelihood(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), linear).item(), 4)
    -0.9189
    """
    m, chol = posterior(values, observed, linear)
    psi = linear.psi.unsqueeze(-2)
    residual = torch.where(observed, values - linear.b.unsqueeze(-2), 0)
    fit = (residual.square() / psi).sum(-1) - (chol.transpose(-1, -2) @ m.unsqueeze(-1)).square().sum((-1, -2))
    log_det = 2 * chol.diagonal(dim1=-2, dim2=-1).log().sum(-1) + (observed * (2 * math.pi * psi).log()).sum(-1)
    return -0.5 * (log_det + fit)


def fit_linear(
    values: Tensor, observed: Tensor, rank: int, floor: Tensor | float = 1e-2, n_iter: int = 30, tol: float = 1e-6
) -> Linear:
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
    Linear
        Parameters in float64 on the device of `values`.
    """
    values = torch.where(observed, values, 0).double()
    floor = torch.as_tensor(floor, dtype=torch.float64, device=values.device).expand(values.shape[1])
    linear = _principal_start(values, observed, rank, floor)
    prior = torch.tensor([1.0] * rank + [1e-6], dtype=torch.float64, device=values.device)
    n_cells = observed.sum(0)
    sxx = values.square().sum(0)
    for _ in range(n_iter):
        G, R, mean_z, cov_z = _expectations(values, observed, linear)
        A = G + torch.diag_embed(linear.psi.unsqueeze(-1) * prior)
        coef = torch.linalg.solve(A, R)  # (F, k + 1)
        rss = sxx - 2 * (coef * R).sum(-1) + (coef * (G @ coef.unsqueeze(-1)).squeeze(-1)).sum(-1)
        psi = torch.maximum((rss + floor) / (n_cells + 1), floor)
        W, b = coef[:, :-1], coef[:, -1]
        new = Linear(W @ torch.linalg.cholesky(cov_z), b + W @ mean_z, psi)
        moved = max((new.psi - linear.psi).abs().max().item(), (new.b - linear.b).abs().max().item())
        linear = new
        if moved < tol:
            break
    return linear


def _principal_start(values: Tensor, observed: Tensor, rank: int, floor: Tensor) -> Linear:
    """Leading eigenvectors of the covariance of what is observed (holes at the column mean)."""
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
    return Linear(W, b, psi)


def _expectations(values: Tensor, observed: Tensor, linear: Linear) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E-step: per column the moments of ``[z; 1]``, and mean and covariance of the latent over all rows."""
    n, n_features = values.shape
    rank = linear.rank
    G = values.new_zeros(n_features, (rank + 1) ** 2)
    R = values.new_zeros(n_features, rank + 1)
    total = values.new_zeros((rank + 1) ** 2)
    for start in range(0, n, _CHUNK):
        x, o = values[start : start + _CHUNK], observed[start : start + _CHUNK]
        m, chol = posterior(x, o, linear)
        z1 = torch.nn.functional.pad(m, (0, 1), value=1.0)  # (n, k + 1)
        S = z1.unsqueeze(-1) * z1.unsqueeze(-2)
        S[:, :rank, :rank] += torch.cholesky_inverse(chol)
        S = S.flatten(1)
        G += o.double().T @ S
        R += x.T @ z1  # unobserved cells of x are zero
        total += S.sum(0)
    S_mean = (total / n).view(rank + 1, rank + 1)
    mean_z = S_mean[:rank, rank]
    cov_z = S_mean[:rank, :rank] - torch.outer(mean_z, mean_z)
    cov_z = cov_z + 1e-9 * torch.eye(rank, dtype=torch.float64, device=values.device)
    return G.view(n_features, rank + 1, rank + 1), R, mean_z, cov_z


def choose_linear(
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
        linear = fit_linear(values, observed & ~held_out, rank, candidate, n_iter)
        m, _ = posterior(values, observed & ~held_out, linear)
        miss = torch.where(held_out, values - (m @ linear.W.T + linear.b), 0).square()
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
