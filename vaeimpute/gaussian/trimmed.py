"""Mixtures of tables that hold outliers and wrong cells: fitted in rounds, to the rows and cells that they believe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vaeimpute.gaussian.mixture import (
    N_COMPONENTS,
    Mixture,
    choose_mixture,
    chunks,
    fit_mixture,
    leave_one_out,
    log_evidence,
)

ERRORS = 0.05  # share of the cells that are taken to be wrong
_LARGE = 1000  # rows from which fewer need be trimmed
_FEW = (4,)  # components of rows: more would find one for each group of outliers
_ROUNDS = 4  # of leaving out the strange and fitting again
_CELL_ROUNDS = 2  # of looking for wrong cells
_FAR = 4.5  # nats by which a strange cell is less likely than what is expected: three standard deviations
_HIDDEN = 0.34  # share of a row's cells that may be strange


def trimmed_share(n: int) -> float:
    """Share of the strangest rows to leave out of a table of n rows that may hold outliers."""
    return 0.2 if n >= _LARGE else 0.35


def fit_robust(
    x: Tensor, o: Tensor, off: Tensor, members: Sequence[Tensor], floor: Tensor, trimmed: float, seed: int
) -> tuple[list[Mixture], list[Mixture]]:
    """Mixtures of the ordinary rows, and mixtures of the right cells of all rows, one per member.

    A mixture of rows leaves out the strangest. Of a row with a wrong cell, that of cells learns from the others.

    Parameters
    ----------
    x, o, off : Tensor of shape (n, F)
        Features, which are observed, and which do not stand where those of their column do.
    members : sequence of bool Tensor of shape (n,)
        The rows that each member may see.
    floor : Tensor of shape (F,)
        Smallest noise variance.
    trimmed : float
        Share of the rows to leave out.
    seed : int
    """
    sizes = choose_mixture(x, o, ~members[0], floor, components=_FEW, seed=seed)
    rows = [_fit_trimmed(x[own], o[own], *sizes, floor, trimmed, seed) for own in members]
    believed = _believed(x, o, off, *sizes, floor, seed)
    sizes = choose_mixture(x, believed, ~members[0], floor, components=N_COMPONENTS, seed=seed)
    return rows, [fit_mixture(x[own], believed[own], *sizes, floor, seed=seed) for own in members]


def _fit_trimmed(
    x: Tensor, o: Tensor, n_components: int, rank: int, floor: Tensor, trimmed: float, seed: int
) -> Mixture:
    """Mixture of the rows but the strangest, and of their cells but the strange ones."""
    mixture = fit_mixture(x, o, n_components, rank, floor, seed=seed)
    for _ in range(_ROUNDS):
        evidence = log_evidence(x, o, mixture) / o.sum(1).clamp(min=1)
        kept = evidence >= evidence.quantile(trimmed)
        ordinary = o & ~_strange(x, o, mixture)
        mixture = fit_mixture(x[kept], ordinary[kept], n_components, rank, floor, seed=seed)
    return mixture


def _believed(x: Tensor, o: Tensor, off: Tensor, n_components: int, rank: int, floor: Tensor, seed: int) -> Tensor:
    """Cells (n, F) that a mixture of all rows does not find strange.

    What is `off` is strange from the start. In a column that has such cells they are its errors, and what else is far
    from the rest of its row is rare, but right.
    """
    known = believed = o & ~off
    told = (o & off).any(0)
    for _ in range(_CELL_ROUNDS):
        mixture = fit_mixture(x, believed, n_components, rank, floor, seed=seed)
        believed = known & (told | ~_strange(x, known, mixture))
    return believed


def _strange(x: Tensor, o: Tensor, mixture: Mixture) -> Tensor:
    """Which cells (n, F) are far from all that the rest of their row leaves open; at most some in each row."""
    distance = []
    for rows in chunks(len(x), 4 * mixture.linear.W.numel()):
        rest = leave_one_out(x[rows], o[rows], mixture)
        nats = 0.5 * (x[rows] - rest.mean).square() / rest.variance
        distance.append(-torch.logsumexp(rest.log_weight - nats, 0))
    score = torch.where(o, torch.cat(distance), -math.inf)
    rank = score.argsort(1, descending=True).argsort(1)
    return (score > _FAR) & (rank < _HIDDEN * o.sum(1, keepdim=True))
