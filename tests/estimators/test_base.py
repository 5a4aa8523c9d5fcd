"""What both estimators share: scores with one meaning, a likelihood that meets the truth, one look at each column."""

import inspect
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from containers import GOOD, columns
from toy import factor_analysis, frame, images, rows_of

from vaeimpute import VAEImputer, VAEOutlierDetector
from vaeimpute.frames import encoder
from vaeimpute.gaussian.factor_analysis import log_likelihood

ESTIMATORS = [VAEImputer, VAEOutlierDetector]


def few_steps(make, **params):
    return make(**({"max_iter": 5} if make is VAEImputer else {}), **{"random_state": 0, **params})


# --- one meaning of scores --------------------------------------------------------------------------------------------

TRUTH = factor_analysis()


def table(n, seed, missing=0.1):
    values, observed = rows_of(TRUTH, n, missing, seed)
    return np.where(observed, values, np.nan)


def assert_nats(scores, n_fresh, n_reference):
    """The share of scores above s is e^-s, but for the numbers of fresh and of reference rows (or cells)."""
    for s in (1, 2, 3):
        share = np.exp(-s)
        error = np.sqrt(share * (1 - share) * (1 / n_fresh + 1 / n_reference))
        assert (scores > s).mean() == pytest.approx(share, abs=3 * error), s


@pytest.mark.parametrize("make", ESTIMATORS)
def test_scores_of_rows_and_cells_are_nats(make):
    """Fresh inliers: one in e^s scores more than s nats, in both estimators."""
    n, seeds = 600, (1, 2)
    rows, cells = [], []
    for seed in seeds:
        X = table(n + 1000, seed)
        fitted = few_steps(make, random_state=seed).fit(X[:n])
        rows.append(fitted.anomaly_score(X[n:]))
        cells.append(fitted.cell_anomaly_score(X[n : n + 300]))
    assert_nats(np.concatenate(rows), 1000 * len(seeds), n * len(seeds))
    cells = np.concatenate(cells)
    assert_nats(cells[~np.isnan(cells)], 300 * len(seeds), 200 * len(seeds))  # cells of a row are not independent


@pytest.mark.parametrize("make", ESTIMATORS)
def test_scores_of_images_and_pixels_are_nats(make, short):
    X = images(1600)[np.random.default_rng(0).permutation(1600)]
    fitted = few_steps(make, image_shape=X.shape[1:]).fit(X[:600])
    assert_nats(fitted.anomaly_score(X[600:]), 1000, 600)
    pixels = fitted.cell_anomaly_score(X[600:])
    assert_nats(pixels[~np.isnan(pixels)], 1000, 100)  # pixels of an image are not independent


