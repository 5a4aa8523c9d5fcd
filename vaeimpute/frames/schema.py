"""What a column is: what its cells hold, its kind, its levels or its scale, and how to write all of that as JSON."""

import ast
import numbers
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from enum import StrEnum
from importlib import import_module
from typing import Any

import narwhals as nw
import numpy as np
from numpy.typing import NDArray

__all__ = ["Cells", "Column", "Kind", "Schema", "dtype_family", "dtype_text", "infer_kind", "is_long_tailed"]
__all__ += ["label", "native_dtype", "open_table", "read_cells", "resolve_kinds", "revive"]

Level = str | int | float | bool


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
    def has_levels(self) -> bool:
        """Whether a cell is one of a few named levels, and so encoded as an integer code."""
        return self in (Kind.ORDINAL, Kind.CATEGORICAL, Kind.BOOLEAN)


@dataclass(frozen=True)
class Column:
    """One column as it was seen in training: what it holds and how it is encoded.

    A number ``x`` is encoded as ``(x - center) / scale``, or ``(log x - center) / scale`` when the kind is POSITIVE.
    A level is encoded as its position in ``levels``.

    Parameters
    ----------
    name : str or int
        The user's column name; ``x0``, ``x1``, ... for arrays.
    kind : Kind
    dtype : str
        The user's dtype, written so that `revive` can build it again.
    levels : tuple of str, int, float or bool
        The levels in code order; empty for numbers.
    center, scale : float
        Mean and standard deviation of the observed numbers (of their logarithms when POSITIVE, in seconds when
        DATETIME). 0 and 1 for levels; scale is 1 for constant columns.
    minimum, maximum : float
        What the column can hold in the user's units: the observed range, and half as far again of real numbers that
        do not repeat at its end; in seconds counted from ``center`` when DATETIME (a double cannot hold
        today's date in nanoseconds); the first and last code for levels. 0 and 0 when nothing was observed.
    integer : bool
        Whether cells must come back as whole numbers.
    resolution : float
        DATETIME only: the largest of day, hour, minute, second and the dtype's own tick, in seconds, of which all
        observed times are multiples.
    n_observed : int
        How many cells were present in training.

    Examples
    --------
    >>> column = Column("city", Kind.CATEGORICAL, "str", levels=("Oslo", "Rome"), maximum=1.0, n_observed=9)
    >>> column.n_levels
    2
    >>> Column.from_json(column.to_json()) == column
    True
    """

    name: Any
    kind: Kind
    dtype: str
    levels: tuple[Level, ...] = ()
    center: float = 0.0
    scale: float = 1.0
    minimum: float = 0.0
    maximum: float = 0.0
    integer: bool = False
    resolution: float = 0.0
    n_observed: int = 0

    @property
    def n_levels(self) -> int:
        """Number of levels; 0 for numbers and times."""
        return len(self.levels)

    @property
    def can_decode(self) -> bool:
        """Whether there is something to write into a hidden cell; levels and dates need one that was seen."""
        zero = not self.kind.has_levels and self.kind is not Kind.DATETIME  # what a number falls back on
        return (zero or self.n_observed > 0) and dtype_family(self.dtype) != "nothing"

    def to_json(self) -> dict[str, Any]:
        """A dict of plain Python values."""
        return asdict(self) | {"kind": str(self.kind), "levels": list(self.levels)}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "Column":
        """The inverse of `to_json`."""
        name = tuple(state["name"]) if isinstance(state["name"], list) else state["name"]
        return cls(**{**state, "name": name, "kind": Kind(state["kind"]), "levels": tuple(state["levels"])})


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
        What the dtype promises: whole numbers; booleans; levels with an order.

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


# --- dtypes as text ---------------------------------------------------------------------------------------------------

FAMILIES = {  # how the text of a dtype begins, in lower case; a column whose dtype begins otherwise is refused
    "integer": r"u?int\d+",
    "float": r"float|double|half|decimal",
    "boolean": r"bool",
    "time": r"date|timestamp|timedelta|duration",
    "levels": r"str(ing)?\b|large_string\b|categor|enum|dictionary",
    "object": r"object",
    "nothing": r"null",
}


def dtype_family(text: str) -> str | None:
    """The row of `FAMILIES` that a dtype belongs to."""
    text = text.removeprefix("ArrowDtype(").lower()
    return next((family for family, pattern in FAMILIES.items() if re.match(pattern, text)), None)


def dtype_text(dtype: Any) -> str:
    """A pandas, polars or pyarrow dtype as text, complete enough for `revive`."""
    match type(dtype).__name__:
        case "CategoricalDtype":
            labels = [label(category) for category in dtype.categories]
            index = str(dtype.categories.dtype) if labels == list(dtype.categories) else "str"
            return f"category(categories={labels!r}, dtype={index!r}, ordered={dtype.ordered!r})"
        case "StringDtype":
            return str(dtype) if dtype == "str" else f"string[{dtype.storage}]"
        case "ArrowDtype":
            return f"ArrowDtype({dtype.pyarrow_dtype})"
    return str(dtype)


