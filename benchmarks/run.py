"""Run the benchmarks: one JSON line per (task, table, mechanism, rate, seed, method), resumable at any point.

    python -m benchmarks.run --suite quick
    python -m benchmarks.run --suite full --jobs 2
    python -m benchmarks.run --tables iris,concrete --methods mean,vaeimpute --out mine.jsonl
    python -m benchmarks.run --tables concrete --methods vaeimpute --set latent_dim=8 --draws 100

Every method sees the same missing cells: they depend on the table, mechanism, rate and seed alone, and each line
carries their fingerprint (``mask``). Lines already in the output file are not computed again; lines with an ``error``
are.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import itertools
import json
import logging
import multiprocessing
import os
import platform
import resource
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import click
import joblib
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from benchmarks.datasets import TABLES, codes, hide, load
from benchmarks.peers import PEERS
from benchmarks.scores import DRAW_METRICS, METRICS, Completion, Draws
from vaeimpute.amputation import MECHANISMS, ampute

logger = logging.getLogger(__name__)

KEY = ("task", "table", "max_rows", "mechanism", "rate", "seed", "method", "draws")
RESULTS = Path(__file__).parent / "results"

ISSUE_TABLES = (
    "concrete_slump iris wine_recognition seeds glass penguins heart_cleveland diabetes_lars ionosphere "
    "breast_cancer_wdbc credit_approval energy_efficiency vehicle raisin oil_spill travel_reviews vowel german_credit "
    "maternal_health_risk concrete yeast airfoil adult spambase obesity_levels abalone wine_white california_housing "
    "kin8nm letter pendigits power_plant_ccpp"
)
# Nine tuning and nine held-out tables, a third of them mixed; three of each, small and different, for more rates.
FULL_TABLES = (
    "glass penguins diabetes_lars breast_cancer_wdbc vehicle german_credit concrete airfoil california_housing "
    "concrete_slump heart_cleveland credit_approval raisin oil_spill travel_reviews banknote obesity_levels "
    "power_plant_ccpp"
)
RATE_TABLES = "penguins diabetes_lars vehicle concrete_slump credit_approval banknote"
MAIN = "mean knn mice missforest lightgbm-mice em copula vaeimpute"
FAMILIES = "median mice-draws tree svm mixture bayes-net plain-vae gain miwae"  # slower or weaker: one seed


@dataclass(frozen=True)
class Grid:
    """All combinations of some tables, methods and ways to hide; every field can be replaced on the command line."""

    tables: tuple[str, ...]
    methods: tuple[str, ...]
    mechanisms: tuple[str, ...] = ("mcar", "mar", "mnar")
    rates: tuple[float, ...] = (0.3,)
    seeds: tuple[int, ...] = (0,)
    task: str = "imputation"
    draws: int = 0


# What one ``--suite`` runs: the union of its grids.
SUITES: dict[str, tuple[Grid, ...]] = {
    "quick": (
        Grid(
            ("iris", "wine_recognition", "diabetes_lars", "breast_cancer_wdbc"),
            ("mean", "knn", "mice", "em", "vaeimpute"),
            mechanisms=("mcar",),
        ),
    ),
    "issue": (
        Grid(
            tuple(ISSUE_TABLES.split()), ("mean", "knn", "mice", "missforest", "vaeimpute"), mechanisms=("mcar", "mar")
        ),
    ),
    "full": (
        Grid(tuple(FULL_TABLES.split()), tuple(MAIN.split()), seeds=(0, 1, 2), draws=40),
        Grid(tuple(RATE_TABLES.split()), tuple(MAIN.split()), rates=(0.1, 0.5, 0.7), draws=40),
        Grid(tuple(RATE_TABLES.split()), tuple(MAIN.split()), mechanisms=("mcar",), task="out-of-sample"),
        Grid(tuple(FULL_TABLES.split()), tuple(FAMILIES.split()), draws=40),
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
        """Key by which the line is found again; settings are part of the method's name."""
        params = ",".join(f"{name}={value}" for name, value in json.loads(self.params).items())
        key = {name: getattr(self, name) for name in KEY}
        return key | {"method": f"{self.method}[{params}]"} if params else key


def impute_case(case: Case) -> dict:
    """Hide cells, complete the table with the case's method, and judge the hidden cells."""
    truth = load(case.table, case.max_rows)
    observed = observed_cells(case, codes(truth))
    X, peer = hide(truth, observed), PEERS[case.method]
    params, draw = json.loads(case.params), None
    _reset_peak()
    clock = _clock()
    start = clock()
    if case.draws and peer.draws is not None:
        completed, draw = peer.draws(X, case.seed, **params)
    else:
        completed = peer.complete(X, case.seed, **params)
    line = {"seconds": round(clock() - start, 3), "peak_mb": peak_mb()}
    check_completed(completed, truth, observed)
    line |= describe(case, truth, observed) | judge(truth, completed, observed, TABLES[case.table].target)
    if draw is not None:
        start = clock()
        drawn = draw(case.draws)
        line["draw_seconds"] = round(clock() - start, 3)
        line |= judge_draws(truth, drawn, observed)
    return line


