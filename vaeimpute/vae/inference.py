"""Inference in bounded memory: imputations, draws, evidence and samples from the fitted readings of a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from vaeimpute.vae import objective
from vaeimpute.vae.base import Reading

_CELLS = 2**21  # parameters held at once: what stays near the processor is twice as fast
_FARTHEST, _BISECTIONS = 1000.0, 40  # of a median, in standard deviations; the search ends at 2e-9


class Ensemble(NamedTuple):
    """The fitted readings of one table.

    Attributes
    ----------
    joint, conditional : Reading
    share : Tensor of shape (D,)
        Share of the joint reading in each column's answer; the conditional one has the rest.
    spread : Tensor of shape (D,)
        Factor that brings the spread of drawn numbers to what held-out cells showed.
    """

    joint: Reading
    conditional: Reading
    share: Tensor
    spread: Tensor

    @property
    def readings(self) -> tuple[Reading, Reading]:
        """Both readings, the joint one first."""
        return self.joint, self.conditional


def latent_noise(model: Reading, n_draws: int | None = None) -> Tensor:
    """Quasi-random standard normal noise (K, L), the same for every row and every call.

    So a row's answer does not depend on its batch, and the same table always gets the same answer.
    """
    n_draws = n_draws or model.n_draws
    uniform = SobolEngine(model.n_latent, scramble=True, seed=0).draw(n_draws, dtype=torch.float64)
    noise = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
    return noise.to(model.weights)


@torch.no_grad()
def answers(ensemble: Ensemble, values: Tensor, observed: Tensor) -> Tensor:
    """Expected numbers and class probabilities of every cell, averaged over draws, members and readings.

    Parameters
    ----------
    values, observed : Tensor of shape (n, D)

    Returns
    -------
    Tensor of shape (n, A)
    """
    columns = ensemble.joint.likelihoods.answer_columns
    share = ensemble.share[columns]
    total = values.new_zeros(len(values), len(columns))
    for model, weight in zip(ensemble.readings, (share, 1 - share), strict=True):
        if not weight.any():
            continue
        noise = latent_noise(model)
        for rows in _chunks(model, len(values), len(noise)):
            x, o = _for_members(model, values[rows], observed[rows])
            total[rows] += weight * model.answers(x, o, noise).mean(0)
    return total


def impute(ensemble: Ensemble, values: Tensor, observed: Tensor) -> Tensor:
    """Cells (n, D): observed ones as they are, hidden ones at their mean (numbers) or mode (classes)."""
    points = ensemble.joint.likelihoods.points(answers(ensemble, values, observed))
    return torch.where(observed, values, points)


@torch.no_grad()
def medians(ensemble: Ensemble, values: Tensor, observed: Tensor, points: Tensor) -> Tensor:
    """Medians (n, D) of what `draw` draws for numbers; nothing of use for classes and observed cells.

    By bisection of the mixture over draws, members and readings; like the draws, spread around `points`, the means that
    `impute` gives.
    """
    shares = zip(ensemble.readings, (ensemble.share, 1 - ensemble.share), strict=True)
    asked = [(model, share, latent_noise(model)) for model, share in shares if share.any()]
    widest, _, noise = max(asked, key=lambda part: part[0].cells_per_row(len(part[2])))
    found = torch.zeros_like(points)
    for rows in _chunks(widest, len(values), len(noise)):
        said = []
        for model, share, noise in asked:
            params, log_w = model.draws(*_for_members(model, values[rows], observed[rows]), noise)
            said.append((model, params, share * log_w.softmax(1).unsqueeze(-1) / len(params)))
        low, high = (torch.full_like(points[rows], end) for end in (-_FARTHEST, _FARTHEST))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            at = middle.expand(1, 1, -1, -1)  # the same for all members and draws
            below = torch.stack([(w * model.likelihoods.cdf(params, at)).sum((0, 1)) for model, params, w in said])
            lower = below.sum(0) < 0.5
            low, high = torch.where(lower, middle, low), torch.where(lower, high, middle)
        found[rows] = high
    return torch.where(ensemble.spread == 1, found, points + ensemble.spread * (found - points))


@torch.no_grad()
def draw(ensemble: Ensemble, values: Tensor, observed: Tensor, n_draws: int) -> Tensor:
    """Proper draws of the hidden cells, (n_draws, n, D), from PyTorch's global generator.

    Each draw picks a member, and for each row one of its latents by importance weight, then samples the likelihood; the
    reading is picked per column, with one uniform number per row, so that cells of one reading stay coherent.
    Numbers are spread around their mean by the ensemble's calibrated factor.
    """
    cells = _drawn(ensemble.conditional, values, observed, n_draws)
    if ensemble.share.any():
        pick = torch.rand(n_draws, len(values), 1, device=values.device) < ensemble.share
        cells = torch.where(pick, _drawn(ensemble.joint, values, observed, n_draws), cells)
    points = ensemble.joint.likelihoods.points(answers(ensemble, values, observed))
    # Levels and classes have a spread of one, and so stay what was drawn.
    spread = torch.where(ensemble.spread == 1, cells, points + ensemble.spread * (cells - points))
    return torch.where(observed, values, spread)


def _drawn(model: Reading, values: Tensor, observed: Tensor, n_draws: int) -> Tensor:
    """Draws of every cell by one reading, (n_draws, n, D).

    All rows of a draw come from one member, picked at random: what members disagree about is not averaged away.
    """
    member = torch.randint(model.n_members, (n_draws,), device=values.device)
    draw = torch.arange(n_draws, device=values.device)
    parts = [
        _draw_chunk(model, *_for_members(model, values[rows], observed[rows]), n_draws)[draw, member]
        for rows in _chunks(model, len(values), max(len(latent_noise(model)), n_draws))
    ]
    return torch.cat(parts, 1)


@torch.no_grad()
def draw_per_member(model: Reading, values: Tensor, observed: Tensor, n_draws: int, columns: Tensor) -> Tensor:
    """Draws of some columns (C,) by every member from what it is given, (M, n, D) to (n_draws, M, n, C)."""
    wanted = torch.zeros(values.shape[-1], dtype=torch.bool, device=values.device).index_fill(0, columns, True)
    parts = [
        _draw_chunk(model, values[:, rows], observed[:, rows], n_draws, wanted).index_select(-1, columns)
        for rows in _chunks(model, values.shape[1], max(len(latent_noise(model)), n_draws))
    ]
    return torch.cat(parts, 2)


def _draw_chunk(model: Reading, values: Tensor, observed: Tensor, n_draws: int, wanted: Tensor | None = None) -> Tensor:
    params, log_w = model.draws(values, observed, latent_noise(model))
    weights = torch.softmax(log_w, 1).transpose(1, 2).flatten(0, 1)  # (M * B, K)
    index = torch.multinomial(weights, n_draws, replacement=True).unflatten(0, (-1, values.shape[1]))  # (M, B, S)
    return model.likelihoods.sample(params, index.transpose(1, 2), wanted).transpose(0, 1)


@torch.no_grad()
def log_evidence(ensemble: Ensemble, values: Tensor, observed: Tensor) -> Tensor:
    """Importance-weighted log-likelihood of the observed cells of each row under the joint reading, (n,), in nats.

    The members are a mixture: their bounds are averaged as densities.
    """
    model = ensemble.joint
    noise = latent_noise(model)
    parts = []
    for rows in _chunks(model, len(values), len(noise)):
        _, log_w = model.draws(*_for_members(model, values[rows], observed[rows]), noise)
        parts.append(torch.logsumexp(objective.iwae(log_w), 0) - math.log(len(log_w)))
    return torch.cat(parts)


@torch.no_grad()
def cell_log_density(
    ensemble: Ensemble,
    values: Tensor,
    observed: Tensor,
    n_draws: int | None = None,
    n_passes: int | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """``log p(x_j | the other observed cells)``, (n, D), of the joint reading; zero where the cell is not observed.

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
        for rows in _chunks(model, len(values), len(noise)):
            x, o = _for_members(model, values[rows], rest[rows])
            params, log_w = model.draws(x, o, noise)
            log_px = model.likelihoods.log_prob(params, x.unsqueeze(1))
            log_px = log_px.take_along_dim(hidden[rows].expand(*log_px.shape[:2], -1, -1), -1)  # (M, K, B, H)
            log_p = torch.logsumexp(log_w.log_softmax(1).unsqueeze(-1) + log_px, 1)
            out[rows] = out[rows].scatter(1, hidden[rows], torch.logsumexp(log_p, 0) - math.log(len(log_p)))
    return torch.where(observed, out, 0)


