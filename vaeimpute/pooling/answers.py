"""What the analyses of completed tables said, as arrays: estimates (m, p) and covariances (m, p, p)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd


def stack(given: Any, what: str, like: list[Hashable] | None = None) -> tuple[np.ndarray, list[Hashable] | None]:
    """Stack what is given for each draw, in the order of `like` or else of the first draw's names; and those names."""
    rows = [row for _, row in given.iterrows()] if isinstance(given, pd.DataFrame) else list(given)
    names = None
    if rows and all(isinstance(row, pd.Series | pd.DataFrame) for row in rows):
        names = list(rows[0].index) if like is None else like
        for number, row in enumerate(rows):
            if len(row.index) != len(names) or set(row.index) != set(names):
                raise ValueError(f"{what} of draw {number} are of {list(row.index)}; want {names}, as in the others.")
        rows = [row.loc[names] if isinstance(row, pd.Series) else row.loc[names, names] for row in rows]
    arrays = [np.asarray(row, dtype=float) for row in rows]
    for number, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise ValueError(
                f"{what} must have one shape, but have {arrays[0].shape} in draw 0 and {array.shape} in draw {number}."
            )
    return (np.stack(arrays) if arrays else np.empty(0)), names


def check_answers(q: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimates (m, p) and covariances (m, p, p), which are NaN off the diagonal where only variances are known."""
    if q.ndim not in (1, 2) or not q.size:
        raise ValueError(f"estimates must have shape (m,) or (m, p), but got {q.shape}.")
    if len(q) < 2:
        raise ValueError(f"want estimates from at least 2 completed tables, but got {len(q)}: pass n_imputations=20.")
    given, q = v.shape, q.reshape(len(q), -1)
    m, p = q.shape
    if len(v) == m and v.ndim < 3 and v.size == q.size:
        full = np.full((m, p, p), np.nan)
        full[:, range(p), range(p)] = v.reshape(m, p)
    elif given == (m, p, p):
        full = v
    else:
        raise ValueError(f"variances must have shape {(m, p)} or {(m, p, p)}, as the estimates, but got {given}.")
    for name, values in (("estimates", q), ("variances", v)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite, but are not in draw {np.argwhere(~np.isfinite(values))[0][0]}.")
    if (negative := np.argwhere(np.diagonal(full, axis1=1, axis2=2) < 0)).size:
        draw, parameter = negative[0]
        raise ValueError(f"variances must not be negative, but that of parameter {parameter} in draw {draw} is.")
    return q, full
