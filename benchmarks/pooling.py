"""Do pooled confidence intervals hold what they promise? Append one JSON line per (rows, mechanism, seed, method).

    python -m benchmarks.pooling                                   # 6 cells, 200 replicates of each: hours
    python -m benchmarks.pooling --rows 50 --replicates 10 --methods normal,vaeimpute --out mine.jsonl
    python -m benchmarks.pooling --report

Tables of six columns with a known law lose cells, are imputed several times, analysed, and the answers pooled by
`vaeimpute.pool`; the analyses are regressions with and without an interaction, means, a quantile and a correlation.
Every method sees the same tables and the same missing cells. Lines that are in the file already are not computed again;
those with an error are.
"""

from __future__ import annotations

import itertools
import logging
import math
import operator
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import joblib
import numpy as np
import pandas as pd
from scipy import optimize, special, stats
from threadpoolctl import threadpool_limits

from benchmarks.markdown import markdown
from benchmarks.pooling_methods import METHODS
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
from vaeimpute import __version__, fit_pooled

__all__ = ["ANALYSES", "CONGENIAL", "ESTIMANDS", "hide", "make", "report", "run_lines", "truth"]

logger = logging.getLogger(__name__)

TASK = "pooling"
KEY = ("task", "rows", "mechanism", "seed", "method", "draws")
MECHANISMS = ("mcar", "mar")
YARDSTICK, BEST = "normal", "full data"
QUANTITIES = ("estimate", "low", "high", "fmi")


# --- the law and its holes --------------------------------------------------------------------------------------------


def make(n: int, seed: int) -> pd.DataFrame:
    """Draw n rows: two normals of correlation .5, a class and a count that depend on them, and two outcomes."""
    rng = np.random.default_rng([seed, n])
    x1 = rng.normal(size=n)
    x2 = 0.5 * x1 + math.sqrt(0.75) * rng.normal(size=n)
    g = rng.random(n) < special.expit(x1)
    count = rng.poisson(np.exp(0.6 + 0.4 * x2))
    y1 = 1 + x1 + x2 + 0.8 * g + rng.normal(size=n)
    y2 = 1 + x1 + x2 + 0.5 * x1 * x2 + rng.normal(size=n)
    classes = pd.Categorical(np.where(g, "yes", "no"), ["no", "yes"])
    return pd.DataFrame({"x1": x1, "x2": x2, "g": classes, "c": pd.array(count, dtype="Int64"), "y1": y1, "y2": y2})


def hide(table: pd.DataFrame, mechanism: str, seed: int) -> pd.DataFrame:
    """Hide 30% of all cells (mcar), or 40% of the cells of four columns by what x1 and y1, always seen, are (mar)."""
    rng = np.random.default_rng([seed, len(table), 1])
    chance = pd.DataFrame(0.3 if mechanism == "mcar" else 0.0, table.index, table.columns)
    if mechanism == "mar":
        cause = 1.5 * stats.zscore(stats.zscore(table["x1"]) + stats.zscore(table["y1"]))
        for name, sign in {"x2": 1, "g": -1, "c": -1, "y2": 1}.items():
            shift = optimize.brentq(lambda b, sign=sign: special.expit(sign * cause + b).mean() - 0.4, -20, 20)
            chance[name] = special.expit(sign * cause + shift)
    observed = rng.random(table.shape) >= chance
    empty = np.flatnonzero(~observed.any(axis=1))
    for row, column in zip(empty, rng.integers(table.shape[1], size=len(empty)), strict=True):
        observed.iloc[row, column] = True
    return table.where(observed)


# --- the analyses -----------------------------------------------------------------------------------------------------

Answer = tuple[np.ndarray, np.ndarray, float]


@dataclass(frozen=True)
class Analysis:
    """What is asked of rows without missing cells in `columns`: estimates, (co)variances, degrees of freedom."""

    columns: tuple[str, ...]
    answer: Callable[[pd.DataFrame], Answer]
    estimands: tuple[str, ...]
    transform: str | None = None

    def __call__(self, table: pd.DataFrame) -> Answer:
        """Answer from the rows that have all of the columns, as software for regressions does."""
        return self.answer(table[list(self.columns)].dropna())


