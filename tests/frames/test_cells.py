"""Reading a column: what is there and where, in every library's own way of saying that something is not."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from vaeimpute.frames.cells import open_table, read_cells
from vaeimpute.frames.schema import Kind


def read(X, missing_values=None):
    """All columns of a table as `Cells`."""
    frame, _ = open_table(X)
    return [read_cells(frame.get_column(name), name, missing_values) for name in frame.columns]


NOTHING = {
    "float64": pd.DataFrame({"a": [1.5, np.nan]}),
    "Float32": pd.DataFrame({"a": pd.array([1.5, None], dtype="Float32")}),
    "Int64": pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}),
    "boolean": pd.DataFrame({"a": pd.array([True, None], dtype="boolean")}),
    "object": pd.DataFrame({"a": ["x", None]}, dtype=object),
    "object of numbers": pd.DataFrame({"a": [Decimal(1), np.nan]}, dtype=object),
    "str": pd.DataFrame({"a": pd.Series(["x", None], dtype="str")}),
    "category": pd.DataFrame({"a": pd.Categorical(["x", None])}),
    "datetime": pd.DataFrame({"a": [pd.Timestamp("2024-01-01"), pd.NaT]}),
    "timedelta": pd.DataFrame({"a": [pd.Timedelta(1, unit="D"), pd.NaT]}),
    "polars null": pl.DataFrame({"a": [1.5, None]}),
    "polars NaN": pl.DataFrame({"a": [1.5, float("nan")]}),
    "polars object": pl.DataFrame({"a": pl.Series(["x", float("nan")], dtype=pl.Object)}),
    "polars date": pl.DataFrame({"a": [dt.date(2024, 1, 1), None]}),
    "pyarrow int": pa.table({"a": [1, None]}),
    "pyarrow text": pa.table({"a": ["x", None]}),
    "pyarrow decimal": pa.table({"a": pa.array([1, None], pa.decimal128(10, 2))}),
    "array": np.array([[1.5], [np.nan]]),
    "list of lists": [["x"], [None]],
}


@pytest.mark.parametrize("X", NOTHING.values(), ids=NOTHING.keys())
def test_every_way_to_say_nothing_is_understood(X):
    (cells,) = read(X)
    assert cells.present.tolist() == [True, False]
    assert len(cells.data) == 2
    assert cells.data.dtype.kind in "fmMO"


@pytest.mark.parametrize(
    ("X", "missing_values", "present"),
    [
        (np.array([[-1, 2]]), -1, [False, True]),
        (np.array([[True, False]]), 1, [True, True]),  # a boolean is no number
        (np.array([["?", "a"]]), "?", [False, True]),
        (np.array([["?", 3]], dtype=object), 3, [True, False]),
        (np.array([[True, 1]], dtype=object), 1, [True, False]),
        (np.array([[1.0, 2.0]]), "?", [True, True]),
    ],
)
def test_missing_may_have_another_name(X, missing_values, present):
    assert [cells.present[0] for cells in read(X, missing_values)] == present


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([True, None, False], Kind.BOOLEAN),
        ([1, 2, 3], Kind.COUNT),
        ([1, -2, 3], Kind.NUMERIC),
        ([Decimal(1), Decimal(2)], Kind.NUMERIC),
        ([1, "b", None], Kind.CATEGORICAL),
        ([dt.time(9), dt.time(10)], Kind.CATEGORICAL),
        ([None, None], Kind.NUMERIC),
    ],
)
def test_objects_are_what_they_hold(column, kind):
    (cells,) = read(pd.DataFrame({"a": column}, dtype=object))
    assert cells.kind is kind


def test_numbers_are_doubles_the_nearest_to_huge_integers():
    top = 2**63 - 1
    for X in (pd.DataFrame({"a": [top]}), pl.DataFrame({"a": [top]}), pa.table({"a": [top]})):
        (cells,) = read(X)
        assert cells.data.tolist() == [float(top)]


def test_only_ordered_categories_are_declared():
    ordered, plain = pd.Categorical(["b"], ["b", "a"], ordered=True), pd.Categorical(["b"], ["b", "a"])
    one, other = read(pd.DataFrame({"ordered": ordered, "plain": plain}))
    assert (one.ordered, one.declared, one.kind) == (True, ("b", "a"), Kind.ORDINAL)
    assert (other.ordered, other.kind) == (False, Kind.CATEGORICAL)


def test_arrays_have_columns_by_number():
    frame, container = open_table(np.zeros((2, 3), dtype=">f4"))
    assert (frame.columns, container) == (["x0", "x1", "x2"], "numpy")
    assert [open_table(X)[1] for X in (pd.DataFrame({"a": [1]}), pl.DataFrame({"a": [1]}), pa.table({"a": [1]}))] == (
        ["pandas", "polars", "pyarrow"]
    )


REFUSED = {
    "1-D": (np.zeros(3), ValueError, "Reshape your data"),
    "complex": (np.zeros((2, 2), complex), ValueError, "Complex data not supported"),
    "complex frame": (pd.DataFrame({"z": [1j]}), ValueError, "Complex data not supported: column 'z'"),
    "no rows": (np.zeros((0, 3)), ValueError, r"Found array with 0 sample\(s\) .* minimum of 1 is required"),
    "no columns": (np.zeros((3, 0)), ValueError, r"0 feature\(s\) \(shape=\(3, 0\)\) while a minimum of 1 is required"),
    "empty frame": (pd.DataFrame({"a": []}), ValueError, r"0 sample\(s\)"),
    "inf": (
        pd.DataFrame({"a": [1, np.inf, -np.inf]}),
        ValueError,
        r"Column 'a': 2 values are infinity \(first: inf at row 1\)",
    ),
    "inf object": (np.array([[1], [-np.inf]], dtype=object), ValueError, "Column 'x0': 1 value is infinity"),
    "dict": (
        np.array([[{"a": 1}]], dtype=object),
        TypeError,
        "argument must be a string or a real number.*dict.*'x0', row 0",
    ),
    "list": (pl.DataFrame({"a": [[1]]}), TypeError, r"Column 'a' has dtype List\(Int64\)"),
    "struct": (pa.table({"a": [{"b": 1}]}), TypeError, "Column 'a' has dtype struct"),
    "dates as objects": (pd.DataFrame({"a": [dt.date(2020, 1, 1)]}), TypeError, "'date'.*pandas.to_datetime"),
    "duplicates": (pd.DataFrame([[1, 2]], columns=["a", "a"]), ValueError, "unique column names"),
    "lazy": (pl.LazyFrame({"a": [1]}), TypeError, "collect"),
}


@pytest.mark.parametrize(("X", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_says_why(X, error, message):
    with pytest.raises(error, match=message):
        read(X)


def test_sparse_is_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(ValueError, match="Sparse data was passed, but dense"):
        read(sparse.csr_matrix(np.eye(2)))
