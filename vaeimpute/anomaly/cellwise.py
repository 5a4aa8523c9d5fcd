"""Cellwise contamination: every cell given the others, when some of these may be wrong themselves.

A cell is clean, and as likely as the rest of its row makes it, or wrong, at fixed log-odds. A row with the set C of
clean cells then has the energy ``-log p(x_C)`` plus the log-odds of each wrong cell, and cell j given the others is the
average of ``p(x_j | x_C)`` over sets C without j, weighted by ``exp(-energy)``. The sum has 2^D terms. It is taken over
those that a search for low energies comes by: to take cell j for wrong lowers the energy by ``-log p(x_j | x_C)`` less
its log-odds, which one leave-one-out pass gives for all cells at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_PATHS = 5  # each starts with another of a row's most outlying cells taken for wrong
_MOVES = 6  # of a path: the cell that gains most is taken for wrong, or for clean again
_NEARLY = 4.0  # nats that a first move may cost: what it brings shows only later
_MOST_WRONG = 0.34  # share of a row's cells
_MOST = 1e30  # nats


class GivenOthers(NamedTuple):
    """Each cell given the clean others: expectations (n, A), log-likelihood of the cell that is there (n, D)."""

    expectations: Tensor
    log_px: Tensor


def average_over_clean_masks(
    predict: Callable[[Tensor, Tensor], GivenOthers],
    values: Tensor,
    observed: Tensor,
    log_odds: Tensor,
    columns: Tensor,
) -> GivenOthers:
    """Average of predictions over the cells that may be wrong.

    Parameters
    ----------
    predict : callable
        Takes values and which of them are clean, (n, D) each; no cell has a say in its own prediction.
    values, observed : Tensor of shape (n, D)
    log_odds : Tensor of shape (D,) or (n, D)
        Negative log-likelihood at which a cell is as likely wrong as clean.
    columns : Tensor of shape (A,)
        The column of each expectation.
    """
    n = torch.arange(len(values), device=values.device)
    log_odds = log_odds.expand(values.shape)
    start = predict(values, observed)
    gain = _gain(start, log_odds)
    terms = [(n, _log_weight(torch.zeros_like(gain[:, 0]), gain, observed), start)]
    order = torch.where(observed, gain, -math.inf).argsort(dim=1, descending=True, stable=True)
    most = (_MOST_WRONG * observed.sum(1)).floor().clamp(min=1)
    for first in order[:, :_PATHS].unbind(1):
        rows = n[observed[n, first] & (gain[n, first] > -_NEARLY)]
        column = forced = first[rows]
        clean, energy, moved = observed[rows].clone(), torch.zeros_like(gain[rows, 0]), gain[rows, column]
        for _ in range(_MOVES):
            if len(rows) == 0:
                break
            clean[torch.arange(len(rows), device=n.device), column] ^= True
            energy = energy - moved
            pred = predict(values[rows], clean)
            now = _gain(pred, log_odds[rows])
            terms.append((rows, _log_weight(energy, now, clean), pred))
            wrong = observed[rows] & ~clean
            full = wrong.sum(1, keepdim=True) >= most[rows].unsqueeze(1)
            step = torch.where(clean & ~full, now, torch.where(wrong, -now, -math.inf))
            moved, column = step.scatter(1, forced.unsqueeze(1), -math.inf).max(1)
            on = moved > 0
            rows, column, forced, clean, energy, moved = (
                part[on] for part in (rows, column, forced, clean, energy, moved)
            )
    return _average(terms, columns)


def _gain(pred: GivenOthers, log_odds: Tensor) -> Tensor:
    # in double precision: the energy that one ruin of a cell costs must not drown that of the others
    return (-pred.log_px - log_odds).double().clamp(-_MOST, _MOST)


def _log_weight(energy: Tensor, gain: Tensor, clean: Tensor) -> Tensor:
    """Log-weight of a set for each cell: minus the energy of the others, up to what they all share."""
    return torch.where(clean, gain, 0) - energy.unsqueeze(1)


def _average(terms: list[tuple[Tensor, Tensor, GivenOthers]], columns: Tensor) -> GivenOthers:
    _, top, start = terms[0]
    for rows, log_weight, _ in terms[1:]:
        top = top.index_put((rows,), torch.maximum(top[rows], log_weight))
    total, expectations = torch.zeros_like(start.log_px), torch.zeros_like(start.expectations)
    log_px = torch.full_like(total, -math.inf)
    for rows, log_weight, pred in terms:
        share = (log_weight - top[rows]).to(start.expectations)
        total[rows] += share.exp()
        expectations[rows] += share.exp()[:, columns] * pred.expectations
        log_px[rows] = torch.logaddexp(log_px[rows], share + pred.log_px)
    return GivenOthers(expectations / total[:, columns], log_px - total.log())
