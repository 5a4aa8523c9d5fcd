"""The command line: ``vaeimpute demo``, ``vaeimpute impute``, ``vaeimpute score``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

# Everything heavy is imported inside the function that needs it, so that --help answers at once.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from vaeimpute.estimators import VAEImputer

EXTENSIONS = (".csv", ".parquet")


def _known_extension(_context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() not in EXTENSIONS:
        raise click.BadParameter(
            f"'{path}' ends in '{path.suffix}', but tables are read and written as {' or '.join(EXTENSIONS)}.",
            param=parameter,
        )
    return path


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
_fit_options: list[Callable] = [
    click.option(
        "--seed", default=0, show_default=True, type=click.IntRange(min=0), metavar="N", help="Same seed, same result."
    ),
    click.option(
        "--time-budget",
        type=click.FloatRange(min=0, min_open=True),
        metavar="S",
        help="Stop fitting after S seconds, at the best model so far.",
    ),
    click.option("--verbose", is_flag=True, help="Show the progress of the fit."),
]
_force = click.option("--force", is_flag=True, help="Replace files that exist.")


def _fitting(command: Callable) -> Callable:
    for option in reversed(_fit_options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vaeimpute")
def main() -> None:
    """Fill the holes of a table, or find its strange rows and cells."""


@main.command(short_help="Fill the holes of a table.")
@_table_in
@_table_out
@_model
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Save the fitted model here.")
@click.option(
    "--n-imputations",
    type=click.IntRange(min=1),
    metavar="M",
    help="Write M random draws instead of the one best guess: OUT_1, OUT_2, ...",
)
@_fitting
@_force
def impute(
    table: Path,
    out: Path,
    model: Path | None,
    save: Path | None,
    n_imputations: int | None,
    seed: int,
    time_budget: float | None,
    verbose: bool,
    force: bool,
) -> None:
    """Fill the holes of IN (.csv or .parquet); present cells stay as they are."""
    if model is not None and save is not None:
        raise click.UsageError("--save stores a model fitted to IN, and --model asks for no fit: give one of them.")
    outputs = [out]
    if n_imputations is not None:
        width = len(str(n_imputations))
        outputs = [out.with_stem(f"{out.stem}_{i:0{width}}") for i in range(1, n_imputations + 1)]
    _check_writable([*outputs, *([save] if save else [])], force)
    frame = _read(table)
    with _plain_messages():
        imputer = _load_or_fit(model, frame, seed, time_budget, verbose)
        frame = _like_model(frame, imputer) if model is not None else frame
        if n_imputations is None:
            filled = [imputer.impute(frame)]
        else:
            filled = imputer.impute(frame, n_imputations=n_imputations, random_state=seed)
        if save is not None:
            imputer.save(save)
            click.echo(f"Saved the model to {save}")
    present = _text_of(table) if table.suffix.lower() == ".csv" else None
    if present is not None:
        present = present.where(frame.notna()) if present.shape == frame.shape else None
    for path, result in zip(outputs, filled, strict=True):
        _write(result, path, present)
    n_holes = int((frame.isna() & filled[0].notna()).sum().sum())
    where = str(outputs[0]) if len(outputs) == 1 else f"{outputs[0]} ... {outputs[-1].name}"
    click.echo(f"Filled {n_holes} of {frame.size} cells: {where}")


@main.command(short_help="Score how strange rows or cells are.")
@_table_in
@_table_out
@_model
@click.option("--cells", is_flag=True, help="Score every cell instead of every row.")
@_fitting
@_force
def score(
    table: Path,
    out: Path,
    model: Path | None,
    cells: bool,
    seed: int,
    time_budget: float | None,
    verbose: bool,
    force: bool,
) -> None:
    """Score how strange the rows of IN are, or its cells; higher is stranger.

    OUT has one line for each row of IN, in the same order: the column 'anomaly_score', or with --cells the columns
    of IN, empty where IN has a hole.
    """
    import numpy as np
    import pandas as pd

    _check_writable([out], force)
    frame = _read(table)
    with _plain_messages():
        imputer = _load_or_fit(model, frame, seed, time_budget, verbose)
        frame = _like_model(frame, imputer) if model is not None else frame
        if cells:
            scores = pd.DataFrame(
                np.asarray(imputer.cell_anomaly_score(frame), dtype=float), frame.index, frame.columns
            )
        else:
            scores = pd.DataFrame({"anomaly_score": imputer.anomaly_score(frame)}, frame.index)
    _write(scores, out)
    click.echo(f"Wrote {len(scores)} {'rows of cell scores' if cells else 'row scores'} to {out}")
    click.echo("The strangest (rows count from 0):")
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
@_fitting
def demo(out: Path, seed: int, time_budget: float | None, verbose: bool) -> None:
    """Hide 30% of a bundled table, fill it, and compare with the column mean and with KNN. Needs no network."""
    from sklearn.impute import KNNImputer, SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from vaeimpute.amputation import ampute

    table = _demo_table()
    truth = _as_numbers(table)
    observed = ampute(truth, rate=0.3, mechanism="mcar", random_state=seed)
    holed = table.where(observed)
    click.echo(f"{len(table)} diabetes patients, {table.shape[1]} columns; {(~observed).mean():.0%} of cells hidden")
    with _plain_messages():
        filled = _load_or_fit(None, holed, seed, time_budget, verbose).impute(holed)

    scaler = StandardScaler()
    by_neighbours = make_pipeline(scaler, KNNImputer()).fit_transform(_as_numbers(holed))
    guesses = {
        "column mean": SimpleImputer().fit_transform(_as_numbers(holed)),
        "KNN": scaler.inverse_transform(by_neighbours),
        "vaeimpute": _as_numbers(filled),
    }
    errors = _demo_errors(truth, guesses, ~observed)
    click.echo(f"\n{'filled by':<12}{'error of numbers (sd)':>24}{'wrong classes':>16}")
    for name, (of_numbers, of_classes) in errors.items():
        click.echo(f"{name:<12}{of_numbers:>24.3f}{of_classes:>16.1%}")

    out.mkdir(parents=True, exist_ok=True)
    _write(holed, out / "with_holes.csv")
    _write(filled, out / "filled.csv")
    click.echo(f"\nTables: {out / 'with_holes.csv'}, {out / 'filled.csv'}")
    try:
        _demo_picture(out / "filled.png", truth, guesses, ~observed, errors)
        click.echo(f"Picture: {out / 'filled.png'}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        click.echo("No picture, because matplotlib is not installed: pip install 'vaeimpute[plot]'")


def _demo_table() -> pd.DataFrame:
    """Age, sex, body measurements, six blood values and the progress of the disease; 'sex' is the last column."""
    from sklearn.datasets import load_diabetes

    table = load_diabetes(as_frame=True, scaled=False).frame.convert_dtypes()
    table = table.rename(columns={"target": "progression"})
    sex = table.pop("sex").map({1: "A", 2: "B"}).astype("category")  # the source does not say which is which
    return table.assign(sex=sex)


def _as_numbers(table: pd.DataFrame) -> np.ndarray:
    """The demo's table with 'sex' as 0 and 1, and holes as NaN."""
    return table.assign(sex=table["sex"].map({"A": 0.0, "B": 1.0}).astype(float)).to_numpy(float, na_value=float("nan"))