def regression(y: pd.Series, *predictors: pd.Series) -> Answer:
    """Slopes of a least-squares fit."""
    X = np.column_stack([np.ones(len(y)), *predictors])
    inverse = np.linalg.inv(X.T @ X)
    slopes, df = inverse @ X.T @ y.to_numpy(), len(y) - X.shape[1]
    variance = float(((y - X @ slopes) ** 2).sum() / df)
    return slopes[1:], variance * inverse[1:, 1:], df


def mean(table: pd.DataFrame) -> Answer:
    """Mean of the only column."""
    x = table.iloc[:, 0]
    return x.mean(), x.var() / len(x), len(x) - 1


def upper_quartile(table: pd.DataFrame) -> Answer:
    """Upper quartile of the only column; its variance by a kernel density with Silverman's width."""
    x = table.iloc[:, 0].to_numpy()
    quartiles = np.quantile(x, [0.25, 0.75])
    width = 1.06 * min(x.std(), np.diff(quartiles)[0] / 1.34) * len(x) ** -0.2
    density = stats.norm.pdf((x - quartiles[1]) / width).mean() / width
    return quartiles[1], 0.75 * 0.25 / len(x) / density**2, len(x) - 1


def correlation(table: pd.DataFrame) -> Answer:
    """Correlation of both columns; its variance is 1 / (n - 3) on Fisher's scale."""
    r = table.corr().iloc[0, 1]
    return r, (1 - r**2) ** 2 / (len(table) - 3), len(table) - 1


ANALYSES = (
    Analysis(("y1", "x1", "x2", "g"), lambda t: regression(t.y1, t.x1, t.x2, t.g), ("y1: x1", "y1: x2", "y1: g")),
    Analysis(
        ("y2", "x1", "x2"), lambda t: regression(t.y2, t.x1, t.x2, t.x1 * t.x2), ("y2: x1", "y2: x2", "y2: x1 x2")
    ),
    Analysis(("x2",), mean, ("mean x2",)),
    Analysis(("c",), mean, ("mean c",)),
    Analysis(("y2",), mean, ("mean y2",)),
    Analysis(("y1",), upper_quartile, ("quartile y1",)),
    Analysis(("x2", "y1"), correlation, ("correlation x2 y1",), "fisher"),
)
ESTIMANDS = tuple(name for analysis in ANALYSES for name in analysis.estimands)
# What a model without the interaction can be right about: not the mean of y2, if cells are missing by x1.
SLOPES = ("y1: x1", "y1: x2", "y1: g")
CONGENIAL = (*SLOPES, "mean x2", "mean c", "quartile y1", "correlation x2 y1")


@cache
def truth() -> dict[str, float]:
    """What the estimands are in the law of `make`, by quadrature over x1 where there is no closed form."""
    x, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    with_g = weights @ (x * special.expit(x))  # covariance of x1 and g

    def below(y: float) -> float:
        parts = [special.ndtr((y - 1 - 1.5 * x - 0.8 * g) / math.sqrt(1.75)) for g in (0, 1)]
        return float(weights @ (parts[0] * special.expit(-x) + parts[1] * special.expit(x)))

    return {
        **dict(zip(SLOPES, (1.0, 1.0, 0.8), strict=True)),
        **{"y2: x1": 1.0, "y2: x2": 1.0, "y2: x1 x2": 0.5, "mean x2": 0.0, "mean c": math.exp(0.68), "mean y2": 1.25},
        "quartile y1": optimize.brentq(lambda y: below(y) - 0.75, -10, 10),
        "correlation x2 y1": (1.5 + 0.4 * with_g) / math.sqrt(4 + 0.64 * 0.25 + 2.4 * with_g),
    }


# --- running ----------------------------------------------------------------------------------------------------------


def answers(tables: list[pd.DataFrame]) -> dict[str, list[float]]:
    """Pooled quantities of all estimands, in their order."""
    rows = pd.concat([fit_pooled(analysis, tables, transform=analysis.transform).table for analysis in ANALYSES])
    return {name: [float(f"{value:.5g}") for value in rows[name]] for name in QUANTITIES}


