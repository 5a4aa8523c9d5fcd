"""Seconds and memory against rows and columns, beside peers in the same run: ``python -m benchmarks.speed``.

    python -m benchmarks.speed --rows 1000,10000,100000,1000000 --columns 5,50,500 --limit 600
    python -m benchmarks.speed --methods knn,vaeimpute --rows 1000,10000 --columns 20

Every point runs in a process of its own, so that its peak memory is its own; a method that passes the limit gets no
larger tables. Lines already in the output file are not computed again. The table is made: 20% of the cells of
a smooth nonlinear function of four hidden numbers, plus noise, are missing completely at random.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import joblib
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from benchmarks.peers import PEERS, Peer
from benchmarks.run import RESULTS, append_line, peak_mb, read_lines

__all__ = ["growth", "made_table", "measure", "speed_tables"]

KEY = ("method", "rows", "columns", "device", "cores")
ROWS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
COLUMNS = (5, 20, 50, 100, 200, 500)
METHODS = ("knn", "mice", "missforest", "vaeimpute")


def made_table(rows: int, columns: int) -> pd.DataFrame:
    """Table of every point, 20% of it missing; the first rows and columns of a larger one are not the smaller."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((rows, 4))
    X = np.tanh(hidden @ rng.standard_normal((4, columns))) + hidden @ rng.standard_normal((4, columns)) / 4
    X += 0.3 * rng.standard_normal(X.shape)
    X[rng.random(X.shape) < 0.2] = np.nan
    return pd.DataFrame(X, columns=[f"x{j}" for j in range(columns)])


def measure(method: str, rows: int, columns: int, device: str = "cpu", cores: int = 1, *, flops: bool = False) -> dict:
    """Fit and transform one table in this process; ``flops``: count what the fit multiplied, too (a second fit)."""
    key = dict(zip(KEY, (method, rows, columns, device, cores), strict=True))
    peer, X = PEERS[method], made_table(rows, columns)
    params = {"device": device} if method == "vaeimpute" else {}
    for module in peer.imports:
        importlib.import_module(module)
    with joblib.parallel_config(n_jobs=cores), threadpool_limits(cores):
        start = time.perf_counter()
        if peer.fit is None:  # completes a table in one go: no transform to time
            peer.complete(X, 0, **params)
            times = {"fit_seconds": time.perf_counter() - start}
        else:
            transform = peer.fit(X, 0, **params)
            middle = time.perf_counter()
            transform(X)
            times = {"fit_seconds": middle - start, "transform_seconds": time.perf_counter() - middle}
        line = {"task": "speed"} | key | times | {"peak_mb": peak_mb()}
        return line | (_matmul_share(peer, X, params, device, times["fit_seconds"]) if flops else {})


def growth(sizes: list[float], values: list[float]) -> float:
    """Exponent of a power law, by least squares on logarithms; NaN below two points.

    Examples
    --------
    >>> round(growth([10, 100, 1000], [2, 20, 200]), 6)
    1.0
    """
    if len(sizes) < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def speed_tables(lines: list[dict]) -> dict[str, pd.DataFrame]:
    """Titles and tables of speed lines: each growth, the exponents, and the share of the matrix-product rate."""
    if not lines:
        return {}
    frame = pd.DataFrame({tuple(line[name] for name in KEY): line for line in lines}.values())
    frame = frame.reindex(columns=dict.fromkeys([*frame, "error", "transform_seconds", "fit_seconds", "matmul_share"]))
    frame["who"] = frame["method"] + np.where(frame["device"] == "cpu", "", " on " + frame["device"])
    cores = "/".join(str(n) for n in sorted(frame["cores"].unique()))
    frame["seconds"] = frame["fit_seconds"] + frame["transform_seconds"].fillna(0.0)
    made: dict[str, pd.DataFrame] = {}
    exponents: dict[str, dict[str, float]] = {}
    for axis, other in (("rows", "columns"), ("columns", "rows")):
        fixed = frame.groupby(other)[axis].nunique().idxmax()
        part = frame[frame[other] == fixed]
        if part[axis].nunique() < 2:
            continue
        shown = part.pivot(index=axis, columns="who", values=["seconds", "peak_mb"])
        reasons = part.pivot(index=axis, columns="who", values="error")
        shown.columns = [f"{who}, {'s' if what == 'seconds' else 'MB'}" for what, who in shown.columns]
        for who in reasons:
            cells = shown[f"{who}, s"].map(lambda x: "" if pd.isna(x) else f"{x:.3g}")
            shown[f"{who}, s"] = cells.mask(reasons[who].notna(), reasons[who])
        made[f"Speed: fit and transform against {axis}, {fixed} {other}, {cores} cores"] = shown
        for who, done in part[part["error"].isna()].groupby("who"):
            large = done[done[axis] >= (10_000 if axis == "rows" else 0)]
            exponents.setdefault(who, {})[f"exponent in {axis}" + (" (from 10,000)" if axis == "rows" else "")] = (
                growth(large[axis].tolist(), large["seconds"].tolist())
            )
    if exponents:
        made["Speed: growth of time, exponents of a power law"] = pd.DataFrame(exponents).T.rename_axis("method")
    shares = frame.dropna(subset="matmul_share").set_index("who")
    if len(shares):
        names = ["rows", "columns", "fit_seconds", "fit_gflop", "machine_gflops", "matmul_share"]
        made["Speed: share of the machine's matrix-product rate that a fit reaches"] = shares[names]
    return made


