"""Compare methods on images: pixels inpainted and anomalies found; one JSON line per result, resumable at any point.

    python -m benchmarks.images --tasks images --sets digits   # the set that comes with scikit-learn: minutes
    python -m benchmarks.images --methods mean,knn,ppca        # all sets: see image_sets.py where they come from
    python -m benchmarks.images --train all --methods vaeimpute --params '{"device": "cuda"}'
    python -m benchmarks.images --report

- ``images``: fit to the first complete training images, and inpaint the first test images under four kinds of masks,
  all with the one fit. RMSE, PSNR and bits are over hidden pixels, SSIM over the completed images; pixels are scaled to
  0..1.
- ``image-anomaly``: one digit of MNIST is normal and the others are anomalies, for each of the ten; and MNIST against
  Fashion-MNIST, both ways.

Every method sees the same masks. Lines already in the output file are not computed again; lines with an ``error`` are.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby, product
from pathlib import Path
from typing import TypeVar

import click
import joblib
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from benchmarks.image_peers import DETECTORS, PEERS
from benchmarks.image_sets import MASKS, SETS, Images, hide_pixels, observed_pixels
from benchmarks.markdown import markdown
from benchmarks.run import RESULTS, append_line, key_of, read_lines

__all__ = ["fit_anomaly", "fit_inpainting", "image_tables", "judge", "report", "run_lines"]

logger = logging.getLogger(__name__)

KEY = ("task", "set", "mask", "train", "test", "seed", "method")
TASKS = ("images", "image-anomaly")
Result = TypeVar("Result")
PAIRS = {"mnist-fashion": ("mnist", "fashion"), "fashion-mnist": ("fashion", "mnist")}  # inliers, outliers
DIGITS = {f"digit {digit}": digit for digit in range(10)}


@lru_cache(maxsize=2)
def load(name: str) -> Images:
    """Read a set and keep it for the next line."""
    return SETS[name]()


def fit_inpainting(key: dict, params: dict) -> Callable[[dict], dict]:
    """Fit the method of the key; what comes back inpaints under one kind of mask and says how well."""
    images, peer, clock = load(key["set"]), PEERS[key["method"]], _clock()
    truth = images.test[: key["test"]]
    start = clock()
    inpaint = peer.fit(images.train[: key["train"]], key["seed"], **params)
    fit_seconds = clock() - start

    def measure(key: dict) -> dict:
        observed = observed_pixels(key["set"], key["mask"], key["seed"], truth)
        start = clock()
        filled = inpaint(hide_pixels(truth, observed))
        seconds = clock() - start
        scores = judge(truth, filled, observed, images.max_level)
        if peer.bits is not None:
            scores["bits"] = peer.bits(inpaint, truth, observed)
        return scores | {"fit_seconds": fit_seconds, "images_per_second": len(truth) / max(seconds, 1e-6)}

    return measure


def judge(truth: np.ndarray, filled: np.ndarray, observed: np.ndarray, max_level: float) -> dict[str, float]:
    """RMSE and PSNR of hidden pixels, mean SSIM of the images, at pixels clipped to 0..max_level and scaled to 0..1.

    PSNR is that of all hidden pixels together: an image that is inpainted without error would make a mean infinite.
    """
    from skimage.metrics import structural_similarity

    if filled.shape != truth.shape or np.isnan(filled).any():
        raise ValueError(
            f"the method left {np.isnan(filled).sum()} missing pixels in {filled.shape}, of {truth.shape}."
        )
    if (changed := int((np.abs(filled - truth)[observed] > 1e-3).sum())) > 0:
        raise ValueError(f"the method changed {changed} observed pixels.")
    x, y = truth / max_level, np.clip(filled, 0, max_level) / max_level
    squared = float(((x - y)[~observed] ** 2).mean())
    axis = -1 if truth.ndim == 4 else None
    pairs = zip(x, y, strict=True)
    similar = [structural_similarity(a, b, data_range=1.0, channel_axis=axis) for a, b in pairs]
    return {
        "rmse": squared**0.5,
        "psnr": -10 * float(np.log10(max(squared, 1e-12))),
        "ssim": float(np.mean(similar)),
    }


def fit_anomaly(key: dict, params: dict) -> Callable[[dict], dict]:
    """Fit the method of the key; what comes back says how well its score tells anomalies from normal images."""
    (inliers, mixed, is_outlier), clock = anomaly_case(key["set"]), _clock()
    start = clock()
    score = DETECTORS[key["method"]](inliers[: key["train"]], key["seed"], **params)
    fit_seconds = clock() - start

    def measure(key: dict) -> dict:
        return {"auroc": float(roc_auc_score(is_outlier, score(mixed))), "fit_seconds": fit_seconds}

    return measure


def anomaly_case(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give normal training images; test images, and which of these are anomalies."""
    if name in DIGITS:
        images, digit = load("mnist"), DIGITS[name]
        return images.train[images.train_classes == digit], images.test[:2000], images.test_classes[:2000] != digit
    inliers, outliers = (load(part) for part in PAIRS[name])
    mixed = [inliers.test[:1000], outliers.test[:1000]]
    return inliers.train, np.concatenate(mixed), np.repeat([False, True], [len(part) for part in mixed])


