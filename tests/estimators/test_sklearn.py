"""scikit-learn's contract: its own checks, those that it leaves out, and all again on tables with missing cells."""

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import estimator_checks_generator
from toy import correlated as table
from toy import curved

from vaeimpute import VAEImputer, VAEOutlierDetector

LEFT_OUT = [  # by check_estimator, though an imputer has to pass them
    "check_dataframe_column_names_consistency",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_global_output_transform_pandas",
    "check_global_set_output_transform_polars",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_get_feature_names_out_error",
    "check_inplace_ensure_writeable",
    "check_param_validation",
]

SLOW = {  # on tables that are large enough for the networks
    "check_positive_only_tag_during_fit",
    "check_dtype_object",
    "check_fit_idempotent",
    "check_fit_check_is_fitted",
    "check_n_features_in",
    "check_dataframe_column_names_consistency",
    "check_inplace_ensure_writeable",
}

MAX_ITER = 2  # the contract holds, or not, however well the networks fit


def imputer(**params):
    return VAEImputer(**{"dtype": "float64", "random_state": 0, **params})


def frame(n=30, seed=0):
    """`table` with a column of words."""
    X = pd.DataFrame(table(n, seed), columns=["a", "b", "c"], index=np.arange(n) // 2)  # an index that repeats
    return X.assign(d=np.where(X["a"].isna(), None, np.where(X["a"] > 0, "high", "low")))


@pytest.fixture(scope="module")
def linear():
    """Only the linear model: a small table."""
    return imputer().fit(table())


@pytest.fixture(scope="module")
def trained():
    """With smoothers that have learnt something."""
    trained = imputer(max_iter=80).fit(curved())
    assert min(record["relative_error"] for record in trained.history_) < 0.95
    return trained


@pytest.fixture(scope="module")
def full():
    """With several closed forms, and networks."""
    full = imputer(effort="full", max_iter=5).fit(curved())
    assert full.history_[-1]["model"] == "joint"
    return full


@pytest.fixture(params=["linear", "trained", "full"])
def fitted(request):
    return request.getfixturevalue(request.param)


# --- scikit-learn's own checks ----------------------------------------------------------------------------------------


def marks(name):
    return pytest.mark.slow if name in SLOW else ()


CASES = [
    (estimator, check, check.func.__name__)
    for estimator, check in estimator_checks_generator(VAEImputer(dtype="float64", max_iter=MAX_ITER))
]


@pytest.mark.parametrize(
    ("estimator", "check"),
    # check_array_api_input needs SCIPY_ARRAY_API, set before SciPy is imported; array_api_support is False
    [pytest.param(*case, id=name, marks=marks(name)) for *case, name in CASES if name != "check_array_api_input"],
)
@pytest.mark.filterwarnings("ignore:X (does not have valid|has) feature names:UserWarning")
def test_check_estimator(estimator, check):
    check(estimator)


DETECTOR_CASES = [
    (estimator, check, check.func.__name__)
    for estimator, check in estimator_checks_generator(VAEOutlierDetector(dtype="float64"))
]


@pytest.mark.parametrize(
    ("estimator", "check"),
    [pytest.param(*case, id=name) for *case, name in DETECTOR_CASES if name != "check_array_api_input"],
)
@pytest.mark.filterwarnings("ignore:X (does not have valid|has) feature names:UserWarning")
@pytest.mark.filterwarnings("ignore:Columns with a single observed value:UserWarning")
def test_check_estimator_of_the_detector(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", ["check_dataframe_column_names_consistency", "check_param_validation"])
@pytest.mark.filterwarnings("ignore:X (does not have valid|has) feature names:UserWarning")
def test_checks_that_check_estimator_leaves_out_of_the_detector(name):
    getattr(estimator_checks, name)("VAEOutlierDetector", VAEOutlierDetector(dtype="float64"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in LEFT_OUT])
@pytest.mark.filterwarnings("ignore:X (does not have valid|has) feature names:UserWarning")
def test_checks_that_check_estimator_leaves_out(name):
    getattr(estimator_checks, name)("VAEImputer", VAEImputer(dtype="float64", max_iter=MAX_ITER))


def test_tags():
    tags = VAEImputer().__sklearn_tags__()
    assert tags.input_tags.allow_nan
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
    assert [tags.input_tags.string, tags.input_tags.categorical, tags.array_api_support] == [False] * 3


# --- the same with missing cells --------------------------------------------------------------------------------------

ANSWERS = ["transform", "impute", "log_likelihood", "anomaly_score", "cell_anomaly_score", "encode"]


@pytest.mark.parametrize("method", ANSWERS)
def test_a_row_gets_the_same_answer_in_any_batch_and_order(fitted, method):
    X = table(20, seed=1)
    answer = getattr(fitted, method)
    whole = answer(X)
    one_by_one = np.concatenate([answer(row[None]) for row in X])
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(one_by_one, whole, rtol=0, atol=1e-7)
    np.testing.assert_allclose(answer(X[order]), whole[order], rtol=0, atol=1e-7)


def test_medians_do_not_depend_on_the_batch(linear):
    median = clone(linear).set_params(point="median").fit(table())
    X = table(8, seed=1)
    np.testing.assert_allclose(np.concatenate([median.transform(row[None]) for row in X]), median.transform(X))


@pytest.mark.parametrize("method", ANSWERS)
def test_a_second_call_answers_the_same(fitted, method):
    X = table(20, seed=1)
    np.testing.assert_array_equal(getattr(fitted, method)(X), getattr(fitted, method)(X))


def test_completing_twice_changes_nothing(fitted):
    X = fitted.transform(table(20, seed=1))
    np.testing.assert_array_equal(fitted.transform(X), X)


def test_same_seed_same_result():
    X, new = table(), table(20, seed=1)
    one, two = (imputer(random_state=seed).fit(X).transform(new) for seed in (3, 3))
    generators = [imputer(random_state=np.random.RandomState(3)).fit(X).transform(new) for _ in range(2)]
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(*generators)


@pytest.mark.parametrize("name", ["trained", "full"])
def test_same_seed_same_result_with_all_stages(name, request):
    first, X = request.getfixturevalue(name), curved(20, seed=1)
    again = clone(first).fit(curved())
    np.testing.assert_array_equal(again.transform(X), first.transform(X))
    np.testing.assert_array_equal(again.log_likelihood(X), first.log_likelihood(X))


def test_fit_again_forgets_the_first_fit():
    refitted = imputer().fit(frame()).fit(table())
    assert not hasattr(refitted, "feature_names_in_")
    np.testing.assert_array_equal(refitted.transform(table()), imputer().fit(table()).transform(table()))


def read_only(X, tmp_path):
    joblib.dump(X, tmp_path / "X.joblib")
    mapped = joblib.load(tmp_path / "X.joblib", mmap_mode="r")
    assert not mapped.flags.writeable
    return mapped


def test_read_only_memory_maps(fitted, tmp_path):
    X = read_only(table(20, seed=1), tmp_path)
    got = fitted.transform(X)
    assert got.flags.writeable
    np.testing.assert_array_equal(got, fitted.transform(table(20, seed=1)))
    imputer().fit(X)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_arrays_keep_dtype_and_are_not_changed(linear, dtype, order):
    X = np.asarray(table(20, seed=1), dtype=dtype, order=order)
    before = X.copy()
    filled = linear.transform(X)
    assert filled.dtype == dtype
    assert not np.isnan(filled).any()
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])


