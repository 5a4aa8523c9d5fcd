"""Run the benchmarks: one JSON line per (table, mechanism, rate, seed, method), resumable at any point.

    python -m benchmarks.run --suite quick
    python -m benchmarks.run --tables iris,concrete --methods mean,vaeimpute --out /tmp/mine.jsonl
    python -m benchmarks.run --tables concrete --methods vaeimpute --set latent_dim=8 --draws 100

Every method sees the same holes: they depend on the table, mechanism, rate and seed alone, and each line carries their
fingerprint (``holes``). Lines already in the output file are not computed again; lines with an ``error`` are.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import resource
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import joblib
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from benchmarks.datasets import TABLES, codes, hide, load, numeric_columns
from benchmarks.peers import PEERS
from vaeimpute import metrics
from vaeimpute.amputation import MECHANISMS, ampute

KEY = ("task", "table", "max_rows", "mechanism", "rate", "seed", "method", "draws")
RESULTS = Path(__file__).parent / "results"

ISSUE_TABLES = (
    "concrete_slump iris wine_recognition seeds glass penguins heart_cleveland diabetes_lars ionosphere "
    "breast_cancer_wdbc credit_approval energy_efficiency vehicle raisin oil_spill travel_reviews vowel german_credit "
    "maternal_health_risk concrete yeast airfoil adult spambase obesity_levels abalone wine_white california_housing "
    "kin8nm letter pendigits power_plant_ccpp"
)


@dataclass(frozen=True)
class Suite:
    """What one ``--suite`` runs; every field can be replaced on the command line."""

    tables: tuple[str, ...]
    methods: tuple[str, ...]
    mechanisms: tuple[str, ...] = ("mcar", "mar")
    rates: tuple[float, ...] = (0.3,)
    seeds: tuple[int, ...] = (0,)


SUITES: dict[str, Suite] = {
    "quick": Suite(
        ("iris", "wine_recognition", "diabetes_lars", "breast_cancer_wdbc"),
        ("mean", "knn", "mice", "em", "vaeimpute"),
        mechanisms=("mcar",),
    ),
    "issue": Suite(tuple(ISSUE_TABLES.split()), ("mean", "knn", "mice", "missforest", "vaeimpute")),
    "full": Suite(
        tuple(TABLES),
        tuple(PEERS),
        mechanisms=tuple(MECHANISMS),
        rates=(0.1, 0.3, 0.5),
        seeds=(0, 1, 2),
    ),
}


@dataclass(frozen=True)
class Case:
    """One line to compute. ``max_rows`` and ``draws`` are part of what it means, so also of its key."""

    task: str
    table: str
    max_rows: int
    mechanism: str
    rate: float
    seed: int
    method: str
    draws: int
    params: str = "{}"  # JSON of the method's keyword arguments; the method's name in the line shows them

    def key(self) -> dict:
        params = ",".join(f"{name}={value}" for name, value in json.loads(self.params).items())
        key = {name: getattr(self, name) for name in KEY}
        return key | {"method": f"{self.method}[{params}]"} if params else key


def impute_case(case: Case) -> dict:
    """Hide cells, complete the table with the case's method, and judge the hidden cells."""
    truth = load(case.table, case.max_rows)
    observed = holes(case, codes(truth))
    X, peer = hide(truth, observed), PEERS[case.method]
    params, draw = json.loads(case.params), None
    _reset_peak()
    start = time.perf_counter()
    if case.draws and peer.draws is not None:
        completed, draw = peer.draws(X, case.seed, **params)
    else:
        completed = peer.complete(X, case.seed, **params)
    line = {"seconds": round(time.perf_counter() - start, 3), "peak_mb": _peak_mb()}
    check_completed(completed, truth, observed)
    line |= describe(case, truth, observed) | judge(truth, completed, observed)
    if draw is not None:
        start = time.perf_counter()
        drawn = draw(case.draws)
        line["draw_seconds"] = round(time.perf_counter() - start, 3)
        line |= judge_draws(truth, drawn, observed)
    return line


