"""VAEImputer keeps what is known and imputes what is not, whatever the table, in the time that it has."""

import json
import pickle
import time
import warnings
from contextlib import contextmanager

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from containers import CELLS, GOOD, REAL, WORD, N, array, assert_completes, columns, polars
from sklearn.utils._param_validation import InvalidParameterError
from toy import frame

from vaeimpute import VAEImputer
from vaeimpute.training import runtime


def imputer(**params):
    return VAEImputer(**{"random_state": 0, **params})


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


def test_which_columns_had_missing_cells_has_a_new_name():
    X = np.column_stack([np.arange(20.0), array()[:20]])
    fitted = imputer().fit(X)
    np.testing.assert_array_equal(fitted.has_missing_, np.isnan(X).any(0))
    with pytest.warns(FutureWarning, match=r"had_holes_ is now has_missing_; it goes with version"):
        former = fitted.had_holes_
    np.testing.assert_array_equal(former, fitted.has_missing_)


# --- the truth, where it is known -------------------------------------------------------------------------------------


def test_an_exact_relation_is_found():
    x = np.arange(35.0)
    X = np.column_stack([x, 2 * x + 1, -x])
    hidden = X.copy()
    hidden[::5, 1] = np.nan
    hidden[1::5, 2] = np.nan
    error = np.abs(imputer().fit(hidden).impute(hidden) - X)[np.isnan(hidden)]
    assert error.max() < 0.02 * X.std()


def halves(n=600, seed=1):
    """y is x and noise of half its deviation, and a fifth of the y are missing; complete y, and the table."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    X = np.column_stack([x, x + 0.5 * rng.normal(size=n)])
    y = X[:, 1].copy()
    X[rng.random(n) < 0.2, 1] = np.nan
    return y, X


def test_draws_are_as_dispersed_as_the_truth():
    y, X = halves()
    missing = np.isnan(X[:, 1])
    fitted = imputer(max_iter=10).fit(X)
    draws = np.array(fitted.impute(X, n_imputations=200, random_state=0))[:, missing, 1]
    np.testing.assert_allclose(draws.mean(0), X[missing, 0], atol=0.3)  # E[y | x] = x; 0.3 are 8 standard errors
    np.testing.assert_allclose(draws.std(0).mean(), 0.5, atol=0.06)
    below = (draws < y[missing]).mean(0)  # where the truth stands among its draws is uniform
    for level in (0.1, 0.5, 0.9):
        assert (below < level).mean() == pytest.approx(level, abs=4 * (level * (1 - level) / missing.sum()) ** 0.5)


def test_missing_cells_beyond_all_that_are_seen():
    """y follows x, and is missing where x is large: MAR, but no observed y is as large as the missing ones."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    X = np.column_stack([x, 2 * x + 0.2 * rng.normal(size=400)])
    truth, X[x > 0.8, 1] = X[:, 1].copy(), np.nan
    error = (imputer(max_iter=20).fit_transform(X)[:, 1] - truth)[x > 0.8]
    assert np.sqrt(np.mean(error**2)) < 1.5 * 0.2  # the noise alone is 0.2


def test_medians_are_those_of_the_draws_whatever_the_batch():
    rng = np.random.default_rng(1)
    X = pd.DataFrame({"x": rng.normal(size=80), "few": rng.integers(0, 4, 80), "class": rng.choice(["a", "b"], 80)})
    X["skewed"] = np.exp(X["x"] + rng.normal(size=80))
    X = X.mask(rng.random(X.shape) < 0.3)
    fitted = imputer(max_iter=10).fit(X)
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


# --- how long, and what is shown --------------------------------------------------------------------------------------


def curved(n=60):
    x = np.random.default_rng(0).normal(size=(n, 1))
    X = np.column_stack([x, x**2, np.sin(3 * x), np.abs(x)])
    X[np.random.default_rng(1).random(X.shape) < 0.2] = np.nan
    return X


def stages(fitted):
    return [record["model"] for record in fitted.history_]


def test_effort_is_checked_by_name():
    with pytest.raises(InvalidParameterError, match=r"'effort' parameter.*'auto'.*Got 'most' instead"):
        imputer(effort="most").fit(curved())