@torch.no_grad()
def encode(ensemble: Ensemble, values: Tensor, observed: Tensor) -> Tensor:
    """Latent means of the first member of the joint reading, (n, L)."""
    model = ensemble.joint
    chunks = _chunks(model, len(values), 1)
    return torch.cat([model.encode(*_for_members(model, values[rows], observed[rows]))[0] for rows in chunks])


@torch.no_grad()
def decode(ensemble: Ensemble, z: Tensor) -> Tensor:
    """Expected cells (n, D) given latents (n, L) of the first member of the joint reading."""
    model = ensemble.joint
    likelihoods = model.likelihoods
    params = model.decode(z.expand(model.n_members, 1, -1, -1))[0, 0]
    return likelihoods.points(likelihoods.answers(params))


@torch.no_grad()
def sample(ensemble: Ensemble, n_samples: int) -> Tensor:
    """Rows (n_samples, D) from the prior of the joint reading, from PyTorch's global generator."""
    model = ensemble.joint
    M = model.n_members
    parts = []
    for rows in _chunks(model, n_samples, 1):
        size = len(range(*rows.indices(n_samples)))
        z = torch.randn(M, 1, size, model.n_latent).to(model.weights)
        cells = model.likelihoods.sample(model.decode(z)).squeeze(1)  # (M, B, D)
        member = torch.randint(M, (1, size, 1), device=cells.device)
        parts.append(cells.take_along_dim(member, 0).squeeze(0))
    return torch.cat(parts)


