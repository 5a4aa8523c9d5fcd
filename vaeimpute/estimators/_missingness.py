"""Which columns are taken to hide themselves, as users name them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MECHANISMS = ("random", "self")


def self_masked_columns(missingness: str | dict, encoder: Any, has_missing: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Columns (D,) of numbers with missing cells that are asked to be "self".

    Parameters
    ----------
    missingness : {"random", "self"} or dict of column to these
    encoder : TableEncoder
    has_missing : bool ndarray of shape (D,)

    Raises
    ------
    ValueError
        If a column is unknown or one of classes, or a mechanism is unknown.
    """
    if isinstance(missingness, str):
        return encoder.is_numeric & has_missing & (missingness == "self")
    chosen, names = np.zeros(len(has_missing), dtype=bool), encoder.names
    for name, how in missingness.items():
        if name not in names:
            raise ValueError(f"missingness names {name!r}, which is no column of X; its columns are {names}.")
        if how not in MECHANISMS:
            raise ValueError(f"missingness[{name!r}] must be one of {MECHANISMS}, got {how!r}.")
        j = names.index(name)
        if how == "self" and not encoder.is_numeric[j]:
            raise ValueError(f"missingness[{name!r}] must be 'random': classes have no shape that tells a slope.")
        chosen[j] = how == "self"
    return chosen & has_missing