def test_time_budget_is_kept_and_what_it_left_out_is_named():
    start = time.monotonic()
    fitted = imputer(time_budget=1e-3)
    with pytest.warns(UserWarning, match=r"too short; left out: .*\. The best so far is kept\.$") as caught:
        fitted.fit(curved(400))
    assert time.monotonic() - start < 10  # the linear start and the scores come on top
    for what in ("further ranks of the linear start", "smoothers", "rows that calibrate scores"):
        assert what in str(caught[0].message)
    assert "joint" not in str(caught[0].message)  # which is not wanted
    assert stages(fitted) == ["linear"]
    assert fitted.n_iter_ == 1
    assert np.isfinite(fitted.transform(curved(400))).all()
    assert np.isfinite(fitted.anomaly_score(curved(400))).all()
    seconds = [record["seconds"] for record in fitted.history_]
    assert seconds == sorted(seconds)


def test_a_short_time_budget_of_a_full_fit_names_the_networks():
    fitted = imputer(effort="full", time_budget=1e-3)
    with pytest.warns(UserWarning, match="left out: .*further closed forms, networks of the joint model"):
        fitted.fit(curved(120))
    assert stages(fitted) == ["linear"]
    assert np.isfinite(fitted.transform(curved(120))).all()


def test_networks_that_a_time_budget_cuts_short_are_named(monkeypatch):
    monkeypatch.setattr("vaeimpute.tables.fit._JOINT_SHARE", 0)  # all else fits in
    fitted = imputer(effort="full", time_budget=1e4, max_iter=20)
    with pytest.warns(UserWarning, match="time_budget was too short; left out: .*joint"):
        fitted.fit(curved())
    assert max(record["step"] for record in fitted.history_ if record["model"] == "joint") < 15


@pytest.mark.slow
@pytest.mark.parametrize("effort", ["auto", "full"])
def test_a_time_budget_bounds_a_fit(effort):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 5)) @ rng.normal(size=(5, 30)) + 0.5 * rng.normal(size=(2000, 30))
    X[:, 1] = X[:, 0] ** 2
    X[rng.random(X.shape) < 0.2] = np.nan
    imputer().fit(curved())  # what is imported at the first fit is not the fit's
    start = time.monotonic()
    fitted = imputer(effort=effort, time_budget=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "time_budget was too short", UserWarning)
        fitted.fit(X)
    assert time.monotonic() - start < 1.5 * 1 + 1
    assert np.isfinite(fitted.transform(X)).all()


def test_a_time_budget_that_is_long_enough_says_nothing_and_changes_nothing():
    X = curved()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = imputer(time_budget=1000, max_iter=10).fit(X)
    np.testing.assert_array_equal(fitted.transform(X), imputer(max_iter=10).fit(X).transform(X))


@pytest.mark.parametrize(("effort", "names"), [("auto", {"smoother"}), ("full", {"smoother", "joint"})])
@pytest.mark.parametrize("max_iter", [1, 5, 30])
def test_max_iter_is_kept_by_each_stage(effort, names, max_iter):
    history = imputer(effort=effort, max_iter=max_iter).fit(curved()).history_
    steps = {name: max(record["step"] for record in history if record["model"] == name) for name in names}
    assert steps["smoother"] == max_iter
    if effort == "full":
        assert 0.7 * max_iter < steps["joint"] <= max_iter  # the others are for the refit


def test_a_fit_that_takes_no_step_says_one_iteration():
    """So few rows are fitted in closed form, and scikit-learn wants at least one iteration."""
    assert imputer(max_iter=5).fit(array()).n_iter_ == 1


CLOSED_FORM = ["linear", "smoother", "random features"]


@pytest.mark.parametrize(
    ("n", "effort", "names"),
    [
        (20, "auto", ["linear"]),  # so few rows that they teach nothing else
        (60, "auto", CLOSED_FORM[:2]),
        (120, "auto", CLOSED_FORM),
        (20, "full", 4 * ["linear"]),
        (120, "full", [*4 * CLOSED_FORM, "joint", "joint"]),
    ],
)
def test_history_tells_every_evaluation(n, effort, names):
    fitted = imputer(effort=effort, max_iter=10).fit(curved(n))
    assert stages(fitted) == names
    for record in fitted.history_:
        assert set(record) >= {"model", "step", "error", "relative_error", "seconds"}
        assert np.isfinite(record["error"])
    assert fitted.n_iter_ == max(1, *(record["step"] for record in fitted.history_))
    seconds = [record["seconds"] for record in fitted.history_]
    assert seconds == sorted(seconds)
    assert fitted.history_[0]["relative_error"] == 1
    json.dumps(fitted.history_)


def test_what_is_curved_is_learnt_by_the_closed_form():
    errors = {record["model"]: record["relative_error"] for record in imputer().fit(curved(400)).history_}
    assert errors["random features"] <= errors["smoother"] < 0.6 * errors["linear"]


