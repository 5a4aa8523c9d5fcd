"""Convolutional networks: an encoder of images with missing pixels, and a decoder. No distributions inside.

Any height and width: maps are halved upwards rounded, and come back to the size they had on the way down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from vaeimpute.vae.layers import has_fast_bfloat16, start_uniform

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


def widths_of(sizes: Sequence[tuple[int, int]], widths: Sequence[int]) -> list[int]:
    """Channels of each map; the last of `widths` goes for all further ones."""
    return [widths[min(i, len(widths) - 1)] for i in range(len(sizes))]


def convolution(n_in: int, n_out: int, size: int, init: Generator | None, *, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of its map, up to its stride; without a generator its weights are empty."""
    layer = nn.utils.skip_init(nn.Conv2d, n_in, n_out, size, stride=stride, padding=int(size > 1))
    start_uniform(layer, n_in * size**2, init)
    return layer


def dense(n_in: int, n_out: int, init: Generator | None) -> nn.Linear:
    """A dense layer; without a generator its weights are empty."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    start_uniform(layer, n_in, init)
    return layer


class Residual(nn.Module):
    """``x + conv(dropout(silu(norm(conv(silu(norm(x)))))))``, the second convolution zero at the start.

    Shape
    -----
    (B, width, H, W) to the same
    """

    def __init__(self, width: int, dropout: float, init: Generator | None) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(8, width), width) for _ in range(2))
        self.convolutions = nn.ModuleList(convolution(width, width, 3, init) for _ in range(2))
        self.dropout = dropout
        nn.init.zeros_(self.convolutions[1].get_parameter("weight"))

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Without a generator nothing is dropped."""
        h = F.silu(self.norms[1](self.convolutions[0](F.silu(self.norms[0](x)))))
        if generator is not None and self.dropout:
            h = h * (torch.empty_like(h).bernoulli_(1 - self.dropout, generator=generator) / (1 - self.dropout))
        return x + self.convolutions[1](h)


class ResidualBlocks(nn.ModuleList):
    """Residual blocks one after the other."""

    def __init__(self, depth: int, width: int, dropout: float, init: Generator | None) -> None:
        super().__init__(Residual(width, dropout, init) for _ in range(depth))

    def forward(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """Without a generator nothing is dropped."""
        for block in self:
            x = block(x, generator)
        return x


class ConvEncoder(nn.Module):
    """Encodes an image as maps from fine to coarse, and as one vector.

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
    init : Generator, optional
        Of the first weights.

    Shape
    -----
    (B, channels, H, W) to maps [(B, width, h, w), ...] and (B, hidden)
    """

    def __init__(
        self,
        height: int,
        width: int,
        channels: int,
        widths: Sequence[int],
        depth: int,
        hidden: int,
        dropout: float,
        init: Generator | None = None,
    ) -> None:
        super().__init__()
        step, sizes = stride(height, width), map_sizes(height, width)
        self.padding = (0, sizes[0][1] * step - width, 0, sizes[0][0] * step - height)
        self.stem = convolution(channels, widths[0], 3 if step == 1 else step + 2, init, stride=step)
        full = widths_of(sizes, widths)
        self.blocks = nn.ModuleList(ResidualBlocks(depth, w, dropout, init) for w in full)
        self.down = nn.ModuleList(convolution(a, b, 3, init, stride=2) for a, b in pairwise(full))
        self.narrow = convolution(full[-1], _NARROW, 1, init)
        n_bottom = _NARROW * sizes[-1][0] * sizes[-1][1]
        self.dense = nn.ModuleList([dense(n_bottom, hidden, init), dense(hidden, hidden, init)])

    def forward(self, x: Tensor, generator: Generator | None = None) -> tuple[list[Tensor], Tensor]:
        """Without a generator nothing is dropped."""
        x = self.stem(F.pad(x, self.padding).contiguous(memory_format=torch.channels_last))
        maps = [self.blocks[0](x, generator)]
        for down, blocks in zip(self.down, self.blocks[1:], strict=True):
            maps.append(blocks(down(maps[-1]), generator))
        h = F.silu(self.dense[0](F.silu(self.narrow(maps[-1])).flatten(1)))
        return maps, h + F.silu(self.dense[1](h))


class ConvDecoder(nn.Module):
    """Decodes an image from a vector, and from the maps of a `ConvEncoder` if there are skip connections.

    Parameters
    ----------
    height, width, channels : int
        Of the output.
    n_in : int
        Length of the vector.
    widths, depth, dropout, init
        As of the `ConvEncoder`.
    skip_connections : bool
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
        init: Generator | None = None,
        *,
        skip_connections: bool,
    ) -> None:
        super().__init__()
        self.size, self.step, self.sizes = (height, width), stride(height, width), map_sizes(height, width)
        self.skip_connections = skip_connections
        full = widths_of(self.sizes, widths)[::-1]
        h, w = self.sizes[-1]
        self.dense = dense(n_in, _NARROW * h * w, init)
        self.widen = convolution(_NARROW, full[0], 1, init)
        self.blocks = nn.ModuleList(ResidualBlocks(depth, c, dropout, init) for c in full)
        self.up = nn.ModuleList(convolution(a, b, 3, init) for a, b in pairwise(full))
        self.merge = nn.ModuleList(convolution(2 * c, c, 1, init) for c in full[1:]) if skip_connections else None
        self.head = convolution(full[-1], channels * self.step**2, 3, init)

    def forward(self, vector: Tensor, maps: Sequence[Tensor] = (), generator: Generator | None = None) -> Tensor:
        """Without a generator nothing is dropped."""
        x = self.widen(self.dense(vector).unflatten(1, (_NARROW, *self.sizes[-1])))
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.blocks[0](x + maps[-1] if self.skip_connections else x, generator)
        for i, (up, blocks) in enumerate(zip(self.up, self.blocks[1:], strict=True)):
            x = up(F.interpolate(x, size=self.sizes[-2 - i], mode="nearest"))
            if self.merge is not None:
                x = self.merge[i](torch.cat([x, maps[-2 - i]], 1))
            x = blocks(x, generator)
        return F.pixel_shuffle(self.head(F.silu(x)), self.step)[..., : self.size[0], : self.size[1]]


def autocast_bf16(module: nn.Module, x: Tensor) -> torch.autocast:
    """Products in bfloat16 while `module` trains on hardware that has them; full precision otherwise."""
    low = module.training and x.dtype == torch.float32 and has_fast_bfloat16(x.device)
    return torch.autocast(x.device.type, torch.bfloat16, enabled=low)
