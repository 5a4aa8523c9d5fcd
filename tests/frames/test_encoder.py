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

from vaeimpute.frames.encoder import TableEncoder

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


def filled_by(encoder, X):
    """X with its missing cells as an encoder alone fills them: numbers at the mean, categories at the first."""
    encoded = encoder.encode(X)
    return encoder.fill(X, encoded.values, encoded.missing)


@pytest.fixture(params=TABLES.values(), ids=TABLES.keys())
def table(request):
    return request.param


def test_fill_changes_hidden_cells_only(table):
    before = cells(table)
    encoder = TableEncoder.fit(table)
    values, observed, _ = encoder.encode(table)
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert (values[~observed] == 0).all()
    filled = encoder.fill(table, values, ~observed)
    assert type(filled) is type(table)
    assert dtypes(filled) == dtypes(table)
    for j, (old, new) in enumerate(zip(before, cells(filled), strict=True)):
        assert [new[i] for i in np.flatnonzero(observed[:, j])] == [old[i] for i in np.flatnonzero(observed[:, j])]
    assert encoder.encode(filled).observed.all()
    assert cells(table) == before
    if isinstance(table, pd.DataFrame):
        assert filled.index.tolist() == [7, 7, 2]


def test_hidden_cells_come_back_from_their_code(table):
    """Encode, hide and decode is the identity on what is present."""
    encoder = TableEncoder.fit(table)
    values, observed, _ = encoder.encode(table)
    again, *_ = encoder.encode(encoder.fill(table, values, np.ones_like(observed)))
    np.testing.assert_allclose(again[observed], values[observed], rtol=1e-6, atol=1e-12)


