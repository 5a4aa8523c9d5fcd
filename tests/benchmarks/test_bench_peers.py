"""benchmarks.peers: every peer keeps its contract, and finds what is there to find."""

from __future__ import annotations

import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
from bench_toys import lines_of

from benchmarks import run
from benchmarks.datasets import codes, hide, load
from benchmarks.peer_densities import gaussian_mixture
from benchmarks.peers import PEERS
from benchmarks.run import Case
from vaeimpute.amputation import ampute

OTHERS = [name for name in PEERS if name not in ("vaeimpute", "hyperimpute")]
SHORT: dict[str, dict] = {
    "mice-draws": {"n_draws": 2},
    "gain": {"n_steps": 300},
    "plain-vae": {"n_epochs": 50},
    "miwae": {"n_epochs": 20, "n_draws": 20},
}


def import_all(method: str) -> None:
    """Skip where the method's packages are missing; their own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in PEERS[method].imports:
            pytest.importorskip(module)


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("table", ["toy", "iris"])
def test_every_peer_completes_and_beats_or_equals_chance(toy, table, method):
    import_all(method)
    truth = load(table, max_rows=60)
    observed = ampute(codes(truth), 0.2, random_state=0)
    X = hide(truth, observed)
    before = X.copy()
    with joblib.parallel_config(n_jobs=1):
        completed = PEERS[method].complete(X, 0, **SHORT.get(method, {}))
        if table == "toy":
            pd.testing.assert_frame_equal(completed, PEERS[method].complete(X, 0, **SHORT.get(method, {})))
    run.check_completed(completed, truth, observed)
    pd.testing.assert_frame_equal(X, before)
    assert run.judge(truth, completed, observed)["nrmse"] < 1.3


@pytest.mark.parametrize("method", [name for name in OTHERS if PEERS[name].fit])
def test_what_was_fitted_completes_further_rows_one_by_one(toy, method):
    truth = load(toy)
    observed = ampute(codes(truth), 0.2, random_state=0)
    X = hide(truth, observed)
    transform = PEERS[method].fit(X[:40], 0)
    new = transform(X[40:])
    run.check_completed(new, truth[40:], observed[40:])
    alone = pd.concat([transform(X[i : i + 1]) for i in range(40, len(X))])
    np.testing.assert_allclose(codes(alone), codes(new), atol=1e-8)


def test_a_mixture_of_one_component_is_the_gaussian(toy):
    X = hide(load(toy), ampute(codes(load(toy)), 0.3, random_state=0))
    one = gaussian_mixture(X, 0, n_components=(1,))(X)
    pd.testing.assert_frame_equal(one, PEERS["em"].complete(X, 0))


def test_the_gaussian_finds_the_conditional_mean_it_was_drawn_from():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((4, 4))
    truth = pd.DataFrame(rng.standard_normal((4000, 4)) @ mix, columns=list("abcd"))
    observed = np.ones(truth.shape, dtype=bool)
    observed[::2, 0] = False
    cov = mix.T @ mix
    expected = truth[["b", "c", "d"]] @ np.linalg.solve(cov[1:, 1:], cov[1:, 0])
    pred = PEERS["em"].complete(hide(truth, observed), 0)["a"]
    assert (pred - expected)[::2].std() < 0.03 * truth["a"].std()


def test_a_mixture_of_two_clusters_beats_one_gaussian():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(300)
    truth = pd.DataFrame({"x": x, "y": np.abs(x) + 0.05 * rng.standard_normal(300)})
    observed = np.ones(truth.shape, dtype=bool)
    observed[::3, 1] = False
    X = hide(truth, observed)
    errors = {m: run.judge(truth, PEERS[m].complete(X, 0), observed)["nrmse"] for m in ("em", "mixture")}
    assert errors["mixture"] < 0.5 * errors["em"]


def test_the_copula_sees_ranks_only(toy):
    truth = load(toy)
    observed = ampute(codes(truth), 0.3, random_state=0)
    X = hide(truth, observed)
    stretched = X.assign(x=np.exp(X["x"]), y=X["y"] ** 3)
    plain, other = (PEERS["copula"].complete(frame, 0) for frame in (X, stretched))
    for name in ("x", "y"):  # every prediction lies between the same two observed values
        places = [np.searchsorted(np.sort(h[name].dropna()), c[name]) for h, c in ((X, plain), (stretched, other))]
        assert np.abs(places[0] - places[1]).max() <= 1  # one at an observed value may round to either side
    pd.testing.assert_frame_equal(plain[["n", "colour"]], other[["n", "colour"]])


def test_a_network_of_dependent_classes_finds_the_rule():
    import_all("bayes-net")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, 300), rng.integers(0, 2, 300)
    frame = pd.DataFrame({"a": a, "b": b, "both": a * b}).astype(str).astype("category")
    observed = np.ones(frame.shape, dtype=bool)
    observed[::4, 2] = False
    pd.testing.assert_frame_equal(PEERS["bayes-net"].complete(hide(frame, observed), 0), frame)


def test_draws_of_chained_equations_vary_and_keep_what_is_observed(toy):
    truth = load(toy)
    observed = ampute(codes(truth), 0.3, random_state=0)
    point, draw = PEERS["mice-draws"].draws(hide(truth, observed), 0, n_draws=2)
    run.check_completed(point, truth, observed)
    one, other = draw(2)
    for drawn in (one, other):
        run.check_completed(drawn, truth, observed)
    assert (one["x"] != other["x"]).any()


def test_hyperimpute_refuses_the_pandas_it_fails_with(toy, tmp_path):
    run.run_cases([Case("imputation", toy, 5000, "mcar", 0.3, 0, "hyperimpute", 0)], tmp_path / "lines.jsonl")
    error = lines_of(tmp_path / "lines.jsonl")[0]["error"]
    assert "needs pandas < 2.3" in error or "needs the package hyperimpute" in error


def test_peers_that_model_find_a_linear_relation(toy):
    truth = load(toy)
    observed = np.ones(truth.shape, dtype=bool)
    observed[::3, 1] = False
    errors = {
        method: run.judge(truth, PEERS[method].complete(hide(truth, observed), 0), observed)["nrmse"]
        for method in ("mean", "knn", "mice", "em")
    }
    assert errors["mice"] < 0.1
    assert errors["em"] < 0.2
    assert errors["knn"] < errors["mean"] == pytest.approx(1.0, abs=0.3)


def test_peers_stand_a_column_without_any_value_left(toy):
    truth = load(toy)
    observed = np.ones(truth.shape, dtype=bool)
    observed[1:, 4] = False  # one class left
    for method in ("mean", "knn", "mice", "em", "missforest"):
        with joblib.parallel_config(n_jobs=1):
            run.check_completed(PEERS[method].complete(hide(truth, observed), 0), truth, observed)
