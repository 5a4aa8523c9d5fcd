"""VAEOutlierDetector: rows, cells, p-values, repairs; scikit-learn's contract is in test_sklearn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy.stats import kstest, multivariate_normal
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vaeimpute import VAEImputer, VAEOutlierDetector

SCORES = ["score_samples", "anomaly_score", "decision_function", "predict", "p_values", "cell_anomaly_score"]


def detector(**params):
    return VAEOutlierDetector(**{"dtype": "float64", "random_state": 0, **params})


# The truth: two clusters of six columns that hang on two factors.
W = np.random.default_rng(99).normal(size=(2, 6))
CENTERS, COVARIANCE = (3.0, -3.0), W.T @ W + 0.3**2 * np.eye(6)


def rows(n, seed, missing=0.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2)) @ W + 0.3 * rng.normal(size=(n, 6)) + np.where(rng.random((n, 1)) < 0.5, *CENTERS)
    X[rng.random(X.shape) < missing] = np.nan
    return X


def mismatched(n, seed, missing=0.0):
    """As normal in every column, but the columns do not belong together."""
    rng = np.random.default_rng(seed)
    X = rows(5 * n, seed)
    X = np.column_stack([rng.permutation(column)[:n] for column in X.T])
    X[rng.random(X.shape) < missing] = np.nan
    return X


def true_nll(X, covariance=COVARIANCE):
    """Negative log-density of the observed cells of each row, (n,)."""
    nll, observed = np.zeros(len(X)), ~np.isnan(X)
    for mask in np.unique(observed[observed.any(1)], axis=0):
        like, own = (observed == mask).all(1), covariance[np.ix_(mask, mask)]
        parts = [multivariate_normal.logpdf(X[like][:, mask], np.full(mask.sum(), at), own) for at in CENTERS]
        nll[like] = np.log(2) - np.logaddexp(*parts)
    return nll


def true_log_odds(X):
    """Of a row to be of `mismatched`: no score can tell the two apart better (Neyman and Pearson)."""
    alone = [true_nll(np.where(np.arange(6) == j, X, np.nan)) for j in range(6)]
    return true_nll(X) - sum(alone)


def true_expected(X):
    """What the other cells of a row let expect of each cell, (n, 6)."""
    out = np.empty(X.shape)
    for j in range(6):
        rest = np.arange(6) != j
        own = COVARIANCE[np.ix_(rest, rest)]
        slope = np.linalg.solve(own, COVARIANCE[rest, j])
        logits = [multivariate_normal.logpdf(X[:, rest], np.full(5, at), own) for at in CENTERS]
        weights = np.exp(logits - np.logaddexp(*logits))
        out[:, j] = sum(w * (at + (X[:, rest] - at) @ slope) for w, at in zip(weights, CENTERS, strict=True))
    return out


def frame(n=200, seed=0):
    """Every kind of column, with missing cells and an index that repeats."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    X = pd.DataFrame(
        {
            "number": 10 + 2 * x + 0.2 * rng.normal(size=n),
            "whole": pd.array(np.rint(50 + 10 * x), dtype="Int64"),
            "word": np.where(x > 0, "high", "low"),
            "size": pd.Categorical(np.where(x > 0.5, "L", np.where(x > -0.5, "M", "S")), ["S", "M", "L"], ordered=True),
            "flag": x > 0,
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.rint(30 * x), unit="D"),
        },
        index=np.arange(n) // 2,
    )
    return X.mask(rng.random(X.shape) < 0.05)


@pytest.fixture(scope="module")
def fitted():
    return detector().fit(rows(400, 0))


@pytest.fixture(scope="module")
def incomplete():
    return detector().fit(rows(400, 0, missing=0.2))


@pytest.fixture(scope="module")
def mixed():
    return detector().fit(frame())


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("missing", "loss"), [(0.0, 0.005), (0.3, 0.05)])
def test_anomalous_rows_are_told_apart_nearly_as_well_as_can_be(incomplete, missing, loss):
    X = np.concatenate([rows(1000, 1, missing), mismatched(1000, 2, missing)])
    y = np.repeat([0, 1], 1000)
    assert roc_auc_score(y, incomplete.anomaly_score(X)) > roc_auc_score(y, true_log_odds(X)) - loss


