"""Laws of the table encoder: what went in comes out, bit for bit, in the user's container and dtypes."""

import datetime as dt
import json
import warnings
from decimal import Decimal

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeimpute.frames.codecs import CODECS
from vaeimpute.frames.encoder import TableEncoder
from vaeimpute.frames.schema import Kind

DAYS = [dt.datetime(2020, 1, 1), None, dt.datetime(2021, 3, 1, 12, 30)]
WORDS, FLAGS, WHOLE, REAL = ["a", None, "b"], [True, None, False], [1, None, 3], [1.5, None, -0.0]


def arrow_columns():
    words, days = pa.array(WORDS), pa.array(DAYS, pa.timestamp("us"))
    ordered = pa.DictionaryArray.from_arrays(pa.array([0, None, 1]), pa.array(["b", "a"]), ordered=True)
    return {
        "int": pa.array(WHOLE),
        "uint8": pa.array(WHOLE, pa.uint8()),
        "float": pa.array(REAL, pa.float32()),
        "decimal": pa.array(WHOLE, pa.decimal128(10, 2)),
        "bool": pa.array(FLAGS),
        "string": words,
        "large": words.cast(pa.large_string()),
        "dictionary": words.dictionary_encode(),
        "ordered": ordered,
        "timestamp": days,
        "ns": days.cast(pa.timestamp("ns")),
        "tz": days.cast(pa.timestamp("us", "Europe/Paris")),
        "date": days.cast(pa.date32(), safe=False),
        "date64": days.cast(pa.date64(), safe=False),
        "duration": pa.array([5, None, 70_000], pa.duration("ms")),
    }


def pandas_columns():
    days = pd.Series(DAYS, dtype="datetime64[us]")
    return {
        "float64": pd.Series(REAL),
        "float32": pd.Series(REAL, dtype="float32"),
        "Float32": pd.Series(REAL, dtype="Float32"),
        "Int64": pd.Series(WHOLE, dtype="Int64"),
        "UInt8": pd.Series(WHOLE, dtype="UInt8"),
        "boolean": pd.Series(FLAGS, dtype="boolean"),
        "bool object": pd.Series([True, np.nan, False], dtype=object),
        "int object": pd.Series(WHOLE, dtype=object),
        "mixed object": pd.Series([1, None, "b"], dtype=object),
        "text object": pd.Series(WORDS, dtype=object),
        "str": pd.Series(WORDS, dtype="str"),
        "string[python]": pd.Series(WORDS, dtype="string[python]"),
        "string[pyarrow]": pd.Series(WORDS, dtype="string[pyarrow]"),
        "category": pd.Series(WORDS, dtype="category"),
        "int category": pd.Series(WHOLE, dtype="Int64").astype("category"),
        "ordered": pd.Series(pd.Categorical(WORDS, ["b", "a", "z"], ordered=True)),
        "interval": pd.Series(pd.cut([1.0, np.nan, 3.0], 2)),
        "datetime64[us]": days,
        "datetime64[ns]": days.astype("datetime64[ns]"),
        "datetime64[s]": days.astype("datetime64[s]"),
        "tz": days.dt.tz_localize("Europe/Paris"),
        "timedelta": days - days[0],
        **{f"arrow {name}": pd.Series(pd.array(array, dtype=pd.ArrowDtype(array.type))) for name, array in ARROWS},
    }


def polars_columns():
    days = pl.Series(DAYS, dtype=pl.Datetime("us"))
    return {
        "float": pl.Series([1.5, float("nan"), -0.0]),
        "null float": pl.Series(REAL, dtype=pl.Float32),
        "int": pl.Series(WHOLE),
        "uint8": pl.Series(WHOLE, dtype=pl.UInt8),
        "decimal": pl.Series(WHOLE, dtype=pl.Decimal(10, 2)),
        "bool": pl.Series(FLAGS),
        "string": pl.Series(WORDS),
        "categorical": pl.Series(WORDS, dtype=pl.Categorical),
        "enum": pl.Series(WORDS, dtype=pl.Enum(["b", "a", "z"])),
        "object": pl.Series([1, None, "b"], dtype=pl.Object),
        "datetime": days,
        "ns": days.cast(pl.Datetime("ns")),
        "tz": days.dt.replace_time_zone("Europe/Paris"),
        "date": days.cast(pl.Date),
        "duration": days - days[0],
    }


