"""Scales on which to pool: a function of the estimates, its inverse, its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

Transform = str | Sequence[Callable[[Any], Any]] | None


class Scale(NamedTuple):
    """Where to pool: a function of the estimates, its inverse, and its derivative."""

    to: Callable[[Any], Any]
    back: Callable[[Any], Any]
    slope: Callable[[Any], Any]


_ORIGINAL = Scale(lambda q: q, lambda q: q, np.ones_like)
_SCALES = {
    "log": Scale(np.log, np.exp, lambda q: 1 / q),
    "fisher": Scale(np.arctanh, np.tanh, lambda q: 1 / (1 - q**2)),
    "logit": Scale(special.logit, special.expit, lambda q: 1 / (q * (1 - q))),
}


def scale_of(transform: Transform) -> Scale:
    """Scale of this name, or made of these callables."""
    if transform is None:
        return _ORIGINAL
    if isinstance(transform, str) and transform in _SCALES:
        return _SCALES[transform]
    if isinstance(transform, str) or len(transform) not in (2, 3) or not all(map(callable, transform)):
        raise ValueError(
            f"transform must be one of {list(_SCALES)}, or (function, inverse) or (function, inverse, derivative), "
            f"but got {transform!r}."
        )
    to, back, *slope = transform
    return Scale(to, back, slope[0] if slope else lambda q: _derivative(to, q))


def _derivative(function: Callable[[Any], Any], q: np.ndarray) -> np.ndarray:
    step = np.cbrt(np.finfo(float).eps) * np.maximum(np.abs(q), 1e-3)
    return (function(q + step) - function(q - step)) / (2 * step)


def scaled(q: np.ndarray, scale: Scale, transform: Transform) -> np.ndarray:
    """Estimates (m, p) on the scale; an error where it does not take one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        z = scale.to(q)
    if (outside := np.argwhere(~np.isfinite(z))).size:
        draw, parameter = outside[0]
        raise ValueError(
            f"transform {transform!r} does not take the estimate {q[draw, parameter]} of parameter {parameter} in draw "
            f"{draw}. Pass estimates on the original scale: ratios, correlations, shares."
        )
    return z
