"""Synthetic rows: append one JSON line per (table, seed, method) to a file, resumable.

    python -m benchmarks.run --task synthesis
    python -m benchmarks.synthesis --tables penguins,iris --methods copula,vaeimpute
    python -m benchmarks.synthesis --report

Half of the rows are learnt, and as many synthetic ones are compared with the other half. The methods are in
``peer_synthesizers.py``, the scores in ``synthesis_scores.py``; seconds are those of the process.
"""

from __future__ import annotations

import importlib
import logging
import time
import warnings
import zlib
from itertools import product
from pathlib import Path

import click
import joblib
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from benchmarks.datasets import TABLES, load
from benchmarks.markdown import markdown
from benchmarks.peer_synthesizers import SYNTHESIZERS
from benchmarks.run import (
    RESULTS,
    append_line,
    cut_unfinished_line,
    finished_lines,
    key_of,
    listed,
    read_lines,
    setting,
    versions,
)
from benchmarks.synthesis_scores import METRICS, Synthesis

__all__ = ["TABLES_USED", "check_rows", "halves", "keys", "measure", "report", "run_lines"]

logger = logging.getLogger(__name__)

TASK = "synthesis"
KEY = ("task", "table", "max_rows", "seed", "method")
OURS = "vaeimpute"
MAX_ROWS = 3000
# Five tuning and five held-out tables, 150 to 3,000 rows; six of them mixed.
TABLES_USED = (
    "penguins,concrete,german_credit,abalone,california_housing,"
    "iris,heart_cleveland,credit_approval,obesity_levels,power_plant_ccpp"
)


# --- one line ---------------------------------------------------------------------------------------------------------