def test_build_gives_the_training_dtypes_even_after_json(table):
    encoder = TableEncoder.fit(table)
    revived = TableEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert revived == encoder
    values, observed, _ = encoder.encode(table)
    rows = revived.build(values[[0, 2, 2, 0]])
    assert type(rows) is type(table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # intervals come back as their text
        again, *_ = encoder.encode(rows)
    np.testing.assert_allclose(again[:2][observed[[0, 2]]], values[[0, 2]][observed[[0, 2]]], rtol=1e-6, atol=1e-12)
    if "interval" not in str(dtypes(table)):
        assert dtypes(rows) == dtypes(table)


@pytest.mark.parametrize("dtype", [">f8", ">f4", "datetime64[D]", "datetime64[h]", "timedelta64[m]"])
def test_arrays_that_pandas_does_not_hold_come_back_as_they_were(dtype):
    X = np.arange(12).reshape(4, 3).astype(dtype)
    X[1, 2] = np.nan if X.dtype.kind == "f" else "NaT"
    encoder = TableEncoder.fit(X)
    values, observed, _ = encoder.encode(X)
    filled = encoder.fill(X, values, ~observed)
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
    values, observed, _ = encoder.encode(X)
    filled = encoder.fill(X, values, ~observed)
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
    assert schema.columns[5].categories == ("S", "M", "L")
    assert TableEncoder.fit(X, kinds={"count": "categorical"}).schema.columns[1].categories == (0, 3)


@pytest.mark.parametrize("kind", ["numeric", "count", "categorical", "ordinal", "boolean"])
def test_override_keeps_the_dtype(kind):
    X = pd.DataFrame({"a": pd.Series([0, 1, None, 1], dtype="Int64")})
    encoder = TableEncoder.fit(X, kinds={"a": kind})
    values, observed, _ = encoder.encode(X)
    filled = encoder.fill(X, values + 0.4, ~observed)
    assert filled["a"].dtype == "Int64"
    assert filled["a"].tolist()[2] in (0, 1)
    assert filled["a"].tolist()[:2] == [0, 1]


def test_unseen_category_is_missing_to_the_model_but_stays_the_users():
    train = pd.DataFrame({"city": ["Oslo", "Rome", "Rome"]})
    new = pd.DataFrame({"city": ["Pisa", None, "Oslo"]}, dtype=object)
    encoder = TableEncoder.fit(train)
    with pytest.warns(UserWarning, match="Column 'city': 1 cell.*not seen in fit \\('Pisa'\\)"):
        encoded = encoder.encode(new)
    assert encoded.observed.ravel().tolist() == [False, False, True]
    assert encoded.unseen.ravel().tolist() == [True, False, False]
    assert encoded.missing.ravel().tolist() == [False, True, False]
    assert encoder.fill(new, encoded.values, encoded.missing)["city"].tolist() == ["Pisa", "Oslo", "Oslo"]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_hidden_cell_may_need_a_category_that_this_frame_does_not_declare(library):
    def frame(words, categories):
        if library == "pandas":
            return pd.DataFrame({"c": pd.Categorical(words, categories)})
        return pl.DataFrame({"c": pl.Series(words, dtype=pl.Enum(categories))})

    encoder = TableEncoder.fit(frame(["a", "b"], ["a", "b"]))
    new = frame(["a", None], ["a"])
    values, observed, _ = encoder.encode(new)
    assert dtypes(encoder.fill(new, values, ~observed)) == dtypes(new)
    filled = encoder.fill(new, values + 1, ~observed)
    assert nw.from_native(filled)["c"].to_list() == ["a", "b"]


def test_columns_that_hold_nothing():
    X = pd.DataFrame(
        {"x": [np.nan] * 2, "n": pd.Series([None] * 2, dtype="Int64"), "c": pd.Series([None] * 2, dtype="str")}
    )
    X["o"], X["t"], X["b"] = pd.Series([None] * 2, dtype=object), pd.NaT, pd.Series([None] * 2, dtype="boolean")
    encoder = TableEncoder.fit(X)
    assert [column.n_observed for column in encoder.schema.columns] == [0] * 6
    values, observed, _ = encoder.encode(X)
    filled = encoder.fill(X, values, ~observed)
    assert dtypes(filled) == dtypes(X)
    assert (filled[["x", "n", "o"]] == 0).all(axis=None)
    assert filled[["c", "t", "b"]].isna().all(axis=None)
    assert dtypes(encoder.build(values)) == dtypes(X)


def test_all_missing_batch_takes_the_training_dtype_where_its_own_cannot_hold_the_answer():
    encoder = TableEncoder.fit(pd.DataFrame({"c": ["a", "b"], "n": [1.0, 2.0]}))
    new = pd.DataFrame({"c": [np.nan], "n": [None]})
    filled = filled_by(encoder, new)
    assert filled.iloc[0].tolist() == ["a", 1.5]
    encoder = TableEncoder.fit(pl.DataFrame({"c": ["a", "b"], "n": [1.0, 2.0]}))
    new = pl.DataFrame({"c": [None], "n": [None]})
    assert filled_by(encoder, new).rows() == [("a", 1.5)]


@pytest.mark.parametrize("missing", [-1, "?"])
def test_missing_values_may_have_another_name(missing):
    X = pd.DataFrame({"n": [-1, 2, 4], "c": ["?", "a", "b"], "b": [True, False, True], "o": ["?", 3, 5]})
    X["k"] = pd.Categorical(["?", "a", "a"])
    encoder = TableEncoder.fit(X, missing_values=missing)
    values, observed, _ = encoder.encode(X)
    assert observed[0].tolist() == (
        [False, True, True, True, True] if missing == -1 else [True, False, True, False, False]
    )
    filled = encoder.fill(X, values, ~observed)
    assert dtypes(filled) == dtypes(X)
    assert encoder.encode(filled).observed.all()
    assert TableEncoder.from_json(encoder.to_json()) == encoder


def test_integer_array_is_filled_in_place_of_its_sentinel_and_left_alone():
    X = np.array([[1, -1], [3, 5]])
    X.flags.writeable = False
    encoder = TableEncoder.fit(X, missing_values=-1)
    filled = filled_by(encoder, X)
    assert filled.dtype == X.dtype
    assert filled.tolist() == [[1, 5], [3, 5]]
    assert X[0, 1] == -1


def test_columns_are_matched_by_name():
    X = pd.DataFrame({"a": [1.0, np.nan], "b": ["u", "v"]})
    encoder = TableEncoder.fit(X)
    values, observed, _ = encoder.encode(X)
    turned = pl.from_pandas(X[["b", "a"]])
    np.testing.assert_array_equal(encoder.encode(turned)[0], values)
    assert encoder.fill(turned, values, ~observed).columns == ["b", "a"]
    with pytest.raises(ValueError, match=r"(?s)not those seen in fit.*Missing: \['a'\].*Not in fit: \['z'\]"):
        encoder.encode(X.rename(columns={"a": "z"}))
    with pytest.raises(ValueError, match="X has 1 features, but it is expecting 2 features"):
        encoder.encode(np.zeros((3, 1)))


def test_column_names_need_not_be_text():
    X = pd.DataFrame({0: [1.0, np.nan], 1: ["u", None]})
    encoder = TableEncoder.from_json(json.loads(json.dumps(TableEncoder.fit(X).to_json())))
    filled = filled_by(encoder, X)
    assert filled.columns.tolist() == [0, 1]
    assert filled.loc[1].tolist() == [1.0, "u"]


def test_complete_table_comes_back_as_a_new_table(table):
    encoder = TableEncoder.fit(table)
    filled = filled_by(encoder, table)
    again = filled_by(encoder, filled)
    assert cells(again) == cells(filled)
    assert again is not filled or isinstance(filled, pa.Table)  # which nobody can change


def test_fit_and_encode_at_once_is_both(table):
    encoder, encoded = TableEncoder.fit_encode(table)
    assert encoder == TableEncoder.fit(table)
    for one, other in zip(encoded, encoder.encode(table), strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_the_cells_to_be_rewritten_are(table):
    encoder = TableEncoder.fit(table)
    encoded = encoder.encode(table)
    assert cells(encoder.fill(table, encoded.values, np.zeros_like(encoded.observed))) == cells(table)


def test_what_the_core_needs_to_know_of_the_columns():
    X = pd.DataFrame({"x": [0.5, 1.0], "flag": [True, False], "word": ["a", "b"], "n": [0, 3]})
    encoder = TableEncoder.fit(X)
    assert encoder.names == list(X)
    assert encoder.kinds == ["numeric", "boolean", "categorical", "count"]
    assert encoder.n_categories == [0, 2, 2, 0]
    assert encoder.is_numeric.tolist() == [True, False, False, True]


def test_the_log_jacobian_is_that_of_the_encoding():
    """Against a finite difference: a density of values is so turned into one of cells in the user's unit."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(
        {
            "x": 7 + 3 * rng.normal(size=200),
            "wage": np.exp(rng.normal(0, 2, 200)),
            "day": pd.to_datetime("2024-01-01") + pd.to_timedelta(rng.integers(0, 10**9, 200), unit="us"),
            "word": rng.choice(["a", "b"], 200),
        }
    )
    encoder = TableEncoder.fit(X)
    assert encoder.kinds == ["numeric", "positive", "datetime", "categorical"]
    values = encoder.encode(X).values
    nudged = X.assign(x=X["x"] + 1e-6, wage=X["wage"] * (1 + 1e-6), day=X["day"] + pd.Timedelta(1, unit="ms"))
    step = np.column_stack([np.full(200, 1e-6), X["wage"] * 1e-6, np.full(200, 1e-3)])  # a time counts in seconds
    slope = (encoder.encode(nudged).values - values)[:, :3] / step
    log_jacobian = encoder.log_jacobian(values)
    np.testing.assert_allclose(log_jacobian[:, :3], np.log(slope), atol=1e-4)
    assert (log_jacobian[:, 3] == 0).all()


def errors(size, n=400):
    """A column of every kind of number, clean and with one gross error in each."""
    rng = np.random.default_rng(0)
    clean = pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "wage": np.exp(rng.normal(0, 2, n)),
            "day": pd.to_datetime("2024-01-01") + pd.to_timedelta(rng.integers(0, 1000, n), unit="h"),
            "word": rng.choice(["a", "b"], n),
        }
    )
    dirty = clean.copy()
    dirty.loc[0, ["x", "wage"]] = [size, 10.0**size]
    dirty.loc[0, "day"] = pd.Timestamp("2024-01-01") - pd.Timedelta(size, unit="W")
    return clean, dirty


def test_an_error_has_a_bounded_say_in_the_scale():
    """However gross it is, as long as it is one; it stands out all the more."""
    kinds = {"wage": "positive"}
    wanted = TableEncoder.fit(errors(0)[0], kinds=kinds).schema.columns
    scales = []
    for size in (100, 300):
        _, dirty = errors(size)
        encoder, encoded = TableEncoder.fit_encode(dirty, kinds=kinds)
        robust, again = TableEncoder.fit_encode(dirty, kinds=kinds, robust=True)
        np.testing.assert_array_equal(again.values, robust.encode(dirty).values)  # to the last bit
        assert (np.abs(again.values[0, :3]) > np.abs(encoded.values[0, :3])).all()
        assert robust.schema.columns[3] == encoder.schema.columns[3]
        scales.append([column.scale for column in robust.schema.columns])
    np.testing.assert_allclose(*scales, rtol=1e-6)
    assert np.all(np.array(scales[0]) < 2 * np.array([column.scale for column in wanted]))


def test_a_robust_scale_keeps_every_cell_and_what_a_column_can_hold():
    _, dirty = errors(100)
    encoder = TableEncoder.fit(dirty, kinds={"wage": "positive"})
    robust, again = TableEncoder.fit_encode(dirty, kinds={"wage": "positive"}, robust=True)
    pd.testing.assert_frame_equal(robust.build(again.values).drop(columns="x"), dirty.drop(columns="x"), rtol=1e-6)
    for old, new in zip(encoder.schema.columns, robust.schema.columns, strict=True):
        reach = (
            (old.center + old.minimum, new.center + new.minimum) if old.name == "day" else (old.minimum, new.minimum)
        )
        assert reach[0] == pytest.approx(reach[1])


def test_where_there_are_no_errors_a_robust_scale_is_the_plain_one():
    clean, _ = errors(0)
    encoder, encoded = TableEncoder.fit_encode(clean, kinds={"wage": "positive"})
    robust, again = TableEncoder.fit_encode(clean, kinds={"wage": "positive"}, robust=True)
    assert robust == encoder
    np.testing.assert_array_equal(again.values, encoded.values)


def test_numbers_in_the_users_unit_and_back():
    X = pd.DataFrame(
        {"real": [0.1, 2.5, -3.0], "share": [0.0, 1.0, 1.0], "count": [0, 7, 12], "new": [True, False, True]}
    )
    X["long"] = [1e-3, 1.0, 5e4]
    encoder = TableEncoder.fit(X, kinds={"long": "positive"})
    values = encoder.encode(X).values
    for j, name in enumerate(X):
        numbers = encoder.numbers(values[:, j], j)
        np.testing.assert_allclose(numbers, X[name].to_numpy(float), rtol=1e-12)
        np.testing.assert_allclose(encoder.standardised(numbers, j), values[:, j], atol=1e-12)
    assert set(encoder.numbers(values[:, 1], 1)) == {0.0, 1.0}  # exactly
    assert np.isfinite(encoder.standardised(np.array([-5.0, 0.0]), 4)).all()


PRICES = [19.99, None, 3.5, 7.25]


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"a": pd.Series(PRICES)}),
        pd.DataFrame({"a": pd.Series(PRICES, dtype="float32")}),
        pd.DataFrame({"a": pd.Series(PRICES, dtype="Float64")}),
        pl.DataFrame({"a": PRICES}),
        pa.table({"a": PRICES}),
        np.array([PRICES], dtype=float).T,
    ],
    ids=["pandas", "float32", "Float64", "polars", "pyarrow", "numpy"],
)
def test_what_is_rounded_is_written_as_the_column_is(table):
    encoder = TableEncoder.fit(table)
    _, observed, _ = encoder.encode(table)
    values = np.array([[0.1], [0.2], [-0.3], [0.4]])
    column = encoder.schema.columns[0]
    exact = (values * column.scale + column.center)[:, 0]
    kind = np.float32 if "float32" in str(dtypes(table)) else float
    assert numbers_of(encoder.build(values, rounded=True)) == np.round(exact, 2).astype(kind).tolist()
    for rounded, expected in ((True, np.round(exact, 2)), (False, exact)):
        assert numbers_of(encoder.fill(table, values, ~observed, rounded=rounded))[1] == kind(expected[1])


def numbers_of(table):
    """Cells of the only column."""
    column = table[:, 0] if isinstance(table, np.ndarray) else nw.from_native(table, eager_only=True)["a"]
    return [float(cell) for cell in column.to_list()] if isinstance(column, nw.Series) else column.tolist()
