"""Training rows with some observed cells hidden: the questions by which every stage of a fit is taught and judged."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

N_FOLDS = 4  # parts of the rows; a row is answered by backbones that have not seen its part
_N_GROUPS = 4  # parts of a row's observed cells, of which each is hidden once
_FEW, _MOST_COPIES = 4000, 4  # queries below which rows come again, in other groups


class Queries(NamedTuple):
    """Rows of which some cells are hidden, sorted by fold.

    Attributes
    ----------
    x : Tensor of shape (Q, F)
        Features of the cells; zero where they are not visible.
    visible : Tensor of shape (Q, F)
        Which of them may be used, as numbers.
    truth : Tensor of shape (Q, F)
        Features of all observed cells.
    held_out : Tensor of shape (Q, F)
        Which of them are to be predicted, as numbers.
    row, fold : Tensor of shape (Q,)
        The row's number in the training table, and its part.
    """

    x: Tensor
    visible: Tensor
    truth: Tensor
    held_out: Tensor
    row: Tensor
    fold: Tensor

    def at(self, index: Tensor | slice) -> Queries:
        """Some of the queries."""
        return Queries(*(part[index] for part in self))

    def some(self, most: int, generator: Generator) -> Tensor:
        """Numbers (Q,) of a random choice of at most so many, in order."""
        order = torch.randperm(len(self.x), device=self.x.device, generator=generator)
        return order[:most].sort().values

    def slices(self) -> list[slice]:
        """Where the queries of each fold stand."""
        ends = torch.bincount(self.fold, minlength=N_FOLDS).cumsum(0).tolist()
        return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    @property
    def copies(self) -> float:
        """How often each cell is held out."""
        return max(1.0, len(self.row) / max(1, len(self.row.unique())) / _N_GROUPS)

    def errors(self, answers: Tensor) -> Tensor:
        """Sum of the squared errors of the held-out cells, (F,)."""
        return (self.held_out * (self.truth - answers).square()).sum(0)


def hide_each_cell_once(
    features: Tensor, observed: Tensor, columns: Tensor, most: int, generator: Generator, repeats: int = 1
) -> tuple[Queries, Tensor]:
    """Queries that ask for every observed cell of every row once, and the fold of each row.

    The cells of a row are dealt into four groups, of which one is hidden at a time; features of one column are hidden
    together. Few rows come again, in other groups; of many a random part is taken.

    Parameters
    ----------
    features : Tensor of shape (n, F)
        Zero where a cell is not observed.
    observed : Tensor of shape (n, D)
    columns : Tensor of shape (F,)
        Column of each feature.
    most : int
        Number of queries at most.
    generator : Generator
    repeats : int
        How much more often rows of tables of middling size come than they do by default.

    Returns
    -------
    queries : Queries
    fold : Tensor of shape (n,)
    """
    n, device = len(features), features.device
    order = torch.randperm(n, device=device, generator=generator)
    fold = torch.empty_like(order)
    fold[order] = torch.arange(n, device=device) % N_FOLDS
    rows = torch.randperm(n, device=device, generator=generator)[: max(1, most // _N_GROUPS)]
    x, seen = features[rows], observed[rows]
    known = seen[:, columns]
    parts = []
    n_copies = min(_MOST_COPIES, repeats * _FEW // (_N_GROUPS * n), most // (_N_GROUPS * len(rows)))
    for _ in range(max(1, n_copies)):
        place = torch.rand(seen.shape, device=device, generator=generator).masked_fill(~seen, 2)
        place = place.argsort(1).argsort(1)
        first = torch.randint(_N_GROUPS, (len(rows), 1), device=device, generator=generator)
        group = (place + first) % _N_GROUPS
        for g in range(_N_GROUPS):
            visible = (seen & (group != g))[:, columns]
            held_out = known & ~visible
            parts.append(Queries(torch.where(visible, x, 0), visible.to(x), x, held_out.to(x), rows, fold[rows]))
    queries = Queries(*(torch.cat(part) for part in zip(*parts, strict=True)))
    return queries.at(queries.fold.argsort(stable=True)), fold
