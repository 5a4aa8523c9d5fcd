"""How wrong must "missing at random" be for a conclusion to change? One analysis at many shifts, and where it tips."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vaeimpute.estimators import VAEImputer
from vaeimpute.pooling import fit_pooled
from vaeimpute.training.runtime import draw_seed

_ANSWERS = ["estimate", "std_error", "low", "high", "p_value", "fmi"]


@dataclass(frozen=True, eq=False, repr=False)
class Sensitivity:
    """What `sensitivity` gives.

    Parameters
    ----------
    table : DataFrame
        One row for each combination of shifts and each parameter of the analysis: a column for each shifted column (of
        classes ``"smoker: yes"``), then ``parameter, estimate, std_error, low, high, p_value, fmi``.
    shifted : list of str
        Names of the columns of shifts.

    Examples
    --------
    >>> rows = pd.DataFrame({"income": [-1.0, 0.0, 1.0], "parameter": 0, "estimate": [1.0, 2.0, 3.0]})
    >>> Sensitivity(rows.assign(low=rows.estimate - 1.5, high=rows.estimate + 1.5), ["income"]).tipping_points()
    {'income': -0.5}
    """

    table: pd.DataFrame
    shifted: list[Hashable]

    def __repr__(self) -> str:
        """Show the table."""
        return self.table.to_string(float_format="{:.4g}".format, index=False)

    def _repr_html_(self) -> str:
        return self.table.to_html(float_format="{:.4g}".format, index=False)

    def tipping_points(self, null: float = 0.0, parameter: Hashable = None) -> dict[Hashable, float | None]:
        """The shift of each column, nearest to zero, at which the conclusion changes.

        It changes where the confidence interval begins to hold `null`, or ceases to; between two shifts by linear
        interpolation of the interval's ends. The other columns' shifts are those nearest to zero.

        Parameters
        ----------
        null : float, default=0
            Value of the parameter under the null hypothesis.
        parameter : default=None
            Name of the parameter; may be left out if there is one only.

        Returns
        -------
        dict of column to float or None
            None if no shift that was tried changes the conclusion.

        Raises
        ------
        ValueError
            If `parameter` is unknown, or left out where there are several.

        Examples
        --------
        >>> rows = pd.DataFrame({"income": [-1.0, 0.0, 1.0], "parameter": "mean", "low": [-1.0, 1.0, 3.0], "high": 9.0})
        >>> answers = Sensitivity(rows, ["income"])
        >>> answers.tipping_points(), answers.tipping_points(null=2)
        ({'income': -0.5}, {'income': 0.5})
        """
        rows = self._of(parameter)
        return {name: _tipping_point(self._along(rows, name), name, null) for name in self.shifted}

    def plot(self, parameter: Hashable = None, null: float = 0.0, ax: Any = None) -> Any:
        """Estimate and interval along the shifts of the first column, a line for each shift of the others.

        Parameters
        ----------
        parameter : default=None
            Name of the parameter; may be left out if there is one only.
        null : float, default=0
            Where to draw a line across.
        ax : matplotlib Axes, default=None
            Where to draw; a new figure if None.

        Returns
        -------
        matplotlib Axes
            On which it stands.

        Examples
        --------
        >>> from matplotlib.figure import Figure
        >>> rows = pd.DataFrame({"income": [-1.0, 1.0], "parameter": "mean", "estimate": 1.0, "low": 0.0, "high": 2.0})
        >>> Sensitivity(rows, ["income"]).plot(ax=Figure().subplots()).get_xlabel()
        'shift of the hidden income'
        """
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.figure(figsize=(6, 4), layout="constrained").add_subplot()
        rows, (first, *others) = self._of(parameter), self.shifted
        for shifts, line in rows.groupby(others) if others else [((), rows)]:
            label = ", ".join(f"{name} {shift:g}" for name, shift in zip(others, shifts, strict=True))
            (drawn,) = ax.plot(line[first], line["estimate"], marker=".", label=label or None)
            ax.fill_between(line[first], line["low"], line["high"], color=drawn.get_color(), alpha=0.2, linewidth=0)
        ax.axhline(null, color="0.5", linewidth=1)
        ax.axvline(0, color="0.5", linewidth=1, linestyle=":")
        ax.set_xlabel(f"shift of the hidden {first}")
        ax.set_ylabel(f"{rows['parameter'].iloc[0]}")
        if others:
            ax.legend()
        return ax

    def _of(self, parameter: Hashable) -> pd.DataFrame:
        """The rows of a parameter."""
        known = list(dict.fromkeys(self.table["parameter"]))
        if parameter is None and len(known) == 1:
            return self.table
        if parameter not in known:
            raise ValueError(f"parameter must be one of {known}, but got {parameter!r}.")
        return self.table[self.table["parameter"] == parameter]

    def _along(self, rows: pd.DataFrame, name: Hashable) -> pd.DataFrame:
        """The rows in the order of a column's shifts, the others' being those nearest to zero."""
        for other in set(self.shifted) - {name}:
            rows = rows[rows[other] == min(rows[other], key=abs)]
        return rows.sort_values(name)


def sensitivity(
    imputer: VAEImputer,
    X: Any,
    analysis: Callable[[Any], Any],
    shifts: Mapping[Any, Any],
    n_imputations: int = 20,
    *,
    level: float = 0.95,
    random_state: Any = None,
) -> Sensitivity:
    """Impute, analyse and pool at every combination of shifts, with the same random numbers.

    What differs between the answers is the shifts' doing alone. See `VAEImputer.impute` for what a shift is.

    Parameters
    ----------
    imputer : VAEImputer
        Fitted.
    X : table of shape (n, D)
    analysis : callable
        Takes a completed table; see `fit_pooled` for what it returns.
    shifts : dict of column to sequence of float, or to a dict of class to sequence of float
        ``{"income": np.linspace(-1, 1, 9)}``, ``{"smoker": {"yes": [-1, 0, 1]}}``. Of several, all combinations.
    n_imputations : int, default=20
        Completed tables at each.
    level : float, default=0.95
        Of the confidence intervals.
    random_state : int, RandomState or None, default=None
        Seeds the draws.

    Returns
    -------
    Sensitivity
        Its `table`, `tipping_points` and `plot`.

    Raises
    ------
    ValueError, TypeError
        If the shifts are no sequences of finite numbers; as `impute` and `fit_pooled`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = pd.DataFrame({"age": rng.normal(50, 9, 40), "income": rng.normal(3, 1, 40)})
    >>> X.loc[:9, "income"] = np.nan
    >>> imputer = VAEImputer(random_state=0).fit(X)
    >>> def mean(table):
    ...     return table["income"].mean(), table["income"].var() / 40
    >>> answers = sensitivity(imputer, X, mean, {"income": [-1, 0, 1]}, 5, random_state=0)
    >>> answers.table["estimate"].diff().round(2).tolist()
    [nan, 0.26, 0.26]
    """
    axes = [axis for name, given in shifts.items() for axis in _axes(name, given)] if shifts else []
    if not axes:
        raise ValueError("shifts must name a column, as {'income': [-1, 0, 1]} does, but is empty.")
    labels = [f"{name}: {category}" if has_class else name for name, category, has_class, _ in axes]
    seed, rows = draw_seed(random_state), []
    for combination in itertools.product(*(amounts for *_, amounts in axes)):
        shift: dict[Any, Any] = {}
        for (name, category, has_class, _), amount in zip(axes, combination, strict=True):
            if has_class:
                shift.setdefault(name, {})[category] = amount
            else:
                shift[name] = amount
        draws = imputer.impute(X, n_imputations, random_state=seed, shift=shift)
        pooled = fit_pooled(analysis, draws, level=level).table
        answers = pooled[_ANSWERS].rename_axis("parameter").reset_index()
        for place, (label, amount) in enumerate(zip(labels, combination, strict=True)):
            answers.insert(place, label, amount)
        rows.append(answers)
    return Sensitivity(pd.concat(rows, ignore_index=True), labels)


def _axes(name: Any, given: Any) -> list[tuple[Any, Any, bool, list[float]]]:
    """Column, class, whether there is one, and shifts."""
    if isinstance(given, Mapping):
        return [(name, c, True, _amounts(amounts, f"shifts[{name!r}][{c!r}]")) for c, amounts in given.items()]
    return [(name, None, False, _amounts(given, f"shifts[{name!r}]"))]


def _amounts(given: ArrayLike, where: str) -> list[float]:
    try:
        amounts = np.asarray(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where} must be a sequence of numbers, got {given!r}.") from error
    if amounts.ndim != 1 or not amounts.size or not np.isfinite(amounts).all():
        raise ValueError(f"{where} must be a sequence of finite numbers, got {given!r}.")
    return [float(amount) for amount in np.unique(amounts)]


def _tipping_point(rows: pd.DataFrame, name: Hashable, null: float) -> float | None:
    """The shift nearest to zero at which the interval's relation to the null value changes."""
    shifts = rows[name].to_numpy()
    ends = rows[["low", "high"]].to_numpy() - null
    base = int(np.abs(shifts).argmin())
    points = [_first_crossing(shifts[side], ends[side]) for side in (slice(base, None), slice(base, None, -1))]
    return min((point for point in points if point is not None), key=abs, default=None)


def _first_crossing(shifts: NDArray, ends: NDArray) -> float | None:
    """Where intervals (n, 2) first are not above, around or below zero any more, as the first one is."""
    side = (ends[:, 0] > 0).astype(int) - (ends[:, 1] < 0)
    if not (changed := side != side[0]).any():
        return None
    k = int(changed.argmax())
    end = 0 if side[0] > 0 or (side[0] == 0 and side[k] > 0) else 1
    before, after = ends[k - 1, end], ends[k, end]
    return float(shifts[k - 1] + before / (before - after) * (shifts[k] - shifts[k - 1]))
