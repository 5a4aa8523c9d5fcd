"""A user's table <-> two arrays, ``values`` and ``observed``: the only place where tables meet arrays.

`read_cells` reads a column, the codec of its kind turns cells into numbers and back, `make_series` writes them in the
user's own dtype; `TableEncoder` does this for all columns. NumPy arrays travel as pandas columns.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from importlib import import_module
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vaeimpute.frames.codecs import CODECS, can_hold, was
from vaeimpute.frames.schema import (
    Cells,
    Column,
    Kind,
    Schema,
    dtype_family,
    dtype_text,
    label,
    native_dtype,
    open_table,
    read_cells,
    resolve_kinds,
    revive,
)

__all__ = ["TableEncoder"]

_FAR = 10.0

# --- writing: numbers -> a column of the user's dtype -----------------------------------------------------------------


def make_series(values: NDArray | None, dtype: Any, container: str, column: Column, n: int) -> nw.Series:
    """A column of the given dtype from what `Codec.decode` gives; all missing if ``values`` is None."""
    data: Any = [None] * n if values is None else _as_family(values, dtype_text(dtype), column.integer)
    if container == "polars":
        pl = import_module("polars")
        native = pl.Series(data, dtype=dtype) if isinstance(data, list) else pl.Series(data).cast(dtype)
    elif container == "pyarrow":
        native = import_module("pyarrow").chunked_array([_arrow_array(data, dtype)])
    elif isinstance(dtype, pd.ArrowDtype):
        native = pd.Series(pd.array(_arrow_array(data, dtype.pyarrow_dtype), dtype=dtype))
    elif isinstance(dtype, pd.CategoricalDtype):
        category_of = {label(category): category for category in dtype.categories}
        native = pd.Series(pd.Categorical([category_of.get(level, level) for level in data], dtype=dtype))
    else:  # integers are UTC to astype
        native = (
            pd.Series(data).astype(dtype) if isinstance(dtype, pd.DatetimeTZDtype) else pd.Series(data, dtype=dtype)
        )
    return nw.from_native(native, series_only=True)


def _as_family(values: NDArray, text: str, integer: bool) -> Any:
    """Decoded cells as the NumPy array, or list of objects, from which a column of that dtype is made."""
    family = dtype_family(text)
    if values.dtype.kind == "m":
        found = re.search(r"\b(ns|us|ms|s)\b", text)
        return values.astype(f"m8[{found[1] if found else 'D'}]").view(np.int64)
    if family in ("object", "levels"):
        return (values.astype(np.int64) if integer and values.dtype.kind == "f" else values).tolist()
    values = values.astype(np.float64)
    if family != "integer":
        return np.rint(values).astype(bool) if family == "boolean" else values
    found = re.search(r"u?int(8|16|32|64)", text.lower())
    limits = np.iinfo(found[0] if found else "int64")
    top = np.nextafter(float(limits.max), 0) if float(limits.max) > limits.max else float(limits.max)  # 2**63 is over
    return np.clip(np.rint(values), float(limits.min), top).astype(limits.dtype)


def _arrow_array(data: Any, dtype: Any) -> Any:
    pa = import_module("pyarrow")
    data = data.astype(np.int32) if pa.types.is_date32(dtype) and not isinstance(data, list) else data
    return pa.array(data, type=dtype) if isinstance(data, list) else pa.array(data).cast(dtype)


def _as_objects(decoded: NDArray, series: nw.Series, hidden: NDArray[np.bool_]) -> NDArray:
    """Decoded cells as objects of the types that the column holds: decimals, and levels that are no text (times)."""
    present = np.fromiter(series.to_list(), dtype=object, count=len(series))[~hidden]
    if decoded.dtype == object:
        own = {label(cell): cell for cell in set(present)}
        return np.fromiter((own.get(level, level) for level in decoded), dtype=object, count=len(decoded))
    decimals = [cell for cell in present if isinstance(cell, Decimal)]
    if not decimals:
        return decoded
    finest, exact = Decimal(1).scaleb(min(int(cell.as_tuple().exponent) for cell in decimals)), Context(prec=999)
    cells = (Decimal(cell).quantize(finest, context=exact) for cell in decoded)
    return np.fromiter(cells, dtype=object, count=len(decoded))


def _widen(series: nw.Series, levels: NDArray) -> nw.Series:
    """Add to a closed list of categories those that a hidden cell needs and this frame does not declare."""
    dtype = native_dtype(series)
    if not dtype_text(dtype).startswith(("category(", "Enum(")):
        return series
    known = set(map(label, dtype.categories))
    extra = [level for level in dict.fromkeys(levels.tolist()) if level not in known]
    if extra and isinstance(dtype, pd.CategoricalDtype):
        return nw.from_native(series.to_native().cat.add_categories(extra), series_only=True)
    return series.cast(nw.Enum([*dtype.categories, *extra])) if extra else series


# --- the whole table --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TableEncoder:
    """Turn a table with holes into ``values`` and ``observed``, and back into the user's own container and dtypes.

    Parameters
    ----------
    schema : Schema
        What each column was in training.
    missing_values : scalar, default=None
        A value that also means "missing", such as -1 or "?". Null, NaN, NaT, None and pandas.NA always do.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> X = pd.DataFrame({"age": [31.0, np.nan, 45.0], "city": ["Oslo", "Rome", None]})
    >>> encoder = TableEncoder.fit(X)
    >>> encoder.schema.kinds
    (<Kind.NUMERIC: 'numeric'>, <Kind.CATEGORICAL: 'categorical'>)
    >>> values, observed = encoder.encode(X)
    >>> values
    array([[-1.,  0.],
           [ 0.,  1.],
           [ 1.,  0.]])
    >>> observed.sum(axis=0)
    array([2, 2])
    >>> encoder.fill(X, values, observed)
        age  city
    0  31.0  Oslo
    1  38.0  Rome
    2  45.0  Oslo
    """

    schema: Schema
    missing_values: Any = None

    @classmethod
    def fit(cls, X: Any, *, kinds: Mapping[Any, str] | None = None, missing_values: Any = np.nan) -> "TableEncoder":
        """Learn a `Schema` from a table: pandas, polars, pyarrow, or a 2-D array of numbers or objects.

        Parameters
        ----------
        X : table of shape (n, D)
        kinds : dict of column name -> kind, optional
            Overrules what the dtype says, as in ``{"zip": "categorical"}``. Array columns are ``x0``, ``x1``, ...
        missing_values : scalar, default=np.nan
        """
        frame, container = open_table(X)
        missing_values = None if pd.isna(missing_values) else label(missing_values)
        wanted = resolve_kinds(kinds, tuple(frame.columns))
        columns = []
        for name in frame.columns:
            cells = read_cells(frame.get_column(name), name, missing_values)
            kind = wanted.get(name, cells.kind)
            columns.append(CODECS[kind].fit(cells, kind))
        return cls(Schema(tuple(columns), container), missing_values)

    def encode(self, X: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Encode a table with the training columns, in any order; unseen levels count as missing, with a warning.

        Returns
        -------
        values : ndarray of shape (n, D)
            Numbers standardised, levels as codes; 0 where not observed, never NaN.
        observed : bool ndarray of shape (n, D)
        """
        frame, container = open_table(X)
        values = np.zeros((len(frame), len(self.schema)))
        observed = np.zeros(values.shape, dtype=bool)
        for j, series in enumerate(self._align(frame, container)):
            column = self.schema.columns[j]
            cells = read_cells(series, column.name, self.missing_values)
            encoded = CODECS[column.kind].encode(cells, column)
            observed[:, j] = ~np.isnan(encoded)
            np.copyto(values[:, j], encoded, where=observed[:, j])
            if column.kind.has_levels:
                _warn_unseen(cells, cells.present & ~observed[:, j])
        return values, observed

    def fill(self, X: Any, values: NDArray[np.float64], observed: NDArray[np.bool_]) -> Any:
        """X with its hidden cells decoded from ``values``; container, index, order and dtypes as they came.

        Every cell with ``observed`` False is rewritten, except the user's unseen levels, which stay.

        Parameters
        ----------
        X : table of shape (n, D)
        values, observed : ndarrays of shape (n, D)
            In the order of the schema; ``values`` finite. What is observed is kept bit for bit.
        """
        frame, container = open_table(X)
        filled = {}
        for j, series in enumerate(self._align(frame, container)):
            column, hidden = self.schema.columns[j], ~observed[:, j]
            if column.kind.has_levels and hidden.any():
                cells = read_cells(series, column.name, self.missing_values)
                hidden &= ~(cells.present & np.isnan(CODECS[column.kind].encode(cells, column)))
            if hidden.any() and column.can_decode:
                filled[series.name] = hidden, self._write(column, series, values[:, j], hidden)
        if container != "numpy":
            return frame.with_columns(*(new.alias(name) for name, (_, new) in filled.items())).to_native()
        out = frame.to_native().to_numpy(copy=True)
        for name, (hidden, new) in filled.items():
            out[hidden, int(name[1:])] = new.to_native().to_numpy()[hidden]
        # pandas has neither foreign byte orders nor dates in days
        return out.astype(X.dtype, copy=False) if isinstance(X, np.ndarray) and X.dtype.kind in "fmM" else out

    def _write(self, column: Column, series: nw.Series, values: NDArray, hidden: NDArray[np.bool_]) -> nw.Series:
        """The user's column with its hidden cells decoded."""
        container, n = series.implementation.value, len(series)
        # kept cells take the code of a hidden one: they are not written, and must not widen the categories
        decoded = CODECS[column.kind].decode(np.where(hidden, values, values[hidden.argmax()]), column)
        if not can_hold(dtype_text(native_dtype(series)), column):  # all missing: the library guessed another dtype
            if container != self.schema.container:
                raise TypeError(f"Column {column.name!r}: dtype {native_dtype(series)} is not fit. {was(column)}")
            return make_series(decoded, revive(column.dtype, container), container, column, n)
        series = _widen(series, decoded) if column.kind.has_levels else series
        if dtype_family(dtype_text(native_dtype(series))) == "object":
            decoded = _as_objects(decoded, series, hidden)
        new = make_series(decoded, native_dtype(series), container, column, n)
        return series.zip_with(nw.new_series("kept", ~hidden, nw.Boolean, backend=container), new)

    def build(self, values: NDArray[np.float64]) -> Any:
        """New rows from ``values`` of shape (n, D): a table of the training container and dtypes.

        Examples
        --------
        >>> import pandas as pd
        >>> TableEncoder.fit(pd.DataFrame({"n": [1, 3]})).build(np.zeros((2, 1)))["n"].tolist()
        [2, 2]
        """
        n, backend = len(values), "pandas" if self.schema.container == "numpy" else self.schema.container
        native = {}
        for column, cells in zip(self.schema.columns, values.T, strict=True):
            decoded = CODECS[column.kind].decode(cells, column) if column.can_decode else None
            native[column.name] = make_series(decoded, revive(column.dtype, backend), backend, column, n).to_native()
        if backend == "pyarrow":
            return import_module("pyarrow").table(native)
        frame = import_module(backend).DataFrame(native)
        return frame.to_numpy() if self.schema.container == "numpy" else frame

    @property
    def names(self) -> list[Any]:
        """Name of each column."""
        return list(self.schema.names)

    @property
    def kinds(self) -> list[str]:
        """Kind of each column."""
        return [str(column.kind) for column in self.schema.columns]

    @property
    def levels(self) -> list[int]:
        """Number of levels of each column, 0 for numbers."""
        return [column.n_levels for column in self.schema.columns]

    @property
    def numbers(self) -> NDArray[np.bool_]:
        """Which columns hold numbers, and not levels, (D,)."""
        return np.array(self.levels) == 0

    def log_jacobian(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """``log |d value / d cell|`` of each number (n, D), in the user's unit; zero for levels."""
        out = np.zeros_like(values)
        for j in np.flatnonzero(self.numbers):
            column = self.schema.columns[j]
            out[:, j] = -np.log(column.scale)
            if column.kind is Kind.POSITIVE:
                out[:, j] -= values[:, j] * column.scale + column.center
        return out

    def robust(self, X: Any) -> "TableEncoder":
        """The same for a table with gross errors: far cells do not count in the scale of a column of numbers.

        Far is ten times the way between the 5% and the 95% quantile beyond them.
        """
        values, observed = self.encode(X)
        columns = list(self.schema.columns)
        for j in np.flatnonzero(self.numbers & observed.any(0)):
            cells, column = values[observed[:, j], j], columns[j]
            low, high = np.quantile(cells, [0.05, 0.95])
            near = np.clip(cells, low - _FAR * (high - low), high + _FAR * (high - low))
            if high > low and (near != cells).any():
                moved = float(near.mean() * column.scale)
                columns[j] = replace(column, center=column.center + moved, scale=float(near.std() * column.scale))
                if column.kind is Kind.DATETIME:  # the range of times is counted from their center
                    low, high = column.minimum - moved, column.maximum - moved
                    columns[j] = replace(columns[j], minimum=low, maximum=high)
        return replace(self, schema=replace(self.schema, columns=tuple(columns)))

    def to_json(self) -> dict[str, Any]:
        """A dict of plain Python values, ready for `json.dumps`."""
        return {"schema": self.schema.to_json(), "missing_values": self.missing_values}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "TableEncoder":
        """The inverse of `to_json`."""
        return cls(Schema.from_json(state["schema"]), state["missing_values"])

    def _align(self, frame: nw.DataFrame, container: str) -> list[nw.Series]:
        """The columns of X in the order of the schema: by name between frames, by position where one is an array."""
        names, known = list(frame.columns), list(self.schema.names)
        if "numpy" in (container, self.schema.container):
            if len(names) != len(known):
                raise ValueError(f"X has {len(names)} features, but it is expecting {len(known)} features as input.")
            known = names
        missing, extra = [n for n in known if n not in set(names)], [n for n in names if n not in set(known)]
        if missing or extra:
            raise ValueError(f"The columns of X are not those seen in fit.\nMissing: {missing}\nNot in fit: {extra}")
        return [frame.get_column(name) for name in known]


def _warn_unseen(cells: Cells, unseen: NDArray[np.bool_]) -> None:
    if unseen.any():
        some = ", ".join(repr(label(level)) for level in list(dict.fromkeys(cells.data[unseen].tolist()))[:3])
        what = f"Column {cells.name!r}: {int(unseen.sum())} cell(s) with levels not seen in fit ({some})"
        warnings.warn(f"{what} are treated as missing.", UserWarning, stacklevel=3)
