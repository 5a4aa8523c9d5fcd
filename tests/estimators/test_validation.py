"""What an estimator cannot use it refuses before any work, in words that name the place; what it had learnt stays."""

from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
from containers import GOOD, REAL, N, array
from sklearn.exceptions import NotFittedError

from vaeimpute import VAEImputer, VAEOutlierDetector


def imputer(**params):
    return VAEImputer(**{"random_state": 0, **params})


INF = GOOD.assign(a=[np.inf, *REAL[1:]])

BAD_TABLES = {
    "infinity in a frame": (INF, ValueError, r"'a': 1 value is infinity \(first: inf at row 0\)"),
    "infinity in polars": (pl.DataFrame(INF), ValueError, "'a': 1 value is infinity"),
    "infinity in an array": (np.array([[1.0, -np.inf]]), ValueError, "'x1': 1 value is infinity"),
    "complex array": (np.array([[1 + 2j, 3]]), ValueError, "Complex data not supported"),
    "complex column": (pd.DataFrame({"a": [1 + 2j]}), ValueError, "Complex data not supported: column 'a'"),
    "sparse array": (scipy.sparse.csr_array(np.eye(3)), TypeError, "[Ss]parse data was passed"),
    "sparse column": (pd.DataFrame({"a": pd.arrays.SparseArray([1, 0])}), TypeError, "'a' has dtype Sparse"),
    "no rows": (GOOD.iloc[:0], ValueError, r"0 sample\(s\)"),
    "no columns": (GOOD[[]], ValueError, r"0 feature\(s\)"),
    "no rows in an array": (np.empty((0, 3)), ValueError, r"0 sample\(s\)"),
    "no rows in polars": (pl.DataFrame(GOOD)[:0], ValueError, r"0 sample\(s\)"),
    "one axis": (np.arange(3.0), ValueError, "Expected 2D array, got 1D array"),
    "three axes": (np.zeros((2, 2, 2)), ValueError, "Found array with dim 3"),
    "a series": (GOOD["a"], ValueError, "2-dimensional container|2D array"),
    "rows of different length": ([[1, 2], [3]], ValueError, "inhomogeneous"),
    "duplicate names": (GOOD.set_axis(["a", "b", "a"], axis=1), ValueError, "unique column names.*(\n.*)?'a'"),
    "names of two types": (GOOD.set_axis([0, "b", "c"], axis=1), TypeError, "string names"),
    "lists in a column": (GOOD.assign(b=[[1]] * N), TypeError, r"'list' \(column 'b', row 0\)"),
    "lists in a polars column": (pl.DataFrame({"b": [[1], [2]]}), TypeError, r"Column 'b' has dtype List"),
    "structs": (pa.table({"b": [{"x": 1}]}), TypeError, "Column 'b' has dtype struct"),
    "dictionaries": (GOOD.assign(b=[{}] * N), TypeError, r"'dict' \(column 'b', row 0\)"),
    "nothing observed": (np.full((3, 2), np.nan), ValueError, "no observed value in any column"),
    "a lazy frame": (pl.LazyFrame({"a": [1.0]}), TypeError, r"LazyFrame; want a DataFrame. Call X.collect\(\)"),
    "a masked array": (np.ma.masked_invalid(array()), TypeError, r"masked array.*X.filled\(np.nan\)"),
    "None": (None, ValueError, "Expected 2D array|Input `X` cannot be None|requires"),
    "a number": (3.0, ValueError, "Expected 2D array, got scalar"),
}
BAD_PARAMS = {
    "kinds is no dict": ({"kinds": ["numeric"]}, "'kinds' parameter"),
    "kinds names no column": (
        {"kinds": {"z": "count"}},
        r"'z', which X does not have. Columns of X: \['a', 'b', 'c'\]",
    ),
    "kinds names no kind": ({"kinds": {"a": "money"}}, "Column 'a': got kind 'money', want one of .*'numeric'"),
    "kinds does not fit": ({"kinds": {"a": "count"}}, r"Column 'a': kind 'count' needs non-negative integers.*kinds="),
    "kinds wants numbers of words": ({"kinds": {"c": "numeric"}}, "Column 'c': kind 'numeric' needs numbers"),
    "missing_values": ({"missing_values": [1, 2]}, "'missing_values' parameter"),
    "point": ({"point": "mode"}, "'point' parameter.*mean"),
    "add_indicator": ({"add_indicator": "yes"}, "'add_indicator' parameter"),
    "keep_empty_features": ({"keep_empty_features": 2}, "'keep_empty_features' parameter"),
    "effort unknown": ({"effort": "most"}, "'effort' parameter.*auto"),
    "effort no text": ({"effort": 2}, "'effort' parameter"),
    "time_budget zero": ({"time_budget": 0}, "'time_budget' parameter"),
    "time_budget text": ({"time_budget": "1m"}, "'time_budget' parameter"),
    "max_iter zero": ({"max_iter": 0}, "'max_iter' parameter"),
    "max_iter fraction": ({"max_iter": 2.5}, "'max_iter' parameter"),
    "dtype": ({"dtype": "float16"}, "'dtype' parameter.*float32"),
    "device unknown": ({"device": "abacus"}, "device='abacus' cannot be used here.*Use device='auto'"),
    "device absent": ({"device": "cuda:99"}, "device='cuda:99' cannot be used here"),
    "device without values": ({"device": "meta"}, "device='meta' cannot be used here"),
    "random_state": ({"random_state": "seed"}, "'random_state' parameter"),
    "verbose": ({"verbose": -1}, "'verbose' parameter"),
}