def revive(text: str, container: str) -> Any:
    """The dtype that `dtype_text` wrote down."""
    if container == "pyarrow":
        return _arrow_type(text)
    if text.startswith("ArrowDtype("):
        return import_module("pandas").ArrowDtype(_arrow_type(text[len("ArrowDtype(") : -1]))
    node = ast.parse(text, mode="eval").body if "(" in text else None
    literals = {word.arg or "": ast.literal_eval(word.value) for word in getattr(node, "keywords", ())}
    if container == "polars":
        dtype = getattr(import_module("polars"), text.split("(")[0])
        return dtype(**literals) if literals else dtype
    pd = import_module("pandas")
    if text.startswith("category("):
        return pd.CategoricalDtype(pd.Index(literals["categories"], dtype=literals["dtype"]), literals["ordered"])
    return pd.api.types.pandas_dtype(text)


def _arrow_type(text: str) -> Any:
    pa = import_module("pyarrow")
    if found := re.fullmatch(r"dictionary<values=(.+), indices=(\w+), ordered=([01])>", text):
        return pa.dictionary(_arrow_type(found[2]), _arrow_type(found[1]), ordered=found[3] == "1")
    if found := re.fullmatch(r"timestamp\[(\w+), tz=(.+)\]", text):
        return pa.timestamp(found[1], found[2])
    if found := re.fullmatch(r"(decimal\d+)\((\d+), (-?\d+)\)", text):
        return getattr(pa, found[1])(int(found[2]), int(found[3]))
    return pa.type_for_alias(text)


def native_dtype(series: nw.Series) -> Any:
    """The dtype object of the library that the series came from."""
    native = series.to_native()
    return native.type if series.implementation.is_pyarrow() else native.dtype


def label(value: Any) -> Any:
    """A level as JSON can hold it: text, number or boolean; the text of anything else (an interval, say)."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, str | int | float | bool) else str(value)


# --- reading a user's table -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """One column of a user's table as NumPy: ``data`` is float64, datetime64, timedelta64 or objects, shape (n,)."""

    name: Any
    dtype: str
    data: NDArray
    present: NDArray[np.bool_]
    integer: bool = False
    boolean: bool = False
    ordered: bool = False
    declared: tuple = ()  # the levels that the dtype itself lists, in its order

    @property
    def kind(self) -> Kind:
        """The kind that the dtype and the present cells suggest."""
        promised = {"integer": self.integer, "boolean": self.boolean, "ordered": self.ordered}
        return infer_kind(self.data[self.present], **promised)

    def refuse(self, wrong: NDArray[np.bool_], kind: Kind, needs: str, remedy: str) -> None:
        """Raise, naming the first of the ``wrong`` cells; nothing if there is none."""
        if wrong.any():
            row, count = int(wrong.argmax()), int(wrong.sum())
            raise ValueError(
                f"Column {self.name!r}: kind '{kind}' needs {needs}, but {_counted(count, 'value')} not "
                f"(first: {label(self.data[row])!r} at row {row}; dtype {self.dtype.split('(')[0]}). {remedy}"
            )


def open_table(X: Any) -> tuple[nw.DataFrame, str]:
    """X as a narwhals frame and the name of its container; scikit-learn's own words where a shape is wrong."""
    if nw.dependencies.is_into_dataframe(X):
        frame = nw.from_native(X, eager_only=True)
        container = frame.implementation.value
        if container not in ("pandas", "polars", "pyarrow"):
            raise TypeError(f"X is a {container} frame; want pandas, polars, pyarrow or NumPy. Convert it first.")
        if len(set(frame.columns)) < len(frame.columns):  # narwhals itself refuses most of them
            raise ValueError(f"Expected unique column names, got {frame.columns}.")
    else:
        frame, container = nw.from_native(_array_frame(X), eager_only=True), "numpy"
    for count, what in zip(frame.shape, ("sample(s)", "feature(s)"), strict=True):
        if count == 0:
            raise ValueError(f"Found array with 0 {what} (shape={frame.shape}) while a minimum of 1 is required.")
    return frame, container


def _array_frame(X: Any) -> Any:
    """An array as pandas columns ``x0``, ``x1``, ..., without a copy."""
    if type(X).__module__.startswith("scipy.sparse"):
        raise ValueError("Sparse data was passed, but dense data is required. Use '.toarray()' to convert it.")
    if nw.dependencies.is_polars_lazyframe(X):
        raise TypeError("X is a polars LazyFrame; want a DataFrame. Call X.collect() first.")
    array = np.array(X, dtype=object) if isinstance(X, list | tuple) else np.asarray(X)
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported\n{array}\n")
    if array.ndim != 2:
        raise ValueError(
            f"Expected 2D array, got {array.ndim}D array instead:\narray={array}.\nReshape your data either using "
            "array.reshape(-1, 1) if it has a single feature or array.reshape(1, -1) if it contains a single sample."
        )
    array = array.astype(object) if array.dtype.kind in "US" else array  # fixed-width text cannot take a longer word
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    names = [f"x{j}" for j in range(array.shape[1])]
    return import_module("pandas").DataFrame(array, columns=names, dtype=array.dtype, copy=False)


