"""The outlier detectors compared: each one function that fits to rows of numbers and gives a score of rows.

A detector takes the training rows (n, D), a seed, and whether outliers are among the training rows, which are then also
the rows that are scored. Higher scores are more anomalous. Those that go through `standardised` see complete rows in
units of the columns' standard deviations.

To add a method, write its function and add a row to ``METHODS``.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Protocol

import numpy as np
from sklearn.covariance import MinCovDet
from sklearn.decomposition import FactorAnalysis
from sklearn.ensemble import IsolationForest
from sklearn.impute import SimpleImputer
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from vaeimpute import VAEOutlierDetector

__all__ = ["DEFAULT_METHODS", "METHODS", "Detector", "Score", "fit_ours"]


class Score(Protocol):
    """An anomaly score (n,) of rows (n, D)."""

    def __call__(self, rows: np.ndarray, /) -> np.ndarray:
        """Score the rows."""


class Detector(Protocol):
    """A method: rows to fit to -> a score of rows."""

    def __call__(self, X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
        """Fit; ``contaminated`` says that outliers are among the rows, and that these are the rows to score."""


def standardised(detector: Detector) -> Detector:
    """Give a method complete, standardised rows: missing cells are filled with the mean."""

    def fit(X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
        prepare: Pipeline = make_pipeline(SimpleImputer(), StandardScaler()).fit(X)
        score = detector(prepare.transform(X), seed, contaminated=contaminated)
        return lambda rows: score(prepare.transform(rows))

    return fit


def norm(X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
    """Squared norm of the standardised row: what a method that learns nothing reaches."""
    return lambda rows: (rows**2).sum(1)


def knn(X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
    """Mean distance to 5 neighbours (20 where the training rows are scored; then without the row itself)."""
    k = 20 if contaminated else 5
    neighbours = NearestNeighbors(n_neighbors=min(k + contaminated, len(X))).fit(X)
    return lambda rows: neighbours.kneighbors(rows)[0][:, int(contaminated) :].mean(1)


def isolation_forest(X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
    """scikit-learn's isolation forest, which takes missing cells as they are."""
    forest = IsolationForest(random_state=seed).fit(X)
    return lambda rows: -forest.score_samples(rows)


def local_outlier_factor(X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
    """Local outlier factor, 20 neighbours."""
    factor = LocalOutlierFactor(n_neighbors=min(20, len(X) - 1), novelty=not contaminated).fit(X)
    return (lambda rows: -factor.negative_outlier_factor_) if contaminated else lambda rows: -factor.score_samples(rows)


def one_class_svm(X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
    """One-class support vector machine, scikit-learn's defaults, at most 5,000 rows."""
    machine = OneClassSVM().fit(X[:5000])
    return lambda rows: -machine.score_samples(rows)


def ecod(X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
    """Sum over columns of -log of the rarer empirical tail (Li et al. 2022), written out."""
    columns = np.sort(X, axis=0)
    skewness = ((X - X.mean(0)) ** 3).mean(0)

    def score(rows: np.ndarray) -> np.ndarray:
        n = len(columns)
        left = np.column_stack([np.searchsorted(c, r, "right") for c, r in zip(columns.T, rows.T, strict=True)])
        right = n - np.column_stack([np.searchsorted(c, r, "left") for c, r in zip(columns.T, rows.T, strict=True)])
        low, high = (-np.log(np.maximum(count, 0.5) / n) for count in (left, right))
        return np.max([low.sum(1), high.sum(1), np.where(skewness < 0, low, high).sum(1)], axis=0)

    return score


def gaussian_mixture(X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
    """Likelihood of a Gaussian mixture with 8 full covariances (25 rows each at least)."""
    mixture = GaussianMixture(max(1, min(8, len(X) // 25)), reg_covar=1e-2, random_state=seed).fit(X)
    return lambda rows: -mixture.score_samples(rows)


def mahalanobis(X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
    """Robust Mahalanobis distance by the minimum covariance determinant, at most 5,000 rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant columns: its covariance is then singular
        return MinCovDet(random_state=seed).fit(X[:5000]).mahalanobis


def factor_analysis(X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
    """Likelihood of scikit-learn's factor analysis with at most 8 factors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its convergence
        model = FactorAnalysis(min(8, X.shape[1]), random_state=seed).fit(X)
    return lambda rows: -model.score_samples(rows)


def pyod(module: str, name: str) -> Detector:
    """Wrap a detector of PyOD with its defaults.

    By default its VAE caps the KL term of the loss at a capacity of zero: an autoencoder with noise.
    """

    def fit(X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
        detector = getattr(import_module(f"pyod.models.{module}"), name)
        return detector(random_state=seed, verbose=0).fit(X).decision_function

    return fit


def vaeimpute(X: np.ndarray, seed: int, *, contaminated: bool) -> Score:
    """Ours, on the rows as they are."""
    return fit_ours(X, seed, contaminated=contaminated).anomaly_score


def fit_ours(X: object, seed: int, *, contaminated: bool) -> VAEOutlierDetector:
    """Our detector at its defaults, robust where errors or outliers are among the rows (an array or a frame)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # columns with few values
        return VAEOutlierDetector(random_state=seed, robust=contaminated).fit(X)


METHODS: dict[str, Detector] = {
    "norm": standardised(norm),
    "knn": standardised(knn),
    "iforest": isolation_forest,
    "lof": standardised(local_outlier_factor),
    "ocsvm": standardised(one_class_svm),
    "ecod": standardised(ecod),
    "gmm": standardised(gaussian_mixture),
    "mcd": standardised(mahalanobis),
    "fa": standardised(factor_analysis),
    "pyod_vae": standardised(pyod("vae", "VAE")),
    "pyod_ae": standardised(pyod("auto_encoder", "AutoEncoder")),
    "vaeimpute": vaeimpute,
}
DEFAULT_METHODS = [name for name in METHODS if not name.startswith("pyod")]
