"""Which pixels a step of the training hides: scattered ones, or a rectangle."""

from __future__ import annotations

import torch
from torch import Generator, Tensor


def random_mask(observed: Tensor, shape: tuple[int, int, int], generator: Generator) -> Tensor:
    """Pixels that stay visible, (1, B, D): hidden ones are scattered in half of the images, else a rectangle.

    Scattered pixels go at the image's own rate U(0, 1); a rectangle has sides of a fifth to four fifths of the image's.
    A pixel goes with all its channels.

    Parameters
    ----------
    observed : bool Tensor of shape (1, B, D)
    shape : tuple of int
        Height, width, channels.
    generator : Generator
    """
    height, width, channels = shape
    n, device = observed.shape[1], observed.device
    uniform = torch.rand(n, 6, device=device, generator=generator)
    scattered = torch.rand(n, height, width, device=device, generator=generator) >= uniform[:, :1, None]
    inside = _interval(uniform[:, 1], uniform[:, 2], height).unsqueeze(2) & _interval(
        uniform[:, 3], uniform[:, 4], width
    ).unsqueeze(1)
    visible = torch.where(uniform[:, 5, None, None] < 0.5, scattered, ~inside)
    return observed & visible.unsqueeze(-1).expand(-1, -1, -1, channels).flatten(1).unsqueeze(0)


def _interval(length: Tensor, place: Tensor, size: int) -> Tensor:
    """Positions (n, size) inside of an interval of a fifth to four fifths of them."""
    length = size * (0.2 + 0.6 * length)
    start = place * (size - length)
    position = torch.arange(size, device=length.device) + 0.5
    return (position >= start.unsqueeze(1)) & (position < (start + length).unsqueeze(1))


def observed_fraction(observed: Tensor, shape: tuple[int, int, int], n_regions: int = 4) -> Tensor:
    """Share of observed pixels in each region of an image, (n, regions): what stands for the mask."""
    as_images = observed.float().unflatten(1, shape).mean(-1).unsqueeze(1)
    regions = (min(n_regions, shape[0]), min(n_regions, shape[1]))
    return torch.nn.functional.adaptive_avg_pool2d(as_images, regions).flatten(1)
