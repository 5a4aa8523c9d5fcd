"""Linear and logistic regression on completed tables that hold the same columns: estimates and covariances to pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

Answer = tuple[pd.Series, pd.DataFrame, float]

# Of Newton's method. A step squares its error where there is a maximum; where two classes can be told apart without an
# error there is none, and a step takes off two thirds of what is left.
MAX_STEPS, TOLERANCE = 25, 1e-16


@dataclass(frozen=True)
class Regression:
    """What is regressed on what, alike for all tables: `levels` are those of the columns that hold classes."""

    outcome: str
    predictors: tuple[str, ...]
    levels: dict[str, list[object]]
    family: str

    @classmethod
    def of(cls, tables: Sequence[pd.DataFrame], outcome: str, predictors: Sequence[str], family: str) -> Regression:
        """Check the columns, and collect the classes of all tables.

        Raises
        ------
        ValueError
            If a column is not in the tables, is named twice, or holds dates, or the outcome does not suit the family.
        """
        columns = [outcome, *predictors]
        if unknown := [name for name in columns if name not in tables[0]]:
            raise ValueError(f"There is no column {unknown[0]!r}; there are: {', '.join(map(str, tables[0]))}.")
        if len(set(columns)) < len(columns) or not predictors:
            raise ValueError(f"Want an outcome and predictors, each named once, but got {', '.join(columns)}.")
        found = {name: _levels([table[name] for table in tables]) for name in columns}
        levels = {name: each for name, each in found.items() if each is not None}
        if family == "linear" and outcome in levels:
            raise ValueError(f"The outcome {outcome!r} holds classes, not numbers. Pass --family logistic.")
        if family == "logistic":
            levels.setdefault(outcome, sorted(_values([table[outcome] for table in tables])))
            if len(levels[outcome]) != 2:
                shown = ", ".join(map(str, levels[outcome][:5]))
                raise ValueError(f"--family logistic wants an outcome of two classes, but {outcome!r} holds {shown}.")
        return cls(outcome, tuple(predictors), levels, family)

    def fit(self, table: pd.DataFrame) -> Answer:
        """Coefficients, their covariance, and the degrees of freedom that are left.

        Raises
        ------
        ValueError
            If cells are missing, rows are too few, predictors determine one another, or an outcome.
        """
        for name in (self.outcome, *self.predictors):
            if n_missing := int(table[name].isna().sum()):
                raise ValueError(f"column {name!r} lacks {n_missing} cells; want completed tables.")
        X = self._design(table)
        if not (df := len(X) - X.shape[1]) > 0:
            raise ValueError(f"want more rows than coefficients ({X.shape[1]}), but got {len(X)}.")
        scale = np.sqrt((X**2).mean()).replace(0, 1)  # columns of one size, for the sake of rounding
        scaled = (X / scale).to_numpy()
        if np.linalg.matrix_rank(scaled) < X.shape[1]:
            raise ValueError(f"some of {', '.join(X)} determine the others: leave one out.")
        solve = _logistic if self.family == "logistic" else _least_squares
        estimates, covariance = solve(scaled, self._response(table))
        covariance = covariance / np.outer(scale, scale)
        return pd.Series(estimates, X.columns) / scale, pd.DataFrame(covariance, X.columns, X.columns), df

    def _design(self, table: pd.DataFrame) -> pd.DataFrame:
        """An intercept, numbers as they are, and an indicator of every class but the first: ``city[Rome]``."""
        columns = {"intercept": np.ones(len(table))}
        for name in self.predictors:
            if name not in self.levels:
                columns[name] = table[name].to_numpy(float)
            for level in self.levels.get(name, [])[1:]:
                columns[f"{name}[{level}]"] = (table[name] == level).to_numpy(float)
        return pd.DataFrame(columns)

    def _response(self, table: pd.DataFrame) -> np.ndarray:
        y = table[self.outcome]
        return (y == self.levels[self.outcome][1]).to_numpy(float) if self.family == "logistic" else y.to_numpy(float)


def _levels(columns: list[pd.Series]) -> list[object] | None:
    """Classes in their order, the sorted ones of all tables where the column says none; None for numbers."""
    name, dtype = columns[0].name, columns[0].dtype
    if any(pd.api.types.is_datetime64_any_dtype(column) for column in columns):
        raise ValueError(f"Column {name!r} holds dates; want numbers or classes.")
    if isinstance(dtype, pd.CategoricalDtype):
        return [level for level in dtype.categories if level in _values(columns)]
    numbers = {pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column) for column in columns}
    if len(numbers) > 1:
        raise ValueError(f"Column {name!r} holds numbers in some tables and classes in others.")
    return None if numbers == {True} else sorted(_values(columns), key=str)


def _values(columns: list[pd.Series]) -> set:
    return {value for column in columns for value in column.dropna().unique()}


def _least_squares(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    q, r = np.linalg.qr(X)
    estimates, root = np.linalg.solve(r, q.T @ y), np.linalg.inv(r)
    variance = ((y - X @ estimates) ** 2).sum() / (len(y) - X.shape[1])
    if not variance > 0:
        raise ValueError("the predictors determine the outcome exactly.")
    return estimates, variance * root @ root.T


def _logistic(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Maximum likelihood by Newton's method, whose step is halved until the likelihood rises."""
    estimates, sign = np.zeros(X.shape[1]), 1 - 2 * y
    for _ in range(MAX_STEPS):
        p = special.expit(X @ estimates)
        information, score = X.T @ (X * (p * (1 - p))[:, None]), X.T @ (y - p)
        step = np.linalg.solve(information, score)
        if score @ step <= TOLERANCE:  # squared, and in standard errors
            return estimates, np.linalg.inv(information)
        before = np.logaddexp(0, sign * (X @ estimates)).sum()
        while np.logaddexp(0, sign * (X @ (estimates + step))).sum() > before and np.abs(step).max() > 1e-12:
            step = step / 2
        estimates = estimates + step
    raise ValueError("no finite estimates: the predictors tell some rows' classes of the outcome without an error.")
