"""Incomplete frames as one float matrix, and a filled matrix as a frame again: what the methods share."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.datasets import codes, numeric_columns

__all__ = ["Design", "centers", "first_guess", "restore_codes"]


class Design:
    """Numbers standardised by the observed cells of ``X``, classes one-hot; NaN where a cell is missing."""

    def __init__(self, X: pd.DataFrame) -> None:
        self.numbers = numeric_columns(X)
        self.location = X[self.numbers].mean().fillna(0.0)
        self.scale = X[self.numbers].std(ddof=0).fillna(1.0).replace(0.0, 1.0)
        widths = [1 if name in self.scale else len(X[name].cat.categories) for name in X]
        ends = np.cumsum(widths)
        self.where = {name: slice(end - width, end) for name, width, end in zip(X, widths, ends, strict=True)}

    @property
    def classes(self) -> list[slice]:
        """Columns of the matrix that hold each class column."""
        return [block for name, block in self.where.items() if name not in self.scale]

    def encode(self, X: pd.DataFrame) -> np.ndarray:
        """Give the matrix of a frame with the columns of the one given first."""
        blocks = []
        for name in X:
            if name in self.scale:
                blocks.append((X[[name]].to_numpy(dtype=float) - self.location[name]) / self.scale[name])
            else:
                one_hot = np.eye(len(X[name].cat.categories))[X[name].cat.codes]
                blocks.append(np.where(X[[name]].isna(), np.nan, one_hot))
        return np.column_stack(blocks)

    def restore(self, X: pd.DataFrame, filled: np.ndarray) -> pd.DataFrame:
        """Fill the missing cells of X from a filled matrix: numbers scaled back, classes by the largest indicator."""
        columns = []
        for name, block in self.where.items():
            if name in self.scale:
                columns.append(filled[:, block.start] * self.scale[name] + self.location[name])
            else:
                columns.append(filled[:, block].argmax(axis=1))
        return restore_codes(X, np.column_stack(columns))


def restore_codes(X: pd.DataFrame, filled: np.ndarray) -> pd.DataFrame:
    """Fill the missing cells of X from an array of numbers and class codes; observed cells stay untouched."""
    completed, numbers = X.copy(), set(numeric_columns(X))
    for j, name in enumerate(X):
        new = filled[:, j]
        if name not in numbers:
            new = X[name].cat.categories[new.astype(int)]
        completed[name] = X[name].where(X[name].notna(), pd.Series(new, index=X.index).astype(X[name].dtype))
    return completed


def centers(X: pd.DataFrame, how: str = "mean") -> dict:
    """Mean or median of every number, most common class of every other column."""
    numbers = set(numeric_columns(X))
    return {name: getattr(X[name], how)() if name in numbers else X[name].mode().iloc[0] for name in X}


def first_guess(X: pd.DataFrame) -> np.ndarray:
    """Numbers and class codes (n, D), missing cells filled with the mean and the most common class."""
    return codes(X.fillna(centers(X)))