@pytest.fixture
def no_work(replace_fits):
    """Fail if anything is fitted."""

    def fail(*args, **kwargs):
        raise AssertionError("work began before the input was checked")

    replace_fits(lambda fit: fail)


@pytest.mark.parametrize("estimator", [VAEImputer, VAEOutlierDetector])
@pytest.mark.parametrize(("X", "error", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_fit_refuses_a_bad_table_before_any_work(estimator, X, error, message, no_work):
    new = estimator(random_state=0)
    with pytest.raises(error, match=message):
        new.fit(X)
    assert vars(new) == vars(estimator(random_state=0))
    with pytest.raises(NotFittedError):
        new.anomaly_score(GOOD)


@pytest.mark.parametrize(("X", "error", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_refused_table_leaves_the_last_fit(X, error, message, fits, no_work):
    old = fits[array]
    before = vars(old).copy()
    with pytest.raises(error, match=message):
        old.fit(X)
    assert vars(old) == before


@pytest.mark.parametrize(("params", "message"), BAD_PARAMS.values(), ids=BAD_PARAMS.keys())
def test_fit_refuses_a_bad_parameter_before_any_work(params, message, no_work):
    new = imputer(**params)
    with pytest.raises(ValueError, match=message):
        new.fit(GOOD)
    assert vars(new) == vars(imputer(**params))


BAD_NEW = {
    "missing column": (GOOD[["a", "b"]], ValueError, "(?s)now missing:\n- c"),
    "extra column": (GOOD.assign(z=1), ValueError, "(?s)unseen at fit time:\n- z"),
    "other column": (GOOD.rename(columns={"b": "z"}), ValueError, "(?s)unseen at fit time:\n- z\n.*now missing:\n- b"),
    "other order": (GOOD[["b", "a", "c"]], ValueError, "(?s)same order.*- position 0: 'b', in fit 'a'"),
    "other order in polars": (pl.DataFrame(GOOD)[["b", "a", "c"]], ValueError, "(?s)same order.*- position 0: 'b'"),
    "too few columns": (np.ones((2, 2)), ValueError, "X has 2 features, but VAEImputer is expecting 3"),
    "words for numbers": (GOOD.assign(a="x"), ValueError, "Column 'a': kind 'numeric' needs numbers.*row 0.*float64"),
    "numbers for words": (GOOD.assign(c=1.5), ValueError, "Column 'c': kind 'categorical' needs categories such as"),
    "dates for numbers": (GOOD.assign(b=pd.Timestamp("2024-01-01")), ValueError, "Column 'b': kind"),
    "infinity": (INF, ValueError, "'a': 1 value is infinity"),
    "duplicate names": (GOOD.set_axis(["a", "b", "a"], axis=1), ValueError, "unique|unseen|missing"),
    "no rows": (GOOD.iloc[:0], ValueError, r"0 sample\(s\)"),
    "one axis": (GOOD["a"], ValueError, "2-dimensional container|2D array"),
}


@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
@pytest.mark.parametrize("method", ["transform", "impute", "sample", "anomaly_score"])
@pytest.mark.parametrize(("X", "error", "message"), BAD_NEW.values(), ids=BAD_NEW.keys())
def test_new_tables_have_to_be_like_the_training_table(good, X, error, message, method):
    with pytest.raises(error, match=message):
        good.sample(given=X) if method == "sample" else getattr(good, method)(X)


def fails_at_once(fit):
    def failing(*args, **kwargs):
        raise MemoryError

    return failing


def is_interrupted_at_once(fit):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    return interrupted


def leaves_no_ensemble(fit):
    return lambda *args, **kwargs: replace(fit(*args, **kwargs), ensemble=None)


@pytest.mark.parametrize(
    ("change", "error"),
    [(fails_at_once, MemoryError), (is_interrupted_at_once, KeyboardInterrupt), (leaves_no_ensemble, TypeError)],
)
def test_a_failing_fit_keeps_the_old_fit(change, error, replace_fits):
    fitted = imputer().fit(GOOD)
    before, answer = vars(fitted).copy(), fitted.impute(GOOD)
    replace_fits(change)
    with pytest.raises(error):
        fitted.fit(array())
    assert vars(fitted) == before
    pd.testing.assert_frame_equal(fitted.impute(GOOD), answer)
