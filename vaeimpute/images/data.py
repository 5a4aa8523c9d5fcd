"""Images as tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Images(NamedTuple):
    """Images as tensors: values and observed (n, D), what a pixel is, and its largest level."""

    values: Tensor
    observed: Tensor
    shape: tuple[int, int, int]
    kind: str
    max_level: int