def _demo_errors(
    truth: np.ndarray, guesses: dict[str, np.ndarray], hidden: np.ndarray
) -> dict[str, tuple[float, float]]:
    from vaeimpute.metrics import category_error, nrmse

    return {
        name: (
            nrmse(truth[:, :-1], guess[:, :-1], hidden[:, :-1]),
            category_error(truth[:, -1], guess[:, -1].round(), hidden[:, -1]),
        )
        for name, guess in guesses.items()
    }


def _demo_picture(
    path: Path,
    truth: np.ndarray,
    guesses: dict[str, np.ndarray],
    hidden: np.ndarray,
    errors: dict[str, tuple[float, float]],
) -> None:
    """One panel a method: every hidden number against what it was filled with, in standard deviations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")  # not pyplot: no window, no global state
    FigureCanvasAgg(figure)
    centre, scale = truth[:, :-1].mean(axis=0), truth[:, :-1].std(axis=0)
    judged = hidden[:, :-1]
    axes = figure.subplots(1, len(guesses), sharex=True, sharey=True)
    for panel, (name, guess) in zip(axes, guesses.items(), strict=True):
        x, y = (((values[:, :-1] - centre) / scale)[judged] for values in (truth, guess))
        panel.axline((0, 0), slope=1, color="0.6", linewidth=1)
        panel.plot(x, y, ".", markersize=3, alpha=0.5, color="tab:blue")
        panel.set(title=f"{name}: error {errors[name][0]:.3f}", xlabel="hidden truth (sd)", xlim=(-3, 4), ylim=(-3, 4))
        panel.set_aspect("equal")
    axes[0].set_ylabel("filled with (sd)")
    figure.savefig(path, dpi=120)


def _check_writable(paths: list[Path], force: bool) -> None:
    """Complain before the fit rather than after it."""
    for path in paths:
        if path.exists() and not force:
            raise click.ClickException(f"'{path}' exists. Choose another name, or pass --force to replace it.")
        if not path.parent.is_dir():
            raise click.ClickException(f"Cannot write '{path}': the folder '{path.parent}' does not exist.")
        _require_pyarrow(path)


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    _require_pyarrow(path)
    try:
        if path.suffix.lower() == ".csv":
            # The nullable types keep a column with holes an integer or a boolean one, so that 3 is not written as 3.0,
            # and a saved model meets the same dtypes in the next file, whichever of its columns have holes.
            frame = pd.read_csv(path, dtype_backend="numpy_nullable")
            text = _text_of(path)
            if frame.shape == text.shape:
                for name in frame.select_dtypes("number"):
                    if text[name].str.fullmatch(r"\s*[+-]?0\d+\s*").any():  # no number: a zip code, an identifier
                        frame[name] = text[name].where(frame[name].notna()).astype("string")
                for name in frame.select_dtypes("string"):  # '' beside integers that are too large for pandas
                    frame[name] = frame[name].mask(frame[name] == "")
            frame = _with_dates(frame)
        else:
            frame = _read_parquet(path)
    except ValueError as error:  # what pandas and pyarrow raise for a broken file
        raise click.ClickException(f"Cannot read '{path}': {str(error).strip()}") from error
    if path.suffix.lower() == ".csv":
        _refuse_odd(path, frame)
    if frame.empty:
        raise click.ClickException(f"'{path}' holds no table: {len(frame)} rows, {frame.shape[1]} columns.")
    return frame


def _text_of(path: Path | StringIO) -> pd.DataFrame:
    """A CSV file's cells as they are written; '' where there is nothing."""
    import pandas as pd

    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _refuse_odd(path: Path, frame: pd.DataFrame) -> None:
    """Complain of a CSV file whose header pandas makes fit by itself, or does not understand."""
    import pandas as pd

    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first fields as an index
        raise click.ClickException(f"Cannot read '{path}': its rows have more fields than its header has names.")
    if frame.shape[1] == 1 and (found := set(frame.columns[0]) & set(";\t|")):
        raise click.ClickException(f"'{path}' seems to be separated by {found.pop()!r}; want commas. Convert it first.")
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0]
    if (twice := header[header.duplicated() & (header != "")]).any():  # pandas renames them
        raise click.ClickException(f"'{path}' has several columns named {twice.iloc[0]!r}. Rename them.")


