"""The images of the benchmarks: where each set comes from, and the masks that hide their pixels.

``digits`` comes with scikit-learn; the others are read from the folder ``images`` of ``$VAEIMPUTE_DATA``, as ``.npz``
files of ``x_train``, ``y_train``, ``x_test`` and ``y_test`` in the layout of Keras (``mnist.load_data()``). The CIFAR
set is a part of CIFAR-10 that went through JPEG: do not compare with published numbers.

To add a set or a kind of mask, add a row to ``SETS`` or ``MASKS``.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

__all__ = ["MASKS", "SETS", "Images", "hide_pixels", "observed_pixels"]


class Images(NamedTuple):
    """Images (n, H, W) or (n, H, W, C) of whole numbers from 0 to ``max_level``, their classes, and those set apart."""

    train: np.ndarray
    train_classes: np.ndarray
    test: np.ndarray
    test_classes: np.ndarray
    max_level: int = 255


def bundled_digits() -> Images:
    """scikit-learn's 8x8 digits; the last 500 of 1,797 set apart."""
    digits = load_digits()
    images, classes = digits.images.astype(np.uint8), digits.target
    return Images(images[:-500], classes[:-500], images[-500:], classes[-500:], max_level=16)


def stored(name: str) -> Images:
    """Read the file ``images/<name>.npz`` under ``$VAEIMPUTE_DATA``."""
    file = Path(os.environ.get("VAEIMPUTE_DATA", "")) / "images" / f"{name}.npz"
    if "VAEIMPUTE_DATA" not in os.environ or not file.exists():
        raise FileNotFoundError(
            f"set VAEIMPUTE_DATA to a folder that holds images/{name}.npz (it is "
            f"{os.environ.get('VAEIMPUTE_DATA')!r}), with arrays x_train, y_train, x_test, y_test."
        )
    with np.load(file) as data:
        return Images(*(data[part] for part in ("x_train", "y_train", "x_test", "y_test")))


SETS: dict[str, Callable[[], Images]] = {
    "digits": bundled_digits,
    "mnist": partial(stored, "mnist"),
    "fashion": partial(stored, "fashion_mnist"),
    "cifar": partial(stored, "cifar10_jpeg_subset"),
}


def scattered(n: int, height: int, width: int, rng: np.random.Generator, *, rate: float) -> np.ndarray:
    """Each pixel hidden on its own."""
    return rng.random((n, height, width)) >= rate


def block(n: int, height: int, width: int, rng: np.random.Generator, *, centred: bool) -> np.ndarray:
    """Rectangle of half of each side hidden, in the middle or anywhere."""
    observed = np.ones((n, height, width), dtype=bool)
    for image in observed:
        top = height // 4 if centred else rng.integers(height - height // 2 + 1)
        left = width // 4 if centred else rng.integers(width - width // 2 + 1)
        image[top : top + height // 2, left : left + width // 2] = False
    return observed


# (n, height, width, generator) -> what stays observed, (n, height, width).
MASKS: dict[str, Callable[[int, int, int, np.random.Generator], np.ndarray]] = {
    "scattered-50": partial(scattered, rate=0.5),
    "scattered-80": partial(scattered, rate=0.8),
    "centre-block": partial(block, centred=True),
    "random-block": partial(block, centred=False),
}


def observed_pixels(name: str, mask: str, seed: int, images: np.ndarray) -> np.ndarray:
    """Draw what stays observed, of the images' shape: the same for every method. A pixel goes with all its channels."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {mask} {seed}".encode()))
    observed = MASKS[mask](*images.shape[:3], rng)
    return np.broadcast_to(observed.reshape(*observed.shape, *[1] * (images.ndim - 3)), images.shape)


def hide_pixels(images: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Give the images as floats, NaN in the missing pixels."""
    return np.where(observed, images, np.nan)
