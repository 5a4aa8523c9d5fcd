"""The public table of M3-Impute: append one JSON line per (set, seed, settings) to a file, resumable.

    git clone https://github.com/Alleinx/M3-IMPUTE
    python -m benchmarks.m3 --data M3-IMPUTE
    python -m benchmarks.m3 --data M3-IMPUTE --sets iris,yacht --set max_iter=500 --out mine.jsonl
    python -m benchmarks.m3 --report

The protocol is that of the repository's ``uci/uci_data.py``, ``utils/utils.py`` and ``training/baseline.py``: all
columns but the last, scaled to [0, 1] by their complete values; a cell is observed where PyTorch's uniform number, one
a cell and row by row from the seed, is below .7; every row is fitted to; the score is ten times the mean absolute error
over all hidden cells. Every column is a number, classes too.

The published numbers are means over five repeats. The repository's code hides cells once, by seed 0, for all of them;
but those of column means, which nothing else makes vary, have a spread, so that there were several masks. Each line
says what filling in column means gives on its own mask (``mae_means``), to be set beside the same published.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import time
from collections.abc import Callable, Collection
from itertools import product
from pathlib import Path

import click
import joblib
import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import minmax_scale
from threadpoolctl import threadpool_limits

import vaeimpute
from benchmarks.markdown import markdown
from benchmarks.run import (
    RESULTS,
    append_line,
    cut_unfinished_line,
    finished_lines,
    key_of,
    listed,
    read_lines,
    setting,
)
from vaeimpute import VAEImputer

__all__ = ["PUBLISHED", "by_vaeimpute", "load", "measure", "observed_cells", "report", "run_lines"]

logger = logging.getLogger(__name__)

TASK = "m3-impute"
KEY = ("task", "set", "seed", "method")
OBSERVED = 0.7
POINTS = ("mean", "median")
REPOSITORY = "https://github.com/Alleinx/M3-IMPUTE"

# Ten times the MAE, 30% missing completely at random: assets/result.jpg of the repository (README, "Results"), at
# commit c5af224. The mean ranks that stand under the picture's table agree with these numbers.
METHODS = ("mean", "svd", "spectral", "mice", "knn", "gain", "miwae", "grape", "miracle", "hyperimpute", "m3-impute")
# fmt: off
PUBLISHED: dict[str, tuple[float, ...]] = {
    "yacht":              (2.09, 2.46, 2.64, 1.68, 1.67, 2.26, 4.68, 1.46, 3.84, 1.76, 1.33),
    "steel":              (1.80, 1.37, 1.10, 0.95, 0.78, 1.03, 1.70, 0.45, 0.95, 0.72, 0.39),
    "german":             (2.52, 2.60, 2.45, 2.26, 2.34, 2.27, 2.59, 2.01, 3.67, 2.05, 1.87),
    "concrete":           (1.79, 1.94, 1.98, 1.34, 1.16, 1.67, 1.81, 0.75, 1.71, 0.84, 0.71),
    "housing":            (1.85, 1.53, 1.46, 1.16, 0.95, 1.23, 3.81, 0.64, 3.12, 0.82, 0.59),
    "energy":             (3.10, 2.24, 2.26, 1.53, 1.81, 1.99, 2.79, 1.36, 3.94, 1.32, 1.31),
    "naval":              (2.31, 0.50, 0.41, 0.20, 0.10, 0.46, 2.37, 0.07, 0.18, 0.04, 0.06),
    "ionosphere":         (2.01, 1.26, 1.38, 1.37, 1.07, 1.50, 5.14, 1.08, 5.56, 1.18, 1.01),
    "power":              (1.68, 2.33, 2.13, 1.16, 1.38, 1.31, 1.74, 1.00, 1.13, 1.06, 0.99),
    "wine":               (0.98, 0.92, 0.91, 0.77, 0.72, 0.86, 1.00, 0.60, 0.70, 0.67, 0.59),
    "airfoil":            (2.32, 2.76, 2.30, 1.97, 2.18, 2.22, 2.36, 1.16, 1.97, 1.09, 1.09),
    "blood":              (1.14, 0.97, 0.94, 0.69, 0.93, 1.26, 2.03, 0.68, 1.50, 0.63, 0.67),
    "wine-white":         (0.76, 0.87, 0.78, 0.61, 0.64, 0.73, 0.77, 0.52, 0.58, 0.55, 0.52),
    "breast":             (1.06, 0.58, 0.38, 0.34, 0.53, 0.51, 1.89, 0.37, 1.42, 0.33, 0.36),
    "iris":               (2.15, 1.70, 1.48, 1.07, 1.54, 1.29, 4.60, 0.82, 3.22, 1.04, 0.82),
    "diabetes":           (1.78, 1.76, 1.48, 1.29, 1.71, 1.47, 5.05, 1.31, 2.69, 1.17, 1.29),
    "protein":            (0.91, 1.00, 1.14, 0.33, 0.58, 0.72, 0.94, 0.25, 0.32, 0.25, 0.24),
    "spam":               (0.23, 0.31, 0.16, 0.22, 0.17, 0.21, 0.16, 0.17, 0.19, 0.18, 0.16),
    "letter":             (1.28, 1.29, 1.75, 1.00, 0.89, 1.09, 1.33, 0.53, 1.06, 0.61, 0.52),
    "ai4i":               (1.07, 1.18, 1.58, 0.87, 1.17, 1.03, 1.12, 0.79, 0.84, 0.75, 0.76),
    "cmc":                (2.35, 2.52, 2.96, 2.06, 2.32, 2.33, 2.37, 1.87, 2.01, 1.91, 1.81),
    "libras":             (1.82, 0.37, 0.18, 0.11, 0.25, 0.46, 2.13, 0.10, 5.61, 0.11, 0.10),
    "california-housing": (1.13, 1.35, 1.50, 0.69, 1.17, 1.07, 1.16, 0.54, 0.67, 0.57, 0.54),
    "kin8nm":             (2.50, 3.67, 2.80, 2.50, 2.77, 2.70, 2.57, 2.50, 2.49, 2.58, 2.50),
}
# fmt: on


# --- the protocol -----------------------------------------------------------------------------------------------------


def load(folder: Path, name: str) -> np.ndarray:
    """All columns but the last (n, D), scaled to [0, 1].

    Rows that lack a value are left out: 207 of california-housing, whose file NumPy's reader refuses.
    """
    lines = (folder / "uci" / "raw_data" / name / "data" / "data.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line.strip()]
    width = max(map(len, rows))
    return minmax_scale(np.array([row[:-1] for row in rows if len(row) == width], dtype=float))


def observed_cells(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Draw what stays observed (n, D): the repository's mask after ``torch.manual_seed(seed)``."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < OBSERVED).numpy()


def by_vaeimpute(X: np.ndarray, seed: int, **params: object) -> dict[str, np.ndarray]:
    """Complete X with the mean and with the median of each missing cell, from one fit."""
    model = VAEImputer(random_state=seed, **params).fit(X)
    return {point: model.set_params(point=point).impute(X) for point in POINTS}


def measure(
    truth: np.ndarray, seed: int, params: dict, complete: Callable[..., dict[str, np.ndarray]] = by_vaeimpute
) -> dict:
    """Hide cells, complete the table, and judge the hidden cells; seconds are of the fit and of both imputations."""
    observed = observed_cells(truth.shape, seed)
    X = np.where(observed, truth, np.nan)
    clock = time.process_time if joblib.effective_n_jobs(None) == 1 else time.perf_counter
    start = clock()
    completed = complete(X, seed, **params)
    seconds = clock() - start
    completed["means"] = np.where(observed, truth, np.nanmean(X, axis=0))
    errors = {
        f"mae_{point}": 10 * float(np.abs(filled - truth)[~observed].mean()) for point, filled in completed.items()
    }
    return {
        "rows": truth.shape[0],
        "columns": truth.shape[1],
        "hidden": int((~observed).sum()),
        "mask": hashlib.sha1(np.packbits(observed).tobytes()).hexdigest()[:12],
        **errors,
        "seconds": seconds,
        "cores": joblib.effective_n_jobs(None),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "vaeimpute": vaeimpute.__version__,
        },
    }


def run_lines(
    folder: Path,
    sets: Collection[str],
    seeds: Collection[int],
    params: dict,
    out: Path,
    cores: int = 1,
    complete: Callable[..., dict[str, np.ndarray]] = by_vaeimpute,
) -> int:
    """Compute the lines that ``out`` lacks, append them, and return the number that failed."""
    settings = ",".join(f"{name}={value}" for name, value in params.items())
    method = f"vaeimpute[{settings}]" if settings else "vaeimpute"
    keys = [dict(zip(KEY, (TASK, name, seed, method), strict=True)) for name, seed in product(sets, seeds)]
    out.parent.mkdir(parents=True, exist_ok=True)
    cut_unfinished_line(out)
    done = {key_of(line, KEY) for line in finished_lines(read_lines(out), TASK, KEY)}
    todo = [key for key in keys if key_of(key, KEY) not in done]
    click.echo(f"{len(keys) - len(todo)} of {len(keys)} lines are in {out} already.", err=True)
    failures = 0
    for key in todo:
        try:
            with joblib.parallel_config(n_jobs=cores), threadpool_limits(cores):  # BLAS and torch too
                line = key | measure(load(folder, key["set"]), key["seed"], params, complete)
        except Exception as error:  # one set that fails must not end the run: its line says why, and the log where
            logger.exception("%s failed on %s.", method, key["set"])
            line = key | {"error": f"{type(error).__name__}: {error}"}
        failures += "error" in line
        append_line(out, line)
        shown = ("set", "seed", "method", "mae_mean", "mae_median", "seconds", "error")
        click.echo(" ".join(_short(line[name]) for name in shown if name in line), err=True)
    return failures


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- reporting --------------------------------------------------------------------------------------------------------


def report(lines: list[dict]) -> str:
    """All tables, as Markdown: for each of our settings what it comes to, and every set; means over seeds."""
    frame = pd.DataFrame(
        finished_lines(lines, TASK, KEY), columns=[*KEY, "rows", "columns", *_errors(), "seconds", "cores"]
    )
    return "\n".join(_section(method, part) for method, part in frame.groupby("method", sort=False))


def _section(method: str, part: pd.DataFrame) -> str:
    names = [name for name in PUBLISHED if name in set(part["set"])]  # in the order of the published table
    ours = part.groupby("set")[["rows", "columns", *_errors(), "seconds"]].mean().loc[names]
    published = pd.DataFrame([PUBLISHED[name] for name in names], index=ours.index, columns=METHODS)
    best = published.min(axis=1)
    counts = ours[["rows", "columns"]].astype(int).astype(str)
    grid = pd.DataFrame(
        {
            "n×d": counts["rows"] + "×" + counts["columns"],
            "best published": best.map("{:.2f}".format),
            "by": published.idxmin(axis=1),
            "m3-impute": published["m3-impute"].map("{:.2f}".format),
            **{point: _won_in_bold(ours[f"mae_{point}"], best) for point in POINTS},
            "column means, here / published": ours["mae_means"] / published["mean"],
            "seconds": ours["seconds"],
        }
    )
    cores, seeds = ("/".join(map(str, sorted(part[name].unique()))) for name in ("cores", "seed"))
    text = f"**{method}** ({len(ours)} of {len(PUBLISHED)} sets, seeds {seeds}, cores {cores})"
    totals = {f"our {point}": _against(ours[f"mae_{point}"], best, published["m3-impute"]) for point in POINTS}
    overview = pd.DataFrame(totals).T.rename_axis("ours")
    return f"{text}\n\n{markdown(overview, default='.3f')}\n{markdown(grid, {'seconds': '.3g'})}"


def _against(ours: pd.Series, best: pd.Series, m3: pd.Series) -> dict[str, object]:
    """Geometric mean of the ratios, and sets won and tied, against the best published of each set and M3-Impute."""
    line: dict[str, object] = {}
    for name, theirs in (("the best published", best), ("M3-Impute", m3)):
        line[f"ratio to {name}"] = float(np.exp(np.log(ours / theirs).mean()))
        line[f"won, tied with {name}"] = f"{(ours.round(2) < theirs).sum()}, {(ours.round(2) == theirs).sum()}"
    return line


def _won_in_bold(ours: pd.Series, best: pd.Series) -> pd.Series:
    """Errors with the two decimals that are published, in bold where below the best published."""
    shown = ours.map("{:.2f}".format)
    return shown.where(ours.round(2) >= best, "**" + shown + "**")


def _errors() -> list[str]:
    return [f"mae_{point}" for point in (*POINTS, "means")]


def _clone(context: click.Context, parameter: click.Parameter, folder: Path | None) -> Path | None:
    """Click callback: the folder, if it holds the sets."""
    if folder is not None and not (folder / "uci" / "raw_data").is_dir():
        raise click.BadParameter(f"{folder} holds no uci/raw_data; the sets come with: git clone {REPOSITORY}")
    return folder


@click.command()
@click.option("--data", type=click.Path(path_type=Path), callback=_clone, help=f"A clone of {REPOSITORY}.")
@click.option("--sets", default=",".join(PUBLISHED), callback=listed(PUBLISHED), help="Comma-separated; default: all.")
@click.option("--seeds", default="0", show_default=True, callback=listed(None, int), help="Of the masks and the fits.")
@click.option("--set", "params", multiple=True, callback=setting, help="name=value for VAEImputer; repeatable.")
@click.option("--cores", type=click.IntRange(1), help="Default: all.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "m3.jsonl", show_default=False)
@click.option("--report", "only_report", is_flag=True, help="Print the tables of the results, and run nothing.")
def main(
    *,
    data: Path | None,
    sets: tuple[str, ...],
    seeds: tuple[int, ...],
    params: dict,
    cores: int | None,
    out: Path,
    only_report: bool,
) -> None:
    """Run M3-Impute's table; append one JSON line per set and seed to a file."""
    if only_report:
        click.echo(report(read_lines(out)))
        return
    if data is None:
        raise click.UsageError(f"--data wants the folder of a clone: git clone {REPOSITORY}")
    if failures := run_lines(data, sets, seeds, params, out, cores or joblib.cpu_count()):
        click.echo(f"{failures} lines failed; run again to retry them.", err=True)


if __name__ == "__main__":
    main()
