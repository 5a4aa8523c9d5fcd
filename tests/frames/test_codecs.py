"""Codecs: the cells of one kind as numbers and back, never out of what the column can hold."""

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeimpute.frames.cells import open_table, read_cells
from vaeimpute.frames.codecs import CODECS, FARTHEST
from vaeimpute.frames.encoder import TableEncoder
from vaeimpute.frames.schema import Kind

DAYS = [dt.datetime(2020, 1, 1), None, dt.datetime(2021, 3, 1, 12, 30)]


def read(column):
    """A column as `Cells`, whatever the container of its table."""
    frame, _ = open_table(column if isinstance(column, np.ndarray) else pd.DataFrame({"a": column}))
    return read_cells(frame.get_column(frame.columns[0]), frame.columns[0], None)


COLUMNS = {
    Kind.NUMERIC: [0.5, None, -3.0],
    Kind.POSITIVE: [0.5, None, 300.0],
    Kind.COUNT: [0.0, None, 7.0],
    Kind.ORDINAL: pd.Categorical(["b", None, "a"], ["b", "a", "z"], ordered=True),
    Kind.CATEGORICAL: ["b", None, "a"],
    Kind.BOOLEAN: pd.array([True, None, False], dtype="boolean"),
    Kind.DATETIME: DAYS,
}


def test_every_kind_has_its_codec():
    assert set(CODECS) == set(COLUMNS) == set(Kind)


@pytest.mark.parametrize("kind", Kind)
def test_decode_inverts_encode(kind):
    cells, codec = read(COLUMNS[kind]), CODECS[kind]
    column = codec.fit(cells, kind)
    values = codec.encode(cells, column)
    assert np.isnan(values).tolist() == [False, True, False]
    decoded = codec.decode(values[cells.present], column)
    if kind is Kind.DATETIME:  # the time since 1970
        decoded = np.datetime64(0, "s") + decoded
    if kind is Kind.POSITIVE:  # but for the rounding of a logarithm
        np.testing.assert_allclose(decoded, cells.data[cells.present])
    else:
        np.testing.assert_array_equal(decoded, cells.data[cells.present])
    assert column.n_observed == 2
    assert (column.kind, column.dtype, column.name) == (kind, cells.dtype, cells.name)


@pytest.mark.parametrize("kind", Kind)
def test_an_empty_column_teaches_nothing_and_breaks_nothing(kind):
    cells = read(pd.Series([None, None], dtype="Float64"))
    column = CODECS[kind].fit(cells, kind)
    assert (column.n_observed, column.scale) == (0, 1.0)
    assert np.isnan(CODECS[kind].encode(cells, column)).all()


@pytest.mark.parametrize("kind", [Kind.NUMERIC, Kind.COUNT, Kind.DATETIME])
def test_numbers_are_standardised(kind):
    numbers = np.random.default_rng(0).integers(0, 9999, 200)
    cells = read(pd.Series(numbers if kind is not Kind.DATETIME else pd.to_datetime(numbers, unit="h")))
    values = CODECS[kind].encode(cells, CODECS[kind].fit(cells, kind))
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-9)


def test_a_category_that_was_never_seen_has_no_number():
    column = CODECS[Kind.CATEGORICAL].fit(read(["a", "b"]), Kind.CATEGORICAL)
    np.testing.assert_array_equal(CODECS[Kind.CATEGORICAL].encode(read(["b", "z"]), column), [1, np.nan])


