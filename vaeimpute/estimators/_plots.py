"""Pictures of the strangest rows and images."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import narwhals as nw
import numpy as np
from numpy.typing import NDArray

_STRANGE = 3.0  # cell score from which the picture says what was expected
_DARK = 6.0  # cell score from which its text is white
_TOP = 10.0  # cell score of the darkest colour


def draw_rows(
    value: list[Any], said: list[Any], cells: NDArray, shown: NDArray, names: Sequence[Any], ax: Any = None
) -> Any:
    """Draw rows of a table as a grid of their cells' scores, with their values in it.

    Parameters
    ----------
    value, said : lists of D columns
        What stands in each cell, and what was expected there.
    cells : ndarray of shape (n, D)
        Scores; NaN in holes.
    shown : int ndarray
        Which rows.
    names : sequence of D names
    ax : matplotlib Axes, optional
    """
    import matplotlib.pyplot as plt

    if ax is None:
        size = (2 + 0.9 * len(names), 1 + 0.45 * len(shown))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    image = ax.imshow(cells[shown], cmap="Oranges", vmin=0, vmax=_TOP, aspect="auto")
    ax.set_facecolor("0.85")  # holes
    for row, i in enumerate(shown):
        for j in np.flatnonzero(~np.isnan(cells[i])):
            text = _short(value[j][i]) + (f"\n({_short(said[j][i])})" if cells[i, j] > _STRANGE else "")
            colour = "white" if cells[i, j] > _DARK else "black"
            ax.text(j, row, text, ha="center", va="center", fontsize=7, color=colour)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    ax.set_yticks(range(len(shown)), shown)
    ax.set(ylabel="row", title="The strangest rows (expected values in brackets)")
    ax.figure.colorbar(image, ax=ax, label="cell score, nats")
    return ax


def draw_images(values: NDArray, cells: NDArray, shown: NDArray, shape: tuple[int, int, int], ax: Any = None) -> Any:
    """Draw images side by side, and below each the scores of its pixels (the mean over channels).

    Parameters
    ----------
    values, cells : ndarray of shape (n, D)
        Encoded pixels, and their scores; NaN in holes.
    shown : int ndarray
        Which images.
    shape : tuple of int
        Height, width, channels.
    ax : matplotlib Axes, optional
    """
    import matplotlib.pyplot as plt

    height, width, channels = shape
    if ax is None:
        ax = plt.subplots(figsize=(1 + 1.1 * len(shown), 2.8), layout="constrained")[1]
    low, high = np.nanmin(values), np.nanmax(values)
    grey = np.where(np.isnan(values), 0.85, (values - low) / max(high - low, 1e-9))  # holes
    pictures = [grey[i].reshape(shape) for i in shown]
    pictures = [p if channels == 3 else np.repeat(p[..., :1], 3, -1) for p in pictures]
    maps = [cells[i].reshape(shape).mean(-1) for i in shown]
    ax.imshow(np.concatenate(pictures, 1), extent=(0, width * len(shown), height, 0))
    extent = (0, width * len(shown), 2 * height, height)
    image = ax.imshow(np.concatenate(maps, 1), cmap="Oranges", vmin=0, vmax=_TOP, extent=extent)
    ax.set(xlim=(0, width * len(shown)), ylim=(2 * height, 0), facecolor="0.85")
    ax.set_xticks((np.arange(len(shown)) + 0.5) * width, shown)
    ax.set_yticks([0.5 * height, 1.5 * height], ["image", "score"])
    ax.set(title="The strangest images, and their strange pixels")
    ax.figure.colorbar(image, ax=ax, label="pixel score, nats")
    return ax


def as_columns(X: Any) -> list:
    """The columns of a table, or the pixels of images, each as a sequence."""
    if isinstance(X, np.ndarray):
        return list(X.reshape(len(X), -1).T)
    return [column.to_list() for column in nw.from_native(X).iter_columns()]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, Real | np.number) else str(value)[:12]
