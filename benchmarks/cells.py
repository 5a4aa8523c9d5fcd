"""Wrong cells: errors are planted in clean rows, methods score every cell and say what it should be.

Numbers get a shift of 3 to 5 standard deviations or the value of another row, classes another of their levels.
"""

from __future__ import annotations

import time
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.decomposition import FactorAnalysis
from sklearn.metrics import average_precision_score, roc_auc_score

from vaeimpute import VAEOutlierDetector

CORRUPTED = 0.05
METHODS = ("z", "fa", "vaeimpute")


def corrupt(X: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """X with errors in a twentieth of its cells, and which they are."""
    wrong = rng.random(X.shape) < CORRUPTED
    if kind == "shift":
        new = X + rng.choice([-1, 1], X.shape) * rng.uniform(3, 5, X.shape) * X.std(0)
    else:  # the value of another row
        new = np.take_along_axis(X, rng.integers(len(X), size=X.shape), 0)
    wrong &= new != X  # neither is an error in a column that is constant here
    return np.where(wrong, new, X), wrong


def numbers(name: str, train: np.ndarray, test: np.ndarray, seed: int, method: str, kind: str, polluted: bool) -> dict:
    """Which numbers are wrong, and what they should be, in units of the column's standard deviation."""
    varied = train.std(0) > 0
    train, test = train[:, varied], test[:, varied]
    unit = train.std(0)
    rng = _rng(name, kind, seed)
    holed, wrong = corrupt(test, kind, rng)
    if polluted:
        train = corrupt(train, kind, rng)[0]
    mean, sd = train.mean(0), train.std(0)
    start = time.perf_counter()
    if method == "vaeimpute":
        detector = _detector(train, seed, polluted)
        scores, repaired = detector.cell_anomaly_score(holed), detector.repair(holed, threshold=-np.inf)
    elif method == "fa":
        z = (holed - mean) / sd
        model = _factors((train - mean) / sd, seed)
        said = model.transform(z) @ model.components_
        scores, repaired = np.abs(z - said) / np.sqrt(model.noise_variance_), mean + sd * said
    else:  # |z|
        scores, repaired = np.abs(holed - mean) / sd, np.broadcast_to(mean, holed.shape)
    seconds = time.perf_counter() - start
    miss = ((repaired - test) / unit)[wrong]
    return _judged(scores, wrong, train, seconds) | {"repair_rmse": float(np.sqrt((miss**2).mean()))}


def typo(X: pd.DataFrame, classes: list[str], rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """X with another level in a twentieth of its class cells, and which of these (n, len(classes)) are wrong."""
    X, wrong = X.copy(), rng.random((len(X), len(classes))) < CORRUPTED
    for name, chosen in zip(classes, wrong.T, strict=True):
        codes, levels = pd.factorize(X[name], sort=True)
        other = (codes + rng.integers(1, max(len(levels), 2), len(X))) % len(levels)
        X[name] = pd.Series(levels[np.where(chosen, other, codes)], index=X.index).astype(X[name].dtype)
    return X, wrong


def classes(
    name: str, train: pd.DataFrame, test: pd.DataFrame, seed: int, method: str, kind: str, polluted: bool
) -> dict:
    """Which classes are wrong, and how often (``repair_error``) the level put in their place is wrong too.

    ``z`` is how rare the level is, and its repair the commonest one. ``fa`` predicts the indicators of all levels.
    """
    names = [c for c in train if not pd.api.types.is_numeric_dtype(train[c]) and train[c].nunique() > 1]
    rng = _rng(name, kind, seed)
    # a level that is not among the training rows is no typo of theirs
    test = test[np.logical_and.reduce([test[c].isin(train[c].unique()) for c in names])].reset_index(drop=True)
    holed, wrong = typo(test, names, rng)
    if polluted:
        train = typo(train, names, rng)[0]
    start = time.perf_counter()
    if method == "vaeimpute":
        detector = _detector(train, seed, polluted)
        scores = detector.cell_anomaly_score(holed)[names].to_numpy()
        repaired = detector.repair(holed, threshold=-np.inf)[names]
    else:
        said, levels = (_indicators if method == "fa" else _frequencies)(train, holed, names, seed)
        best = [np.asarray(ls)[p.argmax(1)] for p, ls in zip(said, levels, strict=True)]
        repaired = pd.DataFrame(dict(zip(names, best, strict=True)))
        place = [pd.Index(ls).get_indexer(holed[c]) for c, ls in zip(names, levels, strict=True)]
        scores = np.column_stack([-p[np.arange(len(p)), i] for p, i in zip(said, place, strict=True)])
    seconds = time.perf_counter() - start
    same = repaired.astype(str).to_numpy() == test[names].astype(str).to_numpy()
    return _judged(scores, wrong, train, seconds) | {"repair_error": float(1 - same[wrong].mean())}


def _frequencies(train, rows, names, seed) -> tuple[list[np.ndarray], list]:
    shares = [train[c].value_counts(normalize=True) for c in names]
    return [np.broadcast_to(s.to_numpy(), (len(rows), len(s))) for s in shares], [list(s.index) for s in shares]


def _indicators(train, rows, names, seed) -> tuple[list[np.ndarray], list]:
    both = pd.concat([train, rows], ignore_index=True)
    wide = [pd.get_dummies(both[c]) if c in names else both[[c]] for c in both]
    table = np.concatenate([part.to_numpy(float) for part in wide], 1)
    mean, sd = table[: len(train)].mean(0), table[: len(train)].std(0) + 1e-6
    z = (table - mean) / sd
    model = _factors(z[: len(train)], seed)
    said = mean + sd * (model.transform(z[len(train) :]) @ model.components_)
    parts = np.split(said, np.cumsum([part.shape[1] for part in wide])[:-1], axis=1)
    kept = [(p, list(w.columns)) for p, w, c in zip(parts, wide, both, strict=True) if c in names]
    order = [[c for c in both if c in names].index(c) for c in names]
    return [kept[i][0] for i in order], [kept[i][1] for i in order]


def _detector(train: np.ndarray | pd.DataFrame, seed: int, polluted: bool) -> VAEOutlierDetector:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # columns with few values
        return VAEOutlierDetector(random_state=seed, robust=polluted).fit(train)


def _factors(z: np.ndarray, seed: int) -> FactorAnalysis:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its convergence
        return FactorAnalysis(min(8, z.shape[1]), random_state=seed).fit(z)


def _rng(name: str, kind: str, seed: int) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{name} {kind} {seed}".encode()))


def _judged(scores: np.ndarray, wrong: np.ndarray, train: np.ndarray | pd.DataFrame, seconds: float) -> dict:
    return {
        "auroc": roc_auc_score(wrong.ravel(), scores.ravel()),
        "ap": average_precision_score(wrong.ravel(), scores.ravel()),
        "fit_seconds": seconds,
        "rows": len(train),
        "columns": train.shape[1],
    }


# Protocol -> how to spoil, and whether the training rows are spoilt too.
PROTOCOLS: dict[str, tuple[Callable[..., dict], str, bool]] = {
    f"cells {kind}{', errors in training' if polluted else ''}": (how, kind, polluted)
    for how, kind in ((numbers, "shift"), (numbers, "swap"), (classes, "typo"))
    for polluted in (False, True)
}
