"""Containers: what comes back is a frame or an array as the user's own, with its names and index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True)
class ArrayFrame:
    """An array (n, D) with the face of a narwhals frame; its columns ``x0``, ``x1``, ... are arrays."""

    array: NDArray

    @property
    def columns(self) -> list[str]:
        """Name of each column."""
        return [f"x{j}" for j in range(self.array.shape[1])]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows and of columns."""
        return self.array.shape

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.array)

    def get_column(self, name: str) -> NDArray:
        """A view of a column (n,)."""
        return self.array[:, int(name[1:])]


@dataclass(frozen=True)
class PandasFrame:
    """A pandas frame with the face of a narwhals frame; its columns are pandas' own."""

    native: pd.DataFrame

    @property
    def columns(self) -> list:
        """Name of each column."""
        return self.native.columns.tolist()

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows and of columns."""
        return self.native.shape

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.native)

    def get_column(self, name: Any) -> pd.Series:
        """A column (n,)."""
        return self.native[name]


def is_frame(X: Any) -> bool:
    """Whether X is a DataFrame or table that narwhals knows."""
    return isinstance(X, pd.DataFrame) or nw.dependencies.is_into_dataframe(X)


def check_order(X: Any, names: Sequence[Any]) -> None:
    """Raise if a frame has its columns in another order than `names`, and say where."""
    columns = X.columns.tolist() if isinstance(X, pd.DataFrame) else nw.from_native(X, eager_only=True).columns
    if columns == list(names) or set(columns) != set(names):  # what is missing or extra, scikit-learn says itself
        return
    pairs = list(enumerate(zip(columns, names, strict=True)))
    wrong = [f"- position {j}: {got!r}, in fit {want!r}" for j, (got, want) in pairs if got != want]
    more = [f"- and {len(wrong) - 5} more"] if len(wrong) > 5 else []
    raise ValueError(
        "The feature names should match those that were passed during fit.\n"
        "Feature names must be in the same order as they were in fit.\n" + "\n".join(wrong[:5] + more)
    )


def like(X: Any, array: NDArray) -> Any:
    """An array (n, D) of floats in the container of X, with its names and index, or in the shape of an array."""
    if not is_frame(X):
        return array.reshape(X.shape)
    frame = nw.from_native(X, eager_only=True)
    scores = nw.from_dict(dict(zip(frame.columns, array.T, strict=True)), backend=frame.implementation)
    return _indexed(scores.to_native(), frame)


def framed(X: Any, names: Sequence[Any], array: NDArray) -> Any:
    """An array (n, K) as a frame of the sort of X, with its index and columns of these names; as it is for an array."""
    if not is_frame(X):
        return array
    if isinstance(X, pd.DataFrame):
        return pd.DataFrame(array, index=X.index, columns=list(names))
    frame = nw.from_native(X, eager_only=True)
    columns = {str(name): column for name, column in zip(names, array.T, strict=True)}
    return nw.from_dict(columns, backend=frame.implementation).to_native()


def repeated(X: Any, times: int) -> Any:
    """X stacked on itself, (times * n, D)."""
    if not is_frame(X):
        return np.concatenate([X] * times)
    return nw.concat([nw.from_native(X, eager_only=True)] * times).to_native()


def rows_of(X: Any, rows: NDArray) -> Any:
    """Some rows of X, by their positions."""
    return nw.from_native(X, eager_only=True)[rows.tolist()].to_native() if is_frame(X) else X[rows]


def without(X: Any, position: int) -> Any:
    """A frame without the column at a position; an array with NaN in it, so that its others keep their places."""
    if is_frame(X):
        frame = nw.from_native(X, eager_only=True)  # by position: names need not be strings
        return frame[:, [j for j in range(len(frame.columns)) if j != position]].to_native()
    hidden = X.astype(object if X.dtype.kind == "O" else float)
    hidden[:, position] = np.nan
    return hidden


def replaced(frame: nw.DataFrame | ArrayFrame | PandasFrame, columns: Mapping[Any, Any]) -> Any:
    """The user's own frame or array with other columns in place of some of its own; the original stays as it is."""
    if isinstance(frame, nw.DataFrame):
        return frame.with_columns(*(column.alias(name) for name, column in columns.items())).to_native()
    if isinstance(frame, ArrayFrame):
        array = frame.array.copy()
        for name, column in columns.items():
            ArrayFrame(array).get_column(name)[:] = column
        return array
    native = frame.native.copy(deep=False)
    for name, column in columns.items():
        native[name] = column.set_axis(native.index)
    return native


def selected(X: Any, positions: NDArray, flags: Mapping[str, NDArray], wanted: str) -> Any:
    """Some columns of X with flags behind them.

    Parameters
    ----------
    X : table of shape (n, D)
    positions : ndarray of int
        Which columns.
    flags : mapping of name to bool ndarray of shape (n,)
    wanted : {"default", "pandas", "polars"}
        As in `set_output`; "default" is an array.
    """
    if not is_frame(X):
        kept = X[:, positions]
        dtype = kept.dtype if kept.dtype.kind in "biufO" else object  # dates and flags share no other
        return np.column_stack([kept, *(flag.astype(dtype) for flag in flags.values())])
    frame = nw.from_native(X, eager_only=True)
    taken = sorted(set(flags) & set(frame.columns))
    if taken:
        raise ValueError(f"add_indicator would replace columns of X that have the same names: {taken}. Rename them.")
    new = [nw.new_series(name, flag, nw.Boolean, backend=frame.implementation) for name, flag in flags.items()]
    if len(positions) < len(frame.columns):
        frame = frame[:, positions.tolist()]  # by position: names need not be strings
    if new:
        frame = frame.with_columns(
            # an array of pyarrow has no name of its own
            *(nw.from_native(_indexed(one.to_native(), frame), series_only=True).alias(one.name) for one in new)
        )
    if wanted == "pandas":
        return frame.to_pandas()
    return frame.to_polars() if wanted == "polars" else _to_array(frame)


def _indexed(native: Any, frame: nw.DataFrame) -> Any:
    """A frame or series with the index of a pandas frame; as it is where there is no index."""
    index = nw.maybe_get_index(frame)
    return native if index is None else native.set_axis(index, axis=0)


def _to_array(frame: nw.DataFrame) -> NDArray:
    """An array of numbers where all columns are numbers or booleans, of objects otherwise."""
    columns = list(frame.iter_columns())
    if all(series.dtype.is_numeric() or series.dtype == nw.Boolean for series in columns):
        decimal = [series.cast(nw.Float64) if series.dtype.is_decimal() else series for series in columns]
        return np.column_stack([series.to_numpy() for series in decimal])
    out = np.empty(frame.shape, dtype=object)
    for j, series in enumerate(columns):
        out[:, j] = series.to_list()
    return out


def as_columns(X: Any) -> list:
    """The columns of a table, or of an array of any shape as rows, each as a sequence."""
    if isinstance(X, np.ndarray):
        return list(X.reshape(len(X), -1).T)
    return [column.to_list() for column in nw.from_native(X).iter_columns()]