def interrupt_at(monkeypatch, n_evaluations):
    """Press Ctrl-C at the n-th evaluation of the training."""
    seen = []

    @contextmanager
    def progress(verbose):
        def on_evaluation(model, record, n_steps):
            seen.append(record)
            if len(seen) == n_evaluations:
                raise KeyboardInterrupt

        yield on_evaluation

    monkeypatch.setattr("vaeimpute.estimators._imputer.progress", progress)
    return seen


@pytest.mark.parametrize(
    ("effort", "n_evaluations", "told"),
    [
        ("auto", 1, [("linear", 0), ("smoother", 0)]),  # no step of a later stage is taken
        ("auto", 2, [("linear", 0), ("smoother", 20)]),
        ("auto", 3, [("linear", 0), ("smoother", 20), ("random features", 1)]),
        ("full", 2, [("linear", 0), ("smoother", 20)]),  # no other closed form, and no networks
        ("full", 13, [*4 * [("linear", 0), ("smoother", 20), ("random features", 1)], ("joint", 16)]),
    ],
)
def test_ctrl_c_keeps_the_best_so_far_and_says_so(monkeypatch, effort, n_evaluations, told):
    seen = interrupt_at(monkeypatch, n_evaluations)
    fitted = imputer(effort=effort, max_iter=20)
    with pytest.warns(UserWarning, match="fit was interrupted: the best weights so far are kept"):
        fitted.fit(curved(120))
    assert [(record["model"], record["step"]) for record in seen] == told
    assert np.isfinite(fitted.transform(curved(120))).all()
    assert np.isfinite(fitted.anomaly_score(curved(120))).all()
    assert fitted.n_iter_ > 0


@pytest.mark.parametrize("with_rich", [True, False])
def test_verbose_shows_the_evaluations(monkeypatch, capsys, with_rich):
    if not with_rich:
        monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    imputer(verbose=1, max_iter=4, effort="full").fit(curved(120))
    shown = "".join(capsys.readouterr())
    for name in (*CLOSED_FORM, "joint", "error"):
        assert name in shown
    imputer(max_iter=4).fit(curved())
    assert "".join(capsys.readouterr()) == ""


# --- the same answer, wherever it is asked for ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["auto", "full"])
def fitted_to_frame(request):
    """Rows of all kinds, and what learnt them; with networks, too."""
    X = frame()
    fitted = imputer(effort=request.param, max_iter=10).fit(X)
    assert stages(fitted)[-1] == {"auto": "random features", "full": "joint"}[request.param]
    return fitted, X


def new_rows(n):
    """Other rows of the same table: cells of the training rows, dealt anew."""
    X, rng = frame(), np.random.default_rng(0)
    return X.apply(lambda cells: cells.iloc[rng.choice(len(cells), n)].reset_index(drop=True))


ANSWERS = ("impute", "log_likelihood", "anomaly_score", "cell_anomaly_score", "encode")


def together(answers):
    return pd.concat([pd.DataFrame(answer) for answer in answers], ignore_index=True)


@pytest.mark.parametrize(("method", "point"), [*((method, "mean") for method in ANSWERS), ("impute", "median")])
def test_single_rows_get_the_answers_that_they_get_in_a_batch(fitted_to_frame, method, point):
    fitted = pickle.loads(pickle.dumps(fitted_to_frame[0])).set_params(point=point)
    ask = getattr(fitted, method)
    for X in (new_rows(12), fitted_to_frame[1].iloc[:12]):
        alone = together(ask(X.iloc[[i]]) for i in range(len(X)))
        # Ranks among 120 rows, which are 1/120 apart, are steep where two rows of them score alike.
        off = 2e-3 if "anomaly" in method else 1e-4
        pd.testing.assert_frame_equal(alone, together([ask(X)]), rtol=off, atol=off)


@pytest.mark.parametrize("point", ["mean", "median"])
def test_training_rows_get_the_same_answer_whatever_the_batch(fitted_to_frame, point):
    """They are known by what they hold: among other rows, in another order, or twice."""
    fitted, X = fitted_to_frame
    fitted = pickle.loads(pickle.dumps(fitted)).set_params(point=point)
    want = together([fitted.impute(X)])
    for order in (np.arange(len(X))[::-1], np.random.default_rng(0).permutation(len(X)), np.repeat(np.arange(30), 2)):
        got = together([fitted.impute(X.iloc[order])])
        pd.testing.assert_frame_equal(got, want.iloc[order].reset_index(drop=True), rtol=1e-5, atol=1e-5)
    among = fitted.impute(pd.concat([new_rows(40), X], ignore_index=True)).iloc[40:].reset_index(drop=True)
    pd.testing.assert_frame_equal(among, want, rtol=1e-5, atol=1e-5)