def test_signs_are_those_of_scikit_learn(fitted):
    X = np.concatenate([rows(50, 1), mismatched(50, 2)])
    np.testing.assert_array_equal(fitted.score_samples(X), -fitted.anomaly_score(X))
    np.testing.assert_array_equal(fitted.decision_function(X), fitted.score_samples(X) - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(X), np.where(fitted.decision_function(X) < 0, -1, 1))


def test_auto_flags_a_twentieth_of_inliers(fitted, incomplete):
    assert (fitted.predict(rows(2000, 1)) == -1).mean() == pytest.approx(0.05, abs=0.03)
    for missing in (0.2, 0.4):
        assert (incomplete.predict(rows(2000, 1, missing)) == -1).mean() == pytest.approx(0.05, abs=0.035)


@pytest.mark.parametrize("contamination", [0.02, 0.1, 0.5])
def test_contamination_flags_so_many_training_rows(contamination):
    X = np.concatenate([rows(90, 0, 0.1), mismatched(10, 2)])
    flagged = detector(contamination=contamination).fit_predict(X) == -1
    assert flagged.sum() == round(contamination * len(X))


def test_robust_finds_outliers_it_was_fitted_to():
    X = np.concatenate([rows(300, 0), mismatched(60, 2) + 2])
    y = np.repeat([0, 1], [300, 60])
    scores = detector(contamination=1 / 6).fit(X).anomaly_score(X)
    assert roc_auc_score(y, scores) > roc_auc_score(y, true_nll(X)) - 0.05
    assert detector(robust=False, contamination=0.1).fit(X).n_components_ >= 1


@pytest.mark.xfail(reason="outliers that are all alike find a component, and one another: AUC 0.07 (plain: 0.05)")
def test_robust_finds_outliers_that_are_alike():
    alike = mismatched(1, 2) + 0.3 * np.random.default_rng(0).normal(size=(20, 6))
    X, y = np.concatenate([rows(300, 0), alike]), np.repeat([0, 1], [300, 20])
    scores = detector(contamination=1 / 16).fit(X).anomaly_score(X)
    assert roc_auc_score(y, scores) > roc_auc_score(y, true_nll(X)) - 0.05


def test_a_row_without_any_value_is_unremarkable(incomplete, mixed):
    X = rows(300, 1, missing=0.2)
    X[0] = np.nan
    score = incomplete.anomaly_score(X)
    assert np.quantile(score, 0.1) < score[0] < np.quantile(score, 0.9)
    assert incomplete.predict(X)[0] == 1
    assert 0.1 < incomplete.p_values(X)[0] < 0.9
    assert mixed.predict(frame().mask(np.ones((200, 6), bool)))[0] == 1


@pytest.mark.parametrize("method", SCORES)
@pytest.mark.parametrize("model", ["fitted", "incomplete"])
def test_a_row_gets_the_same_score_in_any_batch_and_order(model, method, request):
    answer = getattr(request.getfixturevalue(model), method)
    X = np.concatenate([rows(15, 1, missing=0.3), rows(15, 1), mismatched(10, 2)])
    whole = answer(X)
    np.testing.assert_allclose(np.concatenate([answer(row[None]) for row in X]), whole, rtol=0, atol=1e-9)
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(answer(X[order]), whole[order], rtol=0, atol=1e-9)


def test_same_seed_same_scores():
    X = rows(100, 0, 0.1)
    one, two = (detector(random_state=3).fit(X) for _ in range(2))
    np.testing.assert_array_equal(one.anomaly_score(X), two.anomaly_score(X))
    np.testing.assert_array_equal(one.cell_anomaly_score(X), two.cell_anomaly_score(X))


def test_units_do_not_matter():
    X, new = rows(200, 0), np.concatenate([rows(50, 1), mismatched(50, 2)])
    unit, shift = np.array([1e-3, 1, 10, 1e6, 5, 0.1]), np.arange(6.0) * 100
    one, two = detector().fit(X), detector().fit(X * unit + shift)
    np.testing.assert_allclose(two.anomaly_score(new * unit + shift), one.anomaly_score(new), rtol=1e-4, atol=1e-4)
    assert two.score(new * unit + shift) == pytest.approx(one.score(new) - np.log(unit).sum(), rel=1e-4)


