"""Compare outlier detectors; append one JSON line per (set, protocol, rate, seed, method) to a file, resumable.

    python -m benchmarks.anomaly --sets breast_cancer --methods norm,knn,vaeimpute
    python -m benchmarks.anomaly --report

The sets are the ``.npz`` files (``X``, ``y`` with 1 for an outlier) in the folder ``anomaly`` of ``$VAEIMPUTE_DATA``,
and one that comes with scikit-learn. Protocols:

- ``semi``: fit to half of the inliers, shuffled, and score the rest. No bootstrap: the common protocol copies the rows
  of small sets into both halves, which flatters everyone.
- ``unsupervised``: fit to all rows, outliers among them, and score the same rows.
- ``missing``: as ``semi``, with 20% of the cells missing (MCAR) at fit and a share of ``rate`` when scored.
- ``cells``: a twentieth of the cells get an error (a shift of 3 to 5 standard deviations, a swap with another row,
  another category of a class), without and with such errors in the training rows: of the inliers of each set, and of
  the numbers, or the classes, of tables of the imputation benchmark.
- ``p-values``: as ``semi``; are the p-values of further inliers uniform (``ks_p``; its distribution counts that the
  training rows are a sample too), and how many of the rows selected at a false discovery rate of 10% are inliers?

The methods are in ``anomaly_peers.py``.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import click
import numpy as np
import pandas as pd
from scipy.stats import kstest, kstwobign
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks import cells
from benchmarks import datasets as tables
from benchmarks.anomaly_peers import DEFAULT_METHODS, METHODS, Detector, Score, fit_ours
from benchmarks.markdown import markdown
from benchmarks.run import append_line, cut_unfinished_line, read_lines

__all__ = ["load", "names", "read", "report", "run_one", "split", "suits"]

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results" / "anomaly.jsonl"
KEY = ("set", "protocol", "rate", "max_rows", "seed", "method")
MISSING_AT_FIT = 0.2
FALSE_DISCOVERIES = 0.1

# Sets that were looked at while the detector was designed; only the others say what to expect of a new one.
TUNING = {"2_annthyroid", "4_breastw", "7_Cardiotocography", "12_fault", "16_http", "19_landsat", "20_letter"}
TUNING |= {"23_mammography", "28_pendigits", "29_Pima", "32_shuttle", "35_SpamBase", "37_Stamps", "38_thyroid"}
TUNING |= {"41_Waveform"}

# Tables of the imputation benchmark whose cells get errors: numbers, and classes. The detector was designed on neither.
# fmt: off
CLEAN = (
    "abalone", "airfoil", "banknote", "blood_transfusion", "breast_cancer_wdbc", "california_housing", "concrete",
    "concrete_slump", "covertype_sample", "credit_default", "diabetes_lars", "energy_efficiency", "glass", "ionosphere",
    "kin8nm", "letter", "magic_gamma", "maternal_health_risk", "news_reduced", "oil_spill", "pendigits",
    "planning_relax", "power_plant_ccpp", "protein_tertiary", "raisin", "seeds", "shoppers", "spambase",
    "travel_reviews", "vehicle", "vowel", "waveform5000", "wine_recognition", "wine_white", "yeast",
)
# fmt: on
MIXED = ("penguins", "heart_cleveland", "credit_approval", "german_credit", "obesity_levels", "adult")


# --- sets and protocols -----------------------------------------------------------------------------------------------


def names() -> list[str]:
    """List the sets that can be loaded."""
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
    """Half of the inliers to fit to; the others and the outliers to score, and which these are."""
    inliers = np.random.default_rng(seed).permutation(np.flatnonzero(~y))
    half = len(inliers) // 2
    rest = np.concatenate([inliers[half:], np.flatnonzero(y)])
    return X[inliers[:half]], X[rest], y[rest]


def semi(name: str, rate: float, max_rows: int, seed: int, detector: Detector) -> dict[str, float]:
    """Fit to inliers only."""
    train, test, y = split(*load(name, max_rows), seed)
    return _fit_and_score(train, test, y, seed, detector, contaminated=False)[0]


def unsupervised(name: str, rate: float, max_rows: int, seed: int, detector: Detector) -> dict[str, float]:
    """Fit to the rows that are scored."""
    X, y = load(name, max_rows)
    return _fit_and_score(X, X, y, seed, detector, contaminated=True)[0]


def missing(name: str, rate: float, max_rows: int, seed: int, detector: Detector) -> dict[str, float]:
    """Missing cells at fit and, at `rate`, at score time; a 5% threshold set on complete inliers."""
    train, test, y = split(*load(name, max_rows), seed)
    rng = np.random.default_rng(zlib.crc32(f"{name} {rate} {seed}".encode()))
    incomplete = np.where(rng.random(test.shape) < rate, np.nan, test)
    train = np.where(rng.random(train.shape) < MISSING_AT_FIT, np.nan, train)
    train = train[:, ~np.isnan(train).all(0)]
    line, score = _fit_and_score(train, incomplete, y, seed, detector, contaminated=False)
    threshold = np.quantile(score(test[~y]), 0.95)
    return line | {"flagged": float((score(incomplete[~y]) > threshold).mean())}


def _fit_and_score(
    train: np.ndarray, test: np.ndarray, y: np.ndarray, seed: int, detector: Detector, *, contaminated: bool
) -> tuple[dict[str, float], Score]:
    start = time.perf_counter()
    score = detector(train, seed, contaminated=contaminated)
    seconds = time.perf_counter() - start
    scores = np.nan_to_num(np.asarray(score(test), dtype=float), posinf=1e300)
    line = {"auroc": roc_auc_score(y, scores), "ap": average_precision_score(y, scores), "fit_seconds": seconds}
    return line, score


def wrong_cells(name: str, max_rows: int, seed: int, method: str, protocol: str) -> dict[str, float]:
    """Fit to half of the inliers, plant errors in the others."""
    planted = cells.PROTOCOLS[protocol]
    if planted.kind == "typo":
        table = tables.load(name, max_rows)
        order = np.random.default_rng(seed).permutation(len(table))
        train, test = (table.iloc[part].reset_index(drop=True) for part in np.array_split(order, 2))
        return cells.judge_classes(name, train, test, seed, method, planted)
    X = _numbers(name, max_rows)
    train, test, _ = split(X, np.zeros(len(X), bool), seed)
    return cells.judge_numbers(name, train, test, seed, method, planted)


def _numbers(name: str, max_rows: int) -> np.ndarray:
    """Inliers of a set, or the columns of numbers of a table."""
    if name in tables.TABLES:
        frame = tables.load(name, max_rows)
        return frame[tables.numeric_columns(frame)].to_numpy()
    X, y = load(name, max_rows)
    return X[~y]


def p_values(name: str, max_rows: int, seed: int) -> dict[str, float]:
    """Judge p-values: whether those of inliers are uniform, and the false discoveries at a rate of 10%."""
    train, test, y = split(*load(name, max_rows), seed)
    start = time.perf_counter()
    detector = fit_ours(train, seed, contaminated=False)
    seconds = time.perf_counter() - start
    largest = kstest(detector.p_values(test[~y]), "uniform").statistic
    rows = 1 / (1 / len(train) + 1 / (~y).sum())  # of the two samples whose distributions are compared
    chosen = detector.select(test, FALSE_DISCOVERIES)
    return {
        "ks_p": float(kstwobign.sf(largest * rows**0.5)),
        "false_discoveries": float((chosen & ~y).sum() / max(chosen.sum(), 1)),
        "power": float(chosen[y].mean()),
        "fit_seconds": seconds,
    }


PROTOCOLS: dict[str, Callable[[str, float, int, int, Detector], dict[str, float]]] = {
    "semi": semi,
    "unsupervised": unsupervised,
    "missing": missing,
}
RATES = {"missing": (0.0, 0.3, 0.5)}
METHODS_OF = {"p-values": ("vaeimpute",), **dict.fromkeys(cells.PROTOCOLS, cells.METHODS)}  # of others: all METHODS
REPORTED = ("auroc", "ap", "flagged", "repair_rmse", "repair_error", "uniform", "false_discoveries", "power")
REPORTED += ("fit_seconds",)


def suits(name: str, protocol: str) -> bool:
    """Whether a protocol is for this set: mixed tables get typos, clean tables other errors, all others no typos.

    Examples
    --------
    >>> [suits("penguins", protocol) for protocol in ("semi", "cells shift", "cells typo")]
    [False, False, True]
    >>> [suits("glass", protocol) for protocol in ("semi", "cells shift", "cells typo")]
    [False, True, False]
    >>> [suits("breast_cancer", protocol) for protocol in ("semi", "cells shift", "cells typo")]
    [True, True, False]
    """
    kind = cells.PROTOCOLS[protocol].kind if protocol in cells.PROTOCOLS else None
    if name in MIXED:
        return kind == "typo"
    return kind != "typo" and (kind is not None or name not in CLEAN)


# --- running and reporting --------------------------------------------------------------------------------------------


def run_one(key: dict) -> dict[str, float]:
    """Compute the result of one line."""
    name, protocol, rate, max_rows, seed, method = (key[part] for part in KEY)
    if protocol == "p-values":
        return p_values(name, max_rows, seed)
    if protocol in cells.PROTOCOLS:
        return wrong_cells(name, max_rows, seed, method, protocol)
    return PROTOCOLS[protocol](name, rate, max_rows, seed, METHODS[method])


def read(file: Path) -> list[dict]:
    """Finished lines of a results file; the last one counts."""
    return list({tuple(line[k] for k in KEY): line for line in read_lines(file)}.values())


def report(lines: list[dict]) -> str:
    """Means over the sets that all methods of a protocol finished, scores in %, as Markdown."""
    frame = pd.DataFrame([line for line in lines if "error" not in line])
    frame["split"] = np.where(frame["set"].isin(TUNING), "tuning", "held-out")
    frame["protocol"] += np.where(frame["set"].isin(CLEAN), ", clean tables", "")
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


def _keys(
    sets: str | None, methods: str | None, protocols: str | None, seeds: str, max_rows: int, max_columns: int
) -> Iterator[dict]:
    """Keys of the lines that the command line asks for."""
    every = [*names(), *CLEAN, *MIXED] if "VAEIMPUTE_DATA" in os.environ else names()
    wanted = protocols.split(",") if protocols else [*PROTOCOLS, "cells"]
    wanted = [inner for protocol in wanted for inner in (cells.PROTOCOLS if protocol == "cells" else [protocol])]
    chosen = methods.split(",") if methods else [*DEFAULT_METHODS, "z"]
    for name in sets.split(",") if sets else every:
        if name not in tables.TABLES and load(name, max_rows)[0].shape[1] > max_columns:
            continue
        for protocol in (protocol for protocol in wanted if suits(name, protocol)):
            known = [method for method in chosen if method in METHODS_OF.get(protocol, METHODS)]
            for rate, seed, method in product(RATES.get(protocol, (0.0,)), map(int, seeds.split(",")), known):
                yield dict(zip(KEY, (name, protocol, rate, max_rows, seed, method), strict=True))


@click.command()
@click.option("--sets", help="Comma-separated; default: all.")
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
def main(*, out: Path, only_report: bool, **chosen: object) -> None:
    """Compare outlier detectors; append one JSON line per result to a file."""
    if only_report:
        click.echo(report(read(out)))
        return
    done = {tuple(line[k] for k in KEY) for line in read(out) if "error" not in line}
    out.parent.mkdir(parents=True, exist_ok=True)
    cut_unfinished_line(out)
    for key in _keys(**chosen):
        if tuple(key.values()) in done:
            continue
        try:
            line = key | {k: round(v, 5) for k, v in run_one(key).items()}
        except Exception as error:  # one failing method must not end the run: its line says why, and the log where
            logger.exception("%s failed.", " ".join(map(str, key.values())))
            line = key | {"error": f"{type(error).__name__}: {error}"}
        append_line(out, line)
        click.echo(" ".join(map(str, line.values())), err=True)


if __name__ == "__main__":
    main()