def out_of_sample_case(case: Case) -> dict:
    """Fit on 70% of the rows, missing cells and all, and judge what becomes of the others.

    A method that only completes whole tables gets the others as further rows. It then sees more than those that fit,
    which only helps it; its line says ``transductive``.
    """
    truth = load(case.table, case.max_rows)
    observed = observed_cells(case, codes(truth))
    X, peer, params = hide(truth, observed), PEERS[case.method], json.loads(case.params)
    new = np.random.default_rng(case.seed).permutation(len(X)) >= 0.7 * len(X)
    _reset_peak()
    clock = _clock()
    start = clock()
    if peer.fit is not None:
        transform = peer.fit(X[~new], case.seed, **params)
        completed = transform(X[new])
    else:
        completed = peer.complete(X, case.seed, **params)[new]
    line = {"seconds": round(clock() - start, 3), "peak_mb": peak_mb(), "transductive": peer.fit is None}
    check_completed(completed, truth[new], observed[new])
    whole = describe(case, truth, observed)
    return line | whole | judge(truth[new], completed, observed[new], TABLES[case.table].target)


TASKS: dict[str, Callable[[Case], dict]] = {"imputation": impute_case, "out-of-sample": out_of_sample_case}


def observed_cells(case: Case, table: np.ndarray) -> np.ndarray:
    """Draw what stays observed (n, D) from the table, mechanism, rate and seed alone: the same for every method."""
    name = f"{case.table} {case.mechanism} {case.rate} {case.seed}"
    return ampute(table, case.rate, case.mechanism, random_state=zlib.crc32(name.encode()))


def check_completed(completed: pd.DataFrame, truth: pd.DataFrame, observed: np.ndarray) -> None:
    """Raise where a method left a missing cell, or changed an observed one, the columns or their types."""
    if list(completed.columns) != list(truth.columns) or (completed.dtypes != truth.dtypes).any():
        raise ValueError("the method changed the columns or their types.")
    if (unfilled := int(completed.isna().sum().sum())) > 0:
        raise ValueError(f"the method left {unfilled} missing cells.")
    if (changed := int(((codes(completed) != codes(truth)) & observed).sum())) > 0:
        raise ValueError(f"the method changed {changed} observed cells.")


def describe(case: Case, truth: pd.DataFrame, observed: np.ndarray) -> dict:
    """Say what was run, on what, with what."""
    return {
        "split": TABLES[case.table].split,
        "rows": truth.shape[0],
        "columns": truth.shape[1],
        "hidden": int((~observed).sum()),
        "mask": hashlib.sha1(np.packbits(observed).tobytes()).hexdigest()[:12],
        "cores": joblib.effective_n_jobs(None),
        "versions": versions(PEERS[case.method].imports),
    }


def judge(truth: pd.DataFrame, completed: pd.DataFrame, observed: np.ndarray, target: str | None = None) -> dict:
    """All of `scores.METRICS`: errors on hidden cells, distances between completed and true rows."""
    completion = Completion(truth, completed, observed, target)
    return {name: metric(completion) for name, metric in METRICS.items()}


def judge_draws(truth: pd.DataFrame, drawn: list[pd.DataFrame], observed: np.ndarray) -> dict:
    """All of `scores.DRAW_METRICS`: coverage, width and CRPS of hidden numbers."""
    draws = Draws(truth, drawn, observed)
    return {name: metric(draws) for name, metric in DRAW_METRICS.items()}


