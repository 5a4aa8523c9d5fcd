"""A picture of the most anomalous rows."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

_OUTLYING = 5.0  # surprisal of a cell from which the picture says what was expected
_DARK = 7.0  # surprisal from which its text is white
_TOP = 10.0  # surprisal of the darkest colour


def draw_rows(
    value: list[Any], expected: list[Any], cells: NDArray, rows: NDArray, names: Sequence[Any], ax: Any = None
) -> Any:
    """Draw rows of a table as a grid of their cells' scores, with their values in it.

    Parameters
    ----------
    value, expected : lists of D columns
        What stands in each cell, and what was expected there.
    cells : ndarray of shape (n, D)
        Scores; NaN where missing.
    rows : int ndarray
        Which rows.
    names : sequence of D names
    ax : matplotlib Axes, optional
    """
    import matplotlib.pyplot as plt

    if ax is None:
        size = (2 + 0.9 * len(names), 1 + 0.45 * len(rows))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    image = ax.imshow(cells[rows], cmap="Oranges", vmin=0, vmax=_TOP, aspect="auto")
    ax.set_facecolor("0.85")  # missing cells
    for row, i in enumerate(rows):
        for j in np.flatnonzero(~np.isnan(cells[i])):
            text = _short(value[j][i]) + (f"\n({_short(expected[j][i])})" if cells[i, j] > _OUTLYING else "")
            colour = "white" if cells[i, j] > _DARK else "black"
            ax.text(j, row, text, ha="center", va="center", fontsize=7, color=colour)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    ax.set(ylabel="row", title="The most anomalous rows (expected values in brackets)")
    ax.figure.colorbar(image, ax=ax, label="surprisal of the cell, nats")
    return ax


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, Real | np.number) else str(value)[:12]