# --- p-values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_p_values_of_inliers_are_uniform(incomplete, missing):
    p = incomplete.p_values(rows(400, 5, missing))
    assert (p > 0).all()
    assert (p <= 1).all()
    # both the 400 rows and the training rows of a mask (a third are complete) are samples
    assert kstest(p, "uniform").statistic < 1.95 * (1 / 400 + 1 / 130) ** 0.5


def test_p_values_are_uniform_beside_classes_in_single_precision():
    def table(seed):
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 3, 400)
        return pd.DataFrame({"x": rng.normal(size=400) + codes, "word": pd.Categorical.from_codes(codes, list("abc"))})

    p = VAEOutlierDetector(random_state=0).fit(table(0)).p_values(table(1))
    assert kstest(p, "uniform").pvalue > 0.01


def test_one_gross_error_does_not_hide_the_others():
    X = np.concatenate([rows(385, 5), mismatched(15, 6) + 4])
    truth = np.arange(400) >= 385
    X[0, 0] = 1e5
    scores = detector(contamination=0.05).fit(X).anomaly_score(X)
    assert scores[0] == scores.max()
    assert roc_auc_score(truth[1:], scores[1:]) > roc_auc_score(truth[1:], true_nll(X[1:])) - 0.05


@pytest.mark.parametrize("n", [7, 15, 40])
def test_of_few_rows_few_are_flagged(n):
    flagged = [(detector(random_state=s).fit(rows(n, s)).predict(rows(200, s + 50)) == -1).mean() for s in range(4)]
    assert np.mean(flagged) < 0.25


@pytest.mark.parametrize("robust", [False, True])
def test_a_nearly_empty_column_of_a_table_with_more_rows_than_can_be_neighbours(robust):
    X = np.random.default_rng(0).normal(size=(4100, 2))
    X[2:, 1] = np.nan
    assert np.isfinite(detector(robust=robust).fit(X).anomaly_score(X[:5])).all()


def test_selected_rows_keep_the_false_discovery_rate():
    model = detector().fit(rows(1000, 0))
    false = []
    for seed in range(20):
        chosen = model.select(np.concatenate([rows(180, 10 + seed), mismatched(20, 2 + seed) + 4]), fdr=0.2)
        false.append(chosen[:180].sum() / max(chosen.sum(), 1))
        assert chosen[180:].mean() > 0.5
    assert np.mean(false) < 0.25


@pytest.mark.parametrize("fdr", [0, 1, -0.1, "a", None])
def test_select_refuses_other_rates(fitted, fdr):
    with pytest.raises(ValueError, match="fdr must be a number between 0 and 1"):
        fitted.select(rows(5, 1), fdr=fdr)


@pytest.mark.parametrize("n_cells", [0, -1, 1.5, "all"])
def test_explain_refuses_other_counts(fitted, n_cells):
    with pytest.raises(ValueError, match="n_cells must be a positive integer, got"):
        fitted.explain(rows(5, 1), n_cells=n_cells)


@pytest.mark.parametrize("threshold", ["5", None, np.nan])
def test_repair_refuses_other_thresholds(fitted, threshold):
    with pytest.raises(ValueError, match="threshold must be a number, got"):
        fitted.repair(rows(5, 1), threshold=threshold)


# --- cells ------------------------------------------------------------------------------------------------------------


def spoiled(n=600, seed=1):
    """Normal rows, one cell of every third on the other side; which ones, and the truth."""
    X = rows(n, seed)
    wrong = np.zeros(X.shape, bool)
    wrong[np.arange(0, n, 3), np.random.default_rng(seed).integers(6, size=len(range(0, n, 3)))] = True
    return np.where(wrong, -np.sign(X) * 4, X), wrong, X


def test_wrong_cells_score_higher_than_their_likelihood_alone_would_have_them(fitted):
    """A wrong cell makes the others of its row look wrong, unless it may be taken for wrong itself."""
    X, wrong, _ = spoiled()
    given_all_others = [true_nll(X) - true_nll(np.where(np.arange(6) == j, np.nan, X)) for j in range(6)]
    bound = roc_auc_score(wrong.ravel(), np.column_stack(given_all_others).ravel())
    assert roc_auc_score(wrong.ravel(), fitted.cell_anomaly_score(X).ravel()) > bound