def run_cases(cases: list[Case], out: Path, jobs: int = 1, cores: int | None = None) -> int:
    """Compute the cases that ``out`` lacks, append their lines, and return the number that failed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    cut_unfinished_line(out)
    done = {key_of(line, KEY) for line in read_lines(out) if "error" not in line}
    todo = [case for case in cases if key_of(case.key(), KEY) not in done]
    click.echo(f"{len(cases) - len(todo)} of {len(cases)} lines are in {out} already.", err=True)
    start, failures = time.perf_counter(), 0
    lines = (compute(case, cores) for case in todo) if jobs == 1 else _in_processes(todo, jobs, cores)
    for i, line in enumerate(lines, 1):
        failures += "error" in line
        append_line(out, line)
        what = f"{line['table']} {line['mechanism']} {line['rate']} seed {line['seed']} {line['method']}"
        took = (time.perf_counter() - start) / 60
        click.echo(f"[{i}/{len(todo)}, {took:.1f} min] {what}: {_summary(line)}", err=True)
    return failures


def compute(case: Case, cores: int | None = None) -> dict:
    """Compute the line of a case. One failing method must not end the run: its line says why, and the log where."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a package says of its own imports
            for module in PEERS[case.method].imports:  # before the clock starts and the threads are limited
                importlib.import_module(module)
        cores = joblib.effective_n_jobs(cores)
        with joblib.parallel_config(n_jobs=cores), threadpool_limits(cores):  # BLAS and torch too
            return case.key() | TASKS[case.task](case)
    except ModuleNotFoundError as error:
        hint = f"{case.method} needs the package {error.name}: pip install 'vaeimpute[benchmarks]', or see the README."
        return case.key() | {"error": hint}
    except Exception as error:
        logger.exception("%s failed on %s.", case.method, case.table)
        return case.key() | {"error": f"{type(error).__name__}: {error}"}


def _in_processes(todo: list[Case], jobs: int, cores: int | None) -> Iterator[dict]:
    """Lines as they come from ``jobs`` processes. One that dies (out of memory, say) costs the cases in flight."""
    waiting, pool = iter(todo), None
    running: dict[Future, Case] = {}
    while True:
        pool = pool or ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
        for case in itertools.islice(waiting, jobs - len(running)):
            running[pool.submit(compute, case, cores)] = case
        if not running:
            return pool.shutdown()
        finished = wait(running, return_when=FIRST_COMPLETED).done
        for future in finished:
            case = running.pop(future)
            if isinstance(future.exception(), BrokenProcessPool):
                pool = None
                yield case.key() | {"error": "a process died, of this case or of one beside it (out of memory?)"}
            else:
                yield future.result()


def read_lines(file: Path) -> list[dict]:
    """Finished lines of a results file, oldest first."""
    if not file.exists():
        return []
    lines = file.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]


def finished_lines(lines: list[dict], task: str, key: Sequence[str]) -> list[dict]:
    """Those of one task that did not fail; of lines with the same key the last."""
    own = [line for line in lines if line.get("task") == task and "error" not in line]
    return list({key_of(line, key): line for line in own}.values())


def key_of(line: dict, key: Sequence[str]) -> tuple:
    """What a line is about: its entries under the names of a key."""
    return tuple(line[name] for name in key)


def cut_unfinished_line(file: Path) -> None:
    """Remove the half line that a killed run may leave at the end, so that the next line starts on its own."""
    content = file.read_bytes() if file.exists() else b""
    if content and not content.endswith(b"\n"):
        file.write_bytes(content[: content.rfind(b"\n") + 1])


