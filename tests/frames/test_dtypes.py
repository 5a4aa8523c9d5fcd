"""Dtypes as text and back, and decoded cells as columns of the user's own dtype."""

import datetime as dt
import json
from decimal import Decimal

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from vaeimpute.frames.dtypes import (
    as_objects,
    dtype_family,
    dtype_text,
    label,
    make_series,
    native_dtype,
    revive,
    widen,
)

ARROW = [
    *(pa.float32(), pa.float64(), pa.int8(), pa.uint64(), pa.bool_(), pa.string(), pa.large_string(), pa.null()),
    *(pa.timestamp("ns"), pa.timestamp("us", "Europe/Paris"), pa.date32(), pa.date64(), pa.duration("ms")),
    *(pa.decimal128(10, 2), pa.dictionary(pa.int8(), pa.large_string(), ordered=True)),
]
DTYPES = {
    "pandas": [
        *map(pd.api.types.pandas_dtype, ["float32", "Int64", "UInt8", "Float32", "bool", "boolean", "object", "str"]),
        *map(pd.api.types.pandas_dtype, ["string[python]", "string[pyarrow]", "datetime64[us]", "datetime64[s, UTC]"]),
        *map(pd.api.types.pandas_dtype, ["datetime64[ns, Europe/Paris]", "timedelta64[ms]"]),
        pd.CategoricalDtype(["it's", 'a "b"'], ordered=True),
        pd.CategoricalDtype([3, 1, 2]),
        *map(pd.ArrowDtype, ARROW),
    ],
    "polars": [
        *(pl.Float32(), pl.Int8(), pl.UInt64(), pl.Boolean(), pl.String(), pl.Categorical(), pl.Enum(["b", "a'"])),
        *(pl.Datetime("ns"), pl.Datetime("us", "Europe/Paris"), pl.Date(), pl.Duration("ms"), pl.Decimal(10, 2)),
    ],
    "pyarrow": ARROW,
}


@pytest.mark.parametrize(("container", "dtype"), [(name, dtype) for name, all_ in DTYPES.items() for dtype in all_])
def test_dtype_survives_text(container, dtype):
    assert revive(json.loads(json.dumps(dtype_text(dtype))), container) == dtype


@pytest.mark.parametrize(("container", "dtype"), [(name, dtype) for name, all_ in DTYPES.items() for dtype in all_])
def test_a_column_of_any_dtype_may_be_all_missing(container, dtype):
    if str(dtype) in ("bool", "float32") and container == "pandas":
        values = np.zeros(2)  # a plain boolean has no missing value, and a plain float a NaN
        assert native_dtype(make_series(values, dtype, container, 2, integer=False)) == dtype
    else:
        series = make_series(None, dtype, container, 2, integer=False)
        assert native_dtype(series) == dtype
        series = series if isinstance(series, nw.Series) else nw.from_native(series, series_only=True)
        assert series.is_null().to_list() == [True, True]


@pytest.mark.parametrize(
    ("dtype", "family"),
    [
        ("int64", "integer"),
        ("UInt8", "integer"),
        ("ArrowDtype(uint64)", "integer"),
        ("Float32", "float"),
        ("double", "float"),
        ("ArrowDtype(decimal128(10, 2))", "float"),
        ("boolean", "boolean"),
        ("datetime64[s, UTC]", "time"),
        ("Duration(time_unit='ms')", "time"),
        ("date32[day]", "time"),
        ("string[pyarrow]", "categories"),
        ("large_string", "categories"),
        ("dictionary<values=string, indices=int8, ordered=0>", "categories"),
        ("object", "object"),
        ("null", "nothing"),
        ("struct<b: int64>", None),
        ("List(Int64)", None),
        ("complex128", None),
    ],
)
def test_every_dtype_belongs_to_one_family_or_to_none(dtype, family):
    assert dtype_family(dtype) == family


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("Int8", -128, 127), ("UInt8", 0, 255), ("UInt64", 0, 2**64 - 2048)]
)
def test_what_an_integer_cannot_hold_is_held_at_its_limit(dtype, low, high):
    values = np.array([-1e300, 0.6, 1e300])
    series = make_series(values, pd.api.types.pandas_dtype(dtype), "pandas", 3, integer=True)
    assert series.to_list() == [low, 1, high]


@pytest.mark.parametrize("value", ["a", 1, 1.5, True, np.int64(3), np.str_("b"), pd.Interval(0, 1)])
def test_labels_are_json(value):
    assert json.loads(json.dumps(label(value))) == label(value)
    assert label(label(value)) == label(value)


@pytest.mark.parametrize("dtype", [pd.CategoricalDtype(["a"]), pl.Enum(["a"])])
def test_a_closed_list_of_categories_is_widened_by_what_it_lacks_only(dtype):
    library = pl.Series if isinstance(dtype, pl.Enum) else pd.Series
    series = library(["a", None], dtype=dtype)
    series = series if library is pd.Series else nw.from_native(series, series_only=True)
    assert native_dtype(widen(series, np.array(["a"], dtype=object))) == dtype
    wide = widen(series, np.array(["a", "c", "b", "c"], dtype=object))
    assert list(native_dtype(wide).categories) == ["a", "c", "b"]
    assert wide.to_list()[0] == "a"


def test_objects_are_of_the_columns_own_types():
    series = pd.Series([Decimal("1.25"), None], dtype=object)
    assert as_objects(np.array([0.0, 2.0]), series, np.array([False, True])).tolist() == [
        Decimal("0.00"),
        Decimal("2.00"),
    ]
    hours = pd.Series([dt.time(9), None], dtype=object)
    decoded = np.array(["09:00:00", "17:00:00"], dtype=object)
    assert as_objects(decoded, hours, np.array([False, True])).tolist() == [dt.time(9), "17:00:00"]