# --- copies ---------------------------------------------------------------------------------------------------------


def test_clone_has_the_parameters_and_nothing_else(linear):
    copy = clone(linear.set_params(verbose=0))
    assert copy.get_params() == linear.get_params() | {"missing_values": copy.missing_values}
    with pytest.raises(NotFittedError):
        copy.transform(table())


@pytest.mark.parametrize("method", [*ANSWERS, "sample", "decode", "get_feature_names_out", "save", "score"])
def test_unfitted_says_so(method):
    arguments = {"sample": (), "get_feature_names_out": (), "save": ("nowhere",), "decode": ([[0.0]],)}
    with pytest.raises(NotFittedError, match="VAEImputer instance is not fitted yet"):
        getattr(VAEImputer(), method)(*arguments.get(method, (table(),)))


# --- in scikit-learn's machinery --------------------------------------------------------------------------------------


def test_pipeline():
    X = table()
    y = np.arange(len(X))
    pipeline = make_pipeline(StandardScaler(), imputer(), LinearRegression()).fit(X, y)
    assert np.isfinite(pipeline.predict(X)).all()


def test_column_transformer_with_names():
    X = frame()
    parts = ColumnTransformer(
        [("filled", imputer(add_indicator=True), ["a", "d"]), ("rest", "passthrough", ["b"])],
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    out = parts.fit_transform(X)
    assert out.columns.tolist() == ["a", "d", "missingindicator_a", "missingindicator_d", "b"]
    assert out.index.equals(X.index)
    assert out[["a", "d"]].notna().all(axis=None)


def test_grid_search_by_its_own_score():
    search = GridSearchCV(imputer(), {"kinds": [None, {"x1": "positive"}]}, cv=2).fit(table())
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.score(table()) == pytest.approx(search.score(table()))


def test_score_is_the_mean_log_likelihood(linear):
    X = table(20, seed=1)
    assert linear.score(X) == pytest.approx(linear.log_likelihood(X).mean())


@pytest.fixture(scope="module")
def mixed():
    return imputer(add_indicator=True).fit(frame())


def test_set_output_pandas(mixed):
    X = frame(10, seed=1)
    out = clone(mixed).fit(frame()).set_output(transform="pandas").transform(X)
    assert out.columns.tolist() == list(mixed.get_feature_names_out())
    assert out.index.equals(X.index)
    pd.testing.assert_frame_equal(out.iloc[:, :4], mixed.impute(X))
    assert out.dtypes.iloc[4:].map(str).tolist() == ["bool"] * 4
    np.testing.assert_array_equal(out["missingindicator_d"], X["d"].isna())
    with config_context(transform_output="pandas"):
        pd.testing.assert_frame_equal(mixed.transform(X), out)


@pytest.mark.parametrize("output", ["pandas", "polars"])
@pytest.mark.parametrize("given", [pd.DataFrame, pl.DataFrame])
def test_set_output_between_containers(output, given):
    X = given({"n": [1.0, None, 3.0, 2.0], "word": ["x", "y", None, "x"]})
    out = imputer(add_indicator=True).set_output(transform=output).fit(X).transform(X)
    assert type(out).__module__.startswith(output)
    assert list(out.columns) == ["n", "word", "missingindicator_n", "missingindicator_word"]
    assert [type(cell) for cell in out["word"]] == [str] * 4
    assert out["missingindicator_n"].to_list() == [False, True, False, False]


def test_the_output_is_never_the_input():
    X = frame(10).fillna({"a": 0, "b": 0, "c": 0, "d": "low"})
    estimator = imputer().fit(X).set_output(transform="pandas")
    names = X.columns
    out = estimator.transform(X)
    out["a"] = -1.0
    out.columns = list("wxyz")
    filled = estimator.impute(X)
    filled.iloc[0, 0] = -7.0
    assert X.columns.equals(names)
    assert (X["a"] > -1.0).all() or (X["a"] != -7.0).all()
    pd.testing.assert_frame_equal(X, frame(10).fillna({"a": 0, "b": 0, "c": 0, "d": "low"}))


def test_default_output_is_an_array_of_numbers_or_of_objects():
    numbers = pd.DataFrame({"a": pd.array([1, None, 3], dtype="Int64"), "b": [True, False, True], "c": [1.5, None, 2]})
    out = imputer(add_indicator=True).fit(numbers).transform(numbers)
    assert out.dtype == np.float64
    assert out.shape == (3, 5)
    assert imputer().fit_transform(numbers[["a"]]).dtype == np.int64
    words = imputer().fit_transform(numbers.assign(d=["x", None, "x"]))
    assert words.dtype == object
    assert words[:, 3].tolist() == ["x", "x", "x"]


@pytest.mark.parametrize("keep", [False, True])
def test_columns_without_any_value(keep):
    X = np.column_stack([table(), np.full(30, np.nan)])
    estimator = imputer(keep_empty_features=keep, add_indicator=True)
    with pytest.warns(UserWarning, match=r"without any observed value are not modelled: \['x3'\]"):
        estimator.fit(X)
    out = estimator.transform(X)
    names = ["x0", "x1", "x2", *(["x3"] if keep else [])]
    assert estimator.get_feature_names_out().tolist() == [*names, *(f"missingindicator_x{j}" for j in range(4))]
    assert out.shape == (30, len(names) + 4)
    assert not np.isnan(out).any()
    if keep:
        assert (out[:, 3] == 0).all()
    np.testing.assert_array_equal(out[:, -4:], np.isnan(X))


def test_indicators_do_not_replace_columns_of_the_same_name():
    X = frame()[["a", "b"]].rename(columns={"b": "missingindicator_a"})
    with pytest.raises(ValueError, match=r"replace columns of X .*\['missingindicator_a'\]"):
        imputer(add_indicator=True).fit(X).transform(X)


def test_get_feature_names_out_takes_names():
    estimator = imputer().fit(table())
    assert estimator.get_feature_names_out(["u", "v", "w"]).tolist() == ["u", "v", "w"]
    with pytest.raises(ValueError, match="input_features should have length equal"):
        estimator.get_feature_names_out(["u"])