TASKS: dict[str, Callable[[Case], dict]] = {"imputation": impute_case}


def holes(case: Case, table: np.ndarray) -> np.ndarray:
    """What stays observed (n, D): a function of the table, mechanism, rate and seed, so the same for every method."""
    name = f"{case.table} {case.mechanism} {case.rate} {case.seed}"
    return ampute(table, case.rate, case.mechanism, random_state=zlib.crc32(name.encode()))


def check_completed(completed: pd.DataFrame, truth: pd.DataFrame, observed: np.ndarray) -> None:
    """A method must fill every hole, keep every observed cell and keep the columns and their types."""
    if list(completed.columns) != list(truth.columns) or (completed.dtypes != truth.dtypes).any():
        raise ValueError("the method changed the columns or their types.")
    if (unfilled := int(completed.isna().sum().sum())) > 0:
        raise ValueError(f"the method left {unfilled} holes.")
    if (changed := int(((codes(completed) != codes(truth)) & observed).sum())) > 0:
        raise ValueError(f"the method changed {changed} observed cells.")


def describe(case: Case, truth: pd.DataFrame, observed: np.ndarray) -> dict:
    """What was run, on what, with what."""
    packages = dict.fromkeys(("numpy", "pandas", "sklearn", *PEERS[case.method].imports))
    versions = {name: getattr(sys.modules[name], "__version__", None) for name in packages if name in sys.modules}
    return {
        "split": TABLES[case.table].split,
        "rows": truth.shape[0],
        "columns": truth.shape[1],
        "numeric_columns": len(numeric_columns(truth)),
        "hidden": int((~observed).sum()),
        "holes": hashlib.sha1(np.packbits(observed).tobytes()).hexdigest()[:12],
        "cores": joblib.effective_n_jobs(None),
        "versions": {"python": platform.python_version()} | versions,
    }


def judge(truth: pd.DataFrame, completed: pd.DataFrame, observed: np.ndarray) -> dict:
    """Errors on hidden cells, pooled and per column, and distances between completed and true rows."""
    is_number = truth.columns.isin(numeric_columns(truth))
    x, y, hidden = codes(truth), codes(completed), ~observed
    numbers = (x[:, is_number], y[:, is_number], hidden[:, is_number])
    classes = (x[:, ~is_number], y[:, ~is_number], hidden[:, ~is_number])
    recalls = [metrics.balanced_accuracy(t[h], c[h]) for t, c, h in zip(*(part.T for part in classes), strict=True)]
    rows, filled_rows = standardised_rows(truth, truth), standardised_rows(completed, truth)
    return {
        "nrmse": metrics.nrmse(*numbers),
        "nmae": metrics.nmae(*numbers),
        "class_error": metrics.category_error(*classes),
        "balanced_accuracy": _nanmean(recalls),
        "nrmse_columns": dict(zip(truth.columns[is_number], metrics.column_nrmse(*numbers).tolist(), strict=True)),
        "nmae_columns": dict(zip(truth.columns[is_number], metrics.column_nmae(*numbers).tolist(), strict=True)),
        "class_error_columns": dict(
            zip(truth.columns[~is_number], metrics.column_category_error(*classes).tolist(), strict=True)
        ),
        "energy_distance": metrics.energy_distance(filled_rows, rows),
        "sliced_wasserstein": metrics.sliced_wasserstein(filled_rows, rows),
    }


def judge_draws(truth: pd.DataFrame, drawn: list[pd.DataFrame], observed: np.ndarray) -> dict:
    """Coverage, width and CRPS of hidden numbers (in column sds) and the distance of one draw from the true table."""
    numbers = numeric_columns(truth)
    hidden = ~observed[:, truth.columns.isin(numbers)]
    scale = truth[numbers].std(ddof=0).to_numpy()
    cells = (truth[numbers].to_numpy() / scale)[hidden]
    draws = np.stack([(frame[numbers].to_numpy(dtype=float) / scale)[hidden] for frame in drawn])
    return {
        "coverage90": metrics.interval_coverage(cells, draws),
        "width90": metrics.interval_width(draws),
        "crps": _nanmean(metrics.crps_from_draws(cells, draws)),
        "draw_energy_distance": metrics.energy_distance(
            standardised_rows(drawn[0], truth), standardised_rows(truth, truth)
        ),
    }


