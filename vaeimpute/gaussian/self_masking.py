"""Cells that hide themselves: a probit model of what is missing, beside a linear VAE of what would be there.

``P(cell j is hidden) = Phi(a_j + c_j x_j + g_j' z)`` for some columns j, independently given x and the latent z. With
the probit's latent utilities (Albert and Chib, JASA 1993) every step of a Gibbs sampler stays a closed form. That x is
normal given what predicts it is all that tells the slope ``c`` (as in Heckman, Econometrica 1979). Slopes are alike,
``c_j ~ N(c_0, .2^2)``, with ``c_0 ~ N(0, 1)``. The loadings ``g`` take what other cells explain; how much that is, is
learnt too: ``g ~ N(0, tau^2)`` with a half-Cauchy tau, by which masks at random are told from masks of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, decode, posterior

_SLOPE_VARIANCE, _MEAN_SLOPE_VARIANCE, _OFFSET_VARIANCE = 0.2**2, 1.0, 9.0
_TAU_SCALE = 0.03
_SURE = 1e-12  # of a probability


class SelfMasking(NamedTuple):
    """Parameters of J columns: offsets ``a`` and slopes ``c`` (..., J), loadings ``g`` (..., J, L)."""

    a: Tensor
    c: Tensor
    g: Tensor

    def utility(self, x: Tensor, z: Tensor) -> Tensor:
        """``a + c x + g' z``, (n, J), of cells (n, J) and latents (n, L)."""
        return self.a + self.c * x + z @ self.g.T


def draw_utilities(mean: Tensor, hidden: Tensor, uniform: Tensor) -> Tensor:
    """Normals around a mean (n, J), positive where the cell is hidden and negative elsewhere, from uniform numbers."""
    below = torch.special.ndtr(-mean)
    level = torch.where(hidden, below + uniform * (1 - below), uniform * below)
    return mean + torch.special.ndtri(level.clamp(_SURE, 1 - _SURE))


