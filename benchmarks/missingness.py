"""What does it gain to assume that cells hide themselves, and lose? One JSON line per (table, holes, assumption).

    OMP_NUM_THREADS=1 python -m benchmarks.missingness              # 10 tables, 4 ways to lose cells, 2 assumptions
    python -m benchmarks.missingness --tables concrete --mechanisms mnar@1 --out mine.jsonl
    python -m benchmarks.missingness --report

Columns of numbers of public tables lose 30% of their cells: completely at random, by other columns (MAR), or each by
itself (MNAR, by the strength of its logits). Errors are those of the points, in standard deviations of the complete
column. Lines that are in the file already are not computed again.
"""

from __future__ import annotations

import itertools
import logging
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd

from benchmarks.datasets import TABLES as ALL_TABLES
from benchmarks.datasets import load
from benchmarks.markdown import markdown
from benchmarks.run import RESULTS, append_line, cut_unfinished_line, key_of, listed, read_lines
from vaeimpute import VAEImputer, __version__
from vaeimpute.amputation import ampute

__all__ = ["judged", "report", "run_lines", "table_of"]

logger = logging.getLogger(__name__)

TASK = "missingness"
KEY = ("task", "table", "mechanism", "missingness", "seed")
TABLES = ("concrete", "diabetes_lars", "airfoil", "wine_white", "abalone")  # on which priors were chosen
HELD_OUT = ("power_plant_ccpp", "kin8nm", "california_housing", "vehicle", "breast_cancer_wdbc")
MECHANISMS = {  # of `ampute`, and its options
    "mcar": ("mcar", {}),
    "mar": ("mar", {}),
    "mnar@1": ("mnar", {"strength": 1.0}),
    "mnar@2": ("mnar", {"strength": 2.0}),
}
ASSUMPTIONS = ("random", "self")
RATE, MAX_ROWS, MIN_VALUES, MIN_HIDDEN = 0.3, 800, 8, 5
DRAWS, LEVEL = 20, 0.9
SHOWN = ["bias", "abs_bias", "bias_of_draws", "rmse", "covered", "slope", "seconds"]
FORMATS = {"bias": "+.3f", "bias_of_draws": "+.3f", "slope": "+.2f", "seconds": ".2g"}


def table_of(name: str, seed: int) -> pd.DataFrame:
    """Complete columns of numbers with more than a few values, of some rows."""
    frame = load(name).select_dtypes("number").astype(float)
    frame = frame.loc[:, frame.nunique() > MIN_VALUES].dropna()
    return frame.sample(min(len(frame), MAX_ROWS), random_state=seed).reset_index(drop=True)


def judged(
    truth: pd.DataFrame, observed: np.ndarray, points: pd.DataFrame, draws: list[pd.DataFrame]
) -> dict[str, float]:
    """Bias of the mean of hidden cells by column (its mean and mean size), RMSE, and what 90% of draws cover."""
    sd, hidden = truth.std(ddof=0).to_numpy(), ~observed
    error = (points - truth).to_numpy() / sd
    of_draws = np.stack([(draw - truth).to_numpy() / sd for draw in draws])
    columns = np.flatnonzero(hidden.sum(0) > MIN_HIDDEN)
    bias = np.array([error[hidden[:, j], j].mean() for j in columns])
    drawn = np.array([of_draws[:, hidden[:, j], j].mean() for j in columns])
    low, high = np.quantile(of_draws[:, hidden], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        "bias": float(bias.mean()),
        "abs_bias": float(np.abs(bias).mean()),
        "bias_of_draws": float(drawn.mean()),
        "rmse": float(np.sqrt((error[hidden] ** 2).mean())),
        "covered": float(((low <= 0) & (high >= 0)).mean()),
    }


def run_lines(cases: list[dict], out: Path) -> int:
    """Append the lines that are not in the file yet; gives how many failed."""
    cut_unfinished_line(out)
    done = {key_of(line, KEY) for line in read_lines(out) if "error" not in line}
    failures = 0
    for case in cases:
        if key_of(case, KEY) in done:
            continue
        started = time.process_time()
        try:
            line = case | _measured(case)
        except Exception as error:
            failures += 1
            line = case | {"error": f"{type(error).__name__}: {error}"}
        append_line(out, line | {"seconds": time.process_time() - started, "version": __version__})
        logger.info("%s", line)
    return failures


def _measured(case: dict) -> dict[str, float]:
    truth = table_of(case["table"], case["seed"])
    mechanism, options = MECHANISMS[case["mechanism"]]
    observed = ampute(truth, RATE, mechanism, random_state=case["seed"] + 1, **options)
    holed = truth.where(observed)
    imputer = VAEImputer(missingness=case["missingness"], random_state=case["seed"]).fit(holed)
    found = judged(truth, observed, imputer.impute(holed), imputer.impute(holed, DRAWS, random_state=0))
    told = imputer.missingness_
    return found | {"slope": float(told["slope"].mean()) if len(told) else 0.0}


def report(lines: list[dict]) -> str:
    """Both assumptions side by side, averaged over tables, as Markdown; and each table."""
    own = [line for line in lines if line.get("task") == TASK and "error" not in line]
    frame = pd.DataFrame({tuple(line[name] for name in KEY): line for line in own}.values())
    frame["tables"] = np.where(frame["table"].isin(TABLES), "tuning", "held-out")
    frame["cells, assumed"] = frame["mechanism"] + ", " + frame["missingness"]
    order = [f"{m}, {a}" for m, a in itertools.product(MECHANISMS, ASSUMPTIONS)]
    frame = frame.sort_values("cells, assumed", key=lambda column: column.map(order.index), kind="stable")
    parts = []
    for key in ("tables", "table"):
        named = frame.assign(**{f"{key}, cells, assumed": frame[key] + ", " + frame["cells, assumed"]})
        grouped = named.sort_values(key, kind="stable").groupby(f"{key}, cells, assumed", sort=False)
        means = grouped[SHOWN].mean()
        if key == "tables":
            means.insert(0, "number", grouped["table"].nunique().astype(str))
        parts.append(markdown(means, FORMATS, default=".3f"))
    return f"{parts[0]}\n<details><summary>Each table</summary>\n\n{parts[1]}\n</details>\n"


@click.command()
@click.option("--tables", default=",".join(TABLES + HELD_OUT), callback=listed(ALL_TABLES))
@click.option("--mechanisms", default=",".join(MECHANISMS), callback=listed(MECHANISMS), show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Samples and masks of each table.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "missingness.jsonl", show_default=False)
@click.option("--report", "only_report", is_flag=True, help="Print the tables of the results, and run nothing.")
def main(*, tables: tuple[str, ...], mechanisms: tuple[str, ...], seeds: int, out: Path, only_report: bool) -> None:
    """Measure both assumptions; append one JSON line per result to a file."""
    if only_report:
        click.echo(report(read_lines(out)))
        return
    cases = itertools.product([TASK], tables, mechanisms, ASSUMPTIONS, range(seeds))
    if failures := run_lines([dict(zip(KEY, case, strict=True)) for case in cases], out):
        click.echo(f"{failures} lines failed; run again to retry them.", err=True)


if __name__ == "__main__":
    main()