def _like_model(frame: pd.DataFrame, imputer: VAEImputer) -> pd.DataFrame:
    """Columns that were read as another type than in the model's own file, as all empty or all whole ones may be."""
    import pandas as pd

    frame = frame.copy()
    for column in imputer.encoder_.schema.columns:
        read = frame.dtypes.get(column.name)
        if read is None or str(read) == column.dtype or "(" in column.dtype:
            continue
        if frame[column.name].isna().all() or (pd.api.types.is_integer_dtype(read) and column.dtype == "Float64"):
            frame[column.name] = frame[column.name].astype(column.dtype)
    return frame


def _with_dates(frame: pd.DataFrame) -> pd.DataFrame:
    """Text columns that hold only ISO dates, or dates with times, as datetimes; they are written the same way."""
    import pandas as pd

    for name in frame.select_dtypes("string"):
        for form in ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S"):
            times = pd.to_datetime(frame[name], format=form, errors="coerce")
            if times.notna().equals(frame[name].notna()):
                frame[name] = times
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd

    frame = pd.read_parquet(path)
    # With plain dtypes, integers with holes would be floats, and dates and booleans with holes would be objects.
    exact = pd.read_parquet(path, dtype_backend="pyarrow")
    for name, dtype in frame.dtypes.items():
        if pd.api.types.is_object_dtype(dtype) or (dtype.kind == "f" and exact[name].dtype.kind in "iu"):
            frame[name] = exact[name]
    return frame


def _write(frame: pd.DataFrame, path: Path, present: pd.DataFrame | None = None) -> None:
    """`present`: text of the cells that a CSV file gets as they stood in the one that was filled; null elsewhere."""
    if path.suffix.lower() != ".csv":
        frame.to_parquet(path)
        return
    if present is not None:
        frame = present.where(present.notna(), _text_of(StringIO(frame.to_csv(index=False))))
    frame.to_csv(path, index=False)


def _require_pyarrow(path: Path) -> None:
    if path.suffix.lower() != ".parquet":
        return
    try:
        import pyarrow  # noqa: F401 (pandas uses it)
    except ImportError as error:
        raise click.ClickException(f"'{path}' needs pyarrow: pip install 'vaeimpute[io]'") from error


def _load_or_fit(
    model: Path | None, frame: pd.DataFrame, seed: int, time_budget: float | None, verbose: bool
) -> VAEImputer:
    from vaeimpute import VAEImputer

    if model is not None:
        return VAEImputer.load(model)
    click.echo(f"Fitting {len(frame)} rows x {frame.shape[1]} columns")
    start = time.perf_counter()
    imputer = VAEImputer(time_budget=time_budget, random_state=seed, verbose=int(verbose)).fit(frame)
    click.echo(f"Fitted in {time.perf_counter() - start:.1f} s")
    return imputer


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