def lines_of(keys: list[dict], params: dict) -> list[dict]:
    """All lines of one table. One failing method must not end the run: its line says why, and the log where."""
    rows, mechanism, seed, draws = (keys[0][name] for name in ("rows", "mechanism", "seed", "draws"))
    complete = make(rows, seed)
    X = hide(complete, mechanism, seed)
    lines = []
    for key in keys:
        method = key["method"].partition("[")[0]
        try:
            with threadpool_limits(1):  # BLAS and torch too
                start = time.process_time()
                tables = METHODS[method](complete, X, draws, seed, **(params if "[" in key["method"] else {}))
                seconds = time.process_time() - start
                lines.append(key | answers(tables) | {"seconds": seconds, "vaeimpute": __version__})
        except Exception as error:
            logger.exception("%s failed on %s.", method, key)
            lines.append(key | {"error": f"{type(error).__name__}: {error}"})
    return lines


def run_lines(keys: list[dict], out: Path, params: dict, jobs: int = 1) -> int:
    """Compute the lines that ``out`` lacks, a table at a time in each process, and return the number that failed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    cut_unfinished_line(out)
    done = {key_of(line, KEY) for line in finished_lines(read_lines(out), TASK, KEY)}
    todo = [key for key in keys if key_of(key, KEY) not in done]
    click.echo(f"{len(keys) - len(todo)} of {len(keys)} lines are in {out} already.", err=True)
    # Seeds before sizes, so that a run that is stopped has a few replicates of everything.
    by_seed = operator.itemgetter("seed", "rows", "mechanism")
    by_table = [list(part) for _, part in itertools.groupby(sorted(todo, key=by_seed), by_seed)]
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator")
    failures, start = 0, time.perf_counter()
    for number, lines in enumerate(parallel(joblib.delayed(lines_of)(part, params) for part in by_table), 1):
        for line in lines:
            append_line(out, line)
        failures += sum("error" in line for line in lines)
        click.echo(f"[{number}/{len(by_table)}, {(time.perf_counter() - start) / 60:.1f} min]", err=True)
    return failures


# --- reporting --------------------------------------------------------------------------------------------------------


def report(lines: list[dict]) -> str:
    """All tables, as Markdown: an overview, and coverage and bias of every estimand."""
    frame = _long(finished_lines(lines, TASK, KEY))
    overview, details = [], []
    for (rows, mechanism), cell in frame.groupby(["rows", "mechanism"], sort=True):
        label = f"{rows}, {mechanism.upper()}"
        parts = dict(iter(cell.groupby("method", sort=False)))
        for method, part in parts.items():
            overview.append({"n, cells": label, "method": method} | _summary(part, parts))
            details.append({"n, cells, method": f"{label}, {method}"} | _coverages(part))
    body = markdown(pd.DataFrame(overview).set_index("n, cells"), {"seconds": ".2g"}, default=".3f")
    each = markdown(pd.DataFrame(details).set_index("n, cells, method"))
    title = "Coverage of each estimand, %, and its bias against full data"
    return f"{body}\n<details><summary>{title}</summary>\n\n{each}\n</details>\n"


def _long(lines: list[dict]) -> pd.DataFrame:
    """One row per line and estimand: what the line says, whether it is covered, and how far it is from full data's."""
    names = [*KEY, "seconds"]
    frame = pd.DataFrame(
        [
            {name: line[name] for name in names} | {"estimand": estimand} | {name: line[name][k] for name in QUANTITIES}
            for line in lines
            for k, estimand in enumerate(ESTIMANDS)
        ]
    )
    order = {method: k for k, method in enumerate(METHODS)}
    frame = frame.sort_values("method", key=lambda names: names.str.partition("[")[0].map(order), kind="stable")
    true = frame["estimand"].map(truth())
    case = ["rows", "mechanism", "seed", "draws", "estimand"]
    best = frame[frame["method"] == BEST].set_index(case)["estimate"]
    return frame.assign(
        covered=(frame["low"] <= true) & (true <= frame["high"]),
        width=frame["high"] - frame["low"],
        bias=frame["estimate"] - best.reindex(pd.MultiIndex.from_frame(frame[case])).to_numpy(),
    )


