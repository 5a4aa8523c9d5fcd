"""Inference in bounded memory: imputations, draws, likelihoods and samples from two models fitted to the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Generator, Tensor

from vaeimpute.batching import row_slices
from vaeimpute.persistence import Fitted
from vaeimpute.vae import objective
from vaeimpute.vae.base import VAE
from vaeimpute.vae.noise import sobol_normal
from vaeimpute.vae.shift import Shift

_LATENTS = 64  # of a draw
_FARTHEST, _BISECTIONS = 1000.0, 40  # of a median, in standard deviations; the search ends at 2e-9


class Ensemble(Fitted):
    """The joint and the conditional model, and what each has to say.

    Parameters
    ----------
    joint, conditional : VAE
    stacking_weight : Tensor of shape (D,)
        Weight of the joint model in each column's expectation; the conditional one has the rest.
    """

    stacking_weight: Tensor

    buffer_names: ClassVar[tuple[str, ...]] = ("stacking_weight",)

    def __init__(self, joint: VAE, conditional: VAE, **buffers: Tensor | None) -> None:
        super().__init__(**buffers)
        self.joint, self.conditional = joint, conditional

    @property
    def weighted_models(self) -> list[tuple[VAE, Tensor]]:
        """Both models with their weight in each column (D,); without one that has none in any."""
        pairs = ((self.joint, self.stacking_weight), (self.conditional, 1 - self.stacking_weight))
        return [(model, weight) for model, weight in pairs if weight.any()]

    def impute(self, values: Tensor, observed: Tensor) -> Tensor:
        """Cells (n, D): observed ones as they are, hidden ones at their mean (numbers) or mode (classes)."""
        return impute(self, values, observed)

    def medians(self, values: Tensor, observed: Tensor) -> Tensor:
        """Medians (n, D) of what `draw` draws for numbers; nothing of use for classes and observed cells."""
        return medians(self, values, observed)

    def intervals(self, values: Tensor, observed: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """Ends (n, D) of the intervals of numbers that hold that share of the hidden cells."""
        raise NotImplementedError(f"{type(self).__name__} has no calibrated intervals.")

    def impute_shifted(self, values: Tensor, observed: Tensor, shift: Shift, *, median: bool = False) -> Tensor:
        """`impute`, or medians, if hidden cells are shifted."""
        raise NotImplementedError(f"{type(self).__name__} shifts no cells.")

    def self_masking(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Columns (J,) that hide themselves, draws of their slopes (K, J), and what that does to points (J,)."""
        return None

    def draw(self, values: Tensor, observed: Tensor, n_draws: int, seed: int) -> Tensor:
        """Proper draws of the hidden cells, (n_draws, n, D) in float64; observed ones as they are."""
        return draw(self, values, observed, n_draws, _generator(seed, values)).double()

    def sample(self, n_samples: int, seed: int) -> Tensor:
        """New rows (n_samples, D) in float64."""
        return sample(self, n_samples, _generator(seed, self.stacking_weight)).double()


def latent_noise(model: VAE, n_draws: int | None = None) -> Tensor:
    """Quasi-random standard normal noise (K, L), the same for every row and every call.

    So the expectations of a row do not depend on its batch, and the same rows always get the same.
    """
    return sobol_normal(model.n_latent, n_draws or model.n_draws).to(model.weights, copy=True)


@torch.no_grad()
def expectations(ensemble: Ensemble, values: Tensor, observed: Tensor) -> Tensor:
    """Expected numbers and class probabilities of every cell, averaged over draws, members and models.

    Parameters
    ----------
    values, observed : Tensor of shape (n, D)

    Returns
    -------
    Tensor of shape (n, A)
    """
    columns = ensemble.joint.likelihoods.expectation_columns
    total = values.new_zeros(len(values), len(columns))
    for model, weight in ensemble.weighted_models:
        noise = latent_noise(model)
        for rows in _rows(model, len(values), len(noise)):
            x, o = _for_members(values[rows], observed[rows])
            total[rows] += weight[columns] * model.expectations(x, o, noise).mean(0)
    return total