@pytest.mark.parametrize("make", ESTIMATORS)
def test_the_unit_of_a_column_changes_nothing(make):
    """Powers of two, which standardising takes back to the last bit, whatever a training then makes of it."""
    X, new = table(120, 1), table(60, 2)
    unit = 2.0 ** np.array([-30, 0, 3, 40, 1, -7])
    one, two = (few_steps(make).fit(X * scale) for scale in (1, unit))
    np.testing.assert_allclose(two.anomaly_score(new * unit), one.anomaly_score(new), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(two.cell_anomaly_score(new * unit), one.cell_anomaly_score(new), rtol=1e-9, atol=1e-9)
    nats = (np.log(unit) * ~np.isnan(new)).sum(1)
    np.testing.assert_allclose(two.log_likelihood(new * unit), one.log_likelihood(new) - nats, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", ESTIMATORS)
def test_log_likelihood_is_that_of_the_truth(make):
    """In nats, of the user's unit: rows of an exact linear VAE, fitted to enough of them."""
    unit = np.array([1, 10, 100, 0.1, 0.01, 1])
    values, observed = rows_of(TRUTH, 2000, 0.2, seed=3)
    expected = log_likelihood(values, observed, TRUTH).numpy() - (np.log(unit) * observed.numpy()).sum(1)
    X = np.where(observed, values, np.nan) * unit
    found = few_steps(make).fit(X[:1000]).log_likelihood(X[1000:])
    assert found.mean() == pytest.approx(expected[1000:].mean(), abs=0.1)
    assert np.abs(found - expected[1000:]).mean() < 0.25


def test_score_samples_is_what_scikit_learn_has_for_each():
    """A density's is its log-likelihood; a detector's decision_function is score_samples less offset_."""
    X = table(60, 1)
    imputer, detector = (few_steps(make).fit(X) for make in ESTIMATORS)
    np.testing.assert_array_equal(imputer.score_samples(X), imputer.log_likelihood(X))
    np.testing.assert_array_equal(detector.score_samples(X), -detector.anomaly_score(X))
    np.testing.assert_array_equal(detector.decision_function(X), detector.score_samples(X) - detector.offset_)
    for fitted in (imputer, detector):
        assert fitted.score(X) == pytest.approx(fitted.log_likelihood(X).mean())
        assert fitted.log_likelihood(X).shape == (60,)


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


# --- one look at each column ------------------------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch):
    """How often each column's cells are read."""
    count, read = Counter(), encoder.read_cells

    def counted(series, name, missing_values):
        count[name] += 1
        return read(series, name, missing_values)

    monkeypatch.setattr(encoder, "read_cells", counted)
    return count


@pytest.fixture(scope="module")
def fitted():
    return {make: few_steps(make).fit(GOOD) for make in ESTIMATORS}


CALLS = {
    VAEImputer: ["impute", "transform", "fit", "anomaly_score", "cell_anomaly_score", "log_likelihood", "encode"],
    VAEOutlierDetector: ["repair", "explain", "plot", "predict", "p_values", "select", "fit", "cell_anomaly_score"],
}


@pytest.mark.parametrize(("make", "method"), [(make, method) for make, methods in CALLS.items() for method in methods])
def test_a_call_reads_each_column_once(make, method, fitted, looks):
    if method == "plot":
        pyplot = pytest.importorskip("matplotlib.pyplot")
        pyplot.switch_backend("Agg")
    estimator = few_steps(make) if method == "fit" else fitted[make]
    getattr(estimator, method)(GOOD)
    assert looks == dict.fromkeys(GOOD, 1)
    if method == "plot":
        pyplot.close("all")


@pytest.mark.parametrize("options", [{"n_imputations": 2}, {"point": "median"}])
def test_draws_and_medians_read_each_column_once(options, looks):
    fitted = few_steps(VAEImputer, point=options.pop("point", "mean")).fit(GOOD)
    looks.clear()
    fitted.impute(GOOD, **options)
    assert looks == dict.fromkeys(GOOD, 1)
    looks.clear()
    fitted.sample(2, given=GOOD)
    assert looks == dict.fromkeys(GOOD, 1)


def test_a_robust_fit_reads_each_column_once(looks):
    few_steps(VAEOutlierDetector, contamination=0.1).fit(frame())
    assert looks == dict.fromkeys(frame(), 1)


@pytest.mark.parametrize("make", ESTIMATORS)
def test_warnings_of_a_fit_point_at_the_line_that_called_it(make):
    X = np.column_stack([np.arange(20.0), np.full(20, np.nan), np.arange(20.0)[::-1]])

    def user():
        return few_steps(make).fit(X), inspect.currentframe().f_lineno

    with pytest.warns(UserWarning, match="without any observed value") as caught:
        _, line = user()
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


@pytest.mark.parametrize("make", ESTIMATORS)
def test_the_former_name_of_has_missing_warns(make):
    fitted = few_steps(make).fit(np.column_stack([np.arange(20.0), np.arange(20.0)]))
    with pytest.warns(FutureWarning, match="had_holes_ is now has_missing_"):
        assert (fitted.had_holes_ == fitted.has_missing_).all()
    assert not hasattr(make(), "had_holes_")


@pytest.mark.parametrize("seed", range(3))
def test_with_gross_errors_too_so_many_training_rows_are_flagged_as_asked_for(seed):
    X = np.random.default_rng(seed).normal(size=(101, 3))
    X[0, 0] = 1e3
    detector = VAEOutlierDetector(contamination=0.1, dtype="float64", random_state=seed).fit(X)
    assert (detector.predict(X) == -1).sum() == 10
