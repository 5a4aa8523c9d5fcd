"""VAEImputer keeps what is known, fills what is not, and refuses what it cannot use before it has done anything."""

import datetime as dt
import json
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
from sklearn.exceptions import NotFittedError

from vaeimpute import VAEImputer, persistence
from vaeimpute.training import runtime

N = 30
RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=N)
HOLES = RNG.random((N, 6)) < 0.25


def imputer(**params):
    return VAEImputer(**{"random_state": 0, **params})


def holed(cells, j):
    return [None if hole else cell for cell, hole in zip(cells, HOLES[:, j], strict=True)]


# One factor seen through columns of every kind, as plain Python values.
REAL = holed((FACTOR * 3 + 10).tolist(), 0)
WHOLE = holed(np.rint(np.exp(FACTOR) * 5).astype(int).tolist(), 1)
FLAG = holed((FACTOR > 0).tolist(), 2)
WORD = holed([("low", "mid", "high")[i] for i in np.digitize(FACTOR, [-0.5, 0.5])], 3)
DAY = holed([dt.datetime(2024, 1, 1) + dt.timedelta(hours=round(100 * f)) for f in FACTOR], 4)
SPAN = holed([dt.timedelta(minutes=round(60 * (f + 5))) for f in FACTOR], 5)
CELLS = {"real": REAL, "whole": WHOLE, "flag": FLAG, "word": WORD, "day": DAY, "span": SPAN}


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


@pytest.fixture(params=TABLES, ids=lambda make: make.__name__)
def make(request):
    return request.param


@pytest.fixture(scope="module")
def fits():
    """One fit for each kind of table."""
    return {make: imputer().fit(make()) for make in TABLES}


def columns(X):
    """Cells as lists of (type, text) per column, so that -0.0 and 0.0, 1 and True differ; None where missing."""
    if isinstance(X, np.ndarray):
        lists = {str(j): column.tolist() for j, column in enumerate(X.T)}
    else:
        lists = {series.name: series.to_list() for series in nw.from_native(X, eager_only=True).iter_columns()}
    return {name: [None if pd.isna(c) else (type(c), repr(c)) for c in cells] for name, cells in lists.items()}


def dtypes(X):
    return X.dtypes.to_dict() if isinstance(X, pd.DataFrame) else getattr(X, "schema", None) or X.dtype


def assert_completes(filled, X):
    """Same container, index, columns, dtypes; every hole filled, and nothing else touched."""
    assert type(filled) is type(X)
    assert dtypes(filled) == dtypes(X)
    if isinstance(X, pd.DataFrame):
        assert filled.index.equals(X.index)
    got, want = columns(filled), columns(X)
    assert list(got) == list(want)
    for name in want:
        assert None not in got[name], name
        assert [g for g, w in zip(got[name], want[name], strict=True) if w] == [w for w in want[name] if w], name


# --- what goes in comes out -------------------------------------------------------------------------------------------


def test_imputing_keeps_container_dtypes_index_and_known_cells(make, fits):
    X = make()
    before = columns(X)
    assert_completes(fits[make].impute(X), X)
    for draw in fits[make].impute(X, n_imputations=2, random_state=0):
        assert_completes(draw, X)
    assert columns(X) == before


def test_a_complete_table_comes_back_equal(make, fits):
    X = fits[make].impute(make())
    assert columns(fits[make].impute(X)) == columns(X)
    assert [columns(draw) for draw in fits[make].impute(X, n_imputations=2)] == [columns(X)] * 2


def test_samples_have_the_training_container_and_dtypes(make, fits):
    X = make()
    drawn = fits[make].sample(7, random_state=0)
    assert type(drawn) is type(X)
    assert dtypes(drawn) == dtypes(X)
    assert len(drawn) == 7
    assert all(None not in cells for cells in columns(drawn).values())