@pytest.mark.parametrize(
    ("column", "kind", "categories"),
    [
        (pd.Categorical(["b"], ["b", "a", "z"]), Kind.CATEGORICAL, ("b",)),  # only those that occur
        (pd.Categorical(["b"], ["b", "a", "z"], ordered=True), Kind.ORDINAL, ("b", "a", "z")),  # all in their order
        (["b", "a"], Kind.CATEGORICAL, ("a", "b")),
        ([3, 1, 2], Kind.ORDINAL, (1, 2, 3)),
        ([1, 1], Kind.BOOLEAN, (0, 1)),  # even where one does not occur
        ([True, True], Kind.BOOLEAN, (False, True)),
        (["no", "yes"], Kind.BOOLEAN, ("no", "yes")),
        ([1, "b"], Kind.CATEGORICAL, (1, "b")),
    ],
)
def test_which_categories_a_column_has(column, kind, categories):
    assert CODECS[kind].fit(read(column), kind).categories == categories


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_infinity=False), min_size=1, max_size=20), st.floats(-1e9, 1e9))
def test_numbers_of_any_size(numbers, value):
    X = np.array(numbers)[:, None]
    encoder = TableEncoder.fit(X)
    values, observed, _ = encoder.encode(X)
    assert np.isfinite(values).all()
    assert np.abs(values).max() <= np.sqrt(len(X)) * (1 + 1e-6)
    np.testing.assert_array_equal(observed, ~np.isnan(X))
    np.testing.assert_array_equal(encoder.fill(X, values, ~observed)[observed], X[observed])
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
    values, observed, _ = encoder.encode(X)
    back = encoder.fill(X, values, observed)["t"].to_numpy().astype(np.int64)
    assert np.abs(back - ticks).max() <= (100 if unit == "ns" else 0)  # 1e14 ns / 2**53 is far less than a tick


def test_whole_days_stay_whole_days():
    X = pl.DataFrame({"d": pl.Series(["2024-01-01", "2024-01-04", None]).str.to_datetime()})
    encoder = TableEncoder.fit(X)
    filled = encoder.fill(X, encoder.encode(X).values, encoder.encode(X).missing)["d"]
    assert encoder.schema.columns[0].resolution == 86400
    assert filled[2].hour == 0


def test_integers_are_rounded_and_everything_stays_in_range():
    X = pd.DataFrame({"n": pd.Series([1, 4, None, None], dtype="Int64"), "x": [1.0, 4.0, None, None]})
    encoder = TableEncoder.fit(X)
    values, observed, _ = encoder.encode(X)
    values[2:] = [[0.1, 0.1], [50.0, 50.0]]
    filled = encoder.fill(X, values, ~observed)
    assert filled["n"].tolist() == [1, 4, 3, 4]
    assert filled["x"].tolist() == pytest.approx([1, 4, 2.65, 4])


def test_positive_numbers_stay_positive():
    X = np.exp(np.random.default_rng(0).normal(0, 2, (500, 1)))
    encoder = TableEncoder.fit(X)
    assert encoder.schema.kinds == (Kind.POSITIVE,)
    values, _, _ = encoder.encode(X)
    np.testing.assert_allclose(encoder.build(values), X)
    assert encoder.build(np.full((1, 1), -99.0))[0, 0] == X.min() / 2
    outlying, observed, _ = encoder.encode(np.array([[0.0], [-5.0]]))  # not an error: an outlier
    assert observed.all()
    assert (outlying < values.min()).all()


def test_constant_column():
    X = pd.DataFrame({"x": [0.1, 0.1, np.nan], "c": ["a", "a", None]})
    encoder = TableEncoder.fit(X)
    assert encoder.schema.columns[0].scale == 1
    filled = encoder.fill(X, np.full((3, 2), 9.0), encoder.encode(X).missing)
    assert filled.iloc[2].tolist() == [0.1, "a"]


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
        (["u", "v", "w"], "boolean", "at most two categories, but got 3"),
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
    encoded = encoder.encode(X)
    filled = encoder.fill(X, encoded.values, encoded.missing)["a"].tolist()
    assert filled[0] == top
    assert top - 1024 <= filled[1] <= top


def test_a_far_new_cell_is_outlying_but_finite():
    encoder = TableEncoder.fit(np.array([[0.0], [1e-300]]))
    values, _, _ = encoder.encode(np.array([[1e308], [-1e308]]))
    assert values.ravel().tolist() == [FARTHEST, -FARTHEST]


