"""Biharmonic inpainting, the smoothest image through some of its pixels: where the conditional model starts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_STEPS = 20  # of the descent; more change nothing on scattered pixels
_RATE = 1 / 64  # below it the descent is stable: the squared Laplacian's largest eigenvalue is 64


@torch.no_grad()
def inpaint(values: Tensor, observed: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Fill hidden pixels so that the squared Laplacian, summed over the image, is small.

    Biharmonic inpainting (Damelin and Hoang 2018) by accelerated gradient descent, from averages over ever larger
    squares.

    Parameters
    ----------
    values, observed : Tensor of shape (B, D)
        Pixels, and which of them are observed.
    shape : tuple of int
        Height, width, channels.

    Returns
    -------
    Tensor of shape (B, C, H, W)
    """
    x, known = (part.unflatten(1, shape).permute(0, 3, 1, 2) for part in (values, observed.to(values.dtype)))
    h = _averages(x * known, known)
    hidden, velocity = 1 - known, torch.zeros_like(h)
    for i in range(_STEPS):
        velocity = i / (i + 3) * velocity - _RATE * _laplacian(_laplacian(h)) * hidden
        h = h + velocity
    return h


def _averages(x: Tensor, observed: Tensor) -> Tensor:
    """Hidden pixels from the smallest squares around them that have observed ones; zero if there is none at all."""
    height, width = x.shape[-2:]
    if height == width == 1:
        return x
    even = (0, width % 2, 0, height % 2)
    weight = F.avg_pool2d(F.pad(observed, even), 2)
    known = (weight > 0).to(x)
    coarse = _averages(F.avg_pool2d(F.pad(x, even), 2) / weight.clamp(min=0.25) * known, known)
    size = (height + height % 2, width + width % 2)
    fine = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[..., :height, :width]
    return torch.where(observed > 0, x, fine)


def _laplacian(x: Tensor) -> Tensor:
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:] - 4 * x