def _summary(part: pd.DataFrame, parts: dict[str, pd.DataFrame]) -> dict[str, object]:
    congenial = part[part["estimand"].isin(CONGENIAL)]
    by_replicate = congenial.groupby("seed")["covered"].mean()
    each = congenial.groupby("estimand")["covered"].mean()
    interaction = part[part["estimand"] == "y2: x1 x2"]["covered"]
    bias = part.groupby("estimand")["bias"].mean()
    return {
        "replicates": str(part["seed"].nunique()),
        "covered": _with_error(by_replicate.mean(), by_replicate.std() / math.sqrt(len(by_replicate))),
        "least": f"{each.min():.3f} ({each.idxmin()})",
        "x1 x2 covered": _with_error(interaction.mean(), interaction.std() / math.sqrt(len(interaction))),
        **{f"bias {name}": bias[name] for name in ("y1: x2", "y1: g", "correlation x2 y1", "y2: x1 x2")},
        "width": _against(part, parts, "width", CONGENIAL),
        "fmi, slopes": _against(part, parts, "fmi", SLOPES),
        "fmi, means": _against(part, parts, "fmi", ("mean x2", "mean c")),
        "seconds": part["seconds"].median(),
    }


def _coverages(part: pd.DataFrame) -> dict[str, str]:
    grouped = part.groupby("estimand")[["covered", "bias"]].mean().loc[list(ESTIMANDS)]
    return {name: f"{100 * row['covered']:.1f}, {row['bias']:+.3f}" for name, row in grouped.iterrows()}


def _against(part: pd.DataFrame, parts: dict[str, pd.DataFrame], name: str, estimands: Collection[str]) -> float:
    """Geometric mean over the estimands of the mean quantity over that of the yardstick, on the replicates of both."""
    if YARDSTICK not in parts or not part[name].any():
        return math.nan
    both = set(part["seed"]) & set(parts[YARDSTICK]["seed"])
    means = [
        each[each["seed"].isin(both) & each["estimand"].isin(estimands)].groupby("estimand")[name].mean()
        for each in (part, parts[YARDSTICK])
    ]
    return float(np.exp(np.log(means[0] / means[1]).mean()))


def _with_error(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


@click.command()
@click.option("--rows", default="50,200,1000", callback=listed(None, int), show_default=True, help="Of the tables.")
@click.option("--mechanisms", default=",".join(MECHANISMS), callback=listed(MECHANISMS), show_default=True)
@click.option("--methods", default=",".join(METHODS), callback=listed(METHODS), help="Comma-separated; default: all.")
@click.option("--replicates", type=click.IntRange(1), default=200, show_default=True, help="Tables of each kind.")
@click.option("--draws", type=click.IntRange(2), default=20, show_default=True, help="Imputations of each table.")
@click.option("--set", "params", multiple=True, callback=setting, help="name=value for VAEImputer; repeatable.")
@click.option("--jobs", type=click.IntRange(1), default=joblib.cpu_count(), help="Processes. Default: one a core.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "pooling.jsonl", show_default=False)
@click.option("--report", "only_report", is_flag=True, help="Print the tables of the results, and run nothing.")
def main(
    *,
    rows: tuple[int, ...],
    mechanisms: tuple[str, ...],
    methods: tuple[str, ...],
    replicates: int,
    draws: int,
    params: dict,
    jobs: int,
    out: Path,
    only_report: bool,
) -> None:
    """Study the coverage of pooled confidence intervals; append one JSON line per result to a file."""
    if only_report:
        click.echo(report(read_lines(out)))
        return
    shown = [_with_settings(method, params) for method in methods]
    cases = itertools.product([TASK], rows, mechanisms, range(replicates), shown, [draws])
    if failures := run_lines([dict(zip(KEY, case, strict=True)) for case in cases], out, params, jobs):
        click.echo(f"{failures} lines failed; run again to retry them.", err=True)


def _with_settings(method: str, params: dict) -> str:
    """Name of the method in a line: settings are part of ours."""
    settings = ",".join(f"{name}={value}" for name, value in params.items())
    return f"{method}[{settings}]" if settings and method.startswith("vaeimpute") else method


if __name__ == "__main__":
    main()
