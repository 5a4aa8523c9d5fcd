"""Outcome: what an analysis regresses, on which terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeimpute.outcomes.families import FAMILIES

_CLOSE = 1e-8


@dataclass(frozen=True)
class Outcome:
    r"""The regression that completed tables are for, told to `VAEImputer.impute` so that they agree with it.

    An imputer that is not told fills cells without the products, powers and curves that the regression asks for, and
    flattens them. Told, it proposes rows without looking at the outcome :math:`y`, and takes each in proportion to how
    well it goes with it:

    .. math:: p(x_\mathrm{hidden} \mid x_\mathrm{seen}, y, \beta) \propto
              p(y \mid \mathrm{terms}(x), \beta) \; p(x_\mathrm{hidden} \mid x_\mathrm{seen}),

    while :math:`\beta` is drawn from its posterior given the completed table, in turn.

    Parameters
    ----------
    column : str or int
        The outcome; numbers for "gaussian", two classes for "binomial" (the probability is that of the second),
        counts for "poisson". Columns of arrays are named ``x0``, ``x1``, ...
    terms : callable or str
        What it depends on: a function of a completed table, without the outcome (an array's column of it is NaN), that
        returns an array or frame (n, p) of numbers, each row from the same row of the table; or the right-hand side of
        a formula, such as ``"x1 * x2"``, if formulaic is installed. An intercept is always there.
    family : {"gaussian", "binomial", "poisson"}, default="gaussian"
        Linear, logistic or log-linear regression.

    References
    ----------
    Bartlett, Seaman, White and Carpenter, "Multiple imputation of covariates by fully conditional specification:
    accommodating the substantive model", Statistical Methods in Medical Research 2015.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from vaeimpute import Outcome, VAEImputer
    >>> x = np.random.default_rng(0).normal(size=(60, 2))
    >>> X = pd.DataFrame({"dose": x[:, 0], "effect": x[:, 0] ** 2 + 0.1 * x[:, 1]})
    >>> X.loc[::5, "dose"] = np.nan
    >>> outcome = Outcome("effect", lambda table: np.column_stack([table["dose"], table["dose"] ** 2]))
    >>> tables = VAEImputer(random_state=0).fit(X).impute(X, 20, outcome=outcome, random_state=0)
    >>> told = np.mean([(table["effect"] - table["dose"] ** 2).std() for table in tables])
    >>> bool(told < 0.3)
    True
    """

    column: Any
    terms: Callable[[Any], Any] | str
    family: str = "gaussian"

    def __post_init__(self) -> None:
        """Check what can be checked without a table."""
        if not (callable(self.terms) or isinstance(self.terms, str)):
            kind = type(self.terms).__name__
            raise TypeError(f"terms must be a function of a table or a formula such as 'x1 * x2', but got a {kind}.")
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {list(FAMILIES)}, but got {self.family!r}.")


def designer(terms: Callable[[Any], Any] | str) -> Callable[[Any, int], NDArray]:
    """What turns a table and its number of rows into numbers (n, p); a formula keeps what it learns of the first table.

    Raises
    ------
    ImportError
        If the terms are a formula, and formulaic is not installed.
    """
    evaluate = terms if callable(terms) else _formula(terms)

    def design(table: Any, n: int) -> NDArray:
        return _numbers(evaluate(table), n)

    return design


def check_rowwise(terms: NDArray, alone: NDArray) -> None:
    """Raise if terms (n, p) are others where rows are evaluated in other company, `alone`."""
    if terms.shape != alone.shape or not np.allclose(terms, alone, rtol=_CLOSE, atol=_CLOSE):
        raise ValueError(
            "terms must take each row by itself, but their values change with the other rows of the table. Centre "
            "columns by a number, not by the table's own mean."
        )


def _formula(text: str) -> Callable[[Any], Any]:
    try:
        formulaic = import_module("formulaic")
    except ImportError as error:
        raise ImportError(
            f"terms={text!r} is a formula, which needs formulaic, but it is not installed. Pass a function of the "
            "table instead, such as lambda t: np.column_stack([t['x1'], t['x2'], t['x1'] * t['x2']])."
        ) from error
    specs: list[Any] = []

    def evaluate(table: Any) -> Any:
        table = table.to_pandas() if hasattr(table, "to_pandas") else table  # polars and Arrow
        if isinstance(table, np.ndarray):
            raise TypeError(
                f"terms={text!r} is a formula, which needs a frame with names. Pass a function of the array."
            )
        if not specs:
            specs.append(formulaic.Formula(text).get_model_matrix(table, na_action="raise").model_spec)
        return specs[0].get_model_matrix(table)

    return evaluate


def _numbers(terms: Any, n: int) -> NDArray:
    try:
        array = np.asarray(terms, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"terms must be numbers, but got {type(terms).__name__} ({error}).") from error
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != n or array.shape[1] == 0:
        raise ValueError(f"terms must have shape (n, p) with n = {n} rows, but got {array.shape}.")
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(
            f"terms must be finite, but term {column} is {array[row, column]} at row {row}. They are given a completed "
            "table; an array's column of the outcome itself is NaN."
        )
    return array
