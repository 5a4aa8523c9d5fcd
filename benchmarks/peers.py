"""The methods compared, each one function on incomplete frames; numbers are float64 and classes category.

A method either completes a table, ``(X, seed) -> completed X``, or fits and gives what completes further rows,
``(X, seed) -> (Y -> completed Y)``: then its row in ``PEERS`` goes through `fitted`. Methods take the number of cores
from joblib's context (``with joblib.parallel_config(n_jobs=...)``), so nothing here names one. Densities are in
``peer_densities.py``, networks in ``peer_networks.py``.

To add a method, write its function and add a row to ``PEERS``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import joblib
import numpy as np
import pandas as pd
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.linear_model import BayesianRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, SVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from benchmarks.datasets import codes, numeric_columns
from benchmarks.design import Design, centers, first_guess, restore_codes
from benchmarks.peer_densities import bayesian_network, gaussian_copula, gaussian_em, gaussian_mixture
from benchmarks.peer_networks import gain, miwae, plain_vae

Transform = Callable[[pd.DataFrame], pd.DataFrame]
Draw = Callable[[int], list[pd.DataFrame]]

__all__ = ["PEERS", "Peer", "fitted"]


@dataclass(frozen=True)
class Peer:
    """A method: ``complete(X, seed)``, and where it has them, two more ways to use it.

    ``draws(X, seed)`` also gives a sampler of completions; ``fit(X, seed)`` gives what completes further rows.
    ``imports`` are the packages it needs: loaded before the clock starts, and their versions are recorded.
    """

    complete: Callable[..., pd.DataFrame]
    draws: Callable[..., tuple[pd.DataFrame, Draw]] | None = None
    fit: Callable[..., Transform] | None = None
    imports: tuple[str, ...] = ("sklearn",)


def fitted(fit: Callable[..., Transform], **options: object) -> Peer:
    """Make the `Peer` of a function that fits: it completes a table by the model fitted to it."""
    return Peer(lambda X, seed, **params: fit(X, seed, **params)(X), fit=fit, **options)


def mean(X: pd.DataFrame, seed: int) -> Transform:
    """Column mean; the most common class."""
    filling = centers(X)
    return lambda Y: Y.fillna(filling)


def median(X: pd.DataFrame, seed: int) -> Transform:
    """Column median; the most common class."""
    filling = centers(X, "median")
    return lambda Y: Y.fillna(filling)


def knn(X: pd.DataFrame, seed: int) -> Transform:
    """Mean of the 5 nearest rows, on standardised numbers and one-hot classes."""
    design = Design(X)
    imputer = KNNImputer(n_neighbors=5, keep_empty_features=True).fit(design.encode(X))
    return lambda Y: design.restore(Y, imputer.transform(design.encode(Y)))


def mice(X: pd.DataFrame, seed: int, **options: object) -> Transform:
    """Chained equations: scikit-learn's IterativeImputer with Bayesian ridge regression, 10 rounds."""
    design = Design(X)
    # One indicator of each class column stays out: all of them predict one another exactly (they sum to 1), and the
    # missing cells would stay at their first guess.
    kept = np.setdiff1d(np.arange(design.encode(X.head(1)).shape[1]), [block.start for block in design.classes])
    imputer = IterativeImputer(BayesianRidge(), max_iter=10, random_state=seed, keep_empty_features=True, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 10 rounds is its default, converged or not
        imputer.fit(design.encode(X)[:, kept])

    def transform(Y: pd.DataFrame) -> pd.DataFrame:
        filled = design.encode(Y)
        filled[:, kept] = imputer.transform(filled[:, kept])
        for block in design.classes:
            filled[:, block.start] = 1 - filled[:, block.start + 1 : block.stop].sum(axis=1)
        return design.restore(Y, filled)

    return transform


def mice_draws(X: pd.DataFrame, seed: int, n_draws: int = 10) -> tuple[pd.DataFrame, Draw]:
    """Multiple imputation: `mice` with draws from its posterior, a new chain for each, 10 for a point estimate.

    The point is the mean of a number's draws and the most frequent class: one draw alone, as software hands it out,
    adds its own noise to every error and would be no fair point estimate.
    """

    def draw(n: int) -> list[pd.DataFrame]:
        # A posterior draw that leaves the observed range feeds back through the chain: bounds keep it in.
        bounded = np.nanmin(Design(X).encode(X)), np.nanmax(Design(X).encode(X))
        options = {"sample_posterior": True, "min_value": bounded[0], "max_value": bounded[1]}
        return [mice(X, seed + 1000 * k, **options)(X) for k in range(n)]

    drawn = draw(n_draws)
    points, is_number = np.stack([codes(frame) for frame in drawn]), X.columns.isin(numeric_columns(X))
    point = points.mean(axis=0)
    for j in np.flatnonzero(~is_number):
        point[:, j] = pd.DataFrame(points[:, :, j]).mode().iloc[0]
    return restore_codes(X, point), draw


def missforest(X: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Full-depth random forests in turn, as in the R package missForest: 100 trees, mtry = floor(sqrt(p)).

    At most 10 rounds; as soon as the change grows for numbers and for classes alike, the round before is the result.
    Differs from R in that trees split classes by their codes and numbers down to single rows (R: nodesize 5).
    """
    random = np.random.RandomState(seed)
    forest = {"n_estimators": 100, "max_features": max(1, int(np.sqrt(X.shape[1]))), "random_state": random}
    forest["n_jobs"] = joblib.effective_n_jobs(None)  # forests do not take it from the context by themselves
    is_class = ~X.columns.isin(numeric_columns(X))
    models = [RandomForestClassifier(**forest) if c else RandomForestRegressor(**forest) for c in is_class]
    missing = X.isna().to_numpy()
    before, change_before = first_guess(X), np.full(2, np.inf)
    for _ in range(10):
        after = _chain_round(before, missing, models)
        change = np.array(
            [
                ((after - before)[:, ~is_class] ** 2).sum() / max((after[:, ~is_class] ** 2).sum(), 1e-300),
                (after != before)[:, is_class].sum() / max(missing[:, is_class].sum(), 1),
            ]
        )[[not is_class.all(), bool(is_class.any())]]
        if (change >= change_before[: len(change)]).all():
            break
        before, change_before = after, change
    return restore_codes(X, before)


def lightgbm_mice(X: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Chained equations with gradient-boosted trees at LightGBM's own settings, 5 rounds, point predictions.

    What miceforest does, which fails with LightGBM >= 4.6 (6.0.5, its last version). No mean matching: a donor's value
    in place of the prediction keeps the distribution but costs accuracy.
    """
    from lightgbm import LGBMClassifier, LGBMRegressor

    settings = {"random_state": seed, "verbosity": -1, "n_jobs": joblib.effective_n_jobs(None)}
    numbers = set(numeric_columns(X))
    return _chain(X, [LGBMRegressor(**settings) if name in numbers else LGBMClassifier(**settings) for name in X])


def decision_tree(X: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Chained equations with one tree per column, 5 rounds; leaves of at least 5 rows, as R's mice has it (cart).

    The leaf's mean or most common class is predicted, where R draws a donor from the leaf.
    """
    settings, numbers = {"min_samples_leaf": 5, "random_state": seed}, set(numeric_columns(X))
    trees = [DecisionTreeRegressor(**settings) if name in numbers else DecisionTreeClassifier(**settings) for name in X]
    return _chain(X, trees)


def support_vectors(X: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Chained equations with support vector machines, 5 rounds: radial kernel, scikit-learn's C, gamma and epsilon.

    Inputs are standardised numbers and one-hot classes, a number to predict is standardised too.
    """
    is_class = ~X.columns.isin(numeric_columns(X))
    models = []
    for j in range(X.shape[1]):
        classes = np.flatnonzero(np.delete(is_class, j))
        inputs = make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore", sparse_output=False), classes), remainder=StandardScaler()
        )
        target = SVC() if is_class[j] else TransformedTargetRegressor(SVR(), transformer=StandardScaler())
        models.append(make_pipeline(inputs, target))
    return _chain(X, models)


def hyperimpute(X: pd.DataFrame, seed: int) -> pd.DataFrame:
    """HyperImpute at its defaults: a search over models for every column. Needs an environment of its own (README).

    Class columns are handed over as codes, which it takes for classes by their few values.
    """
    if tuple(map(int, pd.__version__.split(".")[:2])) >= (2, 3):
        raise RuntimeError(
            f"HyperImpute needs pandas < 2.3 (here {pd.__version__}): with newer ones it gives the mean."
        )
    from hyperimpute.plugins.imputers import Imputers

    table = pd.DataFrame(codes(X))
    filled = Imputers().get("hyperimpute", random_state=seed).fit_transform(table).to_numpy(dtype=float)
    for j, name in enumerate(X):
        if name not in numeric_columns(X):
            filled[:, j] = filled[:, j].round().clip(0, len(X[name].cat.categories) - 1)
    return restore_codes(X, filled)


def vaeimpute(X: pd.DataFrame, seed: int, **params: object) -> Transform:
    """Ours, at its defaults or with ``params`` for the constructor."""
    from vaeimpute import VAEImputer

    return VAEImputer(random_state=seed, **params).fit(X).impute


def vaeimpute_draws(X: pd.DataFrame, seed: int, **params: object) -> tuple[pd.DataFrame, Draw]:
    """Ours, with the sampler of completed tables."""
    from vaeimpute import VAEImputer

    model = VAEImputer(random_state=seed, **params).fit(X)
    return model.impute(X), lambda n: model.impute(X, n_imputations=n, random_state=seed)


PEERS: dict[str, Peer] = {
    "mean": fitted(mean),
    "median": fitted(median),
    "knn": fitted(knn),
    "mice": fitted(mice),
    "mice-draws": Peer(lambda X, seed, **params: mice_draws(X, seed, **params)[0], draws=mice_draws),
    "missforest": Peer(missforest),
    "lightgbm-mice": Peer(lightgbm_mice, imports=("lightgbm",)),
    "tree": Peer(decision_tree),
    "svm": Peer(support_vectors),
    "em": fitted(gaussian_em, imports=("scipy",)),
    "copula": fitted(gaussian_copula, imports=("scipy",)),
    "mixture": fitted(gaussian_mixture),
    "bayes-net": Peer(bayesian_network, imports=("pgmpy", "pgmpy.inference")),
    "gain": Peer(gain, imports=("torch",)),
    "plain-vae": Peer(plain_vae, imports=("torch",)),
    "miwae": Peer(miwae, imports=("torch",)),
    "hyperimpute": Peer(hyperimpute, imports=("hyperimpute",)),
    "vaeimpute": fitted(vaeimpute, draws=vaeimpute_draws, imports=("torch", "vaeimpute")),
}


def _chain(X: pd.DataFrame, models: list, n_rounds: int = 5) -> pd.DataFrame:
    """Chained equations with one model per column, on numbers and class codes, from the first guess."""
    missing, filled = X.isna().to_numpy(), first_guess(X)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names")  # LightGBM, about arrays
        for _ in range(n_rounds):
            filled = _chain_round(filled, missing, models)
    return restore_codes(X, filled)


def _chain_round(filled: np.ndarray, missing: np.ndarray, models: list) -> np.ndarray:
    """Predict the missing cells of every column from all other columns, fewest missing first."""
    filled = filled.copy()
    for column in np.argsort(missing.sum(axis=0), kind="stable"):
        others, hidden = np.delete(filled, column, axis=1), missing[:, column]
        known = filled[~hidden, column]
        if hidden.any() and (known != known[0]).any():
            filled[hidden, column] = models[column].fit(others[~hidden], known).predict(others[hidden])
    return filled
