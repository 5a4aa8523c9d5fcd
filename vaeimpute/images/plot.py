"""A picture of the most anomalous images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_TOP = 10.0  # surprisal of the darkest colour


def draw_images(values: NDArray, cells: NDArray, rows: NDArray, shape: tuple[int, int, int], ax: Any = None) -> Any:
    """Draw images side by side, and below each the surprisal of its pixels (the mean over channels).

    Parameters
    ----------
    values, cells : ndarray of shape (n, D)
        Encoded pixels, and their scores; NaN where missing.
    rows : int ndarray
        Which images.
    shape : tuple of int
        Height, width, channels.
    ax : matplotlib Axes, optional
    """
    import matplotlib.pyplot as plt

    height, width, channels = shape
    if ax is None:
        ax = plt.subplots(figsize=(1 + 1.1 * len(rows), 2.8), layout="constrained")[1]
    low, high = np.nanmin(values), np.nanmax(values)
    grey = np.where(np.isnan(values), 0.85, (values - low) / max(high - low, 1e-9))  # missing pixels
    pictures = [grey[i].reshape(shape) for i in rows]
    pictures = [p if channels == 3 else np.repeat(p[..., :1], 3, -1) for p in pictures]
    maps = [cells[i].reshape(shape).mean(-1) for i in rows]
    ax.imshow(np.concatenate(pictures, 1), extent=(0, width * len(rows), height, 0))
    extent = (0, width * len(rows), 2 * height, height)
    image = ax.imshow(np.concatenate(maps, 1), cmap="Oranges", vmin=0, vmax=_TOP, extent=extent)
    ax.set(xlim=(0, width * len(rows)), ylim=(2 * height, 0), facecolor="0.85")
    ax.set_xticks((np.arange(len(rows)) + 0.5) * width, rows)
    ax.set_yticks([0.5 * height, 1.5 * height], ["image", "score"])
    ax.set(title="The most anomalous images, and their anomalous pixels")
    ax.figure.colorbar(image, ax=ax, label="surprisal of the pixel, nats")
    return ax