def test_samples_given_rows_complete_them(make, fits):
    X = make()
    X = X[:5] if not isinstance(X, pa.Table) else X.slice(0, 5)
    twice = fits[make].sample(2, given=X, random_state=0)
    assert len(twice) == 10
    parts = (twice[:5], twice[5:]) if not isinstance(X, pa.Table) else (twice.slice(0, 5), twice.slice(5))
    for part in parts:
        assert_completes(part, X)


def test_scores_come_in_the_container_of_the_table(make, fits):
    X = make()
    scores = fits[make].cell_anomaly_score(X)
    assert type(scores) is type(X)
    assert list(columns(scores)) == list(columns(X))
    if isinstance(X, pd.DataFrame):
        assert scores.index.equals(X.index)
    missing = {name: [cell is None for cell in cells] for name, cells in columns(X).items()}
    assert {name: [cell is None for cell in cells] for name, cells in columns(scores).items()} == missing
    rows = fits[make].anomaly_score(X)
    assert rows.dtype == np.float64
    assert np.isfinite(rows).all()


def test_latents_round_trip_in_shape_and_container(make, fits):
    Z = fits[make].encode(make())
    back = fits[make].decode(Z)
    assert len(Z) == N
    assert type(back) is type(make())
    assert dtypes(back) == dtypes(make())
    for wrong, message in [(Z[0], "must have shape"), (Z[:, :0], "must have shape"), (Z * np.nan, "must be finite")]:
        with pytest.raises(ValueError, match=message):
            fits[make].decode(wrong)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, object])
def test_arrays_keep_their_dtype(dtype):
    X = array(dtype)
    assert_completes(imputer().fit(X).impute(X), X)


def test_lists_of_rows():
    rows = [[1.0, "a", 3], [2.0, "b", None], [None, "a", 5]]
    filled = imputer().fit(rows).impute(rows)
    assert filled.dtype == object
    assert filled[0].tolist() == [1.0, "a", 3]
    assert all(isinstance(cell, float | int) for cell in filled[:, 0])
    rows = [[1.0, 2], [3, np.nan], [5, 4]]
    assert imputer().fit(rows).impute(rows).dtype == float


def test_a_frame_fits_what_an_array_taught_and_the_reverse():
    X = array()
    frame = pd.DataFrame(X, columns=["u", "v"])
    with pytest.warns(UserWarning, match="has feature names, but"):
        by_position = imputer().fit(X).impute(frame)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        by_name = imputer().fit(frame).impute(X)
    np.testing.assert_allclose(by_position.to_numpy(), by_name)
    other = imputer().fit(frame).impute(pl.DataFrame(frame).fill_nan(None))
    np.testing.assert_allclose(other.to_numpy(), by_name)


def test_columns_whose_names_are_numbers_or_tuples():
    for names in ([3, 1], [("a", 1), ("a", 2)]):
        X = pd.DataFrame(array()).set_axis(pd.Index(names), axis=1)
        fitted = imputer(kinds={names[1]: "numeric"}).fit(X)
        assert_completes(fitted.impute(X), X)
        assert fitted.cell_anomaly_score(X).columns.tolist() == names
        with pytest.raises(ValueError, match="position 0"):
            fitted.impute(X[names[::-1]])


def test_numbers_stay_inside_what_a_column_can_hold(fits):
    filled = fits[polars].impute(polars())
    drawn = fits[polars].sample(200, random_state=0)
    for table in (filled, drawn):
        for name, cells in CELLS.items():
            seen = [cell for cell in cells if cell is not None]
            reach = (max(seen) - min(seen)) / 2 if name == "real" else None
            assert table[name].min() >= (min(seen) - reach if reach else min(seen))
            assert table[name].max() <= (max(seen) + reach if reach else max(seen))


def test_related_columns_beat_the_mean():
    x = np.arange(40.0)[:35]
    X = np.column_stack([x, 2 * x + 1, -x])
    hidden = X.copy()
    hidden[::5, 1] = np.nan
    hidden[1::5, 2] = np.nan
    filled = imputer().fit(hidden).impute(hidden)
    error = np.abs(filled - X)[np.isnan(hidden)]
    assert error.max() < 0.2 * X.std()


