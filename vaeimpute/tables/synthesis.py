"""New rows, column by column: each cell from the leaf of a tree that is grown on the columns before it.

Sequential trees (Reiter, Journal of Official Statistics 2005): what a leaf holds has the zeros, steps and gaps that the
column has there, whatever depends on whatever. A latent smooths them away.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

_LEAF = 10  # rows of a leaf at least: of so many, none can be told from what is drawn


class SequentialTrees:
    """Trees that were grown on complete rows.

    Parameters
    ----------
    rows : ndarray of shape (N, D)
        Numbers, and codes of classes.
    class_columns : collection of int
        Which of them.
    seed : int
        Breaks ties between columns that split equally well.
    """

    def __init__(self, rows: NDArray[np.float64], class_columns: Collection[int], seed: int) -> None:
        n_distinct = [len(np.unique(column)) for column in rows.T]
        self._order = np.argsort(n_distinct, kind="stable")  # what has few values divides the rows first
        self._columns = [
            _Column(rows, self._order[:k], j, seed, is_class=j in class_columns) for k, j in enumerate(self._order)
        ]

    def sample(self, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows (n, D) from uniform numbers (n, D)."""
        rows = np.zeros_like(uniform)
        for column in self._columns:
            rows[:, column.number] = column.draw(rows, uniform[:, column.number])
        return rows


class _Column:
    """One column: its tree on those before it, and the cells of each leaf in order."""

    def __init__(self, rows: NDArray, before: NDArray, number: int, seed: int, *, is_class: bool) -> None:
        self.number, self._before, self._is_class = number, before, is_class
        cells = rows[:, number]
        self._tree = None
        if len(before):
            grow = DecisionTreeClassifier if is_class else DecisionTreeRegressor
            self._tree = grow(min_samples_leaf=_LEAF, random_state=seed).fit(rows[:, before], cells)
        leaf = self._leaves(rows)
        order = np.lexsort((cells, leaf))
        self._leaf, self._cells = leaf[order], cells[order]
        _, inverse, count = np.unique(self._cells, return_inverse=True, return_counts=True)
        self._repeats = count[inverse] > 1

    def draw(self, rows: NDArray, uniform: NDArray) -> NDArray:
        """Cells (n,), each from its row's leaf; between two neighbours of it where neither repeats in the column."""
        leaf = self._leaves(rows)
        first, end = (np.searchsorted(self._leaf, leaf, side) for side in ("left", "right"))
        place = uniform * (end - first)
        at = first + np.minimum(place.astype(np.int64), end - first - 1)
        if self._is_class:
            return self._cells[at]
        off = place - np.floor(place) - 0.5  # both ways: on average the leaf's mean
        beside = np.clip(at + np.where(off < 0, -1, 1), first, end - 1)
        smooth = ~(self._repeats[at] | self._repeats[beside])
        return self._cells[at] + np.where(smooth, np.abs(off), 0) * (self._cells[beside] - self._cells[at])

    def _leaves(self, rows: NDArray) -> NDArray:
        if self._tree is None:
            return np.zeros(len(rows), dtype=np.int64)
        return self._tree.apply(rows[:, self._before])
