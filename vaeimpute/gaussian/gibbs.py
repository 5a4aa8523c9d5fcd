"""Posterior draws of a linear VAE's parameters, by Gibbs sampling with the missing cells drawn too.

Every step is a closed form: latents given all cells, missing cells given the latents (data augmentation: Tanner and
Wong, JASA 1987), parameters given both. The latent's covariance is free while it is drawn (parameter expansion: Liu and
Wu, JASA 1999; Ghosh and Dunson, JCGS 2009), so that few sweeps are enough.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from vaeimpute.gaussian.factor_analysis import FactorAnalysis, decode, posterior
from vaeimpute.gaussian.self_masking import MaskSampler, SelfMasking

_OFFSET_PRECISION = 1e-6  # of a column's offset; its loadings have one


def draw_parameters(
    values: Tensor,
    observed: Tensor,
    start: FactorAnalysis,
    floor: Tensor,
    n_draws: int,
    generator: Generator,
    *,
    n_warm_up: int,
    n_between: int,
    self_masked: Tensor | None = None,
) -> tuple[FactorAnalysis, SelfMasking | None]:
    """Draws of the parameters given the observed cells, stacked: ``W`` (K, F, L), ``b`` and ``psi`` (K, F).

    Loadings and offsets have a normal prior, noise variances an inverse-gamma one, of one pseudo-row at `floor`. If
    some columns hide themselves, that is part of the model, and draws of its parameters come along.

    Parameters
    ----------
    values, observed : Tensor of shape (n, F)
        Standardised cells in float64 and which of them are observed.
    start : FactorAnalysis
        Where the chain begins.
    floor : Tensor of shape (F,)
        Smallest noise variance.
    n_draws : int
        K.
    generator : Generator
    n_warm_up, n_between : int
        Sweeps before the first draw, and from one to the next.
    self_masked : int Tensor of shape (J,), optional
        Columns that hide themselves; without them cells are missing at random.
    """
    noise = _normal(values.new_empty(len(values), start.rank), generator)
    x = _complete(values, observed, draw_latents(values, observed, start, noise), start, generator)
    masks = None if self_masked is None else MaskSampler(x, observed, self_masked, start.rank, generator)
    model, kept = start, []
    for sweep in range(n_warm_up + n_draws * n_between):
        z = _draw_latents_of_complete_rows(*((x, model) if masks is None else masks.widened(x, model)), generator)
        x = _complete(values, observed, z, model, generator, masks)
        model, root = _draw_given_all(x, pad(z, (0, 1), value=1.0), model.psi, floor, generator)
        if masks is None:  # which would know of the latents too
            model = model._replace(b=_draw_offsets(x, model, generator))
        if masks is not None:
            masks.draw(x, z, root)
        if sweep >= n_warm_up and (sweep - n_warm_up) % n_between == n_between - 1:
            kept.append(model)
            if masks is not None:
                masks.keep()
    stacked = FactorAnalysis(*(torch.stack(part) for part in zip(*kept, strict=True)))
    return stacked, None if masks is None else masks.draws


def average(draws: FactorAnalysis) -> FactorAnalysis:
    """The linear VAE with the mean covariance and the mean offset of stacked draws, of their rank."""
    K, F, L = draws.W.shape
    side_by_side = draws.W.movedim(0, 1).flatten(1) / K**0.5  # (F, K L): its square is the mean of W W'
    if F <= K * L:
        eigenvalues, vectors = torch.linalg.eigh(side_by_side @ side_by_side.T)
        W = vectors[:, -L:] * eigenvalues[-L:].clamp(min=0).sqrt()
    else:  # the same from the smaller square
        _, vectors = torch.linalg.eigh(side_by_side.T @ side_by_side)
        W = side_by_side @ vectors[:, -L:]
    left = (side_by_side.square().sum(1) - W.square().sum(1)).clamp(min=0)  # what so few latents cannot hold
    return FactorAnalysis(W, draws.b.mean(0), draws.psi.mean(0) + left)


def draw_latents(values: Tensor, observed: Tensor, model: FactorAnalysis, noise: Tensor) -> Tensor:
    """``z ~ N(m, P^-1)`` given the observed cells of each row, (..., B, L), from standard normal noise (..., B, L)."""
    m, chol = posterior(values, observed, model)
    return m + torch.linalg.solve_triangular(chol.transpose(-1, -2), noise.unsqueeze(-1), upper=True).squeeze(-1)


def _draw_latents_of_complete_rows(x: Tensor, model: FactorAnalysis, generator: Generator) -> Tensor:
    """``z ~ N(m, P^-1)``; without missing cells all rows have the same P."""
    scaled = model.W / model.psi.unsqueeze(1)
    chol = torch.linalg.cholesky(torch.eye(model.rank).to(x) + model.W.T @ scaled)
    mean = torch.cholesky_solve(((x - model.b) @ scaled).T, chol)
    noise = _normal(torch.empty_like(mean), generator)
    return (mean + torch.linalg.solve_triangular(chol.T, noise, upper=True)).T


def _complete(
    values: Tensor,
    observed: Tensor,
    z: Tensor,
    model: FactorAnalysis,
    generator: Generator,
    masks: MaskSampler | None = None,
) -> Tensor:
    noise, mean, variance = _normal(torch.empty_like(values), generator), decode(z, model), model.psi
    if masks is not None:
        mean, variance = masks.given_utilities(mean, variance, z)
    return torch.where(observed, values, mean + variance.sqrt() * noise)


def _draw_given_all(
    x: Tensor, z1: Tensor, psi: Tensor, floor: Tensor, generator: Generator
) -> tuple[FactorAnalysis, Tensor]:
    """Loadings and offsets of all columns, their noise, and a root of the latent's covariance: the loadings have it."""
    moments, target = z1.T @ z1, x.T @ z1
    coef = _draw_regressions(moments, target, psi, generator)
    residual = x.square().sum(0) - 2 * (coef * target).sum(1) + ((coef @ moments) * coef).sum(1)
    shape = torch.full_like(psi, (len(x) + 1) / 2)
    psi = (residual.clamp(min=0) + floor) / (2 * torch._standard_gamma(shape, generator=generator))
    root = _draw_latent_root(moments, generator)
    return FactorAnalysis(coef[:, :-1] @ root, coef[:, -1], torch.maximum(psi, floor)), root