# --- draws ------------------------------------------------------------------------------------------------------------


def test_draws_differ_where_there_are_holes_and_seeds_reproduce_them():
    X = array()
    fitted = imputer().fit(X)
    one, two = fitted.impute(X, n_imputations=2, random_state=0)
    hole = np.isnan(X)
    # some are alike: a draw beyond what was seen in training becomes the last value that was
    assert (one[hole[:, 0], 0] != two[hole[:, 0], 0]).mean() > 0.5
    np.testing.assert_array_equal(one[~hole], two[~hole])
    np.testing.assert_array_equal(fitted.impute(X, n_imputations=2, random_state=0), [one, two])
    assert (fitted.impute(X, 1, random_state=1)[0] != one).any()
    assert (fitted.impute(X, 1)[0] != fitted.impute(X, 1)[0]).any()  # without a seed, new ones each time
    generator = np.random.RandomState(0)
    assert (fitted.impute(X, 1, generator)[0] != fitted.impute(X, 1, generator)[0]).any()


def test_draws_spread_around_the_point():
    rng = np.random.default_rng(1)
    x = rng.normal(size=36)
    X = np.column_stack([x, x + 0.5 * rng.normal(size=36)])
    X[:4, 1] = np.nan
    fitted = imputer().fit(X)
    draws = np.array(fitted.impute(X, n_imputations=300, random_state=0))[:, :4, 1]
    assert (draws.std(0) > 0.1).all()
    np.testing.assert_allclose(draws.mean(0), fitted.impute(X)[:4, 1], atol=0.25)


def test_medians_are_those_of_the_draws_whatever_the_batch():
    rng = np.random.default_rng(1)
    X = pd.DataFrame({"x": rng.normal(size=80), "few": rng.integers(0, 4, 80), "class": rng.choice(["a", "b"], 80)})
    X["skewed"] = np.exp(X["x"] + rng.normal(size=80))
    X = X.mask(rng.random(X.shape) < 0.3)
    fitted = imputer(time_budget=3).fit(X)
    draws = fitted.impute(X, n_imputations=400, random_state=0)
    modes = fitted.impute(X)["class"]
    filled = fitted.set_params(point="median").impute(X)
    pd.testing.assert_series_equal(filled["class"], modes)
    assert filled["few"].isin([0, 1, 2, 3]).all()
    for name in ("x", "few", "skewed"):
        drawn = np.stack([table[name] for table in draws])[:, X[name].isna()]
        below = (drawn <= filled.loc[X[name].isna(), name].to_numpy() + 1e-6).mean(0)
        above = (drawn >= filled.loc[X[name].isna(), name].to_numpy() - 1e-6).mean(0)
        assert (np.minimum(below, above) > 0.5 - 4 * 0.5 / 400**0.5).all()
    alone = pd.concat([fitted.impute(X.iloc[[i]]) for i in range(5)])
    pd.testing.assert_frame_equal(alone, filled.iloc[:5], rtol=1e-5)


def test_samples_given_rows_know_what_was_given_even_out_of_range():
    fitted = imputer().fit(array())
    drawn = fitted.sample(50, given=[[1e4 + 0.1, np.nan]], random_state=0)
    assert (drawn[:, 0] == 1e4 + 0.1).all()
    assert len(np.unique(drawn[:, 1])) > 1 or (drawn[:, 1] == drawn[0, 1]).all()
    np.testing.assert_array_equal(drawn, fitted.sample(50, given=[[1e4 + 0.1, np.nan]], random_state=0))
    assert (fitted.sample(5, random_state=1) != fitted.sample(5, random_state=2)).any()