ARROWS = list(arrow_columns().items())
TABLES = {
    **{f"pandas {name}": pd.DataFrame({"c": c.set_axis([7, 7, 2])}) for name, c in pandas_columns().items()},
    **{f"polars {name}": pl.DataFrame({"c": c}) for name, c in polars_columns().items()},
    **{f"pyarrow {name}": pa.table({"c": c}) for name, c in ARROWS},
    "numpy float64": np.array([REAL], dtype=np.float64).T,
    "numpy float32": np.array([REAL], dtype=np.float32).T,
    "numpy object": np.array([[1, None, 3], ["a", "b", None]], dtype=object).T,
    "numpy times": np.array([DAYS], dtype="M8[s]").T,
}


def dtypes(table):
    return table.dtypes.to_dict() if isinstance(table, pd.DataFrame) else getattr(table, "schema", None) or table.dtype


def cells(table):
    """Columns as lists of (type, text): -0.0 and 0.0, 1 and True, differ."""
    if isinstance(table, np.ndarray):
        return [[(type(cell), repr(cell)) for cell in column] for column in table.T]
    return [[(type(c), repr(c)) for c in column.to_list()] for column in nw.from_native(table).iter_columns()]


@pytest.fixture(params=TABLES.values(), ids=TABLES.keys())
def table(request):
    return request.param


def test_fill_changes_hidden_cells_only(table):
    before = cells(table)
    encoder = TableEncoder.fit(table)
    values, observed = encoder.encode(table)
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert (values[~observed] == 0).all()
    filled = encoder.fill(table, values, observed)
    assert type(filled) is type(table)
    assert dtypes(filled) == dtypes(table)
    for j, (old, new) in enumerate(zip(before, cells(filled), strict=True)):
        assert [new[i] for i in np.flatnonzero(observed[:, j])] == [old[i] for i in np.flatnonzero(observed[:, j])]
    assert encoder.encode(filled)[1].all()
    assert cells(table) == before
    if isinstance(table, pd.DataFrame):
        assert filled.index.tolist() == [7, 7, 2]


def test_hidden_cells_come_back_from_their_code(table):
    """Encode, hide and decode is the identity on what is present."""
    encoder = TableEncoder.fit(table)
    values, observed = encoder.encode(table)
    again, _ = encoder.encode(encoder.fill(table, values, np.zeros_like(observed)))
    np.testing.assert_allclose(again[observed], values[observed], rtol=1e-6, atol=1e-12)


def test_build_gives_the_training_dtypes_even_after_json(table):
    encoder = TableEncoder.fit(table)
    revived = TableEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert revived == encoder
    values, observed = encoder.encode(table)
    rows = revived.build(values[[0, 2, 2, 0]])
    assert type(rows) is type(table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # intervals come back as their text
        again, _ = encoder.encode(rows)
    np.testing.assert_allclose(again[:2][observed[[0, 2]]], values[[0, 2]][observed[[0, 2]]], rtol=1e-6, atol=1e-12)
    if "interval" not in str(dtypes(table)):
        assert dtypes(rows) == dtypes(table)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_infinity=False), min_size=1, max_size=20), st.floats(-1e9, 1e9))
