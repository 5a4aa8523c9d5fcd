"""The methods that make synthetic rows: ``(training rows, seed) -> (number of rows -> synthetic rows)``.

Frames are those of `datasets.load`, complete. Packages that know no grid draw numbers between those that a column can
hold; theirs go through `tidy`, as SDV and the R package of ARF do it. To add a method, write its function and add a row
to ``SYNTHESIZERS``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from benchmarks.datasets import codes, numeric_columns

Sample = Callable[[int], pd.DataFrame]

__all__ = ["SYNTHESIZERS", "Synthesizer", "tidy"]


@dataclass(frozen=True)
class Synthesizer:
    """A method; ``imports`` are the packages it needs: loaded before the clock starts, their versions are recorded."""

    fit: Callable[..., Sample]
    imports: tuple[str, ...] = ()


def training_rows(X: pd.DataFrame, seed: int) -> Sample:
    """Give the training rows themselves, as many as there are: the floor of all scores, and what copies look like."""
    return lambda n: X.head(n).reset_index(drop=True)


def independent(X: pd.DataFrame, seed: int) -> Sample:
    """Every column by itself, from its training values with replacement."""
    rng, table = np.random.default_rng(seed), codes(X)
    return lambda n: _frame(rng.permuted(table[rng.integers(len(X), size=n)], axis=0), X)


def copula(X: pd.DataFrame, seed: int) -> Sample:
    """Gaussian copula: correlated normal scores, and back by the quantiles of each column's training values.

    Classes are ordered as their codes are. Equal cells have ranks in random order, which for the copula of a class or
    of a whole number is its latent normal, drawn.
    """
    rng, table = np.random.default_rng(seed), codes(X)
    ranks = np.stack([np.lexsort([rng.random(len(X)), column]).argsort() for column in table.T], axis=1)
    factor = _root(np.corrcoef(norm.ppf((ranks + 0.5) / len(X)), rowvar=False))
    ordered = np.sort(table, axis=0)

    def sample(n: int) -> pd.DataFrame:
        u = norm.cdf(rng.standard_normal((n, X.shape[1])) @ factor.T)
        return _frame(np.take_along_axis(ordered, np.minimum((u * len(X)).astype(int), len(X) - 1), axis=0), X)

    return sample


def tvae(X: pd.DataFrame, seed: int, n_steps: int = 1000) -> Sample:
    """TVAE (Xu et al. 2019) by the package ctgan at its defaults, but for at least 1,000 steps.

    Its 300 epochs of fewer than 500 rows are 300 steps; on heart_cleveland 1,000 were better in all but near copies.
    """
    from ctgan import TVAE

    return _of_ctgan(TVAE(epochs=max(300, n_steps // -(-len(X) // 500)), enable_gpu=False), X, seed)


def ctgan(X: pd.DataFrame, seed: int, n_steps: int = 1000) -> Sample:
    """CTGAN (Xu et al. 2019) by its package at its defaults, but for at least 1,000 steps as in `tvae`."""
    from ctgan import CTGAN

    return _of_ctgan(CTGAN(epochs=max(300, n_steps // max(len(X) // 500, 1)), enable_gpu=False), X, seed)


def _of_ctgan(model: Any, X: pd.DataFrame, seed: int) -> Sample:
    model.set_random_state(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the mixture's convergence, and what pandas 3 no longer likes
        model.fit(X.assign(**{name: X[name].astype(str) for name in _classes(X)}), _classes(X))
    return lambda n: tidy(model.sample(n), X)


def arf(X: pd.DataFrame, seed: int) -> Sample:
    """Adversarial random forest (Watson et al. 2023) by arfpy at its defaults: 30 trees, 10 rounds."""
    from arfpy import arf as package

    np.random.seed(seed)  # noqa: NPY002  # what arfpy draws from
    numbered = X.set_axis(range(X.shape[1]), axis=1)  # it asks for columns by place, which pandas 3 takes for names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = package.arf(numbered, verbose=False, random_state=seed)
        model.forde()

    def sample(n: int) -> pd.DataFrame:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tidy(model.forge(n).set_axis(X.columns, axis=1), X)

    return sample


def forest_flow(X: pd.DataFrame, seed: int, n_rows: int = 20_000, n_outputs: int = 300) -> Sample:
    """Forest-flow (Jolicoeur-Martineau et al. 2024) by ForestDiffusion: flow, 100 trees of depth 7.

    So that a table takes minutes and not hours of a core, it differs in 64 bins (there 256), in 10 to 100 noises a row
    (there 100: here what gives 20,000 rows) and in 10 to 50 noise levels (there 50: here 300 outputs over all levels).
    """
    from ForestDiffusion import ForestDiffusionModel

    class Model(ForestDiffusionModel):
        def clean_onehot_data(self, X: np.ndarray) -> np.ndarray:
            return np.array(super().clean_onehot_data(X))  # a copy: what pandas 3 gives cannot be written to

    table = codes(X)
    is_class = ~X.columns.isin(numeric_columns(X))
    found = {j: np.unique(table[:, j], return_inverse=True) for j in np.flatnonzero(is_class)}
    for j, (_, inverse) in found.items():
        table[:, j] = inverse  # it gives back the place of a category among those it saw
    is_binary = is_class & (table.max(axis=0) < 2)
    is_whole = ~is_class & (table == table.round()).all(axis=0)
    indexes = {"bin": is_binary, "cat": is_class & ~is_binary, "int": is_whole}
    settings = {f"{name}_indexes": np.flatnonzero(chosen).tolist() for name, chosen in indexes.items()}
    outputs = int((~is_class).sum()) + sum(max(len(values) - 1, 1) for values, _ in found.values())
    model = Model(
        table,
        n_t=int(np.clip(n_outputs // outputs, 10, 50)),
        duplicate_K=int(np.clip(n_rows // len(X), 10, 100)),
        n_batch=0,  # all noises at once; in batches it cannot have other bins
        n_jobs=1,
        seed=seed,
        max_bin=64,
        **settings,
    )

    def sample(n: int) -> pd.DataFrame:
        drawn = model.generate(batch_size=n)
        for j, (values, _) in found.items():
            drawn[:, j] = values[drawn[:, j].astype(int)]
        return tidy(_frame(drawn, X), X)

    return sample


def vaeimpute(X: pd.DataFrame, seed: int, **params: object) -> Sample:
    """Ours, at its defaults or with ``params`` for the constructor."""
    from vaeimpute import VAEImputer

    model = VAEImputer(random_state=seed, **params).fit(X)
    return lambda n: model.sample(n, random_state=seed)


SYNTHESIZERS: dict[str, Synthesizer] = {
    "training-rows": Synthesizer(training_rows),
    "independent": Synthesizer(independent),
    "copula": Synthesizer(copula, imports=("scipy",)),
    "tvae": Synthesizer(tvae, imports=("torch", "ctgan")),
    "ctgan": Synthesizer(ctgan, imports=("torch", "ctgan")),
    "arf": Synthesizer(arf, imports=("sklearn", "arfpy")),
    "forest-flow": Synthesizer(forest_flow, imports=("xgboost", "ForestDiffusion")),
    "vaeimpute": Synthesizer(vaeimpute, imports=("torch", "vaeimpute")),
}


def tidy(drawn: pd.DataFrame, X: pd.DataFrame) -> pd.DataFrame:
    """Give drawn cells the types of the training rows, and numbers their decimals and range.

    Examples
    --------
    >>> X = pd.DataFrame({"whole": [1.0, 5.0], "tenths": [0.5, 1.5]})
    >>> tidy(pd.DataFrame({"whole": [2.8, 9.0], "tenths": [0.777, 0.1]}), X)
       whole  tenths
    0    3.0     0.8
    1    5.0     0.5
    """
    columns = {}
    for name, known in X.items():
        column = drawn[name].reset_index(drop=True)
        if name in _classes(X):
            columns[name] = column.astype(str).astype(known.dtype)
        else:
            columns[name] = column.astype(float).round(_decimals(known)).clip(known.min(), known.max())
    return pd.DataFrame(columns)


def _decimals(column: pd.Series) -> int:
    """Fewest decimals that write every value."""
    return next((places for places in range(12) if (column == column.round(places)).all()), 12)


def _classes(X: pd.DataFrame) -> list[str]:
    numbers = set(numeric_columns(X))
    return [name for name in X if name not in numbers]


def _frame(table: np.ndarray, X: pd.DataFrame) -> pd.DataFrame:
    """Frame like X of numbers and class codes (n, D)."""
    classes = set(_classes(X))
    return pd.DataFrame(
        {
            name: pd.Categorical.from_codes(column.astype(int), dtype=X[name].dtype) if name in classes else column
            for name, column in zip(X, table.T, strict=True)
        }
    )


def _root(covariance: np.ndarray) -> np.ndarray:
    """Matrix whose product with its transpose is the covariance, singular or not."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(values.clip(0))
