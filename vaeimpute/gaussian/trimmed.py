"""Mixtures of rows of which some are outliers, and some cells wrong: trimmed EM, by concentration steps.

A concentration step leaves out what the last fit finds least likely, and fits again (Rousseeuw and Van Driessen 1999).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vaeimpute.batching import row_slices
from vaeimpute.gaussian.mixture import (
    N_COMPONENTS,
    Mixture,
    choose_mixture,
    fit_mixture,
    leave_one_out,
    log_likelihood,
)

CONTAMINATION = 0.05  # share of the cells that are taken to be wrong
_LARGE = 1000  # rows from which fewer need be trimmed
_FEW = (4,)  # components of rows: more would find one for each group of outliers
_ROW_STEPS = 4  # concentration steps by rows
_CELL_STEPS = 2  # and by cells
_FAR = 4.5  # nats by which an outlying cell is less likely than what is expected: three standard deviations
_TRIMMED_CELLS = 0.34  # share of a row's cells that may be left out


class TrimmedFit(NamedTuple):
    """What a trimmed fit finds.

    Attributes
    ----------
    rows : list of Mixture
        Of the rows that are no outliers, one per member.
    cells : list of Mixture
        Of the clean cells of all rows, one per member.
    clean : bool Tensor of shape (n, F)
        The observed cells that are taken to be right.
    """

    rows: list[Mixture]
    cells: list[Mixture]
    clean: Tensor


def trimmed_share(n: int) -> float:
    """Share of the least likely rows to leave out of a table of n rows that may hold outliers."""
    return 0.2 if n >= _LARGE else 0.35


def fit_trimmed(
    x: Tensor, o: Tensor, off_lattice: Tensor, members: Sequence[Tensor], floor: Tensor, trimmed: float, seed: int
) -> TrimmedFit:
    """Fit mixtures to the rows that are no outliers, and to the clean cells of all rows.

    A mixture of rows leaves out whole rows. That of cells learns from the other cells of a row with a wrong one.

    Parameters
    ----------
    x, o, off_lattice : Tensor of shape (n, F)
        Features, which are observed, and which do not stand where those of their column do.
    members : sequence of bool Tensor of shape (n,)
        The rows that each member may see.
    floor : Tensor of shape (F,)
        Smallest noise variance.
    trimmed : float
        Share of the rows to leave out.
    seed : int
    """
    size = choose_mixture(x, o, ~members[0], floor, components=_FEW, seed=seed)
    rows = [_fit_rows(x[own], o[own], size, floor, trimmed, seed) for own in members]
    clean = _clean_mask(x, o, off_lattice, size, floor, seed)
    size = choose_mixture(x, clean, ~members[0], floor, components=N_COMPONENTS, seed=seed)
    cells = [fit_mixture(x[own], clean[own], *size, floor, seed=seed) for own in members]
    return TrimmedFit(rows, cells, clean)


def _fit_rows(x: Tensor, o: Tensor, size: tuple[int, int], floor: Tensor, trimmed: float, seed: int) -> Mixture:
    """Mixture of the rows but the least likely, and of their cells but the outlying ones."""
    mixture = fit_mixture(x, o, *size, floor, seed=seed)
    for _ in range(_ROW_STEPS):
        per_cell = log_likelihood(x, o, mixture) / o.sum(1).clamp(min=1)
        kept = per_cell >= per_cell.quantile(trimmed)
        clean = o & ~_outlying(x, o, mixture)
        mixture = fit_mixture(x[kept], clean[kept], *size, floor, seed=seed)
    return mixture


def _clean_mask(x: Tensor, o: Tensor, off_lattice: Tensor, size: tuple[int, int], floor: Tensor, seed: int) -> Tensor:
    """Cells (n, F) that a mixture of all rows does not find outlying.

    What is off its lattice is left out from the start. In a column that has such cells they are its errors, and what
    else is far from the rest of its row is rare, but right.
    """
    possible = clean = o & ~off_lattice
    has_errors = (o & off_lattice).any(0)
    for _ in range(_CELL_STEPS):
        mixture = fit_mixture(x, clean, *size, floor, seed=seed)
        clean = possible & (has_errors | ~_outlying(x, possible, mixture))
    return clean


def _outlying(x: Tensor, o: Tensor, mixture: Mixture) -> Tensor:
    """Which cells (n, F) are far from all that the rest of their row leaves open; at most some in each row."""
    distance = []
    for rows in row_slices(len(x), 4 * mixture.numbers_per_row):
        rest = leave_one_out(x[rows], o[rows], mixture)
        nats = 0.5 * (x[rows] - rest.mean).square() / rest.variance
        distance.append(-torch.logsumexp(rest.log_weight - nats, 0))
    score = torch.where(o, torch.cat(distance), -math.inf)
    rank = score.argsort(1, descending=True).argsort(1)
    return (score > _FAR) & (rank < _TRIMMED_CELLS * o.sum(1, keepdim=True))
