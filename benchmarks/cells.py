"""Wrong cells: errors are planted in clean rows, methods score every cell and say what it should be.

Numbers get a shift of 3 to 5 standard deviations or the value of another row, classes another of their categories.
"""

from __future__ import annotations

import time
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.decomposition import FactorAnalysis
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.anomaly_peers import fit_ours

__all__ = ["CONTAMINATION", "METHODS", "PROTOCOLS", "contaminate", "judge_classes", "judge_numbers", "replace_classes"]

CONTAMINATION = 0.05  # share of the cells that get an error
METHODS = ("z", "fa", "vaeimpute")


class Protocol(NamedTuple):
    """Which errors are planted, and whether in the training rows too."""

    kind: str  # "shift" or "swap" of numbers, "typo" of classes
    contaminated: bool


PROTOCOLS: dict[str, Protocol] = {
    f"cells {kind}{', errors in training' if contaminated else ''}": Protocol(kind, contaminated)
    for kind in ("shift", "swap", "typo")
    for contaminated in (False, True)
}


def contaminate(X: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Give X with errors in a twentieth of its cells, and which they are."""
    wrong = rng.random(X.shape) < CONTAMINATION
    if kind == "shift":
        new = X + rng.choice([-1, 1], X.shape) * rng.uniform(3, 5, X.shape) * X.std(0)
    else:  # the value of another row
        new = np.take_along_axis(X, rng.integers(len(X), size=X.shape), 0)
    wrong &= new != X  # neither is an error in a column that is constant here
    return np.where(wrong, new, X), wrong


def judge_numbers(
    name: str, train: np.ndarray, test: np.ndarray, seed: int, method: str, protocol: Protocol
) -> dict[str, float]:
    """Which numbers are wrong, and what they should be, in units of the column's standard deviation."""
    varied = train.std(0) > 0
    train, test = train[:, varied], test[:, varied]
    unit = train.std(0)
    rng = _rng(name, protocol.kind, seed)
    given, wrong = contaminate(test, protocol.kind, rng)
    if protocol.contaminated:
        train = contaminate(train, protocol.kind, rng)[0]
    mean, sd = train.mean(0), train.std(0)
    start = time.perf_counter()
    if method == "vaeimpute":
        detector = fit_ours(train, seed, contaminated=protocol.contaminated)
        scores, repaired = detector.cell_anomaly_score(given), detector.repair(given, threshold=-np.inf)
    elif method == "fa":
        z = (given - mean) / sd
        model = _fit_factors((train - mean) / sd, seed)
        pred = model.transform(z) @ model.components_
        scores, repaired = np.abs(z - pred) / np.sqrt(model.noise_variance_), mean + sd * pred
    else:  # |z|
        scores, repaired = np.abs(given - mean) / sd, np.broadcast_to(mean, given.shape)
    seconds = time.perf_counter() - start
    residuals = ((repaired - test) / unit)[wrong]
    return _ranked(scores, wrong, seconds) | {"repair_rmse": float(np.sqrt((residuals**2).mean()))}


def replace_classes(X: pd.DataFrame, classes: list[str], rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Give X with another category in a twentieth of its class cells, and which of these (n, n_classes) are wrong."""
    X, wrong = X.copy(), rng.random((len(X), len(classes))) < CONTAMINATION
    for name, chosen in zip(classes, wrong.T, strict=True):
        codes, categories = pd.factorize(X[name], sort=True)
        other = (codes + rng.integers(1, max(len(categories), 2), len(X))) % len(categories)
        X[name] = pd.Series(categories[np.where(chosen, other, codes)], index=X.index).astype(X[name].dtype)
    return X, wrong


def judge_classes(
    name: str, train: pd.DataFrame, test: pd.DataFrame, seed: int, method: str, protocol: Protocol
) -> dict[str, float]:
    """Which classes are wrong, and how often (``repair_error``) the category put in their place is wrong too.

    ``z`` is how rare the category is, and its repair the commonest one. ``fa`` predicts the indicators of all of them.
    """
    names = [c for c in train if not pd.api.types.is_numeric_dtype(train[c]) and train[c].nunique() > 1]
    rng = _rng(name, protocol.kind, seed)
    # a category that is not among the training rows is no typo of theirs
    test = test[np.logical_and.reduce([test[c].isin(train[c].unique()) for c in names])].reset_index(drop=True)
    given, wrong = replace_classes(test, names, rng)
    if protocol.contaminated:
        train = replace_classes(train, names, rng)[0]
    start = time.perf_counter()
    if method == "vaeimpute":
        detector = fit_ours(train, seed, contaminated=protocol.contaminated)
        scores = detector.cell_anomaly_score(given)[names].to_numpy()
        repaired = detector.repair(given, threshold=-np.inf)[names]
    else:
        pred = _indicators(train, given, names, seed) if method == "fa" else _frequencies(train, given, names)
        best = {c: np.asarray(categories)[p.argmax(1)] for c, (p, categories) in pred.items()}
        repaired = pd.DataFrame(best)[names]
        place = {c: pd.Index(categories).get_indexer(given[c]) for c, (_, categories) in pred.items()}
        scores = np.column_stack([-pred[c][0][np.arange(len(given)), place[c]] for c in names])
    seconds = time.perf_counter() - start
    same = repaired.astype(str).to_numpy() == test[names].astype(str).to_numpy()
    return _ranked(scores, wrong, seconds) | {"repair_error": float(1 - same[wrong].mean())}


Predicted = dict[str, tuple[np.ndarray, list]]  # of each class column the scores (n, categories) and the categories


def _frequencies(train: pd.DataFrame, rows: pd.DataFrame, names: list[str]) -> Predicted:
    counts = {c: train[c].value_counts(normalize=True) for c in names}
    return {c: (np.broadcast_to(f.to_numpy(), (len(rows), len(f))), list(f.index)) for c, f in counts.items()}


def _indicators(train: pd.DataFrame, rows: pd.DataFrame, names: list[str], seed: int) -> Predicted:
    both = pd.concat([train, rows], ignore_index=True)
    wide = {c: pd.get_dummies(both[c]) if c in names else both[[c]] for c in both}
    table = np.concatenate([part.to_numpy(float) for part in wide.values()], 1)
    mean, sd = table[: len(train)].mean(0), table[: len(train)].std(0) + 1e-6
    z = (table - mean) / sd
    model = _fit_factors(z[: len(train)], seed)
    pred = mean + sd * (model.transform(z[len(train) :]) @ model.components_)
    parts = np.split(pred, np.cumsum([part.shape[1] for part in wide.values()])[:-1], axis=1)
    return {c: (part, list(wide[c].columns)) for c, part in zip(wide, parts, strict=True) if c in names}


def _fit_factors(z: np.ndarray, seed: int) -> FactorAnalysis:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its convergence
        return FactorAnalysis(min(8, z.shape[1]), random_state=seed).fit(z)


def _rng(name: str, kind: str, seed: int) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{name} {kind} {seed}".encode()))


def _ranked(scores: np.ndarray, wrong: np.ndarray, seconds: float) -> dict[str, float]:
    """How well the scores of all cells put the wrong ones first."""
    return {
        "auroc": roc_auc_score(wrong.ravel(), scores.ravel()),
        "ap": average_precision_score(wrong.ravel(), scores.ravel()),
        "fit_seconds": seconds,
    }
