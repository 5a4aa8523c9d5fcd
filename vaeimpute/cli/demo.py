"""The demo: hide cells of a bundled table, impute them, and compare with the truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vaeimpute.cli.files import write

# What is heavy is imported inside the function that needs it, so that --help answers at once.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def run_demo(out: Path, seed: int, fit: Callable[[pd.DataFrame], Any]) -> None:
    """Hide 30% of a bundled table, impute it, compare with the column mean and with KNN, and draw a picture.

    Parameters
    ----------
    out : Path
        Folder for the tables and the picture.
    seed : int
        Of the hidden cells.
    fit : callable
        Fits an imputer to a table.
    """
    from sklearn.impute import KNNImputer, SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from vaeimpute.amputation import ampute

    table = _demo_table()
    truth = _as_numbers(table)
    observed = ampute(truth, rate=0.3, mechanism="mcar", random_state=seed)
    incomplete = table.where(observed)
    click.echo(f"{len(table)} diabetes patients, {table.shape[1]} columns; {(~observed).mean():.0%} of cells hidden")
    filled = fit(incomplete).impute(incomplete)

    scaler = StandardScaler()
    by_neighbours = make_pipeline(scaler, KNNImputer()).fit_transform(_as_numbers(incomplete))
    guesses = {
        "column mean": SimpleImputer().fit_transform(_as_numbers(incomplete)),
        "KNN": scaler.inverse_transform(by_neighbours),
        "vaeimpute": _as_numbers(filled),
    }
    errors = _demo_errors(truth, guesses, ~observed)
    click.echo(f"\n{'filled by':<12}{'error of numbers (sd)':>24}{'wrong classes':>16}")
    for name, (of_numbers, of_classes) in errors.items():
        click.echo(f"{name:<12}{of_numbers:>24.3f}{of_classes:>16.1%}")

    out.mkdir(parents=True, exist_ok=True)
    write(incomplete, out / "incomplete.csv")
    write(filled, out / "filled.csv")
    click.echo(f"\nTables: {out / 'incomplete.csv'}, {out / 'filled.csv'}")
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
    """The demo's table with 'sex' as 0 and 1, and missing cells as NaN."""
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