def test_real_numbers_may_lie_beyond_those_that_were_seen():
    """Unless a value repeats at the end of the range, or zero is in between; counts may not."""
    x = np.linspace(1.0, 5.0, 40)
    table = pd.DataFrame({"real": x, "limited": np.minimum(x, 4), "count": np.arange(40), "signed": x - 3})
    encoder = TableEncoder.fit(table)
    far = np.array([[99.0] * 4, [-99.0] * 4])
    np.testing.assert_allclose(encoder.build(far), [[7, 4, 39, 4], [0, 0, 0, -4]])
    assert encoder.fill(table, np.full(table.shape, 99.0), encoder.encode(table).missing).equals(table)


# --- decimals ---------------------------------------------------------------------------------------------------------


@given(
    ticks=st.lists(st.integers(-(10**7), 10**7), min_size=1, max_size=30),
    places=st.integers(0, 6),
    noise=st.lists(st.floats(-4, 4), min_size=5, max_size=5),
)
@settings(deadline=None)
def test_decimals_are_the_fewest_that_write_all_numbers_and_what_is_rounded_has_them(ticks, places, noise):
    """The round trip is bit for bit, and so is every number drawn between those that were seen."""
    numbers = np.array(ticks) / 10.0**places
    cells, codec = read(pd.Series(numbers)), CODECS[Kind.NUMERIC]
    column = codec.fit(cells, Kind.NUMERIC)
    fewest = next(p for p in range(7) if (np.round(numbers, p) == numbers).all())
    assert column.decimals == fewest <= places
    values = codec.encode(cells, column)
    np.testing.assert_array_equal(codec.decode(values, column, rounded=True), numbers)
    drawn = codec.decode(np.array(noise), column, rounded=True)
    np.testing.assert_array_equal(np.round(drawn, fewest), drawn)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("numbers", "decimals"),
    [([1.0, -7.0], 0), ([0.5, 2.0], 1), ([19.99, 3.5], 2), ([1e-6, 2.0], 6), ([1 / 3, 2.0], None), ([1e-7, 2.0], None)],
)
def test_decimals_whatever_the_precision(numbers, decimals, dtype):
    column = CODECS[Kind.NUMERIC].fit(read(pd.Series(numbers, dtype=dtype)), Kind.NUMERIC)
    assert column.decimals == decimals


def test_only_what_is_rounded_is_rounded():
    cells, codec = read(pd.Series([19.99, 3.5, 8.25])), CODECS[Kind.NUMERIC]
    column, between = codec.fit(cells, Kind.NUMERIC), np.array([0.123, 0.456])
    exact = between * column.scale + column.center
    np.testing.assert_array_equal(codec.decode(between, column), exact)
    np.testing.assert_array_equal(codec.decode(between, column, rounded=True), np.round(exact, 2))
    free = codec.fit(read(pd.Series([1 / 3, 2 / 7, 1.0])), Kind.NUMERIC)
    np.testing.assert_array_equal(codec.decode(between, free, rounded=True), codec.decode(between, free))


def test_logarithms_are_rounded_as_numbers():
    codec = CODECS[Kind.POSITIVE]
    column = codec.fit(read(pd.Series([0.25, 3.5, 800.75])), Kind.POSITIVE)
    drawn = codec.decode(np.linspace(-1, 1, 50), column, rounded=True)
    assert column.decimals == 2
    np.testing.assert_array_equal(np.round(drawn, 2), drawn)


@pytest.mark.parametrize("value", [0.0, 1 / 3, -1e6 / 7])
def test_a_value_that_repeats_comes_back_bit_for_bit(value):
    """Standardised and back it may be an ulp off: zeros among amounts would not be zeros."""
    rng = np.random.default_rng(0)
    numbers = np.where(rng.random(200) < 0.4, value, rng.gamma(2, size=200))
    X = pd.DataFrame({"a": numbers})
    encoder = TableEncoder.fit(X)
    values = encoder.encode(X).values
    back = encoder.build(values * (1 + 1e-14), rounded=True)["a"].to_numpy()
    assert (back[numbers == value] == value).all()
    np.testing.assert_allclose(back, numbers, rtol=1e-9, atol=1e-9)
    assert (back[numbers != value] != value).all()
