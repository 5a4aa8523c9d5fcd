"""Codecs: the cells of one kind <-> one number per cell."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeimpute.frames.cells import Cells
from vaeimpute.frames.dtypes import dtype_family, label
from vaeimpute.frames.schema import Column, Kind

__all__ = ["CODECS", "Codec", "can_hold", "was"]

FARTHEST = 1e6  # standard deviations; none of n training cells is farther than sqrt(n), so this only bounds new cells
_MOST_DECIMALS = 6
_REPEATED, _MOST_REPEATED = 3, 200  # times that a value occurs; values of a column that are kept
_ROUNDING = 1e-9  # in units of a column's standard deviation
_FEW = 20  # cells; fewer say little of what lies beyond them
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
RESOLUTIONS = (86400.0, 3600.0, 60.0, 1.0, 1e-3, 1e-6, 1e-9)  # seconds


class Codec(ABC):
    """How the cells of one kind become numbers and come back; what it learns is kept in the `Column`."""

    @abstractmethod
    def fit(self, cells: Cells, kind: Kind) -> Column:
        """Check that the cells fit the kind, and learn their scale or categories."""

    @abstractmethod
    def encode(self, cells: Cells, column: Column) -> NDArray[np.float64]:
        """One number per cell, shape (n,); NaN where missing, or where the category was never seen."""

    @abstractmethod
    def decode(self, values: NDArray[np.float64], column: Column, *, rounded: bool = False) -> NDArray:
        """Inverse of `encode`, kept inside what the column can hold: float64, timedelta64 or objects, shape (n,).

        Numbers are `rounded` to the column's decimals if they are to look like its own.
        """


@dataclass(frozen=True)
class NumberCodec(Codec):
    """Numbers, standardised (their logarithms, if asked); in training they must be ``allowed``, as ``needs`` says."""

    needs: str = "numbers"
    allowed: Callable[[NDArray], NDArray[np.bool_]] = np.isfinite
    logarithm: bool = False
    whole: bool = False

    def fit(self, cells: Cells, kind: Kind) -> Column:
        usable = _has_type("f", cells, kind, self.needs, f"Pass kinds={{{cells.name!r}: 'categorical'}} to keep them.")
        numbers = cells.data[cells.present] if usable else np.empty(0)
        wrong = np.zeros(len(cells.data), dtype=bool)
        wrong[cells.present] = ~self.allowed(numbers)
        cells.refuse(wrong, kind, self.needs, f"Pass kinds={{{cells.name!r}: 'numeric'}} to keep them.")
        center, scale = _moments(np.log(numbers) if self.logarithm else numbers)
        integer = self.whole or cells.integer or cells.boolean
        low, high = _bounds(
            numbers, logarithm=self.logarithm, real=not integer and "decimal" not in cells.dtype.lower()
        )
        state: dict[str, Any] = {"center": center, "scale": scale, "minimum": low, "maximum": high, "integer": integer}
        state["decimals"] = 0 if integer else _decimals(numbers, cells.dtype)
        state["repeated"] = () if state["decimals"] is not None else _repeated(numbers)
        return Column(cells.name, kind, cells.dtype, n_observed=numbers.size, **state)

    def encode(self, cells: Cells, column: Column) -> NDArray[np.float64]:
        usable = _has_type("f", cells, column.kind, self.needs, was(column))
        numbers = cells.data if usable else np.zeros(len(cells.data))
        if self.logarithm:  # a new cell at or below zero reads as a thousandth of the least seen: outlying, but finite
            numbers = np.log(np.maximum(numbers, max(column.minimum / 1000, np.finfo(float).tiny)))
        with np.errstate(over="ignore", invalid="ignore"):  # a cell too far is clipped; a missing one may hold anything
            values = (numbers / 2 - column.center / 2) / (column.scale / 2)  # halves: their difference never overflows
            return np.where(cells.present, np.clip(values, -FARTHEST, FARTHEST, out=values), np.nan)

    def decode(self, values: NDArray[np.float64], column: Column, *, rounded: bool = False) -> NDArray:
        with np.errstate(over="ignore"):  # what overflows is clipped below
            decoded = values * column.scale + column.center
            decoded = np.exp(decoded) if self.logarithm else decoded
            if column.integer or (rounded and column.decimals is not None):
                decoded = np.round(decoded, column.decimals or 0)
        if rounded and column.repeated:
            decoded = _on_repeated(decoded, np.array(column.repeated), column.scale)
        return np.clip(decoded, column.minimum, column.maximum)


class TimeCodec(Codec):
    """Dates, times and durations: seconds from the column's own center, standardised."""

    needs = "dates, times or durations"

    def fit(self, cells: Cells, kind: Kind) -> Column:
        usable = _has_type("mM", cells, kind, self.needs, "Convert it first, as pandas.to_datetime does.")
        if not usable or not cells.present.any():
            return Column(cells.name, kind, cells.dtype, resolution=1.0)
        ticks, per_second = _ticks(cells.data[cells.present])
        first = float(ticks.min() // per_second)
        mean, scale = _moments(_elapsed(ticks, per_second, first))
        elapsed = _elapsed(ticks, per_second, first + mean)
        steps = (step for step in RESOLUTIONS if per_second * step <= 1 or not np.any(ticks % round(per_second * step)))
        state: dict[str, Any] = {"minimum": float(elapsed.min()), "maximum": float(elapsed.max()), "scale": scale}
        state |= {"center": first + mean, "resolution": next(steps), "n_observed": ticks.size}
        return Column(cells.name, kind, cells.dtype, **state)

    def encode(self, cells: Cells, column: Column) -> NDArray[np.float64]:
        values = np.full(len(cells.data), np.nan)
        if _has_type("mM", cells, column.kind, self.needs, was(column)):
            elapsed = _elapsed(*_ticks(cells.data[cells.present]), column.center)
            values[cells.present] = np.clip(elapsed / column.scale, -FARTHEST, FARTHEST)
        return values

    def decode(self, values: NDArray[np.float64], column: Column, *, rounded: bool = False) -> NDArray:
        """Timedelta64: the length of a duration, the time since 1970 (UTC) of a date."""
        origin = np.floor(column.center)  # whole seconds apart from the rest, lest a double lose the nanoseconds
        seconds = np.clip(values * column.scale, column.minimum, column.maximum) + (column.center - origin)
        if column.resolution >= 1:
            whole = np.rint((seconds + origin) / column.resolution) * column.resolution
            return whole.astype(np.int64).view("m8[s]")
        unit, per_second = next((unit, per) for unit, per in PER_SECOND.items() if per * column.resolution > 0.5)
        whole = np.floor(seconds)
        ticks = (whole + origin).astype(np.int64) * per_second
        return (ticks + np.rint((seconds - whole) * per_second).astype(np.int64)).view(f"m8[{unit}]")


@dataclass(frozen=True)
class CategoryCodec(Codec):
    """Named categories as integer codes; ``choose`` lists them, given the cells and the set of those that occur."""

    choose: Callable[[Cells, set], tuple]

    def fit(self, cells: Cells, kind: Kind) -> Column:
        _has_type("fO", cells, kind, "text, categories, numbers or booleans", "Convert it to text first.")
        into: Callable[[Any], Any] = bool if cells.boolean else int if cells.integer else label
        categories = self.choose(cells, {into(cell) for cell in set(cells.data[cells.present].tolist())})
        state: dict[str, Any] = {"categories": categories, "maximum": max(len(categories) - 1.0, 0.0)}
        return Column(cells.name, kind, cells.dtype, n_observed=int(cells.present.sum()), **state)

    def encode(self, cells: Cells, column: Column) -> NDArray[np.float64]:
        if column.categories and not can_hold(cells.dtype, column):
            cells.refuse(cells.present, column.kind, f"categories such as {column.categories[0]!r}", was(column))
        present, known = (
            cells.data[cells.present].tolist(),
            {category: i for i, category in enumerate(column.categories)},
        )
        code_of = {cell: known.get(label(cell), np.nan) for cell in set(present)}
        codes = np.full(len(cells.data), np.nan)
        codes[cells.present] = np.fromiter((code_of[cell] for cell in present), dtype=np.float64, count=len(present))
        return codes

    def decode(self, values: NDArray[np.float64], column: Column, *, rounded: bool = False) -> NDArray:
        categories = np.fromiter(column.categories, dtype=object, count=column.n_categories)
        return categories[np.clip(np.rint(values), 0, column.n_categories - 1).astype(np.int64)]


def _categories(cells: Cells, seen: set) -> tuple:
    """Only categories that occur: a filtered frame may still declare thousands."""
    return tuple(category for category in cells.declared if category in seen) or _sorted(seen)


def _ranks(cells: Cells, seen: set) -> tuple:
    """All categories in the declared order; numbers have their own."""
    if not cells.declared and any(isinstance(category, str) for category in seen):
        raise ValueError(
            f"Column {cells.name!r}: kind 'ordinal' needs an order, but dtype {cells.dtype} has none. Make it an "
            "ordered category, as pandas.Categorical(..., categories=[...], ordered=True) does."
        )
    return cells.declared or _sorted(seen)


def _two(cells: Cells, seen: set) -> tuple:
    if cells.boolean or seen <= {0, 1}:
        return (False, True) if cells.boolean else (0, 1)
    if len(seen) > 2:
        raise ValueError(
            f"Column {cells.name!r}: kind 'boolean' needs at most two categories, but got {len(seen)} (such as "
            f"{list(_sorted(seen)[:3])}). Pass kinds={{{cells.name!r}: 'categorical'}} to keep them."
        )
    return _sorted(seen)


def _sorted(categories: set) -> tuple:
    return tuple(sorted(categories, key=lambda category: (isinstance(category, str), category)))


CODECS: dict[Kind, Codec] = {
    Kind.NUMERIC: NumberCodec(),
    Kind.POSITIVE: NumberCodec("numbers above zero", lambda x: x > 0, logarithm=True),
    Kind.COUNT: NumberCodec("non-negative integers", lambda x: (x >= 0) & (x == np.rint(x)), whole=True),
    Kind.ORDINAL: CategoryCodec(_ranks),
    Kind.CATEGORICAL: CategoryCodec(_categories),
    Kind.BOOLEAN: CategoryCodec(_two),
    Kind.DATETIME: TimeCodec(),
}


def _has_type(codes: str, cells: Cells, kind: Kind, needs: str, remedy: str) -> bool:
    """Whether the cells are of the wanted NumPy type; raises if they are not, unless none is present."""
    if cells.data.dtype.kind not in codes:
        cells.refuse(cells.present, kind, needs, remedy)
    return cells.data.dtype.kind in codes


def was(column: Column) -> str:
    """What to do about a column that has changed its dtype since fit."""
    return f"In fit its dtype was {column.dtype.split('(')[0]}; convert it back."


def _moments(numbers: NDArray) -> tuple[float, float]:
    """Mean and standard deviation, without overflow at 1e300 nor cancellation at 1e12 + 1e-3; (c, 1) if constant."""
    if not numbers.size:
        return 0.0, 1.0
    low, span = numbers.min() / 2, numbers.max() / 2 - numbers.min() / 2  # halves never overflow
    if span < 4 * np.finfo(float).tiny:
        return float(numbers.min()), 1.0
    unit = (numbers / 2 - low) / span  # in [0, 1]
    return float(2 * (low + unit.mean() * span)), float(2 * unit.std() * span)


def _bounds(numbers: NDArray, *, logarithm: bool, real: bool) -> tuple[float, float]:
    """What the column can hold, as far as its cells tell: the observed range, real numbers half as far again.

    Where cells are missing because of what else stands in the row, those that are hidden may lie beyond all that are
    seen. A value that is reached more than once is taken for a limit, though, and so is zero.
    """
    if not numbers.size:
        return 0.0, 0.0
    low, high = float(numbers.min()), float(numbers.max())
    if not real or numbers.size < _FEW:
        return low, high
    reach = high / 2 - low / 2  # halves never overflow
    largest = (float(np.finfo(dtype).max) for dtype in (np.float16, np.float32, np.float64))
    limit = next(number for number in largest if number >= max(high, -low))  # the column may be no wider
    if (numbers == low).sum() == 1:
        low = low / 2 if logarithm else max(low - reach, 0.0 if low >= 0 else -limit)
    if (numbers == high).sum() == 1:
        high = min(high + reach, limit)
    return low, high


def _decimals(numbers: NDArray, dtype: str) -> int | None:
    """The fewest decimal places, if not too many, that write all numbers as exactly as their dtype holds them."""
    precision = np.finfo(np.float32 if "32" in dtype else np.float16 if "16" in dtype else np.float64).eps
    with np.errstate(over="ignore", invalid="ignore"):
        for places in range(_MOST_DECIMALS + 1) if numbers.size else ():
            if (np.abs(np.round(numbers, places) - numbers) <= precision * np.abs(numbers)).all():
                return places
    return None


def _repeated(numbers: NDArray) -> tuple[float, ...]:
    """The values that occur most often, ascending, of those that come back."""
    values, count = np.unique(numbers, return_counts=True)
    often = np.flatnonzero(count >= _REPEATED)
    often = np.sort(often[np.argsort(-count[often], kind="stable")[:_MOST_REPEATED]])
    return tuple(float(value) for value in values[often])


def _on_repeated(numbers: NDArray, repeated: NDArray, scale: float) -> NDArray:
    """Numbers that differ from a repeated value by rounding alone are that value."""
    above = np.searchsorted(repeated, numbers).clip(0, len(repeated) - 1)
    below = np.maximum(above - 1, 0)
    nearest = np.where(
        np.abs(repeated[above] - numbers) < np.abs(repeated[below] - numbers), repeated[above], repeated[below]
    )
    return np.where(np.abs(nearest - numbers) <= _ROUNDING * (scale + np.abs(nearest)), nearest, numbers)


def _ticks(times: NDArray) -> tuple[NDArray[np.int64], int]:
    unit = np.datetime_data(times.dtype)[0]
    times = times if unit in PER_SECOND else times.astype(f"{times.dtype.kind}8[s]")  # days
    return times.view(np.int64), PER_SECOND.get(unit, 1)


def _elapsed(ticks: NDArray[np.int64], per_second: int, center: float) -> NDArray[np.float64]:
    """Seconds since ``center``; whole seconds and the rest are subtracted apart, so that nanoseconds survive."""
    origin = np.floor(center)
    seconds, rest = np.divmod(ticks, per_second)
    return (seconds - origin) + (rest / per_second - (center - origin))


def can_hold(dtype: str, column: Column) -> bool:
    """Whether a column of this dtype can hold what the training column held."""
    family = dtype_family(dtype)
    if family == "object" or dtype == column.dtype:
        return True
    if column.kind is Kind.DATETIME:
        return family == "time"
    if column.kind.has_categories and (isinstance(column.categories[0], str) or dtype.startswith("category")):
        return family == "categories"
    return family in ("integer", "float", "boolean")
