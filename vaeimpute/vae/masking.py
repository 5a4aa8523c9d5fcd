"""Which observed cells a step of the training hides."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def random_mask_of_half(observed: Tensor, generator: Generator, *, max_hidden: float) -> Tensor:
    """Hide each observed cell (..., B, D) in every second row of a batch, at the row's own rate ``U(0, max_hidden)``.

    Parameters
    ----------
    observed : Tensor of shape (..., B, D)
    generator : Generator
    max_hidden : float
        Largest share of a row's cells.
    """
    rate = max_hidden * _random(observed[..., :1], generator)
    rate[..., ::2, :] = 0
    return observed & (_random(observed, generator) >= rate)


def _random(like: Tensor, generator: Generator) -> Tensor:
    return torch.rand(like.shape, device=like.device, generator=generator)