@pytest.mark.parametrize("count", [0, -1, 1.5, "3", True])
def test_counts_of_draws_are_positive_integers(fits, count):
    with pytest.raises(ValueError, match="n_imputations must be a positive integer"):
        fits[array].impute(array(), n_imputations=count)
    with pytest.raises(ValueError, match="n_samples must be a positive integer"):
        fits[array].sample(count)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(fits, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    fits[pandas_nullable].save(path)
    return path


def test_a_loaded_model_answers_like_the_saved_one(make, fits, tmp_path):
    fits[make].save(tmp_path / "model")
    loaded = VAEImputer.load(tmp_path / "model")
    assert repr(loaded) == repr(fits[make])
    assert loaded.history_ == fits[make].history_
    assert vars(loaded).keys() == vars(fits[make]).keys()
    X = make()
    assert columns(loaded.impute(X)) == columns(fits[make].impute(X))
    np.testing.assert_array_equal(loaded.score_samples(X), fits[make].score_samples(X))
    np.testing.assert_array_equal(loaded.anomaly_score(X), fits[make].anomaly_score(X))
    assert columns(loaded.cell_anomaly_score(X)) == columns(fits[make].cell_anomaly_score(X))
    assert columns(loaded.sample(3, random_state=0)) == columns(fits[make].sample(3, random_state=0))


def test_parameters_survive_the_file(tmp_path):
    X = pd.DataFrame(array()).set_axis(pd.Index([3, 1]), axis=1)
    kinds, generator = {3: "numeric", 1: "count"}, np.random.RandomState(0)
    fitted = imputer(kinds=kinds, missing_values=pd.NA, point="median", add_indicator=True, random_state=generator)
    fitted.fit(X).save(tmp_path / "m")
    params = VAEImputer.load(tmp_path / "m").get_params()
    assert params["kinds"] == kinds
    assert (params["point"], params["add_indicator"], params["random_state"]) == ("median", True, None)
    refitted = VAEImputer.load(tmp_path / "m").fit(X)
    assert refitted.encoder_.schema == fitted.encoder_.schema


def test_load_takes_a_device(saved):
    assert VAEImputer.load(saved, device="cpu").device == "cpu"
    with pytest.raises(ValueError, match="device='abacus' cannot be used here"):
        VAEImputer.load(saved, device="abacus")


def test_a_model_from_a_machine_with_a_gpu_loads_without_one(saved, tmp_path):
    tensors, header = persistence.load(saved)
    header["params"]["device"] = "cuda:7"
    persistence.save(tmp_path / "m", tensors, header)
    assert len(VAEImputer.load(tmp_path / "m").impute(pandas_nullable())) == N


def test_files_that_are_not_models_of_this_class(saved, tmp_path):
    path = tmp_path / "model.safetensors"
    tensors, header = persistence.load(saved)

    shutil.copy(saved, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="truncated"):
        VAEImputer.load(path)
    path.write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(ValueError, match="not a safetensors file"):
        VAEImputer.load(path)
    persistence.save(path, tensors, header | {"class": "VAEOutlierDetector"})
    with pytest.raises(ValueError, match="holds a VAEOutlierDetector, not a VAEImputer"):
        VAEImputer.load(path)
    persistence.save(path, {}, {"class": "VAEImputer"})
    with pytest.raises(ValueError, match="does not fit this version of vaeimpute"):
        VAEImputer.load(path)
    persistence.save(path, tensors, header | {"params": header["params"] | {"colour": "red"}})
    with pytest.raises(ValueError, match=r"does not fit this version of vaeimpute .*colour"):
        VAEImputer.load(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        VAEImputer.load(tmp_path / "nothing")


def test_a_failed_save_leaves_the_older_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    shutil.copy(saved, path)
    older = path.read_bytes()
    fitted = VAEImputer.load(path)
    fitted.kinds = {"real": object()}
    monkeypatch.setattr(json, "dumps", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted.save(path)
    assert path.read_bytes() == older
    assert list(tmp_path.iterdir()) == [path]


# --- how long, and what is shown --------------------------------------------------------------------------------------


def big(n=400):
    x = np.random.default_rng(0).normal(size=(n, 1))
    X = np.column_stack([x, x**2, np.sin(3 * x), np.abs(x)])
    X[np.random.default_rng(1).random(X.shape) < 0.2] = np.nan
    return X


def test_time_budget_is_kept():
    start = time.monotonic()
    fitted = imputer(time_budget=0.5).fit(big())
    assert time.monotonic() - start < 10  # the linear start, one step of each reading and the scores come on top
    assert np.isfinite(fitted.transform(big())).all()
    seconds = [record["seconds"] for record in fitted.history_]
    assert seconds == sorted(seconds)


def test_history_tells_every_check():
    fitted = imputer(time_budget=2).fit(big(60))
    assert {record["reading"] for record in fitted.history_} == {"joint", "conditional"}
    for record in fitted.history_:
        assert set(record) >= {"reading", "step", "error", "seconds"}
        assert np.isfinite(record["error"])
    assert fitted.n_iter_ == max(record["step"] for record in fitted.history_) > 0
    json.dumps(fitted.history_)


def interrupt_after(monkeypatch, n_checks):
    """Press Ctrl-C at the n-th check of the training."""
    seen = []

    class Interrupting:
        def __init__(self, verbose):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            return False

        def __call__(self, reading, record, plan):
            seen.append(record)
            if len(seen) == n_checks:
                raise KeyboardInterrupt

    monkeypatch.setattr("vaeimpute.estimators._imputer.progress", Interrupting)
    return seen


@pytest.mark.parametrize("n_checks", [1, 2])
def test_ctrl_c_keeps_the_best_so_far_and_says_so(monkeypatch, n_checks):
    checks = interrupt_after(monkeypatch, n_checks)
    fitted = imputer()
    with pytest.warns(UserWarning, match="fit was interrupted: the best weights so far are kept"):
        fitted.fit(big(60))
    assert len(checks) == n_checks
    assert np.isfinite(fitted.transform(big(60))).all()
    assert fitted.n_iter_ > 0


def test_ctrl_c_before_the_training_leaves_the_estimator_as_it_was(monkeypatch):
    fitted = imputer().fit(array())
    before = vars(fitted).copy()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("vaeimpute.estimators._imputer.fit_table", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(big(60))
    assert vars(fitted) == before


@pytest.mark.parametrize("with_rich", [True, False])
def test_verbose_shows_the_checks(monkeypatch, capsys, with_rich):
    if not with_rich:
        monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    imputer(verbose=1, time_budget=1).fit(big(60))
    shown = "".join(capsys.readouterr())
    assert "joint" in shown
    assert "error" in shown
    imputer(time_budget=1).fit(big(60))
    assert "".join(capsys.readouterr()) == ""


# --- bad input --------------------------------------------------------------------------------------------------------

GOOD = pd.DataFrame({"a": REAL, "b": WHOLE, "c": WORD})
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
    "time_budget zero": ({"time_budget": 0}, "'time_budget' parameter"),
    "time_budget text": ({"time_budget": "1m"}, "'time_budget' parameter"),
    "dtype": ({"dtype": "float16"}, "'dtype' parameter.*float32"),
    "device unknown": ({"device": "abacus"}, "device='abacus' cannot be used here.*Use device='auto'"),
    "device absent": ({"device": "cuda:99"}, "device='cuda:99' cannot be used here"),
    "device without values": ({"device": "meta"}, "device='meta' cannot be used here"),
    "random_state": ({"random_state": "seed"}, "'random_state' parameter"),
    "verbose": ({"verbose": -1}, "'verbose' parameter"),
}


@pytest.fixture
def no_work(monkeypatch):
    """Fail if anything is fitted."""

    def fail(*args, **kwargs):
        raise AssertionError("work began before the input was checked")

    monkeypatch.setattr("vaeimpute.estimators._imputer.fit_table", fail)


@pytest.mark.parametrize(("X", "error", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_fit_refuses_a_bad_table_before_any_work(X, error, message, fits, no_work):
    new = imputer()
    with pytest.raises(error, match=message):
        new.fit(X)
    assert vars(new) == vars(imputer())
    with pytest.raises(NotFittedError):
        new.transform(GOOD)
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


@pytest.fixture(scope="module")
def good():
    return imputer().fit(GOOD)


BAD_NEW = {
    "missing column": (GOOD[["a", "b"]], ValueError, "(?s)now missing:\n- c"),
    "extra column": (GOOD.assign(z=1), ValueError, "(?s)unseen at fit time:\n- z"),
    "other column": (GOOD.rename(columns={"b": "z"}), ValueError, "(?s)unseen at fit time:\n- z\n.*now missing:\n- b"),
    "other order": (GOOD[["b", "a", "c"]], ValueError, "(?s)same order.*- position 0: 'b', in fit 'a'"),
    "other order in polars": (pl.DataFrame(GOOD)[["b", "a", "c"]], ValueError, "(?s)same order.*- position 0: 'b'"),
    "too few columns": (np.ones((2, 2)), ValueError, "X has 2 features, but VAEImputer is expecting 3"),
    "words for numbers": (GOOD.assign(a="x"), ValueError, "Column 'a': kind 'numeric' needs numbers.*row 0.*float64"),
    "numbers for words": (GOOD.assign(c=1.5), ValueError, "Column 'c': kind 'categorical' needs levels such as"),
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


def test_a_failing_fit_keeps_the_old_fit(monkeypatch):
    fitted = imputer().fit(GOOD)
    before, answer = vars(fitted).copy(), fitted.impute(GOOD)

    def fails(*args):
        raise MemoryError

    monkeypatch.setattr("vaeimpute.estimators._imputer.calibrate", fails)  # the last thing that a fit does
    with pytest.raises(MemoryError):
        fitted.fit(array())
    assert vars(fitted) == before
    pd.testing.assert_frame_equal(fitted.impute(GOOD), answer)


# --- odd tables that must work ----------------------------------------------------------------------------------------


def fills(X, **params):
    """Every method answers, and no hole is left."""
    fitted = imputer(**params).fit(X)
    filled = fitted.impute(X)
    assert_completes(filled, X)
    for scores in (fitted.score_samples(X), fitted.anomaly_score(X), fitted.encode(X)):
        assert np.isfinite(scores).all()
    observed = [[cell is not None for cell in cells] for cells in columns(X).values()]
    scored = [[cell is not None for cell in cells] for cells in columns(fitted.cell_anomaly_score(X)).values()]
    assert scored == observed
    for drawn in (fitted.impute(X, n_imputations=1)[0], fitted.sample(3), fitted.decode(fitted.encode(X))):
        assert all(None not in cells for cells in columns(drawn).values())
    return filled


def holes(X, rate=0.2, seed=0):
    X = np.array(X, dtype=float)
    X[np.random.default_rng(seed).random(X.shape) < rate] = np.nan
    X[0, 0], X[-1, -1] = 1.0, np.nan
    return X


@pytest.mark.parametrize("scale", [1e12, 1e-12])
def test_large_and_small_units(scale):
    X = array()
    filled, scaled = fills(X), fills(X * scale)
    np.testing.assert_allclose(scaled, filled * scale, rtol=0.1)


def test_a_large_offset():
    X = array()
    filled, moved = fills(X), fills(X + 1e12)
    np.testing.assert_allclose(moved - 1e12, filled, atol=0.5)


def test_heavy_tails():
    X = np.random.default_rng(0).standard_t(1, size=(36, 3)) ** 3
    X[::4, 1] = np.nan
    fills(X)
    fills(np.exp(np.abs(X) ** (1 / 3)))


def test_a_constant_column():
    X = array()
    X[:, 0] = np.where(np.isnan(X[:, 0]), np.nan, 7.0)
    assert (fills(X)[:, 0] == 7).all()
    words = pd.DataFrame({"a": array()[:, 0], "w": pd.Series(["same", None] * (N // 2))})
    assert (fills(words)["w"] == "same").all()


@pytest.mark.parametrize("cell", [3.5, "word", True, pd.Timestamp("2024-02-29 12:00"), pd.Timedelta("2h")])
def test_a_column_with_one_observed_value(cell):
    X = pd.DataFrame(
        {
            "a": array()[:, 0],
            "one": pd.Series([cell] + [None] * (N - 1), dtype=pd.Series([cell]).dtype if cell is not True else object),
        }
    )
    with pytest.warns(UserWarning, match=r"a single observed value can only repeat it: \['one'\]"):
        filled = fills(X)
    assert (filled["one"] == cell).all()


def test_columns_without_any_value_stay_or_get_zero():
    X = pd.DataFrame({"a": array()[:, 0], "none": np.nan, "text": pd.Series([None] * N, dtype="str")})
    with pytest.warns(UserWarning, match=r"not modelled: \['none', 'text'\]"):
        fitted = imputer().fit(X)
    assert fitted.impute(X)["none"].isna().all()
    assert fitted.transform(X).shape == (N, 1)
    assert np.isfinite(fitted.anomaly_score(X)).all()
    with pytest.warns(UserWarning, match="not modelled"):
        kept = imputer(keep_empty_features=True).fit(X).impute(X)
    assert (kept["none"] == 0).all()
    assert kept["text"].isna().all()


def test_a_row_with_nothing_observed_gets_the_middle():
    X = pd.DataFrame({"a": REAL, "c": WORD})
    X.loc[3] = None
    filled = fills(X)
    assert abs(filled.loc[3, "a"] - X["a"].mean()) < X["a"].std()
    fitted = imputer().fit(X)
    assert fitted.anomaly_score(X)[3] == 0
    assert fitted.score_samples(X)[3] == pytest.approx(0, abs=1e-6)


def test_unseen_levels_stay_and_count_as_missing(good):
    X = GOOD.iloc[:4].assign(c=["low", "purple", None, "high"])
    with pytest.warns(UserWarning, match=r"Column 'c': 1 cell\(s\) with levels not seen in fit \('purple'\)"):
        filled = good.impute(X)
    assert filled["c"].iloc[1] == "purple"
    assert filled["c"].iloc[2] in {"low", "mid", "high"}
    with pytest.warns(UserWarning, match="not seen in fit"):
        assert np.isnan(good.cell_anomaly_score(X)["c"].iloc[1])


@pytest.mark.filterwarnings("ignore:Columns with a single observed value:UserWarning")
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 1), (2, 3), (30, 1), (3, 20), (12, 40)])
def test_any_shape(shape):
    X = holes(np.random.default_rng(1).normal(size=shape))
    if shape == (1, 1):
        X[:] = 1.0
    keep = ~np.isnan(X).all(0)
    fills(X[:, keep])
    if shape[0] == 1:
        assert (imputer().fit(X[:, keep]).impute(np.full((2, keep.sum()), np.nan)) == X[:, keep]).all()


def test_one_row_says_that_it_cannot_teach():
    with pytest.warns(UserWarning, match="a single observed value"):
        imputer().fit(pd.DataFrame({"a": [1.0], "b": ["x"]}))


def test_one_row_and_one_column_at_transform(good):
    assert_completes(good.impute(GOOD.iloc[[3]]), GOOD.iloc[[3]])
    X = GOOD[["a"]]
    assert_completes(imputer().fit(X).impute(X), X)


@pytest.mark.parametrize(
    ("marker", "cells"),
    [
        (-1, [1.0, -1.0, 3.0]),
        (-1, [1, -1, 3]),
        ("?", ["a", "?", "a"]),
        (None, ["a", None, "a"]),
        (pd.NA, [1.0, np.nan, 3.0]),
    ],
)
def test_missing_values_may_have_a_marker(marker, cells):
    X = pd.DataFrame({"m": cells, "n": [1.0, 2.0, 3.0]})
    filled = imputer(missing_values=marker).fit(X).impute(X)
    assert filled["m"].dtype == X["m"].dtype
    assert filled["m"].iloc[1] not in (-1, "?")
    assert filled["m"].notna().all()


def test_identical_rows():
    X = np.tile([1.0, 2.0, np.nan], (36, 1))
    X[0, 2] = X[1, 2] = 3.0
    X[2, 1] = np.nan
    np.testing.assert_allclose(fills(X), np.tile([1.0, 2.0, 3.0], (36, 1)))


@pytest.mark.slow
def test_a_million_identical_rows():
    X = np.tile([1.0, 2.0], (1_000_000, 1))
    X[5, 1] = np.nan
    fitted = imputer(time_budget=5).fit(X)
    assert fitted.impute(X)[5].tolist() == [1.0, 2.0]
    assert np.isfinite(fitted.anomaly_score(X[:100])).all()


def test_no_warning_without_a_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imputer().fit(GOOD).impute(GOOD)


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu(tmp_path):
    X = array()
    on_gpu, on_cpu = (imputer(dtype="float64", device=device).fit(X) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(on_gpu.transform(X), on_cpu.transform(X), atol=0.5)
    on_gpu.save(tmp_path / "m")
    moved = VAEImputer.load(tmp_path / "m", device="cpu")
    np.testing.assert_allclose(moved.transform(X), on_gpu.transform(X))
    assert len(on_gpu.sample(3, random_state=0)) == 3


@pytest.mark.parametrize("names", [[3, 1, 2], pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)])])
def test_names_that_are_no_strings(names):
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 3)), columns=names)
    X.iloc[3, 1] = np.nan
    filled = imputer(add_indicator=True).fit_transform(X)
    assert filled.shape == (30, 4)
    assert np.isfinite(filled).all()
    assert imputer().set_output(transform="pandas").fit_transform(X).shape == (30, 3)


def test_arrow_integers_beyond_doubles():
    cells = [2**53 + k if k != 3 else None for k in range(36)]
    table = pa.table({"i": pa.array(cells, pa.int64()), "f": np.arange(36.0)})
    for X in (table, table.to_pandas(types_mapper=pd.ArrowDtype)):
        filled = imputer().fit(X).impute(X)["i"].to_numpy()
        assert [int(v) for k, v in enumerate(filled) if k != 3] == [v for v in cells if v is not None]


def test_names_that_cannot_be_saved(tmp_path):
    X = pd.DataFrame(np.arange(20.0).reshape(10, 2), columns=pd.date_range("2024", periods=2))
    with pytest.raises(TypeError, match="Column names must be text or numbers to be saved"):
        imputer().fit(X).save(tmp_path / "m.safetensors")


def test_identifiers_are_named():
    X = pd.DataFrame({"id": [f"row {i}" for i in range(60)], "x": np.arange(60.0)})
    with pytest.warns(UserWarning, match=r"nearly every value is another one .*\['id'\]"):
        imputer(time_budget=0.1).fit(X)


def test_a_value_far_from_all_levels_is_strange():
    X = np.random.default_rng(0).integers(0, 6, (300, 2)).astype(float)
    model = imputer(time_budget=2).fit(X)
    usual, between, near, far = model.cell_anomaly_score([[2, 2], [2.5, 2], [6, 2], [1000, 2]])[:, 0]
    assert usual + 1 < between < near < far


def test_threads_draw_as_one_does():
    X = np.random.default_rng(0).normal(size=(60, 3))
    X[::4, 1] = np.nan
    model = imputer().fit(X)
    one = model.impute(X, n_imputations=2, random_state=0)
    with ThreadPoolExecutor(4) as pool:
        for draws in pool.map(lambda _: model.impute(X, n_imputations=2, random_state=0), range(8)):
            np.testing.assert_array_equal(draws, one)


def test_hidden_cells_beyond_all_that_are_seen():
    """y follows x, and is hidden where x is large: MAR, but no observed y is as large as the hidden ones."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    X = np.column_stack([x, 2 * x + 0.2 * rng.normal(size=400)])
    truth, X[x > 0.8, 1] = X[:, 1].copy(), np.nan
    miss = (imputer().fit_transform(X)[:, 1] - truth)[x > 0.8]
    assert np.sqrt(np.mean(miss**2)) < 0.6 * np.sqrt(np.mean((np.nanmax(X[:, 1]) - truth[x > 0.8]) ** 2))