def given_utilities(
    mean: Tensor, psi: Tensor, z: Tensor, masking: SelfMasking, u: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (n, F) and variance (F,) of hidden cells given the latent, which gives mean and psi, and the utilities."""
    a, c, g = masking
    precision = (1 / psi).index_add(0, columns, c.square())
    scaled = (mean / psi).index_add(1, columns, c * (u - a - z @ g.T))
    return scaled / precision, 1 / precision


class MaskSampler:
    """The self-masking part of a chain: its parameters and utilities, drawn in turn with those of a linear VAE.

    Parameters
    ----------
    x, observed : Tensor of shape (n, F)
        Cells, the missing ones filled as the chain begins, and which are observed.
    columns : int Tensor of shape (J,)
        Which hide themselves.
    rank : int
    generator : Generator
    """

    def __init__(self, x: Tensor, observed: Tensor, columns: Tensor, rank: int, generator: Generator) -> None:
        self.columns, self._hidden, self._generator = columns, ~observed[:, columns], generator
        a = torch.special.ndtri(self._hidden.double().mean(0).clamp(0.01, 0.99)).to(x)
        self.state = SelfMasking(a, torch.zeros_like(a), x.new_zeros(len(columns), rank))
        self._mean_slope, self._tau2 = 0.0, _TAU_SCALE**2
        self._kept: list[SelfMasking] = []
        self._u = draw_utilities(a.expand(len(x), -1), self._hidden, self._uniform(x))

    @property
    def draws(self) -> SelfMasking:
        """What was kept, stacked."""
        return SelfMasking(*(torch.stack(part) for part in zip(*self._kept, strict=True)))

    def keep(self) -> None:
        """Keep the parameters as they are."""
        self._kept.append(self.state)

    def widened(self, x: Tensor, model: FactorAnalysis) -> tuple[Tensor, FactorAnalysis]:
        """Complete rows and their linear VAE with the utilities, less what the cells add, as further columns."""
        a, c, g = self.state
        wide = FactorAnalysis(
            torch.cat([model.W, g]), torch.cat([model.b, a]), torch.cat([model.psi, torch.ones_like(a)])
        )
        return torch.cat([x, self._u - c * x[:, self.columns]], 1), wide

    def given_utilities(self, mean: Tensor, psi: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """As the function."""
        return given_utilities(mean, psi, z, self.state, self._u, self.columns)

    def draw(self, x: Tensor, z: Tensor, root: Tensor) -> None:
        """One sweep, given complete rows and latents, whose covariance goes into the loadings by its root."""
        cells, z1 = x[:, self.columns], pad(z, (0, 1), value=1.0)
        self._u = draw_utilities(self.state.utility(cells, z), self._hidden, self._uniform(x))
        J, L = self.state.g.shape
        precision = x.new_full((L + 2,), 1 / self._tau2)
        precision[0], precision[-1] = 1 / _SLOPE_VARIANCE, 1 / _OFFSET_VARIANCE
        A = torch.diag_embed(precision.expand(J, -1))
        A[:, 0, 0] += cells.square().sum(0)
        A[:, 1:, 1:] += z1.T @ z1
        A[:, 0, 1:] += cells.T @ z1
        A[:, 1:, 0] += cells.T @ z1
        target = torch.cat(
            [(cells * self._u).sum(0).unsqueeze(1) + self._mean_slope / _SLOPE_VARIANCE, self._u.T @ z1], 1
        )
        chol = torch.linalg.cholesky(A)
        mean = torch.cholesky_solve(target.unsqueeze(-1), chol)
        noise = torch.empty_like(mean).normal_(generator=self._generator)
        coef = (mean + torch.linalg.solve_triangular(chol.mT, noise, upper=True)).squeeze(-1)
        c, g, a = coef[:, 0], coef[:, 1:-1], coef[:, -1]
        self._draw_scales(c, g)
        self.state = SelfMasking(a, c, g @ root)

    def _draw_scales(self, c: Tensor, g: Tensor) -> None:
        """What the columns share: tau by its inverse gamma, the mean slope by its normal."""
        shape = torch.tensor((1 + g.numel()) / 2, dtype=g.dtype, device=g.device)
        gamma = torch._standard_gamma(shape, generator=self._generator)
        self._tau2 = ((_TAU_SCALE**2 + g.square().sum()) / (2 * gamma)).item()
        variance = 1 / (1 / _MEAN_SLOPE_VARIANCE + len(c) / _SLOPE_VARIANCE)
        noise = torch.empty_like(c[0]).normal_(generator=self._generator)
        self._mean_slope = (variance * c.sum() / _SLOPE_VARIANCE + variance**0.5 * noise).item()

    def _uniform(self, x: Tensor) -> Tensor:
        return torch.rand(self._hidden.shape, dtype=x.dtype, device=x.device, generator=self._generator)


class Sweep(NamedTuple):
    """Cells (n, F) drawn given their row and its mask, and the mean (n, F) and variance (F,) of hidden ones before."""

    x: Tensor
    mean: Tensor
    variance: Tensor


def draw_rows(
    values: Tensor,
    observed: Tensor,
    model: FactorAnalysis,
    masking: SelfMasking,
    columns: Tensor,
    noise: Callable[[int], Tensor],
) -> Iterator[Sweep]:
    """A chain of draws of the hidden cells of rows given the observed ones and the masks; endless.

    Utilities given all cells, then latents and hidden cells given the utilities: of a hidden cell, its utility is a
    noisy observation ``u = a + c (w' z + b) + g' z + e`` with ``e ~ N(0, 1 + c^2 psi)``.

    Parameters
    ----------
    values, observed : Tensor of shape (n, F)
    model : FactorAnalysis
    masking : SelfMasking
    columns : int Tensor of shape (J,)
    noise : callable
        Standard normal noise (n, L + F + J) of each sweep.
    """
    (W, b, psi), (a, c, g) = model, masking
    shown = observed[:, columns]
    wide = FactorAnalysis(
        torch.cat([W, c.unsqueeze(1) * W[columns] + g, g]),
        torch.cat([b, a + c * b[columns], a]),
        torch.cat([psi, 1 + c.square() * psi[columns], torch.ones_like(a)]),
    )
    visible = torch.cat([observed, ~shown, shown], 1)
    sizes = [model.rank, len(b), len(columns)]
    m, chol = posterior(values, observed, model)
    of_latents, of_cells, of_utilities = noise(0).split(sizes, 1)
    z = m + _solved(chol, of_latents)
    x = torch.where(observed, values, decode(z, model) + psi.sqrt() * of_cells)
    for sweep in range(1, 10**9):
        u = draw_utilities(masking.utility(x[:, columns], z), ~shown, torch.special.ndtr(of_utilities))
        of_latents, of_cells, of_utilities = noise(sweep).split(sizes, 1)
        known = torch.cat([values, u, u - c * values[:, columns]], 1)
        m, chol = posterior(known, visible, wide)
        z = m + _solved(chol, of_latents)
        mean, variance = given_utilities(decode(z, model), psi, z, masking, u, columns)
        x = torch.where(observed, values, mean + variance.sqrt() * of_cells)
        yield Sweep(x, mean, variance)


def _solved(chol: Tensor, noise: Tensor) -> Tensor:
    """Noise (n, L) of covariance one, turned into that of precision ``L L'``."""
    return torch.linalg.solve_triangular(chol.mT, noise.unsqueeze(-1), upper=True).squeeze(-1)