def _for_members(model: Reading, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows for all members, (1, n, D)."""
    return values.unsqueeze(0), observed.unsqueeze(0)


def _chunks(model: Reading, n_rows: int, n_draws: int) -> Iterator[slice]:
    """Slices of the rows, so that no more than `_CELLS` parameters are held at once."""
    size = max(1, _CELLS // model.cells_per_row(n_draws))
    return (slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size))


def to_state(ensemble: Ensemble) -> tuple[dict[str, np.ndarray], dict]:
    """Everything that makes up an ensemble, as arrays and as plain numbers (JSON)."""
    tensors = {"share": ensemble.share, "spread": ensemble.spread}
    header = {}
    for name, model in zip(("joint", "conditional"), ensemble.readings, strict=True):
        tensors |= {f"{name}.{key}": value for key, value in model.state_dict().items()}
        header[name] = {"class": type(model).__name__, **model.header()}
    return {key: value.detach().cpu().numpy() for key, value in tensors.items()}, header


def from_state(
    tensors: Mapping[str, np.ndarray], header: Mapping, device: torch.device, classes: Mapping[str, type[Reading]]
) -> Ensemble:
    """The inverse of `to_state`, on any device; `classes` are those of the readings by name."""
    arrays = {key: torch.tensor(value, device=device) for key, value in tensors.items()}

    def restored(name: str) -> Any:
        model = classes[header[name]["class"]].from_header(header[name]).to(device, arrays["share"].dtype)
        prefix = f"{name}."
        model.load_state_dict({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
        return model.eval()

    return Ensemble(restored("joint"), restored("conditional"), arrays["share"], arrays["spread"])
