"""Containers: what comes back is a frame or an array as the user's own, with its names and index."""

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from vaeimpute.frames.containers import as_columns, check_order, is_frame, like, repeated, rows_of, selected, without

COLUMNS = {"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]}
FRAMES = {
    "pandas": pd.DataFrame(COLUMNS, index=[7, 7, 2]),
    "polars": pl.DataFrame(COLUMNS),
    "pyarrow": pa.table(COLUMNS),
}
TABLES = {**FRAMES, "numpy": np.array(list(COLUMNS.values())).T}


def cells(X):
    return X.tolist() if isinstance(X, np.ndarray) else nw.from_native(X).to_numpy().tolist()


@pytest.fixture(params=TABLES.values(), ids=TABLES.keys())
def X(request):
    return request.param


def test_scores_are_like_the_table(X):
    scores = like(X, np.arange(6.0).reshape(3, 2))
    assert type(scores) is type(X)
    assert cells(scores) == [[0, 1], [2, 3], [4, 5]]
    if isinstance(X, pd.DataFrame):
        assert scores.index.tolist() == [7, 7, 2]
        assert scores.columns.tolist() == ["a", "b"]


def test_rows_and_columns_by_position(X):
    some = rows_of(X, np.array([2, 0]))
    assert type(some) is type(X)
    assert cells(some) == [[3, 6], [1, 4]]
    left = without(X, 0)
    assert type(left) is type(X)
    if isinstance(X, np.ndarray):
        np.testing.assert_array_equal(left, [[np.nan, 4], [np.nan, 5], [np.nan, 6]])
        assert cells(X)[0] == [1, 4]
    else:
        assert cells(left) == [[4], [5], [6]]


def test_a_column_whose_name_is_a_number_can_be_left_out():
    assert without(pd.DataFrame({0: [1.0], 1: [2.0]}), 1).columns.tolist() == [0]


def test_scores_of_images_have_their_shape():
    assert like(np.zeros((3, 2, 2)), np.zeros((3, 4))).shape == (3, 2, 2)


def test_a_table_can_be_repeated(X):
    assert type(repeated(X, 2)) is type(X)
    assert cells(repeated(X, 2)) == cells(X) * 2


def test_columns_are_sequences(X):
    assert [list(column) for column in as_columns(X)] == list(COLUMNS.values())


def test_some_columns_with_flags(X):
    flag = np.array([True, False, True])
    out = selected(X, np.array([1]), {"was missing": flag}, "default")
    assert isinstance(out, np.ndarray)
    assert out.tolist() == [[4, 1], [5, 0], [6, 1]]
    if is_frame(X):
        for wanted, library in (("pandas", pd), ("polars", pl)):
            frame = selected(X, np.array([1]), {"was missing": flag}, wanted)
            assert isinstance(frame, library.DataFrame)
            assert list(frame.columns) == ["b", "was missing"]
        with pytest.raises(ValueError, match=r"replace columns of X that have the same names: \['a'\]"):
            selected(X, np.array([1]), {"a": flag}, "default")


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_another_order_of_columns_says_where(frame):
    check_order(frame, ["a", "b"])
    check_order(frame, ["a", "c"])  # what is missing is scikit-learn's to say
    with pytest.raises(ValueError, match="position 0: 'a', in fit 'b'"):
        check_order(frame, ["b", "a"])