def read_cells(series: nw.Series, name: Any, missing_values: Any) -> Cells:
    """Read a column: what is there, and where."""
    dtype = dtype_text(native_dtype(series))
    match dtype_family(dtype):
        case "integer" | "float" | "boolean" as family:
            data = _as_floats(series, dtype)
            present = ~np.isnan(data)
            if family != "boolean" and _is_number(missing_values):
                present &= data != float(missing_values)
            _refuse_infinite(name, data, present)
            return Cells(name, dtype, data, present, integer=family == "integer", boolean=family == "boolean")
        case "time":
            data = series.to_numpy()
            data = data if data.dtype.kind in "mM" else series.cast(nw.Datetime("ms")).to_numpy()  # pandas' date32
            return Cells(name, dtype, data, ~np.isnat(data))
        case "object":
            data, present = _read_objects(series, missing_values)
            return _look_inside(Cells(name, dtype, data, present))
        case "levels" | "nothing":
            data, present = _read_objects(series, missing_values)
            declared = tuple(level for level in _declared(series, dtype) if level != missing_values)
            return Cells(name, dtype, data, present, ordered=_is_ordered(dtype), declared=declared)
    if dtype.startswith("complex"):
        raise ValueError(f"Complex data not supported: column {name!r} has dtype {dtype}.")
    wanted = "want numbers, booleans, text, categories, dates or durations. Convert it, or drop it."
    raise TypeError(f"Column {name!r} has dtype {dtype}; {wanted}")


def _as_floats(series: nw.Series, dtype: str) -> NDArray[np.float64]:
    """Numbers as doubles, the nearest ones to integers beyond 2**53 (which Arrow would refuse)."""
    if series.implementation.is_pyarrow() or dtype.startswith("ArrowDtype("):
        return np.asarray(series.to_arrow().cast("float64", safe=False).to_numpy(zero_copy_only=False))
    return np.asarray(series.cast(nw.Float64).to_numpy(), dtype=np.float64)


def _read_objects(series: nw.Series, missing_values: Any) -> tuple[NDArray, NDArray[np.bool_]]:
    data = np.fromiter(series.to_list(), dtype=object, count=len(series))
    present = ~np.asarray(series.is_null().to_numpy(), dtype=bool)
    if isinstance(missing_values, str):
        missing = (isinstance(cell, str) and cell == missing_values for cell in data)
    elif _is_number(missing_values):
        missing = (_is_number(cell) and cell == missing_values for cell in data)
    elif float in set(map(type, data[present])):  # polars does not call the NaN of an object column null
        missing = (isinstance(cell, float) and cell != cell for cell in data)
    else:
        return data, present
    return data, present & ~np.fromiter(missing, dtype=bool, count=len(data))


def _look_inside(cells: Cells) -> Cells:
    """A column of Python objects: booleans, numbers, or levels; containers and dates are refused."""
    types = set(map(type, cells.data[cells.present]))
    for row in np.flatnonzero(cells.present) if any(map(_is_refused, types)) else ():
        kind = type(cells.data[row])
        if _is_refused(kind):
            found = f"{kind.__name__!r} (column {cells.name!r}, row {row})"
            if issubclass(kind, numbers.Complex):
                raise ValueError(f"Complex data not supported: got {found}.")
            hint = "Give dates a datetime dtype, with pandas.to_datetime for instance; drop containers."
            raise TypeError(f"argument must be a string or a real number, not {found}. {hint}")
    if types and types <= {bool, np.bool_}:
        return replace(cells, boolean=True)
    if not all(issubclass(kind, numbers.Real | Decimal) and kind is not bool for kind in types):
        return cells
    floats = np.full(len(cells.data), np.nan)
    floats[cells.present] = cells.data[cells.present].astype(np.float64)
    present = ~np.isnan(floats)
    _refuse_infinite(cells.name, floats, present)
    whole = bool(types) and all(issubclass(kind, numbers.Integral) for kind in types)
    return replace(cells, data=floats, present=present, integer=whole)


def _is_refused(kind: type) -> bool:
    unreal = issubclass(kind, numbers.Complex) and not issubclass(kind, numbers.Real)
    return unreal or issubclass(kind, dict | list | tuple | set | np.ndarray | date | timedelta | np.datetime64)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _refuse_infinite(name: Any, data: NDArray, present: NDArray[np.bool_]) -> None:
    infinite = np.isinf(data) & present
    if infinite.any():
        row = int(infinite.argmax())
        raise ValueError(
            f"Column {name!r}: {_counted(int(infinite.sum()), 'value')} infinity (first: {data[row]} at row {row}). "
            "Want finite numbers; write NaN for what is not known."
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun} is" if count == 1 else f"{count} {noun}s are"


def _is_ordered(dtype: str) -> bool:
    return dtype.startswith("Enum") or dtype.endswith(("ordered=True)", "ordered=1>", "ordered=1>)"))


def _declared(series: nw.Series, dtype: str) -> tuple:
    if dtype.startswith(("category(", "Enum(")):
        return tuple(map(label, native_dtype(series).categories))
    return tuple(series.to_arrow().dictionary.to_pylist()) if _is_ordered(dtype) else ()  # pyarrow: with the data
