"""A user's table <-> two arrays, ``values`` and ``observed``: the only place where tables meet arrays.

`read_cells` reads a column, the codec of its kind turns cells into numbers and back, `make_series` writes them in the
user's own dtype; `TableEncoder` does this for all columns.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vaeimpute.frames.cells import Cells, open_table, read_cells
from vaeimpute.frames.codecs import CODECS, can_hold, was
from vaeimpute.frames.containers import replaced
from vaeimpute.frames.dtypes import (
    as_objects,
    dtype_family,
    dtype_text,
    label,
    listed,
    make_series,
    native_dtype,
    overwritten,
    revive,
    widen,
)
from vaeimpute.frames.encoded import Encoded
from vaeimpute.frames.schema import Column, Kind, Schema, resolve_kinds

__all__ = ["TableEncoder"]

_FAR = 10.0


@dataclass(frozen=True)
class TableEncoder:
    """Turn a table with missing cells into ``values`` and ``observed``, and back into the user's container and dtypes.

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
    >>> values, observed, unseen = encoder.encode(X)
    >>> values
    array([[-1.,  0.],
           [ 0.,  1.],
           [ 1.,  0.]])
    >>> observed.sum(axis=0)
    array([2, 2])
    >>> encoder.fill(X, values, ~observed)
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
        return cls.fit_encode(X, kinds=kinds, missing_values=missing_values)[0]

    @classmethod
    def fit_encode(
        cls,
        X: Any,
        *,
        kinds: Mapping[Any, str] | None = None,
        missing_values: Any = np.nan,
        robust: bool = False,
    ) -> tuple["TableEncoder", Encoded]:
        """The same, or its `robust` version, and the encoded table: its cells are read once."""
        frame, container = open_table(X)
        missing_values = None if pd.isna(missing_values) else label(missing_values)
        wanted = resolve_kinds(kinds, tuple(frame.columns))
        columns, cells = [], []
        for name in frame.columns:
            cells.append(read_cells(frame.get_column(name), name, missing_values))
            kind = wanted.get(name, cells[-1].kind)
            columns.append(CODECS[kind].fit(cells[-1], kind))
        encoder = cls(Schema(tuple(columns), container), missing_values)
        encoded = encoder._encoded(cells, len(frame))
        if not robust:
            return encoder, encoded
        encoder = encoder.robust(encoded)
        return encoder, encoder._encoded(cells, len(frame))

    def encode(self, X: Any) -> Encoded:
        """Encode a table with the training columns, in any order; unseen categories count as missing, with a warning.

        Numbers are standardised, categories become codes.
        """
        frame, container = open_table(X)
        names = self._aligned(frame, container)
        aligned = zip(map(frame.get_column, names), self.schema.names, strict=True)
        encoded = self._encoded((read_cells(series, name, self.missing_values) for series, name in aligned), len(frame))
        for j in np.flatnonzero(encoded.unseen.any(0)):
            _warn_unseen(self.schema.columns[j].name, frame.get_column(names[j]), encoded.unseen[:, j])
        return encoded

    def _encoded(self, cells: Iterable[Cells], n: int) -> Encoded:
        values = np.zeros((n, len(self.schema)))
        observed, unseen = np.zeros((2, *values.shape), dtype=bool)
        for j, (of_column, column) in enumerate(zip(cells, self.schema.columns, strict=True)):
            encoded = CODECS[column.kind].encode(of_column, column)
            observed[:, j] = ~np.isnan(encoded)
            np.copyto(values[:, j], encoded, where=observed[:, j])
            if column.kind.has_categories:
                unseen[:, j] = of_column.present & ~observed[:, j]
        return Encoded(values, observed, unseen)

    def fill(self, X: Any, values: NDArray[np.float64], rewritten: NDArray[np.bool_], *, rounded: bool = False) -> Any:
        """X with some of its cells decoded from ``values``; container, index, order and dtypes as they came.

        Parameters
        ----------
        X : table of shape (n, D)
        values : ndarray of shape (n, D)
            In the order of the schema, as `rewritten` is; finite.
        rewritten : bool ndarray of shape (n, D)
            The others are kept bit for bit.
        rounded : bool
            Whether numbers get no more decimals than the training column has.
        """
        frame, container = open_table(X)
        names, filled = self._aligned(frame, container), {}
        for j in np.flatnonzero(rewritten.any(0)):
            if self.schema.columns[j].can_decode:
                series, hidden = frame.get_column(names[j]), rewritten[:, j]
                filled[names[j]] = self._write(
                    self.schema.columns[j], series, container, values[:, j], hidden, rounded=rounded
                )
        out = replaced(frame, filled)
        # what was read had neither foreign byte orders nor dates in days
        return out.astype(X.dtype, copy=False) if isinstance(X, np.ndarray) and X.dtype.kind in "fmM" else out

    def _write(
        self,
        column: Column,
        series: Any,
        container: str,
        values: NDArray,
        hidden: NDArray[np.bool_],
        *,
        rounded: bool,
    ) -> Any:
        """The user's column with its hidden cells decoded."""
        n = len(series)
        # kept cells take the code of a hidden one: they are not written, and must not widen the categories
        decoded = CODECS[column.kind].decode(np.where(hidden, values, values[hidden.argmax()]), column, rounded=rounded)
        dtype = dtype_text(native_dtype(series))
        if not can_hold(dtype, column):  # all missing: the library guessed another dtype
            backend = "pandas" if container == "numpy" else container
            if backend != self.schema.container:
                raise TypeError(f"Column {column.name!r}: dtype {native_dtype(series)} is not fit. {was(column)}")
            return make_series(decoded, revive(column.dtype, backend), backend, n, integer=column.integer)
        series = widen(series, decoded) if column.kind.has_categories else series
        if dtype_family(dtype) == "object":
            decoded = as_objects(decoded, series, hidden)
        new = make_series(decoded, native_dtype(series), container, n, integer=column.integer)
        return overwritten(series, new, hidden)

    def build(self, values: NDArray[np.float64], *, rounded: bool = False) -> Any:
        """New rows from ``values`` of shape (n, D): a table of the training container and dtypes.

        Numbers get no more decimals than those of the training table if they are to be `rounded`.

        Examples
        --------
        >>> import pandas as pd
        >>> TableEncoder.fit(pd.DataFrame({"n": [1, 3]})).build(np.zeros((2, 1)))["n"].tolist()
        [2, 2]
        """
        n, backend = len(values), "pandas" if self.schema.container == "numpy" else self.schema.container
        native = {}
        for column, cells in zip(self.schema.columns, values.T, strict=True):
            decoded = CODECS[column.kind].decode(cells, column, rounded=rounded) if column.can_decode else None
            series = make_series(decoded, revive(column.dtype, backend), backend, n, integer=column.integer)
            native[column.name] = series.to_native() if isinstance(series, nw.Series) else series
        if backend == "pyarrow":
            return import_module("pyarrow").table(native)
        frame = import_module(backend).DataFrame(native)
        return frame.to_numpy() if self.schema.container == "numpy" else frame

    @property
    def half_units(self) -> NDArray[np.float64]:
        """Half a unit of the last decimal that a column's numbers have, standardised, (D,); 0 where they have many."""
        plain = [c.decimals if c.kind is not Kind.POSITIVE else None for c in self.schema.columns]
        scales = [column.scale for column in self.schema.columns]
        return np.array([0.0 if d is None else 0.5 * 10.0**-d / s for d, s in zip(plain, scales, strict=True)])

    @property
    def names(self) -> list[Any]:
        """Name of each column."""
        return list(self.schema.names)

    @property
    def kinds(self) -> list[str]:
        """Kind of each column."""
        return [str(column.kind) for column in self.schema.columns]

    @property
    def n_categories(self) -> list[int]:
        """Number of categories of each column, 0 for numbers."""
        return [column.n_categories for column in self.schema.columns]

    @property
    def is_numeric(self) -> NDArray[np.bool_]:
        """Which columns hold numbers, and not categories, (D,)."""
        return np.array(self.n_categories) == 0

    def numbers(self, values: NDArray[np.float64], j: int) -> NDArray[np.float64]:
        """Observed cells (n,) of column j as `encode` gave them, in the user's unit; classes as codes."""
        column = self.schema.columns[j]
        numbers = values * column.scale + column.center
        numbers = np.exp(numbers) if column.kind is Kind.POSITIVE else numbers
        return numbers if column.decimals is None else np.round(numbers, column.decimals)  # what the scale has lost

    def standardised(self, numbers: NDArray[np.float64], j: int) -> NDArray[np.float64]:
        """The inverse of `numbers`; of positive columns, what is not above zero is as little as can be."""
        column = self.schema.columns[j]
        if column.kind is Kind.POSITIVE:
            numbers = np.log(np.maximum(numbers, max(column.minimum / 1000, np.finfo(float).tiny)))
        return (numbers - column.center) / column.scale

    def log_jacobian(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """``log |d value / d cell|`` of each number (n, D), in the user's unit; zero for categories."""
        out = np.zeros_like(values)
        for j in np.flatnonzero(self.is_numeric):
            column = self.schema.columns[j]
            out[:, j] = -np.log(column.scale)
            if column.kind is Kind.POSITIVE:
                out[:, j] -= values[:, j] * column.scale + column.center
        return out

    def robust(self, encoded: Encoded) -> "TableEncoder":
        """The same for a table with gross errors: far cells have a bounded say in the scale of a column of numbers.

        They count as if they stood ten times the way between the 5% and the 95% quantile beyond these.

        Parameters
        ----------
        encoded : Encoded
            The training table, by this encoder.
        """
        values, observed, _ = encoded
        columns = list(self.schema.columns)
        for j in np.flatnonzero(self.is_numeric & observed.any(0)):
            cells, column = values[observed[:, j], j], columns[j]
            low, high = np.quantile(cells, [0.05, 0.95])
            near = np.clip(cells, low - _FAR * (high - low), high + _FAR * (high - low))
            if high > low and (near != cells).any():
                mean, deviation = near.mean(), near.std()
                moved = float(mean * column.scale)
                columns[j] = replace(column, center=column.center + moved, scale=float(deviation * column.scale))
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

    def _aligned(self, frame: Any, container: str) -> list:
        """X's names in the order of the schema: by name between frames, by position where one of them is an array."""
        names, known = list(frame.columns), list(self.schema.names)
        if "numpy" in (container, self.schema.container):
            if len(names) != len(known):
                raise ValueError(f"X has {len(names)} features, but it is expecting {len(known)} features as input.")
            known = names
        if set(names) != set(known):
            missing, extra = [n for n in known if n not in set(names)], [n for n in names if n not in set(known)]
            raise ValueError(f"The columns of X are not those seen in fit.\nMissing: {missing}\nNot in fit: {extra}")
        return known


def _warn_unseen(name: Any, series: Any, unseen: NDArray[np.bool_]) -> None:
    cells = np.fromiter(listed(series), dtype=object, count=len(series))[unseen]
    some = ", ".join(repr(label(cell)) for cell in list(dict.fromkeys(cells.tolist()))[:3])
    what = f"Column {name!r}: {int(unseen.sum())} cell(s) with categories not seen in fit ({some})"
    warnings.warn(f"{what} are treated as missing.", UserWarning, stacklevel=3)