def _matmul_share(peer: Peer, X: pd.DataFrame, params: dict, device: str, seconds: float) -> dict[str, float]:
    """Matrix products of the same fit, counted, over its seconds and what this machine can do at 2048 x 2048."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        peer.fit(X, 0, **params)
    fastest = np.inf
    for dtype in [torch.float32, torch.bfloat16] * 4:  # against the faster: training may use either
        a = torch.randn(2048, 2048, device=device).to(dtype)
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # item waits for the device
        fastest = min(fastest, time.perf_counter() - start)
    rate, done = 2 * 2048**3 / fastest / 1e9, counter.get_total_flops() / 1e9
    return {"fit_gflop": done, "machine_gflops": rate, "matmul_share": done / seconds / rate}


def _points(
    methods: Sequence[str],
    rows: Sequence[int],
    columns: Sequence[int],
    middle_rows: int,
    middle_columns: int,
    devices: Sequence[str],
) -> Iterator[list[dict]]:
    """One list of points per curve, smallest first."""
    for device in devices:
        for method in methods:
            if device == "cpu" or method == "vaeimpute":
                base = {"method": method, "device": device}
                yield [base | {"rows": n, "columns": middle_columns} for n in sorted(rows)]
                yield [base | {"rows": middle_rows, "columns": d} for d in sorted(columns)]


def _run_point(point: dict, limit: float) -> dict:
    """Line of a point, from a process of its own, which ends at the limit."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(point["cores"]))
    command = [sys.executable, "-m", "benchmarks.speed", "--point", json.dumps(point)]
    failed = {"task": "speed"} | {name: point[name] for name in KEY}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=os.environ | threads)
    except subprocess.TimeoutExpired:
        return failed | {"error": f"over {limit:g} s"}
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"exit code {done.returncode} (out of memory?)"]
        return failed | {"error": reason[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    return tuple(int(float(part)) for part in value.split(","))


def _devices() -> list[str]:
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@click.command()
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--rows", default=",".join(map(str, ROWS)), callback=_numbers, show_default=True)
@click.option("--columns", default=",".join(map(str, COLUMNS)), callback=_numbers, show_default=True)
@click.option("--middle-rows", default=5000, show_default=True, help="Rows of the points that vary in columns.")
@click.option("--middle-columns", default=20, show_default=True, help="Columns of the points that vary in rows.")
@click.option("--limit", default=900.0, show_default=True, help="Seconds a point may take, data and imports included.")
@click.option("--cores", type=int, help="Default: all.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "speed.jsonl", show_default=False)
@click.option("--point", hidden=True)
def main(
    methods: str,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    middle_rows: int,
    middle_columns: int,
    limit: float,
    cores: int | None,
    out: Path,
    point: str | None,
) -> None:
    """Time methods against rows and columns; append one JSON line per point to a file."""
    if point is not None:
        click.echo(json.dumps(measure(**json.loads(point))))
        return
    names = tuple(methods.split(","))
    if unknown := [name for name in names if name not in PEERS]:
        raise click.BadParameter(f"unknown {', '.join(unknown)}; known: {', '.join(PEERS)}.", param_hint="--methods")
    cores = cores or joblib.cpu_count()
    done = {tuple(line[name] for name in KEY): line for line in read_lines(out)}
    for curve in _points(names, rows, columns, middle_rows, middle_columns, _devices()):
        for point in curve:
            point["cores"] = cores
            key = tuple(point[name] for name in KEY)
            if key not in done:
                point["flops"] = point["method"] == "vaeimpute" and key[1:3] == (middle_rows, middle_columns)
                done[key] = _run_point(point, limit)
                append_line(out, done[key])
            click.echo(json.dumps(done[key]), err=True)
            if "error" in done[key]:
                break


if __name__ == "__main__":
    main()