def standardised_rows(frame: pd.DataFrame, truth: pd.DataFrame, limit: int = 2000) -> np.ndarray:
    """The first ``limit`` rows: numbers in units of the true sd, classes as indicators 1/sqrt(2) (so that two
    different classes are one unit apart)."""
    frame, numbers = frame.head(limit), set(numeric_columns(truth))
    blocks = [
        frame[[name]].to_numpy(dtype=float) / truth[name].std(ddof=0)
        if name in numbers
        else np.eye(len(truth[name].cat.categories))[frame[name].cat.codes] / np.sqrt(2)
        for name in truth
    ]
    return np.column_stack(blocks)


def run_cases(cases: list[Case], out: Path) -> int:
    """Compute the cases that ``out`` lacks, append their lines, and return the number that failed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _cut_unfinished_line(out)
    done = {_key_of(line) for line in read_lines(out) if "error" not in line}
    todo = [case for case in cases if _key_of(case.key()) not in done]
    click.echo(f"{len(cases) - len(todo)} of {len(cases)} lines are in {out} already.", err=True)
    failures = 0
    for i, case in enumerate(todo, 1):
        key, start = case.key(), time.perf_counter()
        try:
            for module in PEERS[case.method].imports:  # before the clock starts and the threads are limited
                importlib.import_module(module)
            with threadpool_limits(joblib.effective_n_jobs(None)):  # BLAS and torch, so that "cores" is true of all
                line = key | TASKS[case.task](case)
        except Exception as error:  # one failing method must not end the run: its line says why, and the log where
            line = key | {"error": f"{type(error).__name__}: {error}"}
            failures += 1
            click.echo(traceback.format_exc(), err=True)
        _append(out, line)
        what = f"{key['table']} {key['mechanism']} {key['rate']} seed {key['seed']} {key['method']}"
        took = time.perf_counter() - start
        click.echo(f"[{i}/{len(todo)}] {what}: {_summary(line)} ({took:.1f} s)", err=True)
    return failures


def read_lines(file: Path) -> list[dict]:
    """The finished lines of a results file, oldest first."""
    if not file.exists():
        return []
    lines = file.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]


def _cut_unfinished_line(file: Path) -> None:
    """Remove the half line that a killed run may leave at the end, so that the next line starts on its own."""
    content = file.read_bytes() if file.exists() else b""
    if content and not content.endswith(b"\n"):
        file.write_bytes(content[: content.rfind(b"\n") + 1])


def _append(file: Path, line: dict) -> None:
    """Write one line in a single call, and to the disk: a kill leaves at most one unfinished line, the last."""
    with file.open("a") as stream:
        stream.write(json.dumps(_plain(line), allow_nan=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _plain(x):
    """What JSON can hold: rounded floats, None for NaN and infinity."""
    if isinstance(x, dict):
        return {str(name): _plain(value) for name, value in x.items()}
    if isinstance(x, float):
        return round(float(x), 6) if np.isfinite(x) else None
    return x


def _key_of(line: dict) -> tuple:
    return tuple(line[name] for name in KEY)


def _summary(line: dict) -> str:
    if "error" in line:
        return line["error"]
    shown = ("nrmse", "class_error", "coverage90", "seconds")
    return ", ".join(f"{name} {line[name]:.4g}" for name in shown if line.get(name) is not None)


def _nanmean(values) -> float:
    values = np.asarray(values, dtype=float)
    return float(values[~np.isnan(values)].mean()) if (~np.isnan(values)).any() else float("nan")


def _reset_peak() -> None:
    """Start a new peak-memory count where the system can (Linux); elsewhere the peak is the process's so far."""
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    """Largest resident size of the process, libraries included, since `_reset_peak`."""
    status = Path("/proc/self/status")
    for row in status.read_text().splitlines() if status.exists() else []:
        if row.startswith("VmHWM:"):
            return round(int(row.split()[1]) / 1024, 1)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kilobytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _cases(suite: Suite, task: str, max_rows: int | None, draws: int, params: dict) -> Iterator[Case]:
    """All lines of a suite, smallest tables first; ``params`` go to vaeimpute alone."""
    limits = {name: TABLES[name].max_rows if max_rows is None else max_rows for name in suite.tables}
    sizes = {name: load(name, limits[name]).size for name in suite.tables}
    for table in sorted(suite.tables, key=sizes.__getitem__):
        for mechanism in suite.mechanisms:
            for rate in suite.rates:
                for seed in suite.seeds:
                    for method in suite.methods:
                        has_draws = PEERS[method].draws is not None
                        chosen = json.dumps(params) if method == "vaeimpute" else "{}"
                        n_draws = draws if has_draws else 0
                        yield Case(task, table, limits[table], mechanism, rate, seed, method, n_draws, chosen)