def test_numbers_of_any_size(numbers, value):
    X = np.array(numbers)[:, None]
    encoder = TableEncoder.fit(X)
    values, observed = encoder.encode(X)
    assert np.isfinite(values).all()
    assert np.abs(values).max() <= np.sqrt(len(X)) * (1 + 1e-6)
    np.testing.assert_array_equal(observed, ~np.isnan(X))
    np.testing.assert_array_equal(encoder.fill(X, values, observed)[observed], X[observed])
    new = encoder.build(np.array([[value]]))[0, 0]
    low, high = (np.nanmin(X), np.nanmax(X)) if observed.any() else (0, 0)
    reach = high / 2 - low / 2 if observed.sum() >= 20 else 0  # of many numbers, others may lie beyond
    assert low - reach <= new <= high + reach


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("kind", ["datetime64", "timedelta64"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_times_come_back_to_the_tick(kind, unit, data):
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    first = data.draw(st.integers(-(10**9), 2 * 10**9)) * per_second
    ticks = first + np.array(data.draw(st.lists(st.integers(0, 10**5 * per_second), min_size=1, max_size=9)))
    X = pd.DataFrame({"t": ticks.astype(f"{kind}[{unit}]")})
    encoder = TableEncoder.fit(X)
    values, observed = encoder.encode(X)
    back = encoder.fill(X, values, ~observed)["t"].to_numpy().astype(np.int64)
    assert np.abs(back - ticks).max() <= (100 if unit == "ns" else 0)  # 1e14 ns / 2**53 is far less than a tick


def test_whole_days_stay_whole_days():
    X = pl.DataFrame({"d": pl.Series(["2024-01-01", "2024-01-04", None]).str.to_datetime()})
    encoder = TableEncoder.fit(X)
    filled = encoder.fill(X, *encoder.encode(X))["d"]
    assert encoder.schema.columns[0].resolution == 86400
    assert filled[2].hour == 0


@pytest.mark.parametrize("dtype", [">f8", ">f4", "datetime64[D]", "datetime64[h]", "timedelta64[m]"])
def test_arrays_that_pandas_does_not_hold_come_back_as_they_were(dtype):
    X = np.arange(12).reshape(4, 3).astype(dtype)
    X[1, 2] = np.nan if X.dtype.kind == "f" else "NaT"
    encoder = TableEncoder.fit(X)
    values, observed = encoder.encode(X)
    filled = encoder.fill(X, values, observed)
    assert filled.dtype == X.dtype
    np.testing.assert_array_equal(filled[observed], X[observed])
    assert filled[1, 2].astype(float) == pytest.approx(7)  # the mean of 2, 8 and 11


def test_objects_are_filled_with_objects_of_their_column():
    X = pd.DataFrame(
        {
            "price": [Decimal("1.50"), Decimal("2.25"), None, Decimal("3")],
            "at": [dt.time(9), dt.time(9), None, dt.time(17)],
            "key": [b"a", None, b"a", b"b"],
            "wide": [Decimal("1e30"), Decimal("1e-9"), None, Decimal(0)],
        },
        dtype=object,
    )
    encoder = TableEncoder.fit(X)
    values, observed = encoder.encode(X)
    filled = encoder.fill(X, values, observed)
    assert filled["price"].tolist() == [Decimal("1.50"), Decimal("2.25"), Decimal("2.25"), Decimal("3")]
    assert filled["at"].tolist() == [dt.time(9), dt.time(9), dt.time(9), dt.time(17)]
    assert filled["key"].tolist() == [b"a", b"a", b"a", b"b"]
    assert set(map(type, filled["wide"])) == {Decimal}


def test_kinds_of_a_mixed_frame():
    X = pd.DataFrame(
        {
            "real": [0.5, 1.0],
            "count": [0, 3],
            "signed": [-1, 3],
            "flag": [True, False],
            "word": ["a", "b"],
            "size": pd.Categorical(["S", "L"], ["S", "M", "L"], ordered=True),
            "day": pd.to_datetime(["2024-01-01", "2024-01-02"]),
        }
    )
    schema = TableEncoder.fit(X).schema
    assert [str(kind) for kind in schema.kinds] == (
        ["numeric", "count", "numeric", "boolean", "categorical", "ordinal", "datetime"]
    )
    assert schema.columns[5].levels == ("S", "M", "L")
    assert TableEncoder.fit(X, kinds={"count": "categorical"}).schema.columns[1].levels == (0, 3)
    assert set(CODECS) == set(Kind)


@pytest.mark.parametrize("kind", ["numeric", "count", "categorical", "ordinal", "boolean"])
def test_override_keeps_the_dtype(kind):
    X = pd.DataFrame({"a": pd.Series([0, 1, None, 1], dtype="Int64")})
    encoder = TableEncoder.fit(X, kinds={"a": kind})
    values, observed = encoder.encode(X)
    filled = encoder.fill(X, values + 0.4, observed)
    assert filled["a"].dtype == "Int64"
    assert filled["a"].tolist()[2] in (0, 1)
    assert filled["a"].tolist()[:2] == [0, 1]


def test_integers_are_rounded_and_everything_stays_in_range():
    X = pd.DataFrame({"n": pd.Series([1, 4, None, None], dtype="Int64"), "x": [1.0, 4.0, None, None]})
    encoder = TableEncoder.fit(X)
    values, observed = encoder.encode(X)
    values[2:] = [[0.1, 0.1], [50.0, 50.0]]
    filled = encoder.fill(X, values, observed)
    assert filled["n"].tolist() == [1, 4, 3, 4]
    assert filled["x"].tolist() == pytest.approx([1, 4, 2.65, 4])


def test_positive_numbers_stay_positive():
    X = np.exp(np.random.default_rng(0).normal(0, 2, (500, 1)))
    encoder = TableEncoder.fit(X)
    assert encoder.schema.kinds == (Kind.POSITIVE,)
    values, _ = encoder.encode(X)
    np.testing.assert_allclose(encoder.build(values), X)
    assert encoder.build(np.full((1, 1), -99.0))[0, 0] == X.min() / 2
    strange, seen = encoder.encode(np.array([[0.0], [-5.0]]))  # not an error: a strange cell
    assert seen.all()
    assert (strange < values.min()).all()


def test_unseen_level_is_missing_to_the_model_but_stays_the_users():
    train = pd.DataFrame({"city": ["Oslo", "Rome", "Rome"]})
    new = pd.DataFrame({"city": ["Pisa", None, "Oslo"]}, dtype=object)
    encoder = TableEncoder.fit(train)
    with pytest.warns(UserWarning, match="Column 'city': 1 cell.*not seen in fit \\('Pisa'\\)"):
        values, observed = encoder.encode(new)
    assert observed.ravel().tolist() == [False, False, True]
    assert encoder.fill(new, values, observed)["city"].tolist() == ["Pisa", "Oslo", "Oslo"]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_hidden_cell_may_need_a_category_that_this_frame_does_not_declare(library):
    def frame(words, levels):
        if library == "pandas":
            return pd.DataFrame({"c": pd.Categorical(words, levels)})
        return pl.DataFrame({"c": pl.Series(words, dtype=pl.Enum(levels))})

    encoder = TableEncoder.fit(frame(["a", "b"], ["a", "b"]))
    new = frame(["a", None], ["a"])
    values, observed = encoder.encode(new)
    assert dtypes(encoder.fill(new, values, observed)) == dtypes(new)
    filled = encoder.fill(new, values + 1, observed)
    assert nw.from_native(filled)["c"].to_list() == ["a", "b"]


def test_columns_that_hold_nothing():
    X = pd.DataFrame(
        {"x": [np.nan] * 2, "n": pd.Series([None] * 2, dtype="Int64"), "c": pd.Series([None] * 2, dtype="str")}
    )
    X["o"], X["t"], X["b"] = pd.Series([None] * 2, dtype=object), pd.NaT, pd.Series([None] * 2, dtype="boolean")
    encoder = TableEncoder.fit(X)
    assert [column.n_observed for column in encoder.schema.columns] == [0] * 6
    values, observed = encoder.encode(X)
    filled = encoder.fill(X, values, observed)
    assert dtypes(filled) == dtypes(X)
    assert (filled[["x", "n", "o"]] == 0).all(axis=None)
    assert filled[["c", "t", "b"]].isna().all(axis=None)
    assert dtypes(encoder.build(values)) == dtypes(X)


def test_all_missing_batch_takes_the_training_dtype_where_its_own_cannot_hold_the_answer():
    encoder = TableEncoder.fit(pd.DataFrame({"c": ["a", "b"], "n": [1.0, 2.0]}))
    new = pd.DataFrame({"c": [np.nan], "n": [None]})
    filled = encoder.fill(new, *encoder.encode(new))
    assert filled.iloc[0].tolist() == ["a", 1.5]
    encoder = TableEncoder.fit(pl.DataFrame({"c": ["a", "b"], "n": [1.0, 2.0]}))
    new = pl.DataFrame({"c": [None], "n": [None]})
    assert encoder.fill(new, *encoder.encode(new)).rows() == [("a", 1.5)]


def test_constant_column():
    X = pd.DataFrame({"x": [0.1, 0.1, np.nan], "c": ["a", "a", None]})
    encoder = TableEncoder.fit(X)
    assert encoder.schema.columns[0].scale == 1
    filled = encoder.fill(X, np.full((3, 2), 9.0), encoder.encode(X)[1])
    assert filled.iloc[2].tolist() == [0.1, "a"]


@pytest.mark.parametrize("missing", [-1, "?"])
def test_missing_values_may_have_another_name(missing):
    X = pd.DataFrame({"n": [-1, 2, 4], "c": ["?", "a", "b"], "b": [True, False, True], "o": ["?", 3, 5]})
    X["k"] = pd.Categorical(["?", "a", "a"])
    encoder = TableEncoder.fit(X, missing_values=missing)
    values, observed = encoder.encode(X)
    assert observed[0].tolist() == (
        [False, True, True, True, True] if missing == -1 else [True, False, True, False, False]
    )
    filled = encoder.fill(X, values, observed)
    assert dtypes(filled) == dtypes(X)
    assert encoder.encode(filled)[1].all()
    assert TableEncoder.from_json(encoder.to_json()) == encoder


def test_integer_array_is_filled_in_place_of_its_sentinel_and_left_alone():
    X = np.array([[1, -1], [3, 5]])
    X.flags.writeable = False
    encoder = TableEncoder.fit(X, missing_values=-1)
    filled = encoder.fill(X, *encoder.encode(X))
    assert filled.dtype == X.dtype
    assert filled.tolist() == [[1, 5], [3, 5]]
    assert X[0, 1] == -1


def test_columns_are_matched_by_name():
    X = pd.DataFrame({"a": [1.0, np.nan], "b": ["u", "v"]})
    encoder = TableEncoder.fit(X)
    values, observed = encoder.encode(X)
    turned = pl.from_pandas(X[["b", "a"]])
    np.testing.assert_array_equal(encoder.encode(turned)[0], values)
    assert encoder.fill(turned, values, observed).columns == ["b", "a"]
    with pytest.raises(ValueError, match=r"(?s)not those seen in fit.*Missing: \['a'\].*Not in fit: \['z'\]"):
        encoder.encode(X.rename(columns={"a": "z"}))
    with pytest.raises(ValueError, match="X has 1 features, but it is expecting 2 features"):
        encoder.encode(np.zeros((3, 1)))


def test_column_names_need_not_be_text():
    X = pd.DataFrame({0: [1.0, np.nan], 1: ["u", None]})
    encoder = TableEncoder.from_json(json.loads(json.dumps(TableEncoder.fit(X).to_json())))
    filled = encoder.fill(X, *encoder.encode(X))
    assert filled.columns.tolist() == [0, 1]
    assert filled.loc[1].tolist() == [1.0, "u"]


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
        TableEncoder.fit(X)


def test_sparse_is_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(ValueError, match="Sparse data was passed, but dense"):
        TableEncoder.fit(sparse.csr_matrix(np.eye(2)))


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        (
            [2, -1.0, -4],
            "count",
            r"'a': kind 'count' needs non-negative integers, but 2 values are not \(first: -1.0 at row 1",
        ),
        ([2, 1.5], "count", "1 value is not .*1.5 at row 1.*'numeric'"),
        ([1.0, 0.0], "positive", "needs numbers above zero"),
        (
            ["u", "v"],
            "numeric",
            r"needs numbers, but 2 values are not \(first: 'u' at row 0; dtype str\).*'categorical'",
        ),
        (["u", "v"], "datetime", "needs dates, times or durations.*pandas.to_datetime"),
        (DAYS, "categorical", "needs text, categories, numbers or booleans.*Convert it to text"),
        (["u", "v"], "ordinal", "needs an order.*ordered category"),
        (["u", "v", "w"], "boolean", "at most two levels, but got 3"),
    ],
)
def test_a_kind_that_does_not_fit_says_why(column, kind, message):
    with pytest.raises(ValueError, match=message):
        TableEncoder.fit(pd.DataFrame({"a": column}), kinds={"a": kind})


