"""What a result line says of a completed table: one function and one row of ``METRICS`` or ``DRAW_METRICS`` per score.

To add a score, write its function and add a row. A single number appears in the report by itself; None is "no value".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from benchmarks.datasets import codes, numeric_columns
from vaeimpute import metrics

__all__ = ["DRAW_METRICS", "LEVELS", "METRICS", "Completion", "Draws"]

LEVELS = (0.5, 0.8, 0.9, 0.95)  # nominal coverage of the intervals


@dataclass(frozen=True)
class Completion:
    """A true table, what a method made of it, and the cells (n, D) it saw; ``target`` is what the table is about."""

    truth: pd.DataFrame
    completed: pd.DataFrame
    observed: np.ndarray
    target: str | None = None  # the last column by default

    @cached_property
    def is_number(self) -> np.ndarray:
        """Which columns hold numbers (D,)."""
        return self.truth.columns.isin(numeric_columns(self.truth))

    @cached_property
    def numbers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Truth, completed and hidden of the number columns, as `vaeimpute.metrics` takes them."""
        return self._cells(self.is_number)

    @cached_property
    def classes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`numbers` of the class columns, as codes."""
        return self._cells(~self.is_number)

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Completed and true rows on one scale, at most 2,000."""
        return standardised_rows(self.completed, self.truth), standardised_rows(self.truth, self.truth)

    def _cells(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return codes(self.truth)[:, chosen], codes(self.completed)[:, chosen], ~self.observed[:, chosen]

    def by_column(self, chosen: np.ndarray, values: np.ndarray) -> dict[str, float]:
        """Values by the names of the chosen columns."""
        return dict(zip(self.truth.columns[chosen], values.tolist(), strict=True))


@dataclass(frozen=True)
class Draws:
    """Several completions by one method, and the hidden numbers' true values and draws in units of the column's sd."""

    truth: pd.DataFrame
    drawn: list[pd.DataFrame]
    observed: np.ndarray

    @cached_property
    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """True values (n_cells,) and draws (m, n_cells)."""
        numbers = numeric_columns(self.truth)
        hidden = ~self.observed[:, self.truth.columns.isin(numbers)]
        scale = self.truth[numbers].std(ddof=0).to_numpy()
        draws = np.stack([(frame[numbers].to_numpy(dtype=float) / scale)[hidden] for frame in self.drawn])
        return (self.truth[numbers].to_numpy() / scale)[hidden], draws

    @property
    def levels(self) -> list[float]:
        """`LEVELS` whose interval ends inside the draws."""
        return [level for level in LEVELS if (len(self.drawn) + 1) * (1 - level) / 2 >= 1 - 1e-9]


def balanced_accuracy(c: Completion) -> float:
    """Mean over the class columns with hidden cells."""
    columns = zip(*(part.T for part in c.classes), strict=True)
    return _nanmean([metrics.balanced_accuracy(truth[h], completed[h]) for truth, completed, h in columns])


def downstream(c: Completion) -> float:
    """Accuracy or R2 on whole rows of a random forest that learnt the target from the completed inputs of 70% others.

    The training rows' targets are the true ones: the score asks what the inputs are worth.
    """
    target = c.target or c.truth.columns[-1]
    is_class = target not in numeric_columns(c.truth)
    train = np.random.default_rng(0).permutation(len(c.truth)) < 0.7 * len(c.truth)
    inputs, whole = (codes(frame.drop(columns=target)) for frame in (c.completed, c.truth))
    y = codes(c.truth[[target]])[:, 0]
    if len(np.unique(y[train])) < 2 or len(y) < 20:
        return float("nan")
    forest = (RandomForestClassifier if is_class else RandomForestRegressor)(n_estimators=100, random_state=0)
    return float(forest.fit(inputs[train], y[train]).score(whole[~train], y[~train]))


def downstream_of_truth(c: Completion) -> float:
    """`downstream` of the complete table: what there was to keep."""
    return downstream(Completion(c.truth, c.truth, c.observed, c.target))


METRICS: dict[str, Callable[[Completion], float | dict[str, float]]] = {
    "nrmse": lambda c: metrics.nrmse(*c.numbers),
    "nmae": lambda c: metrics.nmae(*c.numbers),
    "class_error": lambda c: metrics.category_error(*c.classes),
    "balanced_accuracy": balanced_accuracy,
    "nrmse_columns": lambda c: c.by_column(c.is_number, metrics.column_nrmse(*c.numbers)),
    "class_error_columns": lambda c: c.by_column(~c.is_number, metrics.column_category_error(*c.classes)),
    "energy_distance": lambda c: metrics.energy_distance(*c.rows),
    "sliced_wasserstein": lambda c: metrics.sliced_wasserstein(*c.rows),
    "downstream": downstream,
    "downstream_of_truth": downstream_of_truth,
}

DRAW_METRICS: dict[str, Callable[[Draws], float | dict[str, float]]] = {
    "crps": lambda d: _nanmean(metrics.crps_from_draws(*d.cells)),
    "coverage": lambda d: {str(level): metrics.interval_coverage(*d.cells, level) for level in d.levels},
    "width": lambda d: {str(level): metrics.interval_width(d.cells[1], level) for level in d.levels},
}


def standardised_rows(frame: pd.DataFrame, truth: pd.DataFrame, limit: int = 2000) -> np.ndarray:
    """First ``limit`` rows on one scale.

    Numbers are in units of the true sd, classes indicators 1/sqrt(2), so that two different ones are one unit apart.
    """
    frame, numbers = frame.head(limit), set(numeric_columns(truth))
    blocks = [
        frame[[name]].to_numpy(dtype=float) / (truth[name].std(ddof=0) or 1.0)
        if name in numbers
        else np.eye(len(truth[name].cat.categories))[frame[name].cat.codes] / np.sqrt(2)
        for name in truth
    ]
    return np.column_stack(blocks)


def _nanmean(values: ArrayLike) -> float:
    values = np.asarray(values, dtype=float)
    return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else float("nan")
