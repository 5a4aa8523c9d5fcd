"""What a column is: its kind, its categories or its scale, and how to write all of that as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeimpute.frames.dtypes import dtype_family

__all__ = ["Column", "Kind", "Schema", "infer_kind", "is_long_tailed", "resolve_kinds"]

Category = str | int | float | bool


class Kind(StrEnum):
    """What the cells of a column mean; it decides how they are encoded and which likelihood they get."""

    NUMERIC = "numeric"
    POSITIVE = "positive"
    COUNT = "count"
    ORDINAL = "ordinal"
    CATEGORICAL = "categorical"
    BOOLEAN = "boolean"
    DATETIME = "datetime"

    @property
    def has_categories(self) -> bool:
        """Whether a cell is one of a few named categories, and so encoded as an integer code."""
        return self in (Kind.ORDINAL, Kind.CATEGORICAL, Kind.BOOLEAN)


@dataclass(frozen=True)
class Column:
    """One column as it was seen in training: what it holds and how it is encoded.

    A number ``x`` is encoded as ``(x - center) / scale``, or ``(log x - center) / scale`` when the kind is POSITIVE.
    A category is encoded as its position in ``categories``.

    Parameters
    ----------
    name : str or int
        The user's column name; ``x0``, ``x1``, ... for arrays.
    kind : Kind
    dtype : str
        The user's dtype, written so that `revive` can build it again.
    categories : tuple of str, int, float or bool
        The categories in code order; empty for numbers.
    center, scale : float
        Mean and standard deviation of the observed numbers (of their logarithms when POSITIVE, in seconds when
        DATETIME). 0 and 1 for categories; scale is 1 for constant columns.
    minimum, maximum : float
        What the column can hold in the user's units: the observed range, and half as far again of real numbers that
        do not repeat at its end; in seconds counted from ``center`` when DATETIME (a double cannot hold
        today's date in nanoseconds); the first and last code for categories. 0 and 0 when nothing was observed.
    integer : bool
        Whether cells must come back as whole numbers.
    decimals : int, optional
        Numbers only: the fewest decimal places, up to six, with which all observed numbers can be written; None if no
        so few are enough.
    repeated : tuple of float
        Numbers without such decimals only: values that occur often, as zeros among amounts do.
    resolution : float
        DATETIME only: the largest of day, hour, minute, second and the dtype's own tick, in seconds, of which all
        observed times are multiples.
    n_observed : int
        How many cells were present in training.

    Examples
    --------
    >>> column = Column("city", Kind.CATEGORICAL, "str", categories=("Oslo", "Rome"), maximum=1.0, n_observed=9)
    >>> column.n_categories
    2
    >>> Column.from_json(column.to_json()) == column
    True
    """

    name: Any
    kind: Kind
    dtype: str
    categories: tuple[Category, ...] = ()
    center: float = 0.0
    scale: float = 1.0
    minimum: float = 0.0
    maximum: float = 0.0
    integer: bool = False
    decimals: int | None = None
    repeated: tuple[float, ...] = ()
    resolution: float = 0.0
    n_observed: int = 0

    @property
    def n_categories(self) -> int:
        """Number of categories; 0 for numbers and times."""
        return len(self.categories)

    @property
    def can_decode(self) -> bool:
        """Whether there is something to write into a hidden cell; categories and dates need one that was seen."""
        zero = not self.kind.has_categories and self.kind is not Kind.DATETIME  # what a number falls back on
        return (zero or self.n_observed > 0) and dtype_family(self.dtype) != "nothing"

    def to_json(self) -> dict[str, Any]:
        """A dict of plain Python values."""
        plain = {"categories": list(self.categories), "repeated": list(self.repeated)}
        return asdict(self) | {"kind": str(self.kind), **plain}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "Column":
        """The inverse of `to_json`."""
        name = tuple(state["name"]) if isinstance(state["name"], list) else state["name"]
        plain = {key: tuple(state.get(key, ())) for key in ("categories", "repeated")}
        return cls(**{**state, "name": name, "kind": Kind(state["kind"]), **plain})


@dataclass(frozen=True)
class Schema:
    """All columns of a table, in order, and the container they came in.

    Parameters
    ----------
    columns : tuple of Column
    container : {"pandas", "polars", "pyarrow", "numpy"}

    Examples
    --------
    >>> schema = Schema((Column("age", Kind.COUNT, "Int64", integer=True),), container="pandas")
    >>> schema.names
    ('age',)
    >>> Schema.from_json(schema.to_json()) == schema
    True
    """

    columns: tuple[Column, ...]
    container: str

    def __len__(self) -> int:
        """Number of columns."""
        return len(self.columns)

    @property
    def names(self) -> tuple[Any, ...]:
        """The column names, in order."""
        return tuple(column.name for column in self.columns)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of each column, in order."""
        return tuple(column.kind for column in self.columns)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain Python values, ready for `json.dumps`."""
        return {"container": self.container, "columns": [column.to_json() for column in self.columns]}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "Schema":
        """The inverse of `to_json`."""
        return cls(tuple(Column.from_json(column) for column in state["columns"]), state["container"])


def infer_kind(values: NDArray, *, integer: bool = False, boolean: bool = False, ordered: bool = False) -> Kind:
    """The kind of a column, from what its dtype promises and from the cells that are present.

    Parameters
    ----------
    values : ndarray of shape (n_observed,)
        The present cells: float64 for numbers, datetime64 or timedelta64 for times, objects otherwise.
    integer, boolean, ordered : bool
        What the dtype promises: whole numbers; booleans; categories with an order.

    Examples
    --------
    >>> infer_kind(np.array([0.0, 3.0]), integer=True)
    <Kind.COUNT: 'count'>
    >>> infer_kind(np.array([-1.0, 3.0]), integer=True)
    <Kind.NUMERIC: 'numeric'>
    >>> infer_kind(np.array(["2024-02-29"], dtype="datetime64[s]"))
    <Kind.DATETIME: 'datetime'>
    """
    if boolean:
        return Kind.BOOLEAN
    if ordered:
        return Kind.ORDINAL
    if values.dtype == object:
        return Kind.CATEGORICAL
    if values.dtype.kind in "mM":
        return Kind.DATETIME
    if integer:
        return Kind.COUNT if values.size and values.min() >= 0 else Kind.NUMERIC
    return Kind.POSITIVE if is_long_tailed(values) else Kind.NUMERIC


def is_long_tailed(values: NDArray, *, raw_above: float = 4.0, log_below: float = 1.5) -> bool:
    """Whether positive numbers are so skewed, and their logarithms so little, that the logarithm is the better scale.

    Examples
    --------
    >>> normal = np.random.default_rng(0).normal(size=1000)
    >>> is_long_tailed(np.exp(2 * normal)), is_long_tailed(normal), is_long_tailed(normal + 9)
    (True, False, False)
    """
    if values.size < 3 or values.min() <= 0 or values.min() == values.max():
        return False
    return _skewness(values) > raw_above and abs(_skewness(np.log(values))) < log_below


def _skewness(values: NDArray) -> float:
    scaled = values / np.abs(values).max()  # no power of a number near 1e300 overflows
    deviation = scaled - scaled.mean()
    spread = deviation.std()
    return float(np.mean((deviation / spread) ** 3)) if spread > 0 else 0.0


def resolve_kinds(kinds: Mapping[Any, str] | None, names: tuple[Any, ...]) -> dict[Any, Kind]:
    """The user's ``kinds={"age": "numeric"}`` as `Kind`, with its column names and kinds checked."""
    resolved = {}
    for name, kind in (kinds or {}).items():
        if name not in names:
            raise ValueError(f"kinds names the column {name!r}, which X does not have. Columns of X: {list(names)}.")
        if kind not in list(Kind):
            raise ValueError(f"Column {name!r}: got kind {kind!r}, want one of {[str(known) for known in Kind]}.")
        resolved[name] = Kind(kind)
    return resolved
