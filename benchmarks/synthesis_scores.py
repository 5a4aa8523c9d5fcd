"""What a result line says of synthetic rows: one function and one row of ``METRICS`` per score.

Frames are those of `datasets.load`: numbers as float64, classes as category with the same categories in every frame.
Whatever can be compared with other real rows is: a method that copies its training rows gains nothing by it, and what
the training rows themselves score is the floor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import joblib
import numpy as np
import pandas as pd
from scipy.spatial import KDTree
from scipy.stats import ks_2samp
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from benchmarks.datasets import codes, numeric_columns
from benchmarks.design import Design
from benchmarks.scores import standardised_rows
from vaeimpute import metrics

__all__ = [
    "METRICS",
    "Synthesis",
    "classifier_auc",
    "column_pairs",
    "column_shapes",
    "energy_distance",
    "exact_copies",
    "near_copies",
    "predictive_error",
]

NEAR = 0.05  # share of real rows that count as near copies
# Small trees, and bins as fine as the values: a synthetic number between two real ones is to be seen. By default
# LightGBM would not look at classes of fewer than 100 rows.
TREES = {
    "n_estimators": 100,
    "num_leaves": 15,
    "min_child_samples": 5,
    "max_bin": 4095,
    "min_data_in_bin": 1,
    "min_data_per_group": 5,
    "cat_smooth": 1.0,
    "cat_l2": 1.0,
    "verbosity": -1,
    "deterministic": True,
    "random_state": 0,
}


@dataclass(frozen=True)
class Synthesis:
    """Real rows that a method learnt, real rows that it did not see, and its own; ``target`` is one of the columns."""

    train: pd.DataFrame
    test: pd.DataFrame
    synthetic: pd.DataFrame
    target: str

    @cached_property
    def errors(self) -> dict[str, dict[str, float]]:
        """`predictive_error` on the test rows, by model and by the rows that it learnt from."""
        sources = {"real": self.train, "synthetic": self.synthetic}
        return {
            model: {name: predictive_error(rows, self.test, self.target, model) for name, rows in sources.items()}
            for model in ("trees", "linear")
        }


def classifier_auc(real: pd.DataFrame, synthetic: pd.DataFrame, seed: int = 0, n_folds: int = 5) -> float:
    """How well boosted trees tell synthetic rows from real ones: mean AUC over the folds; .5 is not at all."""
    X = np.concatenate([codes(real), codes(synthetic)])
    y = np.repeat([0, 1], [len(real), len(synthetic)])
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    is_class = ~real.columns.isin(numeric_columns(real))
    scores = []
    for train, test in folds.split(X, y):
        model = _trees(X[train], y[train], is_class)
        scores.append(roc_auc_score(y[test], model.predict_proba(X[test])[:, 1]))
    return float(np.mean(scores))


def predictive_error(rows: pd.DataFrame, test: pd.DataFrame, target: str, model: str) -> float:
    """Root mean squared error, on the test rows, of what learnt the target from ``rows``.

    Of a class it is that of the probabilities (the root of the Brier score): few test rows make a coarse accuracy.
    """
    fit = {"trees": _tree_predictions, "linear": _linear_predictions}[model]
    truth = test[target].to_numpy()
    if target not in numeric_columns(test):
        truth = np.eye(len(test[target].cat.categories))[test[target].cat.codes]
    residuals = fit(rows, test, target) - truth
    return float(np.sqrt((residuals**2).sum() / len(test)))


def column_shapes(real: pd.DataFrame, synthetic: pd.DataFrame) -> float:
    """Mean over columns of 1 - Kolmogorov-Smirnov (numbers) or 1 - total variation (classes), as in SDMetrics."""
    numbers = set(numeric_columns(real))
    distances = [
        ks_2samp(real[name], synthetic[name], method="asymp").statistic
        if name in numbers
        else _total_variation(real[[name]], synthetic[[name]])
        for name in real
    ]
    return float(1 - np.mean(distances))


def column_pairs(real: pd.DataFrame, synthetic: pd.DataFrame) -> float:
    """Mean over pairs of columns of 1 - half the difference of correlations, or 1 - total variation of the table.

    The first is for two numbers, the second for all else, numbers in ten bins of the real rows; as in SDMetrics.
    """
    numbers = set(numeric_columns(real))
    correlations = [frame[list(numbers)].corr().fillna(0.0) for frame in (real, synthetic)]
    binned = [_binned(real, real), _binned(real, synthetic)]
    distances = []
    for a, b in combinations(real, 2):
        if a in numbers and b in numbers:
            distances.append(abs(correlations[0].loc[a, b] - correlations[1].loc[a, b]) / 2)
        else:
            distances.append(_total_variation(*(frame[[a, b]] for frame in binned)))
    return float(1 - np.mean(distances))


def energy_distance(real: pd.DataFrame, synthetic: pd.DataFrame) -> float:
    """Energy distance of rows, numbers in units of the real standard deviation, classes 0 or 1 apart."""
    return float(metrics.energy_distance(*(standardised_rows(frame, real) for frame in (real, synthetic))))


def near_copies(train: pd.DataFrame, test: pd.DataFrame, synthetic: pd.DataFrame) -> float:
    """Share of synthetic rows that are as near to a training row as the nearest 5% of the test rows are.

    Rows just as near as the last of the 5% count in part, so that the test rows themselves score .05 whatever the ties:
    that is the fair value, and more is memory.
    """
    nearest = KDTree(standardised_rows(train, train, limit=len(train)))
    # rounded: equal distances of classes are to stay equal, in whatever order they were summed
    fair, own = (
        nearest.query(standardised_rows(rows, train, limit=len(rows)))[0].round(9) for rows in (test, synthetic)
    )
    limit = np.quantile(fair, NEAR, method="inverted_cdf")
    part = (NEAR - (fair < limit).mean()) / (fair == limit).mean()
    return float((own < limit).mean() + part * (own == limit).mean())


def exact_copies(train: pd.DataFrame, rows: pd.DataFrame) -> float:
    """Share of rows that are a training row, cell by cell."""
    known = set(map(tuple, codes(train)))
    return float(np.mean([row in known for row in map(tuple, codes(rows))]))


METRICS: dict[str, Callable[[Synthesis], float | dict]] = {
    "auc": lambda s: classifier_auc(s.test, s.synthetic),
    "ratio_trees": lambda s: s.errors["trees"]["synthetic"] / s.errors["trees"]["real"],
    "ratio_linear": lambda s: s.errors["linear"]["synthetic"] / s.errors["linear"]["real"],
    "errors": lambda s: s.errors,
    "shapes": lambda s: column_shapes(s.test, s.synthetic),
    "pairs": lambda s: column_pairs(s.test, s.synthetic),
    "energy_distance": lambda s: energy_distance(s.test, s.synthetic),
    "near_copies": lambda s: near_copies(s.train, s.test, s.synthetic),
    "exact_copies": lambda s: exact_copies(s.train, s.synthetic),
    "exact_copies_of_real": lambda s: exact_copies(s.train, s.test),
}


def _trees(X: np.ndarray, y: np.ndarray, is_class: np.ndarray) -> object:
    """Fit LightGBM: a classifier of integers, a regressor of floats."""
    from lightgbm import LGBMClassifier, LGBMRegressor

    model = LGBMClassifier if np.issubdtype(y.dtype, np.integer) else LGBMRegressor
    settings = {**TREES, "n_jobs": joblib.effective_n_jobs(None)}
    return model(**settings).fit(X, y, categorical_feature=np.flatnonzero(is_class).tolist())


def _tree_predictions(rows: pd.DataFrame, test: pd.DataFrame, target: str) -> np.ndarray:
    """Predicted numbers (n,) or class probabilities (n, categories) of boosted trees."""
    inputs = rows.drop(columns=target)
    is_class = ~inputs.columns.isin(numeric_columns(inputs))
    X, X_test = codes(inputs), codes(test.drop(columns=target))
    if target in numeric_columns(rows):
        return _trees(X, rows[target].to_numpy(), is_class).predict(X_test)
    y = rows[target].cat.codes.to_numpy().astype(int)
    model = _trees(X, y, is_class) if len(set(y)) > 1 else DummyClassifier().fit(X, y)
    return _spread(model.predict_proba(X_test), model.classes_, rows[target])


def _linear_predictions(rows: pd.DataFrame, test: pd.DataFrame, target: str) -> np.ndarray:
    """`_tree_predictions` of a ridge or logistic regression on standardised numbers and one-hot classes."""
    inputs = rows.drop(columns=target)
    design = Design(inputs)
    X, X_test = design.encode(inputs), design.encode(test.drop(columns=target))
    if target in numeric_columns(rows):
        return Ridge().fit(X, rows[target]).predict(X_test)
    y = rows[target].cat.codes.to_numpy()
    model = (LogisticRegression(max_iter=1000) if len(set(y)) > 1 else DummyClassifier()).fit(X, y)
    return _spread(model.predict_proba(X_test), model.classes_, rows[target])


def _spread(probabilities: np.ndarray, found: np.ndarray, column: pd.Series) -> np.ndarray:
    """Probabilities (n, categories): zero for a category that was not learnt."""
    spread = np.zeros((len(probabilities), len(column.cat.categories)))
    spread[:, found] = probabilities
    return spread


def _binned(real: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Codes of classes, and of numbers the bin: ten of one width over the real values, and one on either side."""
    numbers = set(numeric_columns(real))
    return pd.DataFrame(
        {
            name: np.digitize(frame[name], np.histogram_bin_edges(real[name], 10))
            if name in numbers
            else frame[name].cat.codes.to_numpy()
            for name in real
        }
    )


def _total_variation(real: pd.DataFrame, synthetic: pd.DataFrame) -> float:
    """Half the sum of the absolute differences of the shares of each combination of values."""
    shares = [frame.value_counts(normalize=True) for frame in (real, synthetic)]
    return float(shares[0].sub(shares[1], fill_value=0.0).abs().sum() / 2)