def test_repair_finds_the_wrong_cells_and_what_the_others_let_expect(fitted):
    X, wrong, truth = spoiled()
    repaired = fitted.repair(X)
    changed = repaired != X
    assert (changed & wrong).sum() > 0.97 * wrong.sum()
    assert (changed & wrong).sum() > 0.97 * changed.sum()
    error, least = (np.abs(guess - truth)[wrong & changed].mean() for guess in (repaired, true_expected(X)))
    assert error < 1.25 * least


def test_repair_takes_log_odds(fitted):
    X = spoiled(60)[0]
    changed = {threshold: fitted.repair(X, threshold) != X for threshold in (-np.inf, -5, 0, 20, np.inf)}
    assert changed[-np.inf].all()
    assert not changed[np.inf].any()
    for low, high in ((-np.inf, -5), (-5, 0), (0, 20), (20, np.inf)):
        assert (changed[low] >= changed[high]).all()
        assert (changed[low] != changed[high]).any()
    np.testing.assert_array_equal(fitted.repair(X), fitted.repair(X, threshold=0))


def test_a_wrong_cell_does_not_infect_the_others(fitted):
    X = rows(1, 1)
    X[0, 2] += 20
    score = fitted.cell_anomaly_score(X)[0]
    assert score.argmax() == 2
    assert (np.delete(score, 2) < 3).all()


def test_missing_cells_have_no_score_and_are_not_imputed(incomplete):
    X = rows(20, 1, missing=0.3)
    np.testing.assert_array_equal(np.isnan(incomplete.cell_anomaly_score(X)), np.isnan(X))
    np.testing.assert_array_equal(np.isnan(incomplete.repair(X, threshold=-np.inf)), np.isnan(X))


def test_all_kinds_of_cells(mixed):
    X = frame(40, seed=1)
    X.iloc[0] = [13.0, 65, "low", "L", True, pd.Timestamp("2024-02-15")]
    X.iloc[1] = [13.0, 35, "high", "L", True, pd.Timestamp("2024-02-15")]
    scores = mixed.cell_anomaly_score(X)
    assert scores.index.equals(X.index)
    assert list(scores.columns) == list(X.columns)
    np.testing.assert_array_equal(scores.isna(), X.isna())
    assert scores.iloc[0].idxmax() == "word"
    assert scores.iloc[1].idxmax() == "whole"
    repaired = mixed.repair(X, threshold=-1)
    assert (repaired.dtypes == X.dtypes).all()
    assert repaired.iloc[0]["word"] == "high"
    assert repaired.iloc[1]["whole"] == pytest.approx(65, abs=5)
    np.testing.assert_array_equal(repaired.isna(), X.isna())
    assert np.isfinite(mixed.anomaly_score(X)).all()


@pytest.mark.parametrize("container", [pd.DataFrame, pl.DataFrame, pa.table])
def test_containers(container):
    data = {"a": np.arange(60.0), "b": np.where(np.arange(60) < 30, "low", "high").tolist()}
    X = container(data)
    model = detector().fit(X)
    assert model.predict(X).shape == (60,)
    assert type(model.cell_anomaly_score(X)) is type(X)
    assert type(model.repair(X)) is type(X)
    table = model.explain(X)
    assert list(table) == ["row", "row_score", "column", "value", "expected", "cell_score"]


def test_explain_is_tidy_and_sorted(mixed):
    X = frame(30, seed=1)
    table = mixed.explain(X, n_cells=2)
    np.testing.assert_allclose(table["row_score"].to_numpy(), mixed.anomaly_score(X)[table["row"]])
    assert (np.diff(table["row_score"]) <= 0).all()
    assert (table.groupby("row")["cell_score"].diff().dropna() <= 0).all()
    assert set(table["column"]) <= set(X.columns)
    assert table.groupby("row").size().max() == 2


