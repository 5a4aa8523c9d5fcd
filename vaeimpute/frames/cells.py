"""Reading: a user's table as columns of cells in NumPy, what is there and where."""

import numbers
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vaeimpute.frames.containers import ArrayFrame, PandasFrame
from vaeimpute.frames.dtypes import Series, dtype_family, dtype_text, label, listed, native_dtype
from vaeimpute.frames.schema import Kind, infer_kind

__all__ = ["Cells", "open_table", "read_cells"]


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
    declared: tuple = ()  # the categories that the dtype itself lists, in its order

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


def open_table(X: Any) -> tuple[Any, str]:
    """X as a narwhals frame, or what looks like one, and its container; scikit-learn's words where a shape is wrong."""
    frame: Any
    if isinstance(X, pd.DataFrame) and X.columns.is_unique:
        frame, container = PandasFrame(X), "pandas"
    elif nw.dependencies.is_into_dataframe(X):
        frame = nw.from_native(X, eager_only=True)
        container = frame.implementation.value
        if container not in ("pandas", "polars", "pyarrow"):
            raise TypeError(f"X is a {container} frame; want pandas, polars, pyarrow or NumPy. Convert it first.")
        if len(set(frame.columns)) < len(frame.columns):  # narwhals itself refuses most of them
            raise ValueError(f"Expected unique column names, got {frame.columns}.")
    else:
        frame, container = _array_frame(X), "numpy"
    for count, what in zip(frame.shape, ("sample(s)", "feature(s)"), strict=True):
        if count == 0:
            raise ValueError(f"Found array with 0 {what} (shape={frame.shape}) while a minimum of 1 is required.")
    return frame, container


def _array_frame(X: Any) -> ArrayFrame:
    """An array as columns ``x0``, ``x1``, ..., without a copy of numbers and objects."""
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
    if array.dtype.kind in "mM":  # in a unit that pandas has: no days
        array = pd.DataFrame(array, copy=False).to_numpy()
    return ArrayFrame(array)


def read_cells(series: Series, name: Any, missing_values: Any) -> Cells:
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
            data = _as_times(series)
            return Cells(name, dtype, data, ~np.isnat(data))
        case "object":
            data, present = _read_objects(series, missing_values)
            return _look_inside(Cells(name, dtype, data, present))
        case "categories" | "nothing":
            data, present = _read_objects(series, missing_values)
            declared = tuple(category for category in _declared(series, dtype) if category != missing_values)
            return Cells(name, dtype, data, present, ordered=_is_ordered(dtype), declared=declared)
    if dtype.startswith("complex"):
        raise ValueError(f"Complex data not supported: column {name!r} has dtype {dtype}.")
    wanted = "want numbers, booleans, text, categories, dates or durations. Convert it, or drop it."
    raise TypeError(f"Column {name!r} has dtype {dtype}; {wanted}")


def _as_floats(series: Series, dtype: str) -> NDArray[np.float64]:
    """Numbers as doubles, the nearest ones to integers beyond 2**53 (which Arrow would refuse)."""
    if isinstance(series, np.ndarray):
        return series.astype(np.float64)
    is_arrow = dtype.startswith("ArrowDtype(") or (isinstance(series, nw.Series) and series.implementation.is_pyarrow())
    if is_arrow:
        data = _by_narwhals(series).to_arrow().cast("float64", safe=False)
        return np.asarray(data.to_numpy(zero_copy_only=False))
    if isinstance(series, pd.Series):
        return series.to_numpy(np.float64, na_value=np.nan)
    return np.asarray(series.cast(nw.Float64).to_numpy(), dtype=np.float64)


def _as_times(series: Series) -> NDArray:
    if isinstance(series, np.ndarray):
        return series
    series = _by_narwhals(series)
    data = series.to_numpy()
    return data if data.dtype.kind in "mM" else series.cast(nw.Datetime("ms")).to_numpy()  # pandas' date32


def _by_narwhals(series: Any) -> nw.Series:
    return nw.from_native(series, series_only=True, pass_through=False)


def _read_objects(series: Series, missing_values: Any) -> tuple[NDArray, NDArray[np.bool_]]:
    data = np.fromiter(listed(series), dtype=object, count=len(series))
    present = ~_is_null(series)
    if isinstance(missing_values, str):
        missing = (isinstance(cell, str) and cell == missing_values for cell in data)
    elif _is_number(missing_values):
        missing = (_is_number(cell) and cell == missing_values for cell in data)
    elif float in set(map(type, data[present])):  # polars does not call the NaN of an object column null
        missing = (isinstance(cell, float) and cell != cell for cell in data)
    else:
        return data, present
    return data, present & ~np.fromiter(missing, dtype=bool, count=len(data))


def _is_null(series: Series) -> NDArray[np.bool_]:
    if isinstance(series, nw.Series):
        return np.asarray(series.is_null().to_numpy(), dtype=bool)
    return np.asarray(pd.isna(series.array if isinstance(series, pd.Series) else series), dtype=bool)


def _look_inside(cells: Cells) -> Cells:
    """A column of Python objects: booleans, numbers, or categories; containers and dates are refused."""
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


def _declared(series: Series, dtype: str) -> tuple:
    if dtype.startswith(("category(", "Enum(")):
        return tuple(map(label, native_dtype(series).categories))
    return tuple(_by_narwhals(series).to_arrow().dictionary.to_pylist()) if _is_ordered(dtype) else ()  # with the data
