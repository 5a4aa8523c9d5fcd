"""The distribution that PyTorch lacks, over a few numbers, and what categories of several columns need."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributions as dist

_LOG_2PI = math.log(2 * math.pi)
_FEW = 8  # numbers in a row
_BESIDE = 8.0  # nats by which a value is less likely that is one step from the nearest one
_MOST = 1e4  # that log-probability falls by, however far: finite, so that no gradient is NaN


def normal_log_density(x: Tensor, mean: Tensor | float = 0.0, log_scale: Tensor | float = 0.0) -> Tensor:
    """Log-density of independent Gaussians, per element."""
    log_scale = torch.as_tensor(log_scale, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - mean) * torch.exp(-log_scale)).square() - log_scale - 0.5 * _LOG_2PI


class DiscreteDistribution(dist.Distribution):
    """Distribution over the values ``points`` (C, N), at least `step` (C,) apart, with `logits` (..., C, N).

    A value beside them has the probability of the nearest, and less the farther it is from it.
    """

    def __init__(self, logits: Tensor, points: Tensor, cuts: Tensor, step: Tensor) -> None:
        self.logits = by_category(torch.log_softmax, logits)
        self.points, self.cuts, self.step = points, cuts, step
        super().__init__(logits.shape[:-1], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return (self.logits.exp() * self.points).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        index = bin_of(value, self.cuts)
        beside = (value - pick(self.points.expand(*index.shape, -1), index)) / self.step
        return pick(self.logits, index) - (_BESIDE * beside.square()).clamp(max=_MOST)

    def cdf(self, value: Tensor) -> Tensor:
        return (self.logits.exp() * (self.points <= value.unsqueeze(-1))).sum(-1)

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        index = draw_index(self.logits.expand(*sample_shape, *self.logits.shape), generator)
        return pick(self.points.expand(*index.shape, -1), index)


def bin_of(values: Tensor, cuts: Tensor) -> Tensor:
    """Index of the bin of each value (..., C) among sorted inner edges (C, N - 1)."""
    flat = values.reshape(-1, values.shape[-1]).T.contiguous()
    return torch.searchsorted(cuts.to(values.dtype).contiguous(), flat, right=True).T.reshape(values.shape)


def pick(table: Tensor, index: Tensor) -> Tensor:
    """Entry of `table` (..., N) at each `index` (...); leading dimensions broadcast."""
    shape = torch.broadcast_shapes(table.shape[:-1], index.shape)
    return table.expand(*shape, -1).gather(-1, index.expand(shape).unsqueeze(-1)).squeeze(-1)


def draw_index(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One index (...) from each row of normalised `logits` (..., N): where a uniform number falls.

    Several times as fast as PyTorch's own, which draws N numbers for each.
    """
    cumulated = logits.exp().cumsum(-1)
    u = torch.empty_like(cumulated[..., :1]).uniform_(generator=generator) * cumulated[..., -1:]
    return torch.searchsorted(cumulated, u, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def by_category(function: Callable[[Tensor, int], Tensor], logits: Tensor) -> Tensor:
    """`function` (a softmax) along the last axis (..., N); PyTorch is slow there when N is small."""
    if logits.shape[-1] > _FEW:
        return function(logits, -1)
    return function(logits.movedim(-1, 0).contiguous(), 0).movedim(0, -1)