def test_plot_shows_the_most_anomalous_rows(mixed):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    X = frame(30, seed=1)
    axes = mixed.plot(X, n_rows=4)
    labels = [int(label.get_text()) for label in axes.get_yticklabels()]
    assert labels == np.argsort(-mixed.anomaly_score(X), kind="stable")[:4].tolist()
    assert [label.get_text() for label in axes.get_xticklabels()] == list(X.columns)
    pyplot.close("all")


# --- the estimator ----------------------------------------------------------------------------------------------------


def test_single_precision_is_close():
    X = rows(300, 0)
    new = np.concatenate([rows(50, 1), mismatched(50, 2)])
    one, two = (detector(dtype=dtype).fit(X).anomaly_score(new) for dtype in ("float32", "float64"))
    np.testing.assert_allclose(one, two, atol=1e-2, rtol=1e-3)


def test_in_pipelines_and_searches():
    X = rows(38, 0, 0.1)  # too few for a training
    assert make_pipeline(VAEImputer(random_state=0), detector()).fit(X).predict(X).shape == (38,)
    kept = (
        make_pipeline(ColumnTransformer([("scaled", StandardScaler(), [0, 1, 2])]), detector()).fit(X).predict(X) == 1
    )
    assert VAEImputer(random_state=0).fit(X[kept]).transform(X).shape == X.shape
    search = GridSearchCV(detector(), {"kinds": [None, {"x1": "categorical"}]}, cv=2)
    with pytest.warns(UserWarning, match="not seen in fit"):
        search.fit(np.where(np.arange(6) == 1, np.rint(X / 3), X))
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("n", [2, 3, 7, 8, 12, 45])
def test_small_tables(n):
    X = rows(n, 0)
    model = detector().fit(X)
    assert np.isfinite(model.anomaly_score(X)).all()
    assert ((model.p_values(X) > 0) & (model.p_values(X) <= 1)).all()


def test_poor_columns():
    X = np.column_stack([rows(60, 0), np.full(60, 3.0), np.full(60, np.nan)])
    with pytest.warns(UserWarning, match=r"not modelled: \['x7'\]"):
        model = detector().fit(X)
    assert np.isfinite(model.anomaly_score(X)).all()
    scores = model.cell_anomaly_score(X)
    assert np.isnan(scores[:, 7]).all()
    changed = X[:5].copy()
    changed[:, 6] = 4.0
    assert (model.anomaly_score(changed) > model.anomaly_score(X[:5])).all()


def test_extreme_values_are_anomalous_and_finite(fitted):
    X = rows(4, 1)
    X[0, 0], X[1] = 1e12, -1e12
    score = fitted.anomaly_score(X)
    assert np.isfinite(score).all()
    assert (score[:2] > score[2:].max()).all()
    assert np.isfinite(fitted.cell_anomaly_score(X)).all()


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"contamination": 0.0}, "'contamination' parameter"),
        ({"contamination": 0.6}, "'contamination' parameter"),
        ({"contamination": "some"}, "'contamination' parameter"),
        ({"robust": "yes"}, "'robust' parameter"),
        ({"dtype": "float16"}, "'dtype' parameter"),
        ({"device": "abacus"}, "cannot be used here"),
    ],
)
def test_bad_parameters(params, match):
    with pytest.raises(ValueError, match=match):
        VAEOutlierDetector(**params).fit(rows(20, 0))


def test_bad_tables(fitted):
    with (
        pytest.raises(ValueError, match="at least two rows"),
        pytest.warns(UserWarning, match="single observed value"),
    ):
        detector().fit(rows(1, 0))
    with pytest.raises(ValueError, match="expecting 6 features"):
        fitted.anomaly_score(rows(5, 0)[:, :4])
    infinite = rows(5, 0)
    infinite[2, 3] = np.inf
    with pytest.raises(ValueError, match="'x3'"):
        fitted.anomaly_score(infinite)
    for method in SCORES:
        with pytest.raises(NotFittedError):
            getattr(VAEOutlierDetector(), method)(rows(5, 0))


def test_a_failed_fit_leaves_the_last_one():
    X = rows(60, 0)
    model = detector().fit(X)
    before = model.anomaly_score(X)
    with pytest.raises(ValueError, match="no observed value"):
        model.fit(np.full((20, 6), np.nan))
    np.testing.assert_array_equal(model.anomaly_score(X), before)