def _draw_offsets(x: Tensor, model: FactorAnalysis, generator: Generator) -> Tensor:
    """Offsets without the latents, which come next: given them, where noise is small, they would not move."""
    of_latents, of_cells = _normal(x.new_empty(sum(model.W.shape)), generator).split([model.rank, x.shape[1]])
    return x.mean(0) + (model.W @ of_latents + model.psi.sqrt() * of_cells) / len(x) ** 0.5


def _draw_regressions(moments: Tensor, target: Tensor, psi: Tensor, generator: Generator) -> Tensor:
    """``N(A^-1 t / psi, A^-1)`` with ``A = G / psi + prior`` for every column, (F, L + 1)."""
    prior = torch.ones_like(target)
    prior[:, -1] = _OFFSET_PRECISION
    chol = torch.linalg.cholesky(moments / psi[:, None, None] + torch.diag_embed(prior))
    mean = torch.cholesky_solve((target / psi.unsqueeze(-1)).unsqueeze(-1), chol)
    noise = _normal(torch.empty_like(mean), generator)
    return (mean + torch.linalg.solve_triangular(chol.transpose(-1, -2), noise, upper=True)).squeeze(-1)


def _draw_latent_root(moments: Tensor, generator: Generator) -> Tensor:
    """A root of the latent's covariance given the latents: inverse-Wishart, its prior of L + 1 degrees of freedom."""
    L = len(moments) - 1
    scatter = moments[:L, :L] + torch.eye(L).to(moments)
    shape = (moments[-1, -1] + L + 1 - torch.arange(L).to(moments)) / 2
    bartlett = _normal(torch.empty_like(scatter), generator).tril(-1)
    bartlett = bartlett + torch.diag_embed((2 * torch._standard_gamma(shape, generator=generator)).sqrt())
    root = torch.linalg.cholesky(scatter)
    return torch.linalg.solve_triangular(bartlett, root.T, upper=False).T  # M = C T^-T: M M' is the draw


def _normal(empty: Tensor, generator: Generator) -> Tensor:
    return empty.normal_(generator=generator)
