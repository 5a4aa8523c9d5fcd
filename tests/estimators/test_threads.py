"""Nothing is shared and nothing is global: threads do not meet, and no generator but an estimator's own moves."""

import pickle
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from toy import correlated, curved

from vaeimpute import VAEImputer, VAEOutlierDetector

PATIENCE = 120  # seconds that a thread waits for another before the test fails


def imputer(seed=0):
    return VAEImputer(max_iter=15, dtype="float64", random_state=seed)


def detector(seed=0):
    return VAEOutlierDetector(dtype="float64", contamination=0.1, random_state=seed)


def answers(estimator):
    """Fit, and all that there is to be asked."""
    X = curved()
    estimator.fit(X)
    if isinstance(estimator, VAEOutlierDetector):
        return np.column_stack([estimator.anomaly_score(X), estimator.cell_anomaly_score(X), estimator.repair(X)])
    draws = estimator.impute(X, n_imputations=2, random_state=0)
    return np.column_stack([estimator.transform(X), *draws, estimator.sample(len(X), random_state=0)])


@pytest.fixture(scope="module")
def alone():
    """What each estimator answers when no other thread is there."""
    return {(make, seed): answers(make(seed)) for make, seed in ((imputer, 0), (imputer, 1), (detector, 0))}


@pytest.fixture(scope="module")
def fitted():
    return imputer().fit(curved())


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("both", [((imputer, 0), (detector, 0)), ((imputer, 0), (imputer, 1))])
def test_two_that_fit_at_once_give_what_each_gives_alone(alone, both):
    together = threading.Barrier(len(both), timeout=PATIENCE)

    def run(make, seed):
        together.wait()
        return answers(make(seed))

    with ThreadPoolExecutor(len(both)) as pool:
        runs = [pool.submit(run, *one) for one in both]
        for one, its in zip(both, runs, strict=True):
            np.testing.assert_allclose(its.result(PATIENCE), alone[one], rtol=0, atol=1e-12)


def test_seeds_differ(alone):
    assert (alone[imputer, 0] != alone[imputer, 1]).any()


@pytest.mark.parametrize("method", ["transform", "impute", "sample", "anomaly_score", "cell_anomaly_score"])
def test_eight_threads_ask_one_estimator(fitted, method):
    X = curved(40, seed=1)

    def answer(_=None):
        if method == "impute":
            return np.stack(fitted.impute(X, n_imputations=2, random_state=0))
        if method == "sample":
            return fitted.sample(20, random_state=0)
        return getattr(fitted, method)(X)

    one = answer()
    with ThreadPoolExecutor(8) as pool:
        for other in pool.map(answer, range(8)):
            np.testing.assert_array_equal(other, one)


def test_a_fit_does_not_keep_another_thread_from_drawing(fitted, monkeypatch):
    """The fit stands still at its first evaluation until the draws of the other thread are there."""
    runs, drawn = threading.Event(), threading.Event()
    waited = []

    @contextmanager
    def progress(verbose):
        def on_evaluation(model, record, n_steps):
            runs.set()
            waited.append(drawn.wait(PATIENCE))

        yield on_evaluation

    monkeypatch.setattr("vaeimpute.estimators._imputer.progress", progress)
    fit = threading.Thread(target=imputer(seed=1).fit, args=(curved(),))
    fit.start()
    assert runs.wait(PATIENCE)
    fitted.impute(curved(), n_imputations=2, random_state=0)
    fitted.sample(3, random_state=0)
    detector().fit(curved())
    assert fit.is_alive()
    drawn.set()
    fit.join(PATIENCE)
    assert waited
    assert all(waited)


# --- what is global ---------------------------------------------------------------------------------------------------


def global_state():
    name, key, *rest = np.random.get_state()  # noqa: NPY002 (it is what must not move)
    return {
        "numpy": (name, key.tolist(), rest),
        "python": random.getstate(),
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "determinism": torch.are_deterministic_algorithms_enabled(),
        "warnings": list(warnings.filters),
        "errors": np.geterr(),
    }


@contextmanager
def nothing_global_moves():
    before = global_state()
    yield
    assert global_state() == before


@pytest.mark.parametrize("random_state", [0, None])
def test_a_detector_moves_nothing_global(random_state, tmp_path):
    X = correlated(60)
    with nothing_global_moves():
        estimator = VAEOutlierDetector(random_state=random_state, contamination=0.1).fit(X)
        estimator.p_values(X)
        estimator.repair(X)
        estimator.save(tmp_path / "m")
        VAEOutlierDetector.load(tmp_path / "m").cell_anomaly_score(X)
        pickle.loads(pickle.dumps(estimator)).anomaly_score(X)


@pytest.mark.parametrize("random_state", [0, None])
def test_an_imputer_moves_nothing_global(random_state, tmp_path):
    X = correlated()
    with nothing_global_moves():
        estimator = VAEImputer(random_state=random_state, point="median", max_iter=10).fit(correlated(44))
        estimator.transform(X[:3])
        estimator.impute(X, n_imputations=2, random_state=random_state)
        estimator.sample(2, random_state=random_state)
        estimator.sample(2, given=X, random_state=random_state)
        estimator.anomaly_score(X)
        estimator.cell_anomaly_score(X)
        estimator.save(tmp_path / "m")
        VAEImputer.load(tmp_path / "m").transform(X)
        pickle.loads(pickle.dumps(estimator))


def test_images_move_nothing_global(short, tmp_path):
    X = np.random.default_rng(0).integers(0, 17, (40, 6, 6)).cumsum(1) % 17
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # PyTorch's first one imports what adds filters
    with nothing_global_moves():
        estimator = VAEImputer(image_shape=(6, 6), max_iter=10, random_state=0).fit(X)
        estimator.impute(np.where(X > 15, np.nan, X), n_imputations=2, random_state=0)
        estimator.sample(2)
        VAEOutlierDetector(image_shape=(6, 6), random_state=0).fit(X).cell_anomaly_score(X)


def test_results_do_not_depend_on_the_global_generators():
    X = correlated()
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (it is what must not matter)
        results.append(VAEImputer(random_state=0, max_iter=10).fit(X).sample(3, random_state=0))
    np.testing.assert_array_equal(*results)