def test_a_training_row_is_not_told_by_itself():
    """Noise that nothing tells: a row that saw itself would be imputed with what it holds elsewhere."""
    X = np.random.default_rng(0).normal(size=(200, 3))
    fitted = imputer().fit(X)
    hidden = X.copy()
    hidden[:, 2] = np.nan
    assert np.corrcoef(fitted.impute(hidden)[:, 2], X[:, 2])[0, 1] < 0.4


def test_a_full_fit_outlives_a_file_and_a_pickle(fitted_to_frame, tmp_path):
    fitted, X = fitted_to_frame
    fitted.save(tmp_path / "m")
    for copy in (VAEImputer.load(tmp_path / "m"), pickle.loads(pickle.dumps(fitted))):
        assert copy.effort == fitted.effort
        assert copy.history_ == fitted.history_
        for rows in (X[:20], new_rows(20)):
            for method in ANSWERS:
                one, other = (together([getattr(model, method)(rows)]) for model in (copy, fitted))
                pd.testing.assert_frame_equal(one, other, rtol=0, atol=0)
            one, other = (together(model.impute(rows, 2, random_state=0)) for model in (copy, fitted))
            pd.testing.assert_frame_equal(one, other, rtol=0, atol=0)
        pd.testing.assert_frame_equal(copy.sample(5, random_state=0), fitted.sample(5, random_state=0))


# --- odd tables that must work ----------------------------------------------------------------------------------------


def fills(X, **params):
    """Every method answers, and no cell is left missing."""
    fitted = imputer(**params).fit(X)
    filled = fitted.impute(X)
    assert_completes(filled, X)
    for scores in (fitted.log_likelihood(X), fitted.anomaly_score(X), fitted.encode(X)):
        assert np.isfinite(scores).all()
    observed = [[cell is not None for cell in cells] for cells in columns(X).values()]
    scored = [[cell is not None for cell in cells] for cells in columns(fitted.cell_anomaly_score(X)).values()]
    assert scored == observed
    for drawn in (fitted.impute(X, n_imputations=1)[0], fitted.sample(3), fitted.decode(fitted.encode(X))):
        assert all(None not in cells for cells in columns(drawn).values())
    return filled


def incomplete(X, rate=0.2, seed=0):
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


def test_a_row_with_nothing_observed_gets_the_middle_and_is_not_anomalous():
    X = pd.DataFrame({"a": REAL, "c": WORD})
    X.loc[3] = None
    filled = fills(X)
    assert abs(filled.loc[3, "a"] - X["a"].mean()) < X["a"].std()
    fitted = imputer().fit(X)
    assert 0.1 < np.exp(-fitted.anomaly_score(X)[3]) < 0.9
    assert fitted.log_likelihood(X)[3] == pytest.approx(0, abs=1e-6)


def test_unseen_categories_stay_and_count_as_missing(good):
    X = GOOD.iloc[:4].assign(c=["low", "purple", None, "high"])
    with pytest.warns(UserWarning, match=r"Column 'c': 1 cell\(s\) with categories not seen in fit \('purple'\)"):
        filled = good.impute(X)
    assert filled["c"].iloc[1] == "purple"
    assert filled["c"].iloc[2] in {"low", "mid", "high"}
    with pytest.warns(UserWarning, match="not seen in fit"):
        assert np.isnan(good.cell_anomaly_score(X)["c"].iloc[1])


@pytest.mark.filterwarnings("ignore:Columns with a single observed value:UserWarning")
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 1), (2, 3), (30, 1), (3, 20), (12, 40)])
def test_any_shape(shape):
    X = incomplete(np.random.default_rng(1).normal(size=shape))
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
    fitted = imputer(max_iter=10).fit(X)
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


def test_identifiers_are_named():
    X = pd.DataFrame({"id": [f"row {i}" for i in range(60)], "x": np.arange(60.0)})
    with pytest.warns(UserWarning, match=r"nearly every value is another one .*\['id'\]"):
        imputer(max_iter=1).fit(X)


def test_a_value_far_from_all_that_a_column_holds_is_anomalous():
    X = np.random.default_rng(0).integers(0, 6, (300, 2)).astype(float)
    fitted = imputer(max_iter=5).fit(X)
    usual, between, near, far = fitted.cell_anomaly_score([[2, 2], [2.5, 2], [6, 2], [1000, 2]])[:, 0]
    assert usual + 1 < between < near < far