def halves(name: str, max_rows: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two random halves of a table's rows, by its name and the seed alone; of an odd number, one row stays out."""
    frame = load(name, max_rows)
    order = np.random.default_rng(zlib.crc32(f"{name} {seed}".encode())).permutation(len(frame))
    parts = order[: len(frame) // 2], order[len(frame) // 2 : len(frame) // 2 * 2]
    return tuple(frame.iloc[part].reset_index(drop=True) for part in parts)


def check_rows(drawn: pd.DataFrame, train: pd.DataFrame) -> None:
    """Raise where a method gave other columns, types or numbers of rows than it learnt, or a missing cell."""
    if list(drawn.columns) != list(train.columns) or (drawn.dtypes != train.dtypes).any():
        raise ValueError("the method changed the columns or their types.")
    if len(drawn) != len(train) or drawn.isna().any(axis=None):
        raise ValueError(f"the method gave {len(drawn.dropna())} complete rows, not {len(train)}.")


def measure(name: str, max_rows: int, seed: int, method: str, params: dict) -> dict:
    """Learn one half of a table, draw as many rows, and compare them with the other half."""
    train, test = halves(name, max_rows, seed)
    start = time.process_time()
    sample = SYNTHESIZERS[method].fit(train, seed, **params)
    fitted = time.process_time()
    drawn = sample(len(train))
    seconds = {"fit_seconds": fitted - start, "sample_seconds": time.process_time() - fitted}
    check_rows(drawn, train)
    synthesis = Synthesis(train, test, drawn, TABLES[name].target or train.columns[-1])
    return {
        "split": TABLES[name].split,
        "rows": len(train),
        "columns": train.shape[1],
        **{score: metric(synthesis) for score, metric in METRICS.items()},
        **seconds,
        "cores": joblib.effective_n_jobs(None),
        "versions": versions(("lightgbm", *SYNTHESIZERS[method].imports)),
    }


def compute(key: dict, params: dict, cores: int) -> dict:
    """Compute a line. A method that fails must not end the run: its line says why, and the log where."""
    method = key["method"].partition("[")[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a package says of its own imports
            for module in SYNTHESIZERS[method].imports:  # before the clock starts and the threads are limited
                importlib.import_module(module)
        with joblib.parallel_config(n_jobs=cores), threadpool_limits(cores):  # BLAS and torch too
            return key | measure(key["table"], key["max_rows"], key["seed"], method, params)
    except ModuleNotFoundError as error:
        return key | {"error": f"{method} needs the package {error.name}, see benchmarks/README.md."}
    except Exception as error:
        logger.exception("%s failed on %s.", method, key["table"])
        return key | {"error": f"{type(error).__name__}: {error}"}


def keys(
    tables: tuple[str, ...], methods: tuple[str, ...], seeds: tuple[int, ...], max_rows: int, params: dict
) -> list[dict]:
    """Keys of all lines, smallest tables first; settings are part of the name of our method."""
    settings = ",".join(f"{name}={value}" for name, value in params.items())
    names = [f"{method}[{settings}]" if settings and method == OURS else method for method in methods]
    ordered = sorted(tables, key=lambda name: load(name, max_rows).size)
    return [
        dict(zip(KEY, (TASK, name, max_rows, *rest), strict=True)) for name, *rest in product(ordered, seeds, names)
    ]


def run_lines(todo: list[dict], params: dict, out: Path, cores: int = 1) -> int:
    """Compute the lines that ``out`` lacks, append them, and return the number that failed; ``params`` are ours."""
    out.parent.mkdir(parents=True, exist_ok=True)
    cut_unfinished_line(out)
    done = {key_of(line, KEY) for line in finished_lines(read_lines(out), TASK, KEY)}
    left = [key for key in todo if key_of(key, KEY) not in done]
    click.echo(f"{len(todo) - len(left)} of {len(todo)} lines are in {out} already.", err=True)
    failures = 0
    for key in left:
        line = compute(key, params if key["method"].startswith(OURS) else {}, cores)
        failures += "error" in line
        append_line(out, line)
        shown = [
            line[name] for name in ("table", "method", "auc", "near_copies", "fit_seconds", "error") if name in line
        ]
        click.echo(" ".join(f"{part:.3g}" if isinstance(part, float) else str(part) for part in shown), err=True)
    return failures


# --- reporting --------------------------------------------------------------------------------------------------------

SCORES = {
    "auc": "AUC",
    "ratio_trees": "error ratio, trees",
    "ratio_linear": "error ratio, linear",
    "shapes": "shapes",
    "pairs": "pairs",
    "energy_distance": "energy distance",
    "near_copies": "near copies",
    "exact_copies": "exact copies",
    "fit_seconds": "fit seconds",
    "sample_seconds": "sample seconds",
}
RATIOS = ["ratio_trees", "ratio_linear"]
SECONDS = dict.fromkeys(("fit seconds", "sample seconds"), ".3g")
BY_TABLE = ("auc", "ratio_trees", "near_copies")


def report(lines: list[dict]) -> str:
    """All tables, as Markdown: means over the tables of a split, and some scores of each table; what failed."""
    if not (own := finished_lines(lines, TASK, KEY)):
        return "No results yet."
    frame = pd.DataFrame(own)
    frame["table"] += " " + (2 * frame["rows"]).astype(str) + "×" + frame["columns"].astype(str)
    parts = [_summary(split, part) for split, part in frame.groupby("split")]
    parts += [_by_table(score, frame) for score in BY_TABLE]
    done = {key_of(line, KEY) for line in own}
    failed = {key_of(line, KEY): line["error"] for line in lines if "error" in line and key_of(line, KEY) not in done}
    parts += [f"Failed: {key[-1]} on {key[1]}, seed {key[3]}: {error}\n" for key, error in failed.items()]
    return "\n".join(parts)


def _summary(split: str, part: pd.DataFrame) -> str:
    """Means of every score, geometric of the ratios, best AUC first; of methods that finished all that anyone did."""
    finished = part.groupby("method").size()
    short = finished[finished < finished.max()]
    part = part[~part["method"].isin(short.index)]
    means = part.groupby("method")[list(SCORES)].mean()
    means[RATIOS] = np.exp(np.log(part.set_index("method")[RATIOS]).groupby("method").mean())
    grid = means.sort_values("auc").rename(columns=SCORES)
    left_out = ", ".join(f"{method} ({n} of {finished.max()} cases)" for method, n in short.items())
    title = f"**Synthetic rows, {split} tables** ({', '.join(sorted(set(part['table'])))})"
    title += f"; not in these means: {left_out}" if left_out else ""
    return f"{title}\n\n{markdown(grid, SECONDS, default='.3f')}"


def _by_table(score: str, frame: pd.DataFrame) -> str:
    grid = frame.pivot_table(index="table", columns="method", values=score, aggfunc="mean")
    title = SCORES[score][0].upper() + SCORES[score][1:]
    return f"<details><summary>{title} of each table</summary>\n\n{markdown(grid, default='.3f')}\n</details>\n"


# --- the command ------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--tables", default=TABLES_USED, callback=listed(TABLES), help="Comma-separated.")
@click.option("--methods", default=",".join(SYNTHESIZERS), callback=listed(SYNTHESIZERS), help="Comma-separated.")
@click.option("--seeds", default="0", show_default=True, callback=listed(None, int), help="Of the halves and the fits.")
@click.option("--max-rows", default=MAX_ROWS, show_default=True, help="Rows to keep of each table, both halves.")
@click.option("--set", "params", multiple=True, callback=setting, help="name=value for vaeimpute; repeatable.")
@click.option("--cores", type=click.IntRange(1), default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "synthesis.jsonl", show_default=False)
@click.option("--report", "only_report", is_flag=True, help="Print the tables of the results, and run nothing.")
def main(*, params: dict, cores: int, out: Path, only_report: bool, **chosen: object) -> None:
    """Compare methods that make synthetic rows; append one JSON line per result to a file."""
    if only_report:
        click.echo(report(read_lines(out)))
        return
    if failures := run_lines(keys(**chosen, params=params), params, out, cores):
        click.echo(f"{failures} lines failed; run again to retry them.", err=True)


if __name__ == "__main__":
    main()
