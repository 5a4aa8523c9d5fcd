"""One table in every container, with a column of every kind: what goes into an estimator has to come out of it."""

import datetime as dt

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

N = 30
_RNG = np.random.default_rng(0)
FACTOR = _RNG.normal(size=N)
MISSING = _RNG.random((N, 6)) < 0.25


def _incomplete(cells, j):
    return [None if missing else cell for cell, missing in zip(cells, MISSING[:, j], strict=True)]


# One factor seen through columns of every kind, as plain Python values.
REAL = _incomplete((FACTOR * 3 + 10).tolist(), 0)
WHOLE = _incomplete(np.rint(np.exp(FACTOR) * 5).astype(int).tolist(), 1)
FLAG = _incomplete((FACTOR > 0).tolist(), 2)
WORD = _incomplete([("low", "mid", "high")[i] for i in np.digitize(FACTOR, [-0.5, 0.5])], 3)
DAY = _incomplete([dt.datetime(2024, 1, 1) + dt.timedelta(hours=round(100 * f)) for f in FACTOR], 4)
SPAN = _incomplete([dt.timedelta(minutes=round(60 * (f + 5))) for f in FACTOR], 5)
CELLS = {"real": REAL, "whole": WHOLE, "flag": FLAG, "word": WORD, "day": DAY, "span": SPAN}

GOOD = pd.DataFrame({"a": REAL, "b": WHOLE, "c": WORD})


def pandas_numpy():
    X = pd.DataFrame({"real": pd.Series(REAL, dtype=float), "flag": pd.Series(FLAG, dtype=object)})
    X["real32"] = X["real"].astype("float32")
    X["word"] = pd.Series(WORD, dtype="str")
    X["object"] = pd.Series(WORD, dtype=object)
    X["category"] = pd.Series(WORD, dtype="category")
    X["ordered"] = pd.Categorical(WORD, ["low", "mid", "high"], ordered=True)
    X["day"] = pd.Series(DAY, dtype="datetime64[us]")
    X["tz"] = X["day"].dt.tz_localize("Europe/Paris")
    X["span"] = pd.Series(SPAN, dtype="timedelta64[us]")
    return X.set_axis(np.arange(N) // 2, axis=0)  # an index that repeats


def pandas_nullable():
    return pd.DataFrame(
        {
            "real": pd.array(REAL, dtype="Float64"),
            "whole": pd.array(WHOLE, dtype="Int64"),
            "small": pd.array(WHOLE, dtype="UInt8"),
            "flag": pd.array(FLAG, dtype="boolean"),
            "word": pd.array(WORD, dtype="string[pyarrow]"),
            "python": pd.array(WORD, dtype="string[python]"),
        },
        index=pd.MultiIndex.from_product([range(N // 2), ["a", "b"]]),
    )


def arrow():
    return pa.table(CELLS).append_column("code", pa.array(WORD).dictionary_encode())


def pandas_arrow():
    return arrow().drop_columns("code").to_pandas(types_mapper=pd.ArrowDtype)


def polars():
    words = pl.Series(WORD)
    return pl.DataFrame(CELLS).with_columns(
        category=words.cast(pl.Categorical),
        enum=words.cast(pl.Enum(["low", "mid", "high"])),
        small=pl.Series(WHOLE).cast(pl.UInt8),
    )


def array(dtype=float):
    return np.array([REAL, WHOLE], dtype=dtype).T


def objects():
    return np.array([REAL, WORD], dtype=object).T


TABLES = [pandas_numpy, pandas_nullable, pandas_arrow, polars, arrow, array, objects]


def columns(X):
    """Cells as lists of (type, text) per column, so that -0.0 and 0.0, 1 and True differ; None where missing."""
    if isinstance(X, np.ndarray):
        lists = {str(j): column.tolist() for j, column in enumerate(X.T)}
    else:
        lists = {series.name: series.to_list() for series in nw.from_native(X, eager_only=True).iter_columns()}
    return {name: [None if pd.isna(c) else (type(c), repr(c)) for c in cells] for name, cells in lists.items()}


def dtypes(X):
    return X.dtypes.to_dict() if isinstance(X, pd.DataFrame) else getattr(X, "schema", None) or X.dtype


def rows_of(X, rows):
    """Some rows of a table, by a slice."""
    return X.slice(rows.start, rows.stop - rows.start) if isinstance(X, pa.Table) else X[rows]


def assert_completes(filled, X):
    """Same container, index, columns, dtypes; every missing cell imputed, and nothing else touched."""
    assert type(filled) is type(X)
    assert dtypes(filled) == dtypes(X)
    if isinstance(X, pd.DataFrame):
        assert filled.index.equals(X.index)
    got, want = columns(filled), columns(X)
    assert list(got) == list(want)
    for name in want:
        assert None not in got[name], name
        assert [g for g, w in zip(got[name], want[name], strict=True) if w] == [w for w in want[name] if w], name
