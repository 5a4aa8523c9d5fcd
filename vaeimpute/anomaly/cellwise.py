"""Which cells of a row to believe: every cell given the others, when some of these may be wrong themselves.

A cell is right, and as likely as the rest of its row says, or wrong at a fixed price. A row with the set B of believed
cells then has the energy ``-log p(x_B)`` plus the price of each doubted cell, and cell j given the others is the
average of ``p(x_j | x_B)`` over sets B without j, weighted by ``exp(-energy)``. The sum has 2^D terms. It is taken over
those that a search for low energies comes by: to doubt cell j lowers the energy by ``-log p(x_j | x_B)`` less its
price, which one leave-one-out pass gives for all cells at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_PATHS = 5  # each starts with another of a row's strangest cells doubted
_MOVES = 6  # of a path: the cell that gains most is doubted, or believed again
_NEARLY = 4.0  # nats that a first doubt may cost: what it brings shows only later
_DOUBTED = 0.34  # share of a row's cells
_MOST = 1e30  # nats


class Cells(NamedTuple):
    """What is said of each cell given the believed others: answers (n, A), log-density (n, D)."""

    answers: Tensor
    log_density: Tensor


def doubtful(
    given: Callable[[Tensor, Tensor], Cells], values: Tensor, observed: Tensor, price: Tensor, columns: Tensor
) -> Cells:
    """Average of what `given` says over the cells that may be wrong.

    Parameters
    ----------
    given : callable
        Takes values and which of them are believed, (n, D) each; no cell has a say in what it returns for it.
    values, observed : Tensor of shape (n, D)
    price : Tensor of shape (D,) or (n, D)
        Negative log-density at which a cell is as likely wrong as right.
    columns : Tensor of shape (A,)
        The column of each answer.
    """
    n = torch.arange(len(values), device=values.device)
    price = price.expand(values.shape)
    start = given(values, observed)
    gain = _gain(start, price)
    seen = [(n, _weight(torch.zeros_like(gain[:, 0]), gain, observed), start)]
    order = torch.where(observed, gain, -math.inf).argsort(dim=1, descending=True, stable=True)
    most = (_DOUBTED * observed.sum(1)).floor().clamp(min=1)
    for first in order[:, :_PATHS].unbind(1):
        rows = n[observed[n, first] & (gain[n, first] > -_NEARLY)]
        column = forced = first[rows]
        believed, energy, moved = observed[rows].clone(), torch.zeros_like(gain[rows, 0]), gain[rows, column]
        for _ in range(_MOVES):
            if len(rows) == 0:
                break
            believed[torch.arange(len(rows), device=n.device), column] ^= True
            energy = energy - moved
            said = given(values[rows], believed)
            now = _gain(said, price[rows])
            seen.append((rows, _weight(energy, now, believed), said))
            doubted = observed[rows] & ~believed
            full = doubted.sum(1, keepdim=True) >= most[rows].unsqueeze(1)
            step = torch.where(believed & ~full, now, torch.where(doubted, -now, -math.inf))
            moved, column = step.scatter(1, forced.unsqueeze(1), -math.inf).max(1)
            on = moved > 0
            rows, column, forced, believed, energy, moved = (
                part[on] for part in (rows, column, forced, believed, energy, moved)
            )
    return _average(seen, columns)


def _gain(said: Cells, price: Tensor) -> Tensor:
    # in double precision: the energy that one ruin of a cell costs must not drown that of the others
    return (-said.log_density - price).double().clamp(-_MOST, _MOST)


def _weight(energy: Tensor, gain: Tensor, believed: Tensor) -> Tensor:
    """Log-weight of a set for each cell: minus the energy of the others, up to what they all share."""
    return torch.where(believed, gain, 0) - energy.unsqueeze(1)


def _average(seen: list[tuple[Tensor, Tensor, Cells]], columns: Tensor) -> Cells:
    _, top, start = seen[0]
    for rows, weight, _ in seen[1:]:
        top = top.index_put((rows,), torch.maximum(top[rows], weight))
    total, answers = torch.zeros_like(start.log_density), torch.zeros_like(start.answers)
    density = torch.full_like(total, -math.inf)
    for rows, weight, said in seen:
        share = (weight - top[rows]).to(start.answers)
        total[rows] += share.exp()
        answers[rows] += share.exp()[:, columns] * said.answers
        density[rows] = torch.logaddexp(density[rows], share + said.log_density)
    return Cells(answers / total[:, columns], density - total.log())
