"""Compare outlier detectors; append one JSON line per (set, protocol, rate, seed, method) to a file, resumable.

    python -m benchmarks.anomaly --sets breast_cancer --methods norm,knn,vaeimpute
    python -m benchmarks.anomaly --report

The sets are the ``.npz`` files (``X``, ``y`` with 1 for an outlier) in the folder ``anomaly`` of ``$VAEIMPUTE_DATA``,
and one that comes with scikit-learn. Protocols:

- ``semi``: fit to half of the ordinary rows, shuffled, and score the rest. No bootstrap: the common protocol copies the
  rows of small sets into both halves, which flatters everyone.
- ``unsupervised``: fit to all rows, outliers among them, and score the same rows.
- ``missing``: as ``semi``, with 20% holes (MCAR) at fit and a share of ``rate`` when scored.
- ``cells``: a twentieth of the cells get an error (a shift of 3 to 5 standard deviations, a swap with another row,
  another level of a class), without and with such errors in the training rows: of the ordinary rows of each set, and of
  the numbers, or the classes, of tables of the imputation benchmark.
- ``p-values``: as ``semi``; are the p-values of further ordinary rows uniform (``ks_p``; its distribution counts that
  training rows are a sample too), and how many of the rows selected at a false discovery rate of 10% are ordinary?
"""

from __future__ import annotations

import os
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pandas as pd
from scipy.stats import kstest, kstwobign
from sklearn.covariance import MinCovDet
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import FactorAnalysis
from sklearn.ensemble import IsolationForest
from sklearn.impute import SimpleImputer
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from benchmarks import cells
from benchmarks import datasets as tables
from benchmarks.markdown import markdown
from benchmarks.run import append_line, cut_unfinished_line, read_lines
from vaeimpute import VAEOutlierDetector

RESULTS = Path(__file__).parent / "results" / "anomaly.jsonl"
KEY = ("set", "protocol", "rate", "max_rows", "seed", "method")
MISSING_AT_FIT = 0.2
FALSE_DISCOVERIES = 0.1

Score = Callable[[np.ndarray], np.ndarray]
Detector = Callable[[np.ndarray, int, bool], Score]  # (training rows, seed, outliers among them) -> a score of rows

# Sets that were looked at while the detector was designed; only the others say what to expect of a new one.
TUNING = {"2_annthyroid", "4_breastw", "7_Cardiotocography", "12_fault", "16_http", "19_landsat", "20_letter"}
TUNING |= {"23_mammography", "28_pendigits", "29_Pima", "32_shuttle", "35_SpamBase", "37_Stamps", "38_thyroid"}
TUNING |= {"41_Waveform"}


# --- methods ----------------------------------------------------------------------------------------------------------


def standardised(score: Callable[[np.ndarray, int, bool], Score]) -> Detector:
    """A method on complete, standardised rows: holes are filled with the mean."""

    def fit(X: np.ndarray, seed: int, polluted: bool) -> Score:
        prepare: Pipeline = make_pipeline(SimpleImputer(), StandardScaler()).fit(X)
        inner = score(prepare.transform(X), seed, polluted)
        return lambda rows: inner(prepare.transform(rows))

    return fit


def norm(X, seed, polluted) -> Score:
    """Squared norm of the standardised row: what a method that learns nothing reaches."""
    return lambda rows: (rows**2).sum(1)


def knn(X, seed, polluted) -> Score:
    """Mean distance to 5 neighbours (20 where the training rows are scored; then without the row itself)."""
    k = 20 if polluted else 5
    neighbours = NearestNeighbors(n_neighbors=min(k + polluted, len(X))).fit(X)
    return lambda rows: neighbours.kneighbors(rows)[0][:, int(polluted) :].mean(1)


def iforest(X, seed, polluted) -> Score:
    """scikit-learn's isolation forest."""
    forest = IsolationForest(random_state=seed).fit(X)
    return lambda rows: -forest.score_samples(rows)


def lof(X, seed, polluted) -> Score:
    """Local outlier factor, 20 neighbours."""
    factor = LocalOutlierFactor(n_neighbors=min(20, len(X) - 1), novelty=not polluted).fit(X)
    return (lambda rows: -factor.negative_outlier_factor_) if polluted else lambda rows: -factor.score_samples(rows)


def ocsvm(X, seed, polluted) -> Score:
    """One-class support vector machine, scikit-learn's defaults, at most 5,000 rows."""
    machine = OneClassSVM().fit(X[:5000])
    return lambda rows: -machine.score_samples(rows)


def ecod(X, seed, polluted) -> Score:
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


