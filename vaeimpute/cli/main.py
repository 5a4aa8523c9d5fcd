"""The command line: ``vaeimpute demo``, ``vaeimpute impute``, ``vaeimpute pool``, ``vaeimpute score``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vaeimpute.cli.demo import run_demo
from vaeimpute.cli.files import EXTENSIONS, check_writable, like_model, read, text_of, write

# Everything heavy is imported inside the function that needs it, so that --help answers at once.
if TYPE_CHECKING:
    import pandas as pd

    from vaeimpute import VAEImputer, VAEOutlierDetector

E = TypeVar("E", bound="VAEImputer | VAEOutlierDetector")


def _known_extension(_context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() not in EXTENSIONS:
        raise click.BadParameter(
            f"'{path}' ends in '{path.suffix}', but tables are read and written as {' or '.join(EXTENSIONS)}.",
            param=parameter,
        )
    return path


def _known_extensions(
    context: click.Context, parameter: click.Parameter, paths: tuple[Path, ...]
) -> tuple[Path | None, ...]:
    return tuple(_known_extension(context, parameter, path) for path in paths)


_table_in = click.argument(
    "table",
    metavar="IN",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_known_extension,
)
_table_out = click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_known_extension,
    help="File to write; .csv or .parquet.",
)
_model = click.option(
    "--model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Use this saved model; without it, one is fitted to IN.",
)
_save = click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Save the fitted model here.")
_seed = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), metavar="N", help="Same seed, same result."
)
_time_budget = click.option(
    "--time-budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Stop fitting after S seconds, at the best model so far.",
)
_effort = click.option(
    "--effort",
    type=click.Choice(["auto", "full"]),
    default="auto",
    show_default=True,
    help="auto: closed form, in seconds; full: networks too, ten times as long.",
)
_max_iter = click.option(
    "--max-iter", type=click.IntRange(min=1), metavar="N", help="Stop fitting after N training steps of each stage."
)
_verbose = click.option("--verbose", is_flag=True, help="Show the progress of the fit.")
_force = click.option("--force", is_flag=True, help="Replace files that exist.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vaeimpute")
def main() -> None:
    """Impute the missing cells of a table, pool analyses of it, or find its anomalous rows and cells."""


@main.command(short_help="Impute the missing cells of a table.")
@_table_in
@_table_out
@_model
@_save
@click.option(
    "--n-imputations",
    type=click.IntRange(min=1),
    metavar="M",
    help="Write M random draws instead of the one best guess: OUT_1, OUT_2, ...",
)
@click.option(
    "--intervals",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_known_extension,
    help="Write between which numbers each filled one lies, with 90% probability, to this file too.",
)
@_seed
@_effort
@_time_budget
@_max_iter
@_verbose
@_force
def impute(
    table: Path,
    out: Path,
    model: Path | None,
    save: Path | None,
    n_imputations: int | None,
    intervals: Path | None,
    seed: int,
    effort: str,
    time_budget: float | None,
    max_iter: int | None,
    verbose: bool,
    force: bool,
) -> None:
    """Impute the missing cells of IN (.csv or .parquet); present cells stay as they are."""
    from vaeimpute import VAEImputer

    _refuse_both(model, save)
    outputs = [out]
    if n_imputations is not None:
        width = len(str(n_imputations))
        outputs = [out.with_stem(f"{out.stem}_{i:0{width}}") for i in range(1, n_imputations + 1)]
    check_writable([*outputs, *filter(None, (intervals, save))], force=force)
    frame = read(table)
    with _plain_messages():
        if model is not None:
            imputer = VAEImputer.load(model)
            frame = like_model(frame, imputer.encoder_.schema.columns)
        else:
            options: dict[str, Any] = {"effort": effort, "time_budget": time_budget}
            options |= {"max_iter": max_iter, "verbose": int(verbose)}
            imputer = _fitted(VAEImputer(random_state=seed, **options), frame)
        filled: list[pd.DataFrame]
        if n_imputations is None:
            filled = [imputer.impute(frame)]  # type: ignore[list-item]
        else:
            filled = imputer.impute(frame, n_imputations=n_imputations, random_state=seed)  # type: ignore[assignment]
        ranges = imputer.intervals(frame) if intervals else None
        _keep(imputer, save)
    present = text_of(table) if table.suffix.lower() == ".csv" else None
    if present is not None:
        present = present.where(frame.notna()) if present.shape == frame.shape else None
    for path, result in zip(outputs, filled, strict=True):
        write(result, path, present)
    if intervals and ranges:
        write(_long(frame, filled[0], *ranges), intervals)
    n_filled = int((frame.isna() & filled[0].notna()).sum().sum())
    where = str(outputs[0]) if len(outputs) == 1 else f"{outputs[0]} ... {outputs[-1].name}"
    click.echo(f"Filled {n_filled} of {frame.size} cells: {where}")


def _long(frame: pd.DataFrame, filled: pd.DataFrame, low: pd.DataFrame, high: pd.DataFrame) -> pd.DataFrame:
    """Row (from 1), column, value, low and high of each filled number, row by row."""
    import pandas as pd

    parts = []
    for name in frame:
        rows = (frame[name].isna() & low[name].notna()).to_numpy().nonzero()[0]
        ends = {"low": low[name].iloc[rows].array, "high": high[name].iloc[rows].array}
        parts.append(pd.DataFrame({"row": rows + 1, "column": name, "value": filled[name].iloc[rows].array, **ends}))
    long = pd.concat([part.astype(dict.fromkeys(("value", "low", "high"), object)) for part in parts])
    return long.sort_values("row", kind="stable")


@main.command(short_help="Pool a regression over completed tables.")
@click.argument(
    "tables",
    metavar="IN IN ...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    callback=_known_extensions,
)
@click.option("--outcome", required=True, metavar="COLUMN", help="What is explained.")
@click.option("--predictors", required=True, metavar="A,B,...", help="Columns that explain it, separated by commas.")
@click.option("--family", type=click.Choice(["linear", "logistic"]), default="linear", show_default=True)
@click.option(
    "--level",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    metavar="P",
    help="Of the confidence intervals.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_known_extension,
    help="Write the table to this file too; .csv or .parquet.",
)
@_force
def pool(
    tables: tuple[Path, ...],
    outcome: str,
    predictors: str,
    family: str,
    level: float,
    out: Path | None,
    force: bool,
) -> None:
    """Fit a regression to every completed table, the draws of 'vaeimpute impute', and pool the coefficients.

    Standard errors and intervals hold the doubt about the missing cells, by Rubin's rules. Text, booleans and
    categories are classes, coded against the first one; logistic coefficients are log-odds of the outcome's second.
    """
    from vaeimpute import fit_pooled
    from vaeimpute.cli.regression import Regression

    if len(tables) < 2:
        raise click.UsageError("Want two or more completed tables: vaeimpute impute IN -o OUT --n-imputations 20")
    check_writable([out] if out else [], force=force)
    frames = _alike(tables, [read(path) for path in tables])
    with _plain_messages():
        regression = Regression.of(frames, outcome, [name.strip() for name in predictors.split(",")], family)
    answers = []
    for path, frame in zip(tables, frames, strict=True):
        try:
            answers.append(regression.fit(frame))
        except ValueError as error:
            raise click.ClickException(f"'{path}': {error}") from error
    pooled = fit_pooled(lambda answer: answer, answers, level=level)
    click.echo(f"{family} regression of '{outcome}', {len(frames)} tables of {len(frames[0])} rows\n\n{pooled}\n")
    click.echo(f"Standard errors that another set of draws would give within 5% want {pooled.n_needed()} tables.")
    if out is not None:
        write(pooled.table.rename_axis("parameter").reset_index(), out)
        click.echo(f"Wrote {out}")


def _alike(paths: tuple[Path, ...], frames: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """Tables with the columns and as many rows as the first has."""
    for path, frame in zip(paths, frames, strict=True):
        if list(frame.columns) != list(frames[0].columns) or len(frame) != len(frames[0]):
            raise click.ClickException(
                f"'{path}' has {len(frame)} rows and columns {', '.join(map(str, frame))}; want those of '{paths[0]}', "
                f"{len(frames[0])} rows and {', '.join(map(str, frames[0]))}."
            )
    return frames


@main.command(short_help="Score how anomalous rows or cells are.")
@_table_in
@_table_out
@_model
@_save
@click.option("--cells", is_flag=True, help="Score every cell instead of every row.")
@_seed
@_force
def score(
    table: Path,
    out: Path,
    model: Path | None,
    save: Path | None,
    cells: bool,
    seed: int,
    force: bool,
) -> None:
    """Score how anomalous the rows of IN are, or its cells: surprisal in nats, higher is more anomalous.

    OUT has one line for each row of IN, in the same order: the column 'anomaly_score', or with --cells the columns
    of IN, empty where a cell is missing. An outlier detector is fitted to the bulk of IN, of whose rows some may be
    outliers. A saved model may be a detector or an imputer.
    """
    import numpy as np
    import pandas as pd

    _refuse_both(model, save)
    check_writable([out, *([save] if save else [])], force=force)
    frame = read(table)
    with _plain_messages():
        detector = _detector(model, frame, seed)
        frame = frame if model is None else like_model(frame, detector.encoder_.schema.columns)
        if cells:
            by_cell = np.asarray(detector.cell_anomaly_score(frame), dtype=float)
            scores = pd.DataFrame(by_cell, frame.index, frame.columns)
        else:
            scores = pd.DataFrame({"anomaly_score": detector.anomaly_score(frame)}, frame.index)
        _keep(detector, save)
    write(scores, out)
    click.echo(f"Wrote {len(scores)} {'rows of cell scores' if cells else 'row scores'} to {out}")
    click.echo("The most anomalous (rows count from 0):")
    for row, column, value in _largest(scores, 5):
        click.echo(f"  row {row}" + (f", column '{column}'" if cells else "") + f": {value:.2f}")


@main.command(short_help="Try it on a bundled table.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("vaeimpute-demo"),
    show_default=True,
    help="Folder for the filled table and the picture.",
)
@_seed
@_effort
@_time_budget
@_max_iter
@_verbose
def demo(out: Path, seed: int, effort: str, time_budget: float | None, max_iter: int | None, verbose: bool) -> None:
    """Hide 30% of a bundled table, impute it, and compare with the column mean and with KNN. Needs no network."""
    from vaeimpute import VAEImputer

    options: dict[str, Any] = {"effort": effort, "time_budget": time_budget}
    options |= {"max_iter": max_iter, "verbose": int(verbose)}
    with _plain_messages():
        run_demo(out, seed, lambda frame: _fitted(VAEImputer(random_state=seed, **options), frame))


def _refuse_both(model: Path | None, save: Path | None) -> None:
    if model is not None and save is not None:
        raise click.UsageError("--save stores a model fitted to IN, and --model asks for no fit: give one of them.")


def _fitted(estimator: E, frame: pd.DataFrame) -> E:
    click.echo(f"Fitting {len(frame)} rows x {frame.shape[1]} columns")
    start = time.perf_counter()
    estimator.fit(frame)
    click.echo(f"Fitted in {time.perf_counter() - start:.1f} s")
    return estimator


def _keep(estimator: VAEImputer | VAEOutlierDetector, path: Path | None) -> None:
    if path is not None:
        estimator.save(path)
        click.echo(f"Saved the model to {path}")


def _detector(model: Path | None, frame: pd.DataFrame, seed: int) -> VAEImputer | VAEOutlierDetector:
    """What scores: fitted to the frame, or a saved model of either class, whose scores mean the same."""
    from vaeimpute import VAEImputer, VAEOutlierDetector

    if model is None:
        return _fitted(VAEOutlierDetector(robust=True, random_state=seed), frame)
    try:
        return VAEOutlierDetector.load(model)
    except ValueError as error:
        if f"holds a {VAEImputer.__name__}" not in str(error):
            raise
        return VAEImputer.load(model)


def _largest(scores: pd.DataFrame, count: int) -> list[tuple[int, str, float]]:
    import numpy as np

    values = np.nan_to_num(scores.to_numpy(), nan=-np.inf)
    order = np.argsort(-values, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, values.shape)
    return [(int(i), str(scores.columns[j]), float(values[i, j])) for i, j in zip(rows, columns, strict=True)]


@contextmanager
def _plain_messages() -> Iterator[None]:
    """Show warnings and the library's own errors as one line each, without source code around them."""

    def show(message: Warning | str, *_details: Any, **_more: Any) -> None:
        click.echo(f"Warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        try:
            yield
        except (ValueError, TypeError) as error:  # both say what is wrong with the table, or with the model
            raise click.ClickException(str(error)) from error