@pytest.mark.parametrize(("train", "new"), [([1.0], ["u"]), (["u"], [1.0]), (DAYS[:1], [1.0]), ([1.0], DAYS[:1])])
def test_another_dtype_in_transform_is_refused(train, new):
    encoder = TableEncoder.fit(pd.DataFrame({"a": train}))
    with pytest.raises(ValueError, match=r"Column 'a': .* needs .* In fit its dtype was"):
        encoder.encode(pd.DataFrame({"a": new}))


def test_huge_integers_do_not_overflow():
    top = 2**63 - 1
    X = pd.DataFrame({"a": pd.Series([top, None, top], dtype="Int64")})
    encoder = TableEncoder.fit(X)
    filled = encoder.fill(X, *encoder.encode(X))["a"].tolist()
    assert filled[0] == top
    assert top - 1024 <= filled[1] <= top


def test_a_far_new_cell_is_strange_but_finite():
    encoder = TableEncoder.fit(np.array([[0.0], [1e-300]]))
    values, _ = encoder.encode(np.array([[1e308], [-1e308]]))
    assert values.ravel().tolist() == [1e6, -1e6]


def test_complete_table_comes_back_as_a_new_table(table):
    encoder = TableEncoder.fit(table)
    filled = encoder.fill(table, *encoder.encode(table))
    again = encoder.fill(filled, *encoder.encode(filled))
    assert cells(again) == cells(filled)
    assert again is not filled or isinstance(filled, pa.Table)  # which nobody can change


def test_real_numbers_may_lie_beyond_those_that_were_seen():
    """Unless a value repeats at the end of the range, or zero is in between; counts may not."""
    x = np.linspace(1.0, 5.0, 40)
    table = pd.DataFrame({"real": x, "limited": np.minimum(x, 4), "count": np.arange(40), "signed": x - 3})
    encoder = TableEncoder.fit(table)
    far = np.array([[99.0] * 4, [-99.0] * 4])
    np.testing.assert_allclose(encoder.build(far), [[7, 4, 39, 4], [0, 0, 0, -4]])
    observed = encoder.encode(table)[1]
    assert encoder.fill(table, np.full(table.shape, 99.0), observed).equals(table)
