"""The methods compared, each one function ``(frame with holes, seed) -> completed frame`` of the same dtypes.

Numbers are float64 and classes category, as `datasets.load` gives them. Methods take the number of cores from joblib's
context (``with joblib.parallel_config(n_jobs=...)``), so nothing here names one.

To add a method, write its function and add a row to ``PEERS``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import joblib
import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer
from sklearn.linear_model import BayesianRidge

from benchmarks.datasets import codes, numeric_columns

Draw = Callable[[int], list[pd.DataFrame]]

__all__ = ["PEERS", "Peer"]


@dataclass(frozen=True)
class Peer:
    """A method: ``complete(X, seed)``; ``draws(X, seed)``, where there is one, also gives a sampler of completions.

    ``imports`` are the packages it needs: loaded before the clock starts, and their versions are recorded.
    """

    complete: Callable[..., pd.DataFrame]
    draws: Callable[..., tuple[pd.DataFrame, Draw]] | None = None
    imports: tuple[str, ...] = ("sklearn",)


def mean(X: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Column mean; the most common class."""
    return _fill_columns(X, lambda column: column.mean())


def median(X: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Column median; the most common class."""
    return _fill_columns(X, lambda column: column.median())


def knn(X: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean of the 5 nearest rows, on standardised numbers and one-hot classes."""
    design = _Design(X)
    return design.restore(KNNImputer(n_neighbors=5, keep_empty_features=True).fit_transform(design.matrix))


def mice(X: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Chained equations: scikit-learn's IterativeImputer with Bayesian ridge regression, 10 rounds."""
    design = _Design(X)
    # One indicator of each class column stays out: all of them predict one another exactly (they sum to 1), and the
    # holes would stay at their first guess.
    left_out = [block.start for name, block in design.where.items() if name not in design.scale]
    kept = np.setdiff1d(np.arange(design.matrix.shape[1]), left_out)
    imputer = IterativeImputer(BayesianRidge(), max_iter=10, random_state=seed, keep_empty_features=True)
    filled = design.matrix.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 10 rounds is its default, converged or not
        filled[:, kept] = imputer.fit_transform(design.matrix[:, kept])
    for block in (block for block in design.where.values() if block.start in left_out):
        filled[:, block.start] = 1 - filled[:, block.start + 1 : block.stop].sum(axis=1)
    return design.restore(filled)


def missforest(X: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Full-depth random forests in turn, as in the R package missForest: 100 trees, mtry = floor(sqrt(p)).

    At most 10 rounds; as soon as the change grows for numbers and for classes alike, the round before is the answer.
    Differs from R in that trees split classes by their codes and numbers down to single rows (R: nodesize 5).
    """
    random = np.random.RandomState(seed)
    forest = {"n_estimators": 100, "max_features": max(1, int(np.sqrt(X.shape[1]))), "random_state": random}
    is_class = ~X.columns.isin(numeric_columns(X))
    models = [RandomForestClassifier(**forest) if c else RandomForestRegressor(**forest) for c in is_class]
    holes = X.isna().to_numpy()
    before, change_before = _first_guess(X), np.full(2, np.inf)
    for _ in range(10):
        after = _chain_round(before, holes, models)
        change = np.array(
            [
                ((after - before)[:, ~is_class] ** 2).sum() / max((after[:, ~is_class] ** 2).sum(), 1e-300),
                (after != before)[:, is_class].sum() / max(holes[:, is_class].sum(), 1),
            ]
        )[[not is_class.all(), bool(is_class.any())]]
        if (change >= change_before[: len(change)]).all():
            break
        before, change_before = after, change
    return _restore_codes(X, before)


def lightgbm_mice(X: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Chained equations with gradient-boosted trees at LightGBM's own settings, 5 rounds, point predictions."""
    from lightgbm import LGBMClassifier, LGBMRegressor

    settings = {"random_state": seed, "verbosity": -1, "n_jobs": joblib.effective_n_jobs(None)}
    numbers = set(numeric_columns(X))
    models = [LGBMRegressor(**settings) if name in numbers else LGBMClassifier(**settings) for name in X]
    holes, filled = X.isna().to_numpy(), _first_guess(X)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        for _ in range(5):
            filled = _chain_round(filled, holes, models)
    return _restore_codes(X, filled)


def gaussian_em(X: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Conditional mean of a multivariate normal fitted to the observed cells by EM, one-hot classes, small ridge."""
    design = _Design(X)
    observed = ~np.isnan(design.matrix)
    n, d = observed.shape
    mu, cov = np.zeros(d), np.eye(d)
    for _ in range(100):
        filled, spread = np.where(observed, design.matrix, mu), np.zeros((d, d))
        for start in range(0, n, 256):
            rows, o = slice(start, start + 256), observed[start : start + 256]
            both, cross = o[:, :, None] & o[:, None, :], o[:, :, None] & ~o[:, None, :]
            # Identity in place of the missing block: one batched solve for rows with different holes.
            gain = np.linalg.solve(np.where(both, cov, np.eye(d)), np.where(cross, cov, 0.0))
            filled[rows] += np.einsum("bi,bij->bj", filled[rows] - mu, gain)
            left = cov - np.einsum("bij,ik->bjk", gain, cov)
            spread += np.where(~o[:, :, None] & ~o[:, None, :], left, 0.0).sum(axis=0)
        mu, old = filled.mean(axis=0), cov
        cov = ((filled - mu).T @ (filled - mu) + spread + np.eye(d)) / (n + 1)  # one pseudo-row
        if np.abs(cov - old).max() < 1e-4:
            break
    return design.restore(filled)


def vaeimpute(X: pd.DataFrame, seed: int, **params) -> pd.DataFrame:
    """This package, at its defaults or with ``params`` for the constructor."""
    return vaeimpute_draws(X, seed, **params)[0]


def vaeimpute_draws(X: pd.DataFrame, seed: int, **params) -> tuple[pd.DataFrame, Draw]:
    """The same, with the sampler of completed tables."""
    from vaeimpute import VAEImputer

    model = VAEImputer(random_state=seed, **params).fit(X)
    return model.impute(X), lambda n: model.impute(X, n_imputations=n, random_state=seed)


PEERS: dict[str, Peer] = {
    "mean": Peer(mean),
    "median": Peer(median),
    "knn": Peer(knn),
    "mice": Peer(mice),
    "missforest": Peer(missforest),
    "lightgbm-mice": Peer(lightgbm_mice, imports=("lightgbm",)),
    "em": Peer(gaussian_em),
    "vaeimpute": Peer(vaeimpute, draws=vaeimpute_draws, imports=("torch", "vaeimpute")),
}


class _Design:
    """A frame with holes as one float matrix: numbers standardised by their observed cells, classes one-hot."""

    def __init__(self, X: pd.DataFrame):
        self.X, self.numbers = X, numeric_columns(X)
        self.location = X[self.numbers].mean().fillna(0.0)
        self.scale = X[self.numbers].std(ddof=0).fillna(1.0).replace(0.0, 1.0)
        blocks = {}
        for name in X:
            if name in self.scale:
                blocks[name] = (X[[name]].to_numpy() - self.location[name]) / self.scale[name]
            else:
                one_hot = np.eye(len(X[name].cat.categories))[X[name].cat.codes]
                blocks[name] = np.where(X[[name]].isna(), np.nan, one_hot)
        widths = [block.shape[1] for block in blocks.values()]
        ends = np.cumsum(widths)
        self.where = {name: slice(end - width, end) for name, width, end in zip(blocks, widths, ends, strict=True)}
        self.matrix = np.column_stack(list(blocks.values()))

    def restore(self, filled: np.ndarray) -> pd.DataFrame:
        """Fill the frame's holes from a filled matrix: numbers scaled back, classes by the largest indicator."""
        answer = {}
        for name, block in self.where.items():
            if name in self.scale:
                answer[name] = filled[:, block.start] * self.scale[name] + self.location[name]
            else:
                answer[name] = filled[:, block].argmax(axis=1)
        return _restore_codes(self.X, np.column_stack(list(answer.values())))


def _fill_columns(X: pd.DataFrame, center: Callable[[pd.Series], float]) -> pd.DataFrame:
    numbers = set(numeric_columns(X))
    return X.fillna({name: center(X[name]) if name in numbers else X[name].mode().iloc[0] for name in X})


def _first_guess(X: pd.DataFrame) -> np.ndarray:
    return codes(mean(X, 0))


def _chain_round(filled: np.ndarray, holes: np.ndarray, models: list) -> np.ndarray:
    """Predict the holes of every column from all other columns, fewest holes first."""
    filled = filled.copy()
    for column in np.argsort(holes.sum(axis=0), kind="stable"):
        others, hidden = np.delete(filled, column, axis=1), holes[:, column]
        known = filled[~hidden, column]
        if hidden.any() and (known != known[0]).any():
            filled[hidden, column] = models[column].fit(others[~hidden], known).predict(others[hidden])
    return filled


def _restore_codes(X: pd.DataFrame, filled: np.ndarray) -> pd.DataFrame:
    """Fill the frame's holes from an array of numbers and class codes; observed cells stay untouched."""
    answer, numbers = X.copy(), set(numeric_columns(X))
    for j, name in enumerate(X):
        new = filled[:, j]
        if name not in numbers:
            new = X[name].cat.categories[new.astype(int)]
        answer[name] = X[name].where(X[name].notna(), pd.Series(new, index=X.index).astype(X[name].dtype))
    return answer
