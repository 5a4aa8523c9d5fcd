"""The pictures of the report, each a function of the results: a matplotlib figure, or None where nothing is to show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CASE", "PICTURES", "by_case", "draw_pictures", "most_finished"]

CASE = ["table", "mechanism", "rate", "seed"]


def by_case(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Table (case, method) of a metric; cases for which no method has it are left out."""
    return results.pivot(index=CASE, columns="method", values=metric).dropna(how="all").astype(float)


def most_finished(errors: pd.DataFrame, share: float = 0.5) -> pd.DataFrame:
    """Methods that finished at least this share of the cases, on the cases that all of them finished.

    Where they have no case in common, those with the fewest are left out until there is one.
    """
    kept = errors.loc[:, errors.notna().mean() >= share]
    while len(kept.columns) and kept.dropna().empty:
        kept = kept.drop(columns=kept.count().idxmin())
    return kept.dropna()


def draw_pictures(results: pd.DataFrame, folder: Path) -> list[Path]:
    """Write what there is to show as PNG files; gives the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in PICTURES.items():
        figure = draw(results)
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=120, bbox_inches="tight", metadata={"Software": None})
    return written


def critical_difference(results: pd.DataFrame) -> Figure | None:
    """Mean ranks over tables; methods that a bar joins do not differ at the 5% level (Friedman, then Nemenyi).

    A table is one block, with the geometric mean of its cases: the cases of one table are not independent.
    """
    from matplotlib.figure import Figure

    try:
        import scikit_posthocs
    except ModuleNotFoundError:
        return None
    errors = np.log(most_finished(by_case(results, "nrmse"))).groupby("table").mean()
    if errors.shape[0] < 3 or errors.shape[1] < 3:
        return None
    different = scikit_posthocs.posthoc_nemenyi_friedman(errors.to_numpy()).to_numpy()
    names = list(errors)
    figure = Figure(figsize=(8, 1.2 + 0.25 * len(names)))
    axes = figure.subplots()
    scikit_posthocs.critical_difference_diagram(
        errors.rank(axis=1).mean(), pd.DataFrame(different, index=names, columns=names), ax=axes
    )
    axes.set_title(f"Mean rank of NRMSE, {len(errors)} tables; joined: no significant difference")
    return figure


def accuracy_against_time(results: pd.DataFrame) -> Figure | None:
    """Error against seconds, both geometric means over the cases that most methods finished."""
    from matplotlib.figure import Figure

    errors, seconds = most_finished(by_case(results, "nrmse"), 0.2), by_case(results, "seconds")
    if errors.empty:
        return None
    best = errors.div(errors.min(axis=1), axis=0)
    score, time = np.exp(np.log(best).mean()), np.exp(np.log(seconds.loc[errors.index].clip(lower=1e-3)).mean())
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for method in errors:
        axes.scatter(time[method], score[method], s=60, zorder=3)
        axes.annotate(method, (time[method], score[method]), xytext=(6, 5), textcoords="offset points")
    axes.margins(x=0.15, y=0.1)
    axes.set(xscale="log", xlabel="seconds per table (geometric mean)", ylabel="NRMSE / best of the case (geom. mean)")
    axes.set_title(f"Accuracy against time, {len(errors)} cases; lower left is better")
    axes.grid(alpha=0.3)
    return figure


def heat_map(results: pd.DataFrame) -> Figure | None:
    """NRMSE of each table over that of its best peer, the geometric mean of the table's cases; vaeimpute is no peer."""
    from matplotlib.figure import Figure

    logs = np.log(by_case(results, "nrmse").clip(lower=1e-6))
    peers = [method for method in logs if not method.startswith("vaeimpute")]
    if not peers or logs.empty:
        return None
    relative = logs.sub(logs[peers].min(axis=1), axis=0).groupby("table").mean() / np.log(2)
    relative = relative[relative.mean().sort_values().index]
    figure = Figure(figsize=(1.6 + 0.75 * relative.shape[1], 1.5 + 0.27 * len(relative)))
    axes = figure.subplots()
    axes.imshow(relative, cmap="RdBu_r", vmin=-0.6, vmax=0.6, aspect="auto")
    axes.set_xticks(range(relative.shape[1]), relative.columns, rotation=45, ha="right")
    axes.set_yticks(range(len(relative)), relative.index)
    for (i, j), value in np.ndenumerate(relative.to_numpy()):
        if not np.isnan(value):
            shade = "white" if abs(value) > 0.4 else "black"
            axes.text(j, i, f"{2**value:.2f}", ha="center", va="center", fontsize=7, color=shade)
    axes.set_title("NRMSE / best peer of the case; blue is better than every peer")
    return figure


def coverage_curves(results: pd.DataFrame) -> Figure | None:
    """Share of hidden numbers inside their intervals against the intervals' nominal level, mean over cases."""
    from matplotlib.figure import Figure

    if "coverage" not in results or results["coverage"].isna().all():
        return None
    figure = Figure(figsize=(5, 4.5))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
    for method, part in results.dropna(subset="coverage").groupby("method"):
        curve = pd.DataFrame(part["coverage"].tolist()).mean()
        axes.plot(curve.index.astype(float), curve, marker="o", label=f"{method} ({len(part)} cases)")
    axes.set(xlim=(0.4, 1), ylim=(0.4, 1), xlabel="nominal level", ylabel="hidden numbers inside the interval")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


PICTURES: dict[str, Callable[[pd.DataFrame], Figure | None]] = {
    "critical_difference": critical_difference,
    "accuracy_time": accuracy_against_time,
    "heatmap": heat_map,
    "coverage": coverage_curves,
}
