"""Convolutional networks: what sees an image with holes, and what paints one. No distributions inside.

Any height and width: maps are halved upwards rounded, and come back to the size they had on the way down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaeimpute.vae.layers import has_fast_bfloat16

_BOTTOM = 8  # pixels: the largest side of the smallest map, all of which a dense layer sees at once
_NARROW = 32  # channels of that map on the way to the dense layer


def stride(height: int, width: int) -> int:
    """Side of the square of pixels that the first layer makes one place of its map."""
    side = max(height, width)
    return 1 if side <= 16 else 2 if side <= 40 else 4


def map_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of the maps from the largest to the smallest.

    Examples
    --------
    >>> map_sizes(28, 28), map_sizes(128, 100)
    ([(14, 14), (7, 7)], [(32, 25), (16, 13), (8, 7)])
    """
    sizes = [(-(-height // stride(height, width)), -(-width // stride(height, width)))]
    while max(sizes[-1]) > _BOTTOM:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


class Residual(nn.Module):
    """``x + conv(dropout(silu(norm(conv(silu(norm(x)))))))``, the second convolution zero at the start.

    Shape
    -----
    (B, width, H, W) to the same
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(8, width), width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.dropout = dropout
        nn.init.zeros_(self.convolutions[1].get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        h = self.convolutions[0](F.silu(self.norms[0](x)))
        return x + self.convolutions[1](F.dropout(F.silu(self.norms[1](h)), self.dropout, self.training))


class Seer(nn.Module):
    """Sees an image: maps from fine to coarse, and one vector of what is in it.

    Parameters
    ----------
    height, width, channels : int
        Of the input.
    widths : sequence of int
        Channels of each map; the last goes for all further ones.
    depth : int
        Residual blocks at each size.
    hidden : int
        Length of the vector.
    dropout : float

    Shape
    -----
    (B, channels, H, W) to maps [(B, width, h, w), ...] and (B, hidden)
    """

    def __init__(
        self, height: int, width: int, channels: int, widths: Sequence[int], depth: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        step, sizes = stride(height, width), map_sizes(height, width)
        self.padding = (0, sizes[0][1] * step - width, 0, sizes[0][0] * step - height)
        self.stem = nn.Conv2d(channels, widths[0], 3 if step == 1 else step + 2, step, padding=1)
        full = [widths[min(i, len(widths) - 1)] for i in range(len(sizes))]
        self.blocks = nn.ModuleList(nn.Sequential(*(Residual(w, dropout) for _ in range(depth))) for w in full)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, 2, padding=1) for a, b in pairwise(full))
        self.narrow = nn.Conv2d(full[-1], _NARROW, 1)
        self.dense = nn.ModuleList(
            [nn.Linear(_NARROW * sizes[-1][0] * sizes[-1][1], hidden), nn.Linear(hidden, hidden)]
        )

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = self.stem(F.pad(x, self.padding).contiguous(memory_format=torch.channels_last))
        maps = [self.blocks[0](x)]
        for down, blocks in zip(self.down, self.blocks[1:], strict=True):
            maps.append(blocks(down(maps[-1])))
        h = F.silu(self.dense[0](F.silu(self.narrow(maps[-1])).flatten(1)))
        return maps, h + F.silu(self.dense[1](h))


class Painter(nn.Module):
    """Paints an image from a vector, and from what a `Seer` saw of it if that is given.

    Parameters
    ----------
    height, width, channels : int
        Of the output.
    n_in : int
        Length of the vector.
    widths, depth, dropout
        As of the `Seer`.
    sees : bool
        Whether maps will be given.

    Shape
    -----
    (B, n_in) and maps to (B, channels, H, W)
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        n_in: int,
        widths: Sequence[int],
        depth: int,
        dropout: float,
        sees: bool,
    ) -> None:
        super().__init__()
        self.size, self.step, self.sizes, self.sees = (
            (height, width),
            stride(height, width),
            map_sizes(height, width),
            sees,
        )
        full = [widths[min(i, len(widths) - 1)] for i in range(len(self.sizes))][::-1]
        h, w = self.sizes[-1]
        self.dense = nn.Linear(n_in, _NARROW * h * w)
        self.widen = nn.Conv2d(_NARROW, full[0], 1)
        self.blocks = nn.ModuleList(nn.Sequential(*(Residual(c, dropout) for _ in range(depth))) for c in full)
        self.up = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(full))
        self.merge = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in full[1:]) if sees else None
        self.head = nn.Conv2d(full[-1], channels * self.step**2, 3, padding=1)

    def forward(self, vector: Tensor, maps: Sequence[Tensor] = ()) -> Tensor:
        x = self.widen(self.dense(vector).unflatten(1, (_NARROW, *self.sizes[-1])))
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.blocks[0](x + maps[-1] if self.sees else x)
        for i, (up, blocks) in enumerate(zip(self.up, self.blocks[1:], strict=True)):
            x = up(F.interpolate(x, size=self.sizes[-2 - i], mode="nearest"))
            if self.merge is not None:
                x = self.merge[i](torch.cat([x, maps[-2 - i]], 1))
            x = blocks(x)
        return F.pixel_shuffle(self.head(F.silu(x)), self.step)[..., : self.size[0], : self.size[1]]


def lowered(module: nn.Module, x: Tensor) -> torch.autocast:
    """Products in bfloat16 while `module` trains on hardware that has them; full precision otherwise."""
    low = module.training and x.dtype == torch.float32 and has_fast_bfloat16(x.device)
    return torch.autocast(x.device.type, torch.bfloat16, enabled=low)
