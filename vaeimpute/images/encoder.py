"""Images in any of their layouts <-> ``values`` and ``observed``: one column per pixel and channel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeimpute.batching import row_slices
from vaeimpute.frames.encoded import Encoded

_UNITS = (1.0, 1 / 16, 1 / 255)  # of pixels that are levels: integers, or those divided by the largest
MOST_PIXELS = 400_000_000  # pixels to learn from: 2 GB with their mask; half a million images of 28 x 28
_FARTHEST = 1e6  # of a value, in units of its scale: beyond, networks overflow


def pixel_shape(image_shape: Any) -> tuple[int, int, int]:
    """Height, width and channels from the estimators' parameter.

    Examples
    --------
    >>> pixel_shape((28, 28))
    (28, 28, 1)
    >>> pixel_shape((28, 0))
    Traceback (most recent call last):
    ValueError: image_shape must be (height, width) or (height, width, channels), positive integers; got (28, 0).
    """
    shape = tuple(image_shape)
    if len(shape) not in (2, 3) or not all(isinstance(s, int | np.integer) and s > 0 for s in shape):
        raise ValueError(
            f"image_shape must be (height, width) or (height, width, channels), positive integers; got {image_shape!r}."
        )
    height, width, channels = (*(int(s) for s in shape), 1)[:3]
    return height, width, channels


def as_rows(X: Any, shape: tuple[int, int, int]) -> NDArray:
    """Images (n, H * W * C), (n, H, W) or (n, H, W, C) as rows (n, H * W * C), without a copy where that is possible.

    Examples
    --------
    >>> as_rows(np.zeros((5, 8, 6)), (8, 6, 1)).shape
    (5, 48)
    >>> as_rows(np.zeros((5, 8, 6)), (8, 6, 3))
    Traceback (most recent call last):
    ValueError: X has shape (5, 8, 6), but images of 8 x 6 pixels with 3 channels have shape (n, 8, 6, 3) or (n, 144).
    """
    X = X if isinstance(X, np.memmap) else np.asarray(X)
    height, width, channels = shape
    layouts = [(height, width, channels), (height * width * channels,)]
    if channels == 1:
        layouts.insert(0, (height, width))
    if X.shape[1:] not in layouts or X.ndim < 2:
        wanted = " or ".join(f"(n, {', '.join(map(str, layout))})" for layout in layouts).replace(
            " or ", ", ", channels == 1
        )
        raise ValueError(
            f"X has shape {X.shape}, but images of {height} x {width} pixels with {channels} "
            f"channel{'s' if channels > 1 else ''} have shape {wanted}."
        )
    return X.reshape(len(X), height * width * channels)


@dataclass(frozen=True)
class ImageEncoder:
    """Turn images with missing pixels into ``values`` and ``observed``, and back into the user's layout and dtype.

    Attributes
    ----------
    shape : tuple of int
        Height, width, channels.
    layout : tuple of int
        Shape of one image as the user has it.
    dtype : str
        The training dtype.
    kind : {"boolean", "count", "numeric"}
        Pixels of two values, of levels (8-bit), or real numbers.
    offset, scale : float
        ``pixel = offset + scale * value``: values lie in [0, 1], or are standardised if the pixels are real numbers.
    low, high : float
        Smallest and largest pixel seen: nothing that is filled in lies beyond.
    max_level : int
        Largest level of a pixel.
    missing_values : float or None
        A pixel that also means "missing"; NaN always does.

    Examples
    --------
    >>> X = np.array([[[0, 128], [255, 64]]], dtype=np.uint8)
    >>> encoder = ImageEncoder.fit(X, (2, 2, 1))
    >>> values, observed, _ = encoder.encode(X)
    >>> values.round(2)
    array([[0.  , 0.5 , 1.  , 0.25]], dtype=float32)
    >>> encoder.fill(X, np.ones((1, 4)), observed & [False, False, False, True])
    array([[[  0, 128],
            [255, 255]]], dtype=uint8)
    """

    shape: tuple[int, int, int]
    layout: tuple[int, ...]
    dtype: str
    kind: str
    offset: float
    scale: float
    low: float
    high: float
    max_level: int
    missing_values: float | None = None

    @classmethod
    def fit(
        cls, X: NDArray, shape: tuple[int, int, int], *, kind: str | None = None, missing_values: Any = np.nan
    ) -> ImageEncoder:
        """Learn what the pixels are, in bounded memory.

        Parameters
        ----------
        X : ndarray of shape (n, H * W * C), (n, H, W) or (n, H, W, C)
        shape : tuple of int
            Height, width, channels.
        kind : str, optional
            Overrules what the pixels look like.
        missing_values : float, default=np.nan
        """
        missing = _missing(missing_values)
        rows = as_rows(X, shape)
        _check_dtype(rows)
        count, total, squares, low, high = 0, 0.0, 0.0, np.inf, -np.inf
        units: dict[float, bool] = dict.fromkeys(_UNITS, True)
        levels: set[float] = set()
        for part in row_slices(len(rows), rows.shape[1]):  # arrays need not fit in memory
            pixels, observed = _opened(rows[part], missing, part.start, X.shape)
            pixels = pixels[observed]
            count, total, squares = count + pixels.size, total + pixels.sum(), squares + np.square(pixels).sum()
            low, high = min(low, pixels.min(initial=np.inf)), max(high, pixels.max(initial=-np.inf))
            levels |= set(np.unique(pixels)[:3].tolist()) if len(levels) < 3 else set()
            for candidate in [u for u, fits in units.items() if fits]:
                in_units = pixels / candidate
                units[candidate] = bool(np.all(np.abs(in_units - np.round(in_units)) < 1e-3))
        if not count:
            raise ValueError("X has no observed pixel in any image: there is nothing to learn from.")
        unit = next((u for u, fits in units.items() if fits and low >= 0 and high / u <= 255), None)
        if kind is None:
            kind = "boolean" if len(levels) == 2 else "count" if unit is not None and high > low else "numeric"
        if kind == "boolean" and len(levels) > 2:
            raise ValueError("kinds='boolean' wants pixels of two values, but X has more.")
        if kind == "count" and unit is None:
            raise ValueError(
                "kinds='count' wants pixels of at most 256 levels from zero up (or these divided by the largest), "
                f"but X has other values between {low:g} and {high:g}."
            )
        max_level = 1
        if kind == "boolean":
            offset, scale = low, max(high - low, 1e-12)
        elif kind == "count" and unit is not None:
            top = round(high / unit)
            max_level = max(top, 1) if top <= 32 else 255
            offset, scale = 0.0, max_level * unit
        else:
            offset = total / count
            scale = float(np.sqrt(max(squares / count - offset**2, 0.0))) or 1.0
        plain = (float(offset), float(scale), float(low), float(high))
        return cls(shape, X.shape[1:], str(rows.dtype), kind, *plain, max_level, missing)

    def encode(self, X: NDArray) -> Encoded:
        """Values in single precision and which of them are observed, (n, D)."""
        rows = as_rows(X, self.shape)
        _check_dtype(rows)
        values, seen = np.empty(rows.shape, dtype=np.float32), np.empty(rows.shape, dtype=bool)
        for part in row_slices(len(rows), rows.shape[1]):  # arrays need not fit in memory
            pixels, observed = _opened(rows[part], self.missing_values, part.start, X.shape)
            if self.kind == "boolean" and (wrong := observed & (pixels != self.low) & (pixels != self.high)).any():
                i, j = np.argwhere(wrong)[0]
                raise ValueError(
                    f"X holds {pixels[i, j]:g} in image {part.start + i}, pixel {_place(j, X.shape)}, but pixels were "
                    f"{self.low:g} or {self.high:g} in fit."
                )
            scaled = np.clip((pixels - self.offset) / self.scale, -_FARTHEST, _FARTHEST)
            values[part], seen[part] = np.where(observed, scaled, 0), observed
        return Encoded(values, seen, np.broadcast_to(np.False_, seen.shape))

    def fill(self, X: NDArray, values: NDArray, rewritten: NDArray[np.bool_], *, rounded: bool = False) -> NDArray:
        """X with some of its pixels (n, D) decoded from ``values`` (n, D), in X's layout and dtype.

        Levels are always `rounded`, and shades never: it is here for what calls any encoder.
        """
        rows = as_rows(X, self.shape).copy()
        rows[rewritten] = self._decoded(values[rewritten], rows.dtype)
        return rows.reshape(X.shape)

    def build(self, values: NDArray, *, rounded: bool = False) -> NDArray:
        """New images from ``values`` (n, D), in the training layout and dtype; `rounded` as in `fill`."""
        return self._decoded(values, np.dtype(self.dtype)).reshape(len(values), *self.layout)

    @property
    def n_pixels(self) -> int:
        """Pixels times channels: columns."""
        return int(np.prod(self.shape))

    @property
    def names(self) -> list[str]:
        """Row and column of each pixel, and its channel if there are several."""
        height, width, channels = self.shape
        ends = [f", {c}]" for c in range(channels)] if channels > 1 else ["]"]
        return [f"[{i}, {j}{end}" for i in range(height) for j in range(width) for end in ends]

    @property
    def kinds(self) -> list[str]:
        """Kind of each pixel."""
        return [self.kind] * self.n_pixels

    @property
    def n_categories(self) -> list[int]:
        """Number of categories of each pixel, 0 for numbers."""
        return [2 if self.kind == "boolean" else 0] * self.n_pixels

    @property
    def is_numeric(self) -> NDArray[np.bool_]:
        """Which pixels are numbers, and not one of two values, (D,)."""
        return np.full(self.n_pixels, self.kind != "boolean")

    def log_jacobian(self, values: NDArray) -> NDArray:
        """``log |d value / d pixel|`` of each pixel: zero where the likelihood is a probability."""
        return np.full(values.shape, -np.log(self.scale) if self.kind == "numeric" else 0.0)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain Python values, ready for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> ImageEncoder:
        """The inverse of `to_json`."""
        return cls(**{**state, "shape": tuple(state["shape"]), "layout": tuple(state["layout"])})

    def _decoded(self, values: NDArray, dtype: np.dtype) -> NDArray:
        if self.kind == "boolean":
            pixels = np.where(np.asarray(values) > 0.5, self.high, self.low)
        else:
            pixels = np.clip(self.offset + self.scale * np.asarray(values, dtype=float), self.low, self.high)
        pixels = np.round(pixels) if dtype.kind in "iub" else pixels
        if self.missing_values is not None:  # what is filled in must not read as missing again
            step = self.scale / self.max_level if self.kind == "count" else 1e-6 * self.scale
            beside = self.missing_values + (step if self.missing_values < self.high else -step)
            pixels = np.where(pixels == self.missing_values, beside, pixels)
        return pixels.astype(dtype)


def bounded(X: NDArray, shape: tuple[int, int, int], seed: int, most: int = MOST_PIXELS) -> NDArray:
    """All images, or a random part of them, in their order, if so many would not fit in memory once encoded.

    Examples
    --------
    >>> bounded(np.zeros((5, 8, 6)), (8, 6, 1), 0).shape
    (5, 8, 6)
    """
    n = min(len(X), max(1, most // math.prod(shape)))
    return X if n == len(X) else X[np.sort(np.random.default_rng(seed).choice(len(X), n, replace=False))]


def _check_dtype(rows: NDArray) -> None:
    if rows.dtype.kind not in "biuf":
        raise TypeError(f"Pixels must be numbers, but X has dtype {rows.dtype}.")


def _opened(rows: NDArray, missing: float | None, first: int, shape: tuple[int, ...]) -> tuple[NDArray, NDArray]:
    """Pixels as floats, and which of them are observed."""
    pixels = rows.astype(float)
    observed = ~np.isnan(pixels) if missing is None else ~np.isnan(pixels) & (pixels != missing)
    if (wrong := np.isinf(pixels)).any():
        i, j = np.argwhere(wrong)[0]
        raise ValueError(f"X holds infinity in image {first + i}, pixel {_place(j, shape)}.")
    return pixels, observed


def _place(j: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Where the pixel of column j is in images of an array of this shape."""
    return tuple(int(w) for w in np.unravel_index(j, shape[1:]))


def _missing(value: Any) -> float | None:
    """The pixel that means "missing" besides NaN, if there is one."""
    if value is None or type(value).__name__ == "NAType":
        return None
    if not isinstance(value, Real):
        raise TypeError(f"missing_values={value!r} is no number, but pixels are.")
    return None if np.isnan(float(value)) else float(value)
