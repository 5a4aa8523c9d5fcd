"""Ways to answer from an incomplete table of the pooling study: tables to analyse, as numbers.

A method is a function ``(complete table, incomplete table, draws, seed, **params) -> tables``, and a row of
``METHODS``. ``params`` are settings of `VAEImputer`, for methods whose name begins with "vaeimpute".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer

from vaeimpute import Outcome, VAEImputer

__all__ = ["METHODS", "as_numbers", "augmented"]

Method = Callable[..., list[pd.DataFrame]]


def as_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Floats; of two classes the second is 1."""
    codes = {name: table[name].cat.codes.replace(-1, np.nan) for name in table.select_dtypes("category")}
    return table.assign(**codes).astype(float)


def full_data(complete: pd.DataFrame, X: pd.DataFrame, draws: int, seed: int) -> list[pd.DataFrame]:
    """Nothing hidden: the best that there is. Twice the same table, which pools to the answer of complete data."""
    return [as_numbers(complete)] * 2


def complete_cases(complete: pd.DataFrame, X: pd.DataFrame, draws: int, seed: int) -> list[pd.DataFrame]:
    """Leave it to the analyses, which drop the rows that lack a cell of theirs."""
    return [as_numbers(X)] * 2


def normal(complete: pd.DataFrame, X: pd.DataFrame, draws: int, seed: int) -> list[pd.DataFrame]:
    """Proper multiple imputation under a multivariate normal model: `augmented`, classes and counts as numbers."""
    numbers = as_numbers(X)
    filled = augmented(numbers.to_numpy(), draws, np.random.default_rng(seed))
    return [pd.DataFrame(table, numbers.index, numbers.columns) for table in filled]


def iterative(complete: pd.DataFrame, X: pd.DataFrame, draws: int, seed: int) -> list[pd.DataFrame]:
    """Chained equations: scikit-learn's IterativeImputer with ``sample_posterior=True``, a new chain for each draw."""
    numbers = as_numbers(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 10 rounds is its default, converged or not
        chains = (IterativeImputer(sample_posterior=True, random_state=1000 * seed + k) for k in range(draws))
        return [pd.DataFrame(chain.fit_transform(numbers), X.index, X.columns) for chain in chains]


def vaeimpute(
    complete: pd.DataFrame, X: pd.DataFrame, draws: int, seed: int, told: dict | None = None, **params: object
) -> list[pd.DataFrame]:
    """Draws of one fit; ``told``, what else `impute` is told, is for a ``functools.partial`` of this in ``METHODS``."""
    imputer = VAEImputer(random_state=seed, **params).fit(X)
    return [as_numbers(table) for table in imputer.impute(X, draws, random_state=seed, **(told or {}))]


def interaction(table: pd.DataFrame) -> np.ndarray:
    """What y2 is regressed on."""
    return np.column_stack([table["x1"], table["x2"], table["x1"] * table["x2"]])


METHODS: dict[str, Method] = {
    "full data": full_data,
    "complete cases": complete_cases,
    "normal": normal,
    "iterative": iterative,
    "vaeimpute": vaeimpute,
    "vaeimpute outcome": partial(vaeimpute, told={"outcome": Outcome("y2", interaction)}),
}


def augmented(X: np.ndarray, draws: int, rng: np.random.Generator, burn: int = 200, thin: int = 25) -> list[np.ndarray]:
    """Complete X (n, D) by data augmentation (Schafer, 1997, section 5.4): normal rows, Jeffreys' prior.

    Missing cells given mean and covariance, and these given the completed rows, in turn.
    """
    observed = ~np.isnan(X)
    centre, scale = np.nanmean(X, axis=0), np.nanstd(X, axis=0)
    x = np.where(observed, (X - centre) / scale, 0.0)
    patterns, pattern_of = np.unique(observed, axis=0, return_inverse=True)
    tables = []
    for step in range(1, burn + draws * thin + 1):
        mean, precision = _parameters(x, rng)
        x = np.where(observed, x, _cells(x, observed, patterns, pattern_of.reshape(-1), mean, precision, rng))
        if step > burn and (step - burn) % thin == 0:
            tables.append(np.where(observed, X, centre + scale * x))
    return tables


def _parameters(x: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw mean (D,) and precision (D, D) given complete rows: Wishart by Bartlett's factor, then normal."""
    n, D = x.shape
    scatter = (n - 1) * np.cov(x, rowvar=False)
    bartlett = np.tril(rng.normal(size=(D, D)), -1) + np.diag(np.sqrt(rng.chisquare(n - 1 - np.arange(D))))
    factor = np.linalg.cholesky(np.linalg.inv(scatter)) @ bartlett
    return x.mean(axis=0) + np.linalg.solve(factor.T, rng.normal(size=D)) / np.sqrt(n), factor @ factor.T


def _cells(
    x: np.ndarray,
    observed: np.ndarray,
    patterns: np.ndarray,
    pattern_of: np.ndarray,
    mean: np.ndarray,
    precision: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw every row's missing cells given its observed ones; one factor for each pattern of missing cells."""
    missing = ~patterns
    # The identity stands in for observed cells, which a row's residual leaves at zero.
    blocks = precision * (missing[:, :, None] & missing[:, None, :]) + np.eye(x.shape[1]) * patterns[:, None, :]
    factors = np.linalg.inv(np.linalg.cholesky(blocks))[
        pattern_of
    ]  # (n, D, D), of a block P: L^-1, so P^-1 = L^-T L^-1
    pull = np.where(observed, 0.0, -np.where(observed, x - mean, 0.0) @ precision)
    whitened = np.einsum("nij,nj->ni", factors, pull) + rng.normal(size=x.shape)
    return mean + np.einsum("nji,nj->ni", factors, whitened)