FITS: dict[str, Callable[[dict, dict], Callable[[dict], dict]]] = {
    "images": fit_inpainting,
    "image-anomaly": fit_anomaly,
}


def inpainting_keys(
    names: Sequence[str],
    masks: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    train: int | None,
    test: int,
) -> Iterator[dict]:
    """Keys of the lines on inpainting, the masks that one fit serves together; ``train`` None means all."""
    for name in names:
        images = load(name)
        n_train, n_test = min(train or len(images.train), len(images.train)), min(test, len(images.test))
        for seed, method, mask in product(seeds, methods, masks):
            if images.test[0].size <= PEERS[method].max_pixels:
                yield dict(zip(KEY, ("images", name, mask, n_train, n_test, seed, method), strict=True))


def anomaly_keys(
    names: Sequence[str], methods: Sequence[str], seeds: Sequence[int], train: int | None
) -> Iterator[dict]:
    """Keys of the lines on anomalies."""
    for name in names:
        inliers, mixed, _ = anomaly_case(name)
        for seed, method in product(seeds, methods):
            n_train = min(train or len(inliers), len(inliers))
            yield dict(zip(KEY, ("image-anomaly", name, None, n_train, len(mixed), seed, method), strict=True))


def run_lines(keys: list[dict], out: Path, params: dict, cores: int) -> int:
    """Compute the lines that ``out`` lacks, append them, and return the number that failed.

    One failing method must not end the run: its lines say why, and the log where.
    """
    suffix = f"[{','.join(f'{name}={value}' for name, value in params.items())}]" if params else ""
    done = {key_of(line, KEY) for line in read_lines(out) if "error" not in line}
    todo = [key for key in keys if key_of(key | {"method": key["method"] + suffix}, KEY) not in done]
    click.echo(f"{len(keys) - len(todo)} of {len(keys)} lines are in {out} already.", err=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    for _, together in groupby(todo, key=lambda key: key_of(key | {"mask": None}, KEY)):
        for line in _survive(list(together), params, cores):
            line["method"] += suffix
            failures += "error" in line
            append_line(out, line)
            click.echo(" ".join(str(_short(value)) for value in line.values() if value is not None), err=True)
    return failures


def _survive(group: list[dict], params: dict, cores: int) -> Iterator[dict]:
    """Yield the lines of one fit, an error in its place."""
    with joblib.parallel_config(n_jobs=cores), threadpool_limits(cores):  # BLAS and torch too
        measure = _attempt(FITS[group[0]["task"]], group[0], params)
        for key in group:
            result = measure if isinstance(measure, dict) else _attempt(measure, key)
            yield key | result


def _attempt(function: Callable[..., Result], *arguments: dict) -> Result | dict[str, str]:
    """Give what the function gives, or why it failed."""
    try:
        return function(*arguments)
    except Exception as error:
        logger.exception("%s failed.", " ".join(str(part) for part in arguments[0].values() if part is not None))
        return {"error": f"{type(error).__name__}: {error}"}


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _clock() -> Callable[[], float]:
    """Wall clock; on one core the process's own time, which is the same there but for what others do to the machine."""
    return time.process_time if joblib.effective_n_jobs(None) == 1 else time.perf_counter


# --- reporting --------------------------------------------------------------------------------------------------------


def image_tables(lines: list[dict]) -> dict[str, pd.DataFrame]:
    """Titles and tables of the images' lines, cells as text; means over seeds. Of repeated lines the last counts."""
    lines = [line for line in lines if line.get("task") in TASKS and "error" not in line]
    frame = pd.DataFrame({key_of(line, KEY): line for line in lines}.values())
    if frame.empty:
        return {}
    tables = {}
    for train, part in _by_training(frame[frame["task"] == "images"]):
        tables[f"Images: RMSE of hidden pixels, {train}"] = _overview(part)
    for train, part in _by_training(frame[frame["task"] == "image-anomaly"]):
        tables[f"Images: anomalies, AUROC, {train}"] = _anomalies(part)
    for train, part in _by_training(frame[frame["task"] == "images"]):
        for (name, mask), own in part.groupby(["set", "mask"], sort=False):
            tables[f"Images: {name}, {mask}, {train}"] = _details(own)
    return tables


def _by_training(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Lines fitted to at most 5,000 images, and those fitted to more, with words for it."""
    for large, part in frame.groupby(frame["train"] > 5000):
        yield ("fitted to all training images" if large else "fitted to at most 5,000 images"), part


def _overview(frame: pd.DataFrame) -> pd.DataFrame:
    grid = frame.pivot_table(index=["set", "mask"], columns="method", values="rmse", sort=False)
    grid = grid[grid.rank(axis=1).mean().sort_values(ascending=False).index]
    shown = grid.map(lambda value: "" if pd.isna(value) else f"{value:.4f}")
    shown = shown.mask(grid.eq(grid.min(axis=1), axis=0), "**" + shown + "**")
    shown.index = pd.Index([f"{name}, {mask}" for name, mask in shown.index], name="set, mask")
    return shown


def _details(frame: pd.DataFrame) -> pd.DataFrame:
    formats = {"rmse": ".4f", "psnr": ".2f", "ssim": ".3f", "bits": ".3f", "fit_seconds": ".3g"}
    formats |= {"images_per_second": ".3g", "test": ".0f"}
    columns = [name for name in formats if name in frame and frame[name].notna().any()]
    grid = frame.groupby("method")[columns].mean().sort_values("rmse")
    for name in columns:
        grid[name] = [("" if pd.isna(value) else format(value, formats[name])) for value in grid[name]]
    return grid.rename(columns={"bits": "bits per hidden pixel", "test": "test images"})


def _anomalies(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per method: the mean over the ten digits (where all are there), the pairs, each digit, seconds."""
    grid = frame.pivot_table(index="method", columns="set", values="auroc")
    mean = grid.reindex(columns=[*DIGITS]).mean(axis=1, skipna=False).rename("mean of ten digits")
    order = [name for name in (*PAIRS, *DIGITS) if name in grid]
    grid = pd.concat([mean, grid[order]], axis=1).sort_values("mean of ten digits", ascending=False)
    seconds = frame.groupby("method")["fit_seconds"].mean()
    grid = grid.map(lambda value: "" if pd.isna(value) else f"{value:.3f}")
    return grid.assign(**{"mean fit seconds": [f"{seconds[method]:.3g}" for method in grid.index]})


def report(lines: list[dict]) -> str:
    """All tables, as Markdown."""
    return "\n".join(f"**{title}**\n\n{markdown(table)}" for title, table in image_tables(lines).items())


def _chosen(*known: str) -> Callable[..., list[str]]:
    """Click callback: "a,b" -> ["a", "b"], each of them known; all that are known where nothing is given."""

    def parse(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str]:
        items = [item.strip() for item in value.split(",")] if value else list(known)
        if unknown := [item for item in items if item not in known]:
            raise click.BadParameter(f"unknown {', '.join(unknown)}; known: {', '.join(known)}.")
        return items

    return parse


@click.command()
@click.option("--tasks", callback=_chosen(*TASKS), help=f"Comma-separated, of {', '.join(TASKS)}; default: both.")
@click.option("--sets", callback=_chosen(*SETS), help=f"For images; of {', '.join(SETS)}.")
@click.option("--masks", callback=_chosen(*MASKS), help=f"For images; of {', '.join(MASKS)}.")
@click.option("--cases", callback=_chosen(*PAIRS, *DIGITS), help="For image-anomaly; of mnist-fashion, ..., digit 9.")
@click.option(
    "--methods", callback=_chosen(*dict.fromkeys([*PEERS, *DETECTORS])), help="Comma-separated; default: all."
)
@click.option("--train", default="5000", show_default=True, help="Images to fit to, or all.")
@click.option("--test", default=500, show_default=True, help="Images to inpaint.")
@click.option("--seeds", default="0", show_default=True)
@click.option("--params", default="{}", help="JSON: arguments of the one method that --methods names.")
@click.option("--cores", type=int, help="Default: all.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "images.jsonl", show_default=False)
@click.option("--report", "only_report", is_flag=True, help="Print the tables of the results, and run nothing.")
def main(
    *,
    tasks: list[str],
    sets: list[str],
    masks: list[str],
    cases: list[str],
    methods: list[str],
    train: str,
    test: int,
    seeds: str,
    params: str,
    cores: int | None,
    out: Path,
    only_report: bool,
) -> None:
    """Compare methods on images; append one JSON line per result to a file."""
    if only_report:
        click.echo(report(read_lines(out)))
        return
    settings = json.loads(params)
    if settings and len(methods) > 1:
        raise click.BadParameter(f"they are one method's, but got {len(methods)} methods.", param_hint="--params")
    n_train = None if train == "all" else int(train)
    numbers = [int(seed) for seed in seeds.split(",")]
    keys: list[dict] = []
    if "images" in tasks:
        keys += inpainting_keys(sets, masks, [name for name in methods if name in PEERS], numbers, n_train, test)
    if "image-anomaly" in tasks:
        keys += anomaly_keys(cases, [name for name in methods if name in DETECTORS], numbers, n_train)
    failures = run_lines(keys, out, settings, cores or joblib.cpu_count())
    if failures:
        click.echo(f"{failures} lines failed; run again to retry them.", err=True)


if __name__ == "__main__":
    main()