def impute(ensemble: Ensemble, values: Tensor, observed: Tensor) -> Tensor:
    """Cells (n, D): observed ones as they are, hidden ones at their mean (numbers) or mode (classes)."""
    points = ensemble.joint.likelihoods.point_estimates(expectations(ensemble, values, observed))
    return torch.where(observed, values, points)


@torch.no_grad()
def medians(ensemble: Ensemble, values: Tensor, observed: Tensor) -> Tensor:
    """Medians (n, D) of numbers, by bisection of the mixture over draws, members and models."""
    parts = [(model, weight, latent_noise(model)) for model, weight in ensemble.weighted_models]
    widest, _, noise = max(parts, key=lambda part: part[0].numbers_per_row(len(part[2])))
    found = torch.zeros_like(values)
    for rows in _rows(widest, len(values), len(noise)):
        mixture = []
        for model, weight, noise in parts:
            params, log_w = model.importance_samples(*_for_members(values[rows], observed[rows]), noise)
            mixture.append((model, params, weight * log_w.softmax(1).unsqueeze(-1) / len(params)))
        low, high = (torch.full_like(values[rows], end) for end in (-_FARTHEST, _FARTHEST))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            at = middle.expand(1, 1, -1, -1)  # the same for all members and draws
            below = torch.stack([(w * model.likelihoods.cdf(params, at)).sum((0, 1)) for model, params, w in mixture])
            lower = below.sum(0) < 0.5
            low, high = torch.where(lower, middle, low), torch.where(lower, high, middle)
        found[rows] = high
    return found


@torch.no_grad()
def draw(ensemble: Ensemble, values: Tensor, observed: Tensor, n_draws: int, generator: Generator) -> Tensor:
    """Proper draws of the hidden cells, (n_draws, n, D).

    Each draw picks a member, and for each row one of its latents by importance weight, then samples the likelihood; the
    model is picked per column, with one uniform number per row, so that cells of one model stay coherent.
    """
    cells = _drawn(ensemble.conditional, values, observed, n_draws, generator)
    if ensemble.stacking_weight.any():
        uniform = torch.rand(n_draws, len(values), 1, device=values.device, generator=generator)
        of_joint = _drawn(ensemble.joint, values, observed, n_draws, generator)
        cells = torch.where(uniform < ensemble.stacking_weight, of_joint, cells)
    return torch.where(observed, values, cells)


def _drawn(model: VAE, values: Tensor, observed: Tensor, n_draws: int, generator: Generator) -> Tensor:
    """Draws of every cell by one model, (n_draws, n, D).

    All rows of a draw come from one member, picked at random: what members disagree about is not averaged away.
    """
    member = torch.randint(model.n_members, (n_draws,), device=values.device, generator=generator)
    draw = torch.arange(n_draws, device=values.device)
    parts = [
        _draw_rows(model, *_for_members(values[rows], observed[rows]), n_draws, generator)[draw, member]
        for rows in _rows(model, len(values), max(model.n_draws, _LATENTS, n_draws))
    ]
    return torch.cat(parts, 1)


def _draw_rows(model: VAE, values: Tensor, observed: Tensor, n_draws: int, generator: Generator) -> Tensor:
    # at least so many latents to pick from: fewer have a covariance of their own
    params, log_w = model.importance_samples(values, observed, latent_noise(model, max(model.n_draws, _LATENTS)))
    weights = torch.softmax(log_w, 1).transpose(1, 2).flatten(0, 1)  # (M * B, K)
    index = torch.multinomial(weights, n_draws, replacement=True, generator=generator)
    index = index.unflatten(0, (-1, values.shape[1])).transpose(1, 2)  # (M, S, B)
    return model.likelihoods.sample(params, generator, index).transpose(0, 1)


def log_likelihood(ensemble: Ensemble, values: Tensor, observed: Tensor) -> Tensor:
    """Importance-weighted log-likelihood of the observed cells of each row under the joint model, (n,), in nats.

    The members are a mixture: their bounds are averaged as densities.
    """
    members = member_log_likelihoods(ensemble.joint, values, observed)
    return torch.logsumexp(members, 0) - math.log(len(members))