def append_line(file: Path, line: dict) -> None:
    """Write one line in a single call, and to the disk: a kill leaves at most one unfinished line, the last."""
    with file.open("a") as stream:
        stream.write(json.dumps(_plain(line), allow_nan=False, separators=(",", ":")) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _plain(x: object) -> object:
    """Give what JSON can hold: rounded floats, None for NaN and infinity."""
    if isinstance(x, dict):
        return {str(name): _plain(value) for name, value in x.items()}
    if isinstance(x, float):
        return float(f"{x:.5g}") if np.isfinite(x) else None
    return x


def versions(imports: Collection[str]) -> dict[str, str]:
    """Versions of Python, of what every method uses and of the packages imported for one."""
    packages = dict.fromkeys(("numpy", "pandas", "sklearn", *(name.split(".")[0] for name in imports)))
    found = {name: sys.modules[name] for name in packages if name in sys.modules}
    own = {name: getattr(module, "__version__", None) for name, module in found.items()}
    return {"python": platform.python_version()} | {
        name: version or importlib.metadata.version(name) for name, version in own.items()
    }


def _summary(line: dict) -> str:
    if "error" in line:
        return line["error"]
    shown = ("nrmse", "class_error", "crps", "seconds")
    return ", ".join(
        f"{name} {line[name]:.4g}" for name in shown if line.get(name) is not None and line[name] == line[name]
    )


def _clock() -> Callable[[], float]:
    """Wall clock; on one core the process's own time, which is the same there but for what others do to the machine."""
    return time.process_time if joblib.effective_n_jobs(None) == 1 else time.perf_counter


def _reset_peak() -> None:
    """Start a new peak-memory count where the system can (Linux); elsewhere the peak is the process's so far."""
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Largest resident size of the process, libraries included, since `_reset_peak`."""
    status = Path("/proc/self/status")
    for row in status.read_text().splitlines() if status.exists() else []:
        if row.startswith("VmHWM:"):
            return round(int(row.split()[1]) / 1024, 1)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kilobytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _cases(grids: tuple[Grid, ...], max_rows: int | None, params: dict) -> list[Case]:
    """All lines of the grids, once each, smallest tables first; ``params`` go to vaeimpute alone."""
    tables = dict.fromkeys(table for grid in grids for table in grid.tables)
    limits = {name: TABLES[name].max_rows if max_rows is None else max_rows for name in tables}
    sizes = {name: load(name, limits[name]).size for name in tables}
    cases = {}
    for grid in grids:
        every = itertools.product(grid.tables, grid.mechanisms, grid.rates, grid.seeds, grid.methods)
        for table, mechanism, rate, seed, method in every:
            chosen = json.dumps(params) if method == "vaeimpute" else "{}"
            draws = grid.draws if PEERS[method].draws is not None and grid.task == "imputation" else 0
            case = Case(grid.task, table, limits[table], mechanism, rate, seed, method, draws, chosen)
            cases[key_of(case.key(), KEY)] = case
    return sorted(cases.values(), key=lambda case: sizes[case.table])


def listed(known: Collection[str] | None, convert: Callable[[str], object] = str) -> Callable[..., tuple | None]:
    """Click callback: "a,b" -> ("a", "b"), each in ``known`` if that is given."""

    def parse(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple | None:
        if value is None:
            return None
        items = tuple(convert(item.strip()) for item in value.split(","))
        if known is not None and (unknown := [item for item in items if item not in known]):
            raise click.BadParameter(f"unknown {', '.join(unknown)}; known: {', '.join(known)}.")
        return items

    return parse


def setting(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict:
    """Read ``name=value`` pairs; a value is read as JSON where it is JSON, as text otherwise."""
    settings = {}
    for pair in values:
        name, _, text = pair.partition("=")
        try:
            settings[name] = json.loads(text)
        except json.JSONDecodeError:
            settings[name] = text
    return settings


# Tasks with methods and options of their own.
_OWN = {"anomaly": "benchmarks.anomaly", "images": "benchmarks.images", "synthesis": "benchmarks.synthesis"}


class _Routed(click.Command):
    """Command whose line with ``--task anomaly`` (or another of `_OWN`) goes to the module that knows that task."""

    def main(self, args: Sequence[str] | None = None, *rest: object, **extra: object) -> object:
        """Run this command or that of the task."""
        line = " ".join(sys.argv[1:] if args is None else args).replace("--task=", "--task ")
        for task, module in _OWN.items():
            if f"--task {task}" in line:
                command = importlib.import_module(module).main
                return command.main(line.replace(f"--task {task}", "").split(), *rest, **extra)
        return super().main(args, *rest, **extra)


@click.command(cls=_Routed)
@click.option("--suite", type=click.Choice(list(SUITES)), default="quick", show_default=True)
@click.option("--task", type=click.Choice(list(TASKS)), help="Replaces the suite's.")
@click.option("--tables", callback=listed(TABLES), help="Comma-separated; replaces the suite's.")
@click.option("--methods", callback=listed(PEERS), help="Comma-separated; replaces the suite's.")
@click.option("--mechanisms", callback=listed(MECHANISMS), help="Comma-separated; replaces the suite's.")
@click.option("--rates", callback=listed(None, float), help="Comma-separated; replaces the suite's.")
@click.option("--seeds", callback=listed(None, int), help="Comma-separated; replaces the suite's.")
@click.option("--draws", type=int, help="Imputations of methods that can draw, for coverage; replaces the suite's.")
@click.option("--max-rows", type=int, help="Rows to keep per table; by default the table's own limit.")
@click.option("--set", "params", multiple=True, callback=setting, help="name=value for vaeimpute; repeatable.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Cases to work on at a time.")
@click.option("--cores", type=int, help="Cores for each case. Default: all, divided by --jobs.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: benchmarks/results/<suite>.jsonl.")
def main(
    *,
    suite: str,
    max_rows: int | None,
    params: dict,
    jobs: int,
    cores: int | None,
    out: Path | None,
    **replaced: object,
) -> None:
    """Compare imputation methods; append one JSON line per result to a file.

    --task anomaly compares outlier detectors, --task images methods on images, --task synthesis synthetic rows, with
    options of their own.
    """
    given = {name: value for name, value in replaced.items() if value is not None}
    grids = tuple(replace(grid, **given) for grid in SUITES[suite])
    cores = cores or max(1, joblib.cpu_count() // jobs)
    failures = run_cases(_cases(grids, max_rows, params), out or RESULTS / f"{suite}.jsonl", jobs, cores)
    if failures:
        click.echo(f"{failures} lines failed; run again to retry them.", err=True)


if __name__ == "__main__":
    main()