def gmm(X, seed, polluted) -> Score:
    """Likelihood of a Gaussian mixture with 8 full covariances (25 rows each at least)."""
    mixture = GaussianMixture(max(1, min(8, len(X) // 25)), reg_covar=1e-2, random_state=seed).fit(X)
    return lambda rows: -mixture.score_samples(rows)


def mahalanobis(X, seed, polluted) -> Score:
    """Robust Mahalanobis distance by the minimum covariance determinant, at most 5,000 rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant columns: its covariance is then singular
        covariance = MinCovDet(random_state=seed).fit(X[:5000])
    return covariance.mahalanobis


def factor_analysis(X, seed, polluted) -> Score:
    """Likelihood of scikit-learn's factor analysis with at most 8 factors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its convergence
        model = FactorAnalysis(min(8, X.shape[1]), random_state=seed).fit(X)
    return lambda rows: -model.score_samples(rows)


def pyod(name: str) -> Callable[[np.ndarray, int, bool], Score]:
    """A detector of PyOD with its defaults. (Its VAE's caps the KL term at zero: an autoencoder with noise.)"""

    def fit(X, seed, polluted) -> Score:
        from importlib import import_module

        module = import_module(f"pyod.models.{name.lower() if name == 'VAE' else 'auto_encoder'}")
        detector = getattr(module, name)(random_state=seed, verbose=0).fit(X)
        return detector.decision_function

    return fit


def vaeimpute(X, seed, polluted) -> Score:
    """Ours, on the rows as they are."""
    return _ours(X, seed, polluted).anomaly_score


def _ours(X: np.ndarray, seed: int, polluted: bool) -> VAEOutlierDetector:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # columns with few values
        return VAEOutlierDetector(random_state=seed, robust=polluted).fit(X)


def iforest_nan(X, seed, polluted) -> Score:
    """scikit-learn's isolation forest, which takes holes as they are."""
    forest = IsolationForest(random_state=seed).fit(X)
    return lambda rows: -forest.score_samples(rows)


METHODS: dict[str, Detector] = {
    "norm": standardised(norm),
    "knn": standardised(knn),
    "iforest": iforest_nan,
    "lof": standardised(lof),
    "ocsvm": standardised(ocsvm),
    "ecod": standardised(ecod),
    "gmm": standardised(gmm),
    "mcd": standardised(mahalanobis),
    "fa": standardised(factor_analysis),
    "pyod_vae": standardised(pyod("VAE")),
    "pyod_ae": standardised(pyod("AutoEncoder")),
    "vaeimpute": vaeimpute,
}
DEFAULT_METHODS = [name for name in METHODS if not name.startswith("pyod")]


# --- sets and protocols -----------------------------------------------------------------------------------------------


def names() -> list[str]:
    """All sets that can be loaded."""
    folder = Path(os.environ.get("VAEIMPUTE_DATA", "")) / "anomaly"
    found = sorted(path.stem for path in folder.glob("*.npz")) if os.environ.get("VAEIMPUTE_DATA") else []
    return ["breast_cancer", *found]


def load(name: str, max_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, D) without constant columns, and which are outliers (n,); at most `max_rows`, outliers in proportion."""
    if name == "breast_cancer":
        X, target = load_breast_cancer(return_X_y=True)
        y = target == 0
    else:
        with np.load(Path(os.environ["VAEIMPUTE_DATA"]) / "anomaly" / f"{name}.npz") as data:
            X, y = data["X"].astype(float), data["y"].astype(bool)
    X = X[:, X.std(0) > 0]
    if len(X) > max_rows:
        rng = np.random.default_rng(0)
        outliers = rng.permutation(np.flatnonzero(y))[: max(round(max_rows * y.mean()), 30)]
        kept = rng.permutation(np.flatnonzero(~y))[: max_rows - len(outliers)]
        rows = rng.permutation(np.concatenate([outliers, kept]))
        X, y = X[rows], y[rows]
    return X, y


def split(X: np.ndarray, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half of the ordinary rows to fit to; the others and the outliers to score, and which these are."""
    ordinary = np.random.default_rng(seed).permutation(np.flatnonzero(~y))
    half = len(ordinary) // 2
    rest = np.concatenate([ordinary[half:], np.flatnonzero(y)])
    return X[ordinary[:half]], X[rest], y[rest]


def semi(name: str, rate: float, max_rows: int, seed: int, detector: Detector) -> dict:
    """Fit to ordinary rows only."""
    train, test, y = split(*load(name, max_rows), seed)
    return _timed(train, test, y, seed, detector, polluted=False)[0]


def unsupervised(name: str, rate: float, max_rows: int, seed: int, detector: Detector) -> dict:
    """Fit to the rows that are scored."""
    X, y = load(name, max_rows)
    return _timed(X, X, y, seed, detector, polluted=True)[0]


def missing(name: str, rate: float, max_rows: int, seed: int, detector: Detector) -> dict:
    """Holes at fit and, at `rate`, at score time; a 5% threshold set on complete ordinary rows."""
    train, test, y = split(*load(name, max_rows), seed)
    rng = np.random.default_rng(zlib.crc32(f"{name} {rate} {seed}".encode()))
    holed = np.where(rng.random(test.shape) < rate, np.nan, test)
    train = np.where(rng.random(train.shape) < MISSING_AT_FIT, np.nan, train)
    train = train[:, ~np.isnan(train).all(0)]
    line, score = _timed(train, holed, y, seed, detector, polluted=False)
    threshold = np.quantile(score(test[~y]), 0.95)
    return line | {"flagged": float((score(holed[~y]) > threshold).mean())}


def _timed(train, test, y, seed, detector, polluted) -> tuple[dict, Score]:
    start = time.perf_counter()
    score = detector(train, seed, polluted)
    fitted = time.perf_counter()
    scores = np.nan_to_num(np.asarray(score(test), dtype=float), posinf=1e300)
    line = {
        "auroc": roc_auc_score(y, scores),
        "ap": average_precision_score(y, scores),
        "fit_seconds": fitted - start,
        "score_seconds": time.perf_counter() - fitted,
        "rows": len(train),
        "columns": train.shape[1],
    }
    return line, score


def wrong_cells(name: str, max_rows: int, seed: int, method: str, protocol: str) -> dict:
    """Fit to half of the ordinary rows, plant errors in the others."""
    how, kind, polluted = cells.PROTOCOLS[protocol]
    if how is cells.classes:
        table = tables.load(name, max_rows)
        order = np.random.default_rng(seed).permutation(len(table))
        train, test = (table.iloc[part].reset_index(drop=True) for part in np.array_split(order, 2))
    else:
        X = _numbers(name, max_rows)
        train, test, _ = split(X, np.zeros(len(X), bool), seed)
    return how(name, train, test, seed, method, kind, polluted)


def _numbers(name: str, max_rows: int) -> np.ndarray:
    """Ordinary rows of a set, or the columns of numbers of a table."""
    if name in tables.TABLES:
        frame = tables.load(name, max_rows)
        return frame[tables.numeric_columns(frame)].to_numpy()
    X, y = load(name, max_rows)
    return X[~y]


def p_values(name: str, max_rows: int, seed: int) -> dict:
    """Are p-values of ordinary rows uniform, and is the share of false discoveries what was asked for?"""
    train, test, y = split(*load(name, max_rows), seed)
    start = time.perf_counter()
    detector = _ours(train, seed, polluted=False)
    fitted = time.perf_counter()
    largest = kstest(detector.p_values(test[~y]), "uniform").statistic
    rows = 1 / (1 / len(train) + 1 / (~y).sum())  # of the two samples whose distributions are compared
    chosen = detector.select(test, FALSE_DISCOVERIES)
    return {
        "ks_p": float(kstwobign.sf(largest * rows**0.5)),
        "false_discoveries": float((chosen & ~y).sum() / max(chosen.sum(), 1)),
        "power": float(chosen[y].mean()),
        "fit_seconds": fitted - start,
        "rows": len(train),
        "columns": train.shape[1],
    }


PROTOCOLS = {"semi": semi, "unsupervised": unsupervised, "missing": missing}
RATES = {"missing": (0.0, 0.3, 0.5)}
REPORTED = ("auroc", "ap", "flagged", "repair_rmse", "repair_error", "uniform", "false_discoveries", "power")
REPORTED += ("fit_seconds",)
METHODS_OF = {"cells": cells.METHODS, "p-values": ("vaeimpute",)}
# Tables of the imputation benchmark whose cells get errors: numbers, and classes. The detector was designed on neither.
CLEAN = "abalone airfoil banknote blood_transfusion breast_cancer_wdbc california_housing concrete concrete_slump "
CLEAN += "covertype_sample credit_default diabetes_lars energy_efficiency glass ionosphere kin8nm letter magic_gamma "
CLEAN += (
    "maternal_health_risk news_reduced oil_spill pendigits planning_relax power_plant_ccpp protein_tertiary raisin "
)
CLEAN += "seeds shoppers spambase travel_reviews vehicle vowel waveform5000 wine_recognition wine_white yeast"
MIXED = "penguins heart_cleveland credit_approval german_credit obesity_levels adult"


# --- running and reporting --------------------------------------------------------------------------------------------


def run_one(key: dict) -> dict:
    """The result of one line."""
    where = (key["set"], key["rate"], key["max_rows"], key["seed"])
    if key["protocol"] == "p-values":
        return p_values(key["set"], key["max_rows"], key["seed"])
    if key["protocol"] in cells.PROTOCOLS:
        return wrong_cells(key["set"], key["max_rows"], key["seed"], key["method"], key["protocol"])
    return PROTOCOLS[key["protocol"]](*where, METHODS[key["method"]])


def read(file: Path) -> list[dict]:
    """Finished lines of a results file; the last one counts."""
    return list({tuple(line[k] for k in KEY): line for line in read_lines(file)}.values())


def report(lines: list[dict]) -> str:
    """Means over the sets that all methods of a protocol finished, scores in %, as Markdown."""
    frame = pd.DataFrame([line for line in lines if "error" not in line])
    frame["split"] = np.where(frame["set"].isin(TUNING), "tuning", "held-out")
    frame["protocol"] += np.where(frame["set"].isin(CLEAN.split()), ", clean tables", "")
    for score in ("auroc", "ap"):
        frame[score] = 100 * frame.get(score, pd.Series(dtype=float))
    frame["uniform"] = (frame["ks_p"] > 0.01).where(frame["ks_p"].notna()) if "ks_p" in frame else np.nan
    return "\n".join(_table(protocol, part) for protocol, part in frame.groupby("protocol", sort=False))


def _table(protocol: str, part: pd.DataFrame) -> str:
    case = ["set", "rate", "seed", "max_rows"]
    part = part[part.groupby(case)["method"].transform("nunique") == part["method"].nunique()]
    values = [v for v in REPORTED if v in part and part[v].notna().any()]
    index = ["method"] if part["rate"].nunique() == 1 else ["rate", "method"]
    table = part.groupby(index)[values].mean()
    for name, own in part.groupby("split") if "auroc" in values else ():
        table[f"auroc, {own['set'].nunique()} {name}"] = own.groupby(index)["auroc"].mean()
    table = table.reset_index().sort_values([*index[:-1], values[0]], ascending=[True] * len(index[:-1]) + [False])
    text = markdown(table.map(_cell).set_index(index[0]))
    return f"**{protocol}** ({part['set'].nunique()} sets, {part['seed'].nunique()} seeds)\n\n{text}"


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.1f}"


@click.command(help="Compare outlier detectors; append one JSON line per result to a file.")
@click.option("--sets", "chosen", help="Comma-separated; default: all.")
@click.option("--methods", help=f"Comma-separated, of {', '.join(METHODS)}; default: all but PyOD's.")
@click.option(
    "--protocols",
    help=f"Comma-separated, of {', '.join([*PROTOCOLS, 'cells', 'p-values'])}; default: all but the last.",
)
@click.option("--max-rows", default=2000, show_default=True, help="Rows to keep of each set.")
@click.option("--max-columns", default=200, show_default=True, help="Leave out sets with more.")
@click.option("--seeds", default="0", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--report", "only_report", is_flag=True, help="Print the tables of the results, and run nothing.")
def main(chosen, methods, protocols, max_rows, max_columns, seeds, out, only_report) -> None:
    if only_report:
        click.echo(report(read(out)))
        return
    wanted = protocols.split(",") if protocols else [*PROTOCOLS, "cells"]
    clean, mixed = CLEAN.split(), MIXED.split()
    everything = [*names(), *clean, *mixed] if "VAEIMPUTE_DATA" in os.environ else names()
    keys = [
        dict(zip(KEY, (name, inner, rate, max_rows, seed, method), strict=True))
        for name in (chosen.split(",") if chosen else everything)
        if name in tables.TABLES or load(name, max_rows)[0].shape[1] <= max_columns
        for protocol in wanted
        for inner in (cells.PROTOCOLS if protocol == "cells" else [protocol])
        if (name in mixed) == ("typo" in inner) and (name not in clean or inner in cells.PROTOCOLS)
        for rate in RATES.get(inner, (0.0,))
        for seed in map(int, seeds.split(","))
        for method in (methods.split(",") if methods else [*DEFAULT_METHODS, "z"])
        if method in METHODS_OF.get(protocol, METHODS)
    ]
    done = {tuple(line[k] for k in KEY) for line in read(out) if "error" not in line}
    out.parent.mkdir(parents=True, exist_ok=True)
    cut_unfinished_line(out)
    for key in (key for key in keys if tuple(key.values()) not in done):
        try:
            line = key | {k: round(v, 5) for k, v in run_one(key).items()}
        except Exception as error:  # one failing method must not end the run: its line says why
            line = key | {"error": f"{type(error).__name__}: {error}"}
        append_line(out, line)
        click.echo(" ".join(map(str, line.values())), err=True)


if __name__ == "__main__":
    main()