def _listed(known, convert: Callable = str):
    """A click callback: "a,b" -> ("a", "b"), each in ``known`` if that is given."""

    def parse(context, parameter, value):
        if value is None:
            return None
        items = tuple(convert(item.strip()) for item in value.split(","))
        if known is not None and (unknown := [item for item in items if item not in known]):
            raise click.BadParameter(f"unknown {', '.join(unknown)}; known: {', '.join(known)}.")
        return items

    return parse


def _setting(context, parameter, values) -> dict:
    """``name=value`` pairs; a value is read as JSON where it is JSON, as text otherwise."""
    settings = {}
    for pair in values:
        name, _, text = pair.partition("=")
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError:
            settings[name] = text
    return settings


@click.command(help="Compare imputation methods; append one JSON line per result to a file.")
@click.option("--suite", type=click.Choice(list(SUITES)), default="quick", show_default=True)
@click.option("--task", type=click.Choice(list(TASKS)), default="imputation", show_default=True)
@click.option("--tables", callback=_listed(TABLES), help="Comma-separated; replaces the suite's.")
@click.option("--methods", callback=_listed(PEERS), help="Comma-separated; replaces the suite's.")
@click.option("--mechanisms", callback=_listed(MECHANISMS), help="Comma-separated; replaces the suite's.")
@click.option("--rates", callback=_listed(None, float), help="Comma-separated; replaces the suite's.")
@click.option("--seeds", callback=_listed(None, int), help="Comma-separated; replaces the suite's.")
@click.option("--max-rows", type=int, help="Rows to keep per table; by default the table's own limit.")
@click.option("--draws", type=int, default=0, help="Imputations per method that can draw, for coverage; 0: none.")
@click.option("--set", "params", multiple=True, callback=_setting, help="name=value for vaeimpute; repeatable.")
@click.option("--jobs", type=int, default=-1, show_default=True, help="Cores for every method; -1: all.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: benchmarks/results/<suite>.jsonl.")
def main(suite, task, tables, methods, mechanisms, rates, seeds, max_rows, draws, params, jobs, out) -> None:
    base = SUITES[suite]
    chosen = Suite(
        tables or base.tables,
        methods or base.methods,
        mechanisms or base.mechanisms,
        rates or base.rates,
        seeds or base.seeds,
    )
    cases = list(_cases(chosen, task, max_rows, draws, params))
    with joblib.parallel_config(n_jobs=jobs):
        failures = run_cases(cases, out or RESULTS / f"{suite}.jsonl")
    if failures:
        click.echo(f"{failures} lines failed; run again to retry them.", err=True)


if __name__ == "__main__":
    main()