@torch.no_grad()
def member_log_likelihoods(model: VAE, values: Tensor, observed: Tensor) -> Tensor:
    """The same under each member of a model, (M, n)."""
    noise = latent_noise(model)
    parts = []
    for rows in _rows(model, len(values), len(noise)):
        _, log_w = model.importance_samples(*_for_members(values[rows], observed[rows]), noise)
        parts.append(objective.iwae(log_w))
    return torch.cat(parts, 1)


@torch.no_grad()
def cell_log_likelihood(
    ensemble: Ensemble,
    values: Tensor,
    observed: Tensor,
    n_draws: int | None = None,
    n_passes: int | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """``log p(x_j | the other observed cells)``, (n, D), of the joint model; zero where the cell is not observed.

    Each cell is hidden in turn and the row encoded again: a pass that saw the cell would excuse it. With fewer passes
    than columns, several columns are hidden at a time: every `n_passes`-th of each row's own `order` (n, D).
    """
    out = torch.zeros_like(values)
    if order is None:
        order = torch.arange(values.shape[1], device=values.device).expand(values.shape)
    model = ensemble.joint
    noise = latent_noise(model, n_draws)
    n_passes = n_passes or values.shape[1]
    for first in range(n_passes):
        hidden = order[:, first::n_passes]  # (n, H)
        rest = observed.scatter(1, hidden, False)
        for rows in _rows(model, len(values), len(noise)):
            x, o = _for_members(values[rows], rest[rows])
            params, log_w = model.importance_samples(x, o, noise)
            log_px = model.likelihoods.log_prob(params, x.unsqueeze(1))
            log_px = log_px.take_along_dim(hidden[rows].expand(*log_px.shape[:2], -1, -1), -1)  # (M, K, B, H)
            log_p = torch.logsumexp(log_w.log_softmax(1).unsqueeze(-1) + log_px, 1)
            out[rows] = out[rows].scatter(1, hidden[rows], torch.logsumexp(log_p, 0) - math.log(len(log_p)))
    return torch.where(observed, out, 0)


@torch.no_grad()
def encode(ensemble: Ensemble, values: Tensor, observed: Tensor) -> Tensor:
    """Latent means of the first member of the joint model, (n, L)."""
    model = ensemble.joint
    rows = _rows(model, len(values), 1)
    return torch.cat([model.encode(*_for_members(values[r], observed[r]))[0] for r in rows])


@torch.no_grad()
def decode(ensemble: Ensemble, z: Tensor) -> Tensor:
    """Expected cells (n, D) given latents (n, L) of the first member of the joint model."""
    model = ensemble.joint
    likelihoods = model.likelihoods
    params = model.decode(z.expand(model.n_members, 1, -1, -1))[0, 0]
    return likelihoods.point_estimates(likelihoods.expectations(params))


@torch.no_grad()
def sample(ensemble: Ensemble, n_samples: int, generator: Generator) -> Tensor:
    """Rows (n_samples, D) from the prior of the joint model."""
    model = ensemble.joint
    M, like = model.n_members, model.weights
    parts = []
    for rows in _rows(model, n_samples, 1):
        size = rows.stop - rows.start
        z = torch.randn(M, 1, size, model.n_latent, dtype=like.dtype, device=like.device, generator=generator)
        cells = model.likelihoods.sample(model.decode(z), generator).squeeze(1)  # (M, B, D)
        member = torch.randint(M, (1, size, 1), device=cells.device, generator=generator)
        parts.append(cells.take_along_dim(member, 0).squeeze(0))
    return torch.cat(parts)


def _generator(seed: int, like: Tensor) -> Generator:
    return torch.Generator(device=like.device).manual_seed(seed)


def _for_members(values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows for all members, (1, n, D)."""
    return values.unsqueeze(0), observed.unsqueeze(0)


def _rows(model: VAE, n_rows: int, n_draws: int) -> Iterator[slice]:
    return row_slices(n_rows, model.numbers_per_row(n_draws))
