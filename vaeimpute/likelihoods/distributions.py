"""The two distributions that PyTorch lacks: over a few numbers, and a histogram beside a Gaussian."""

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
_OUTSIDE = -1e4  # log-density of the histogram beyond its bins: finite, so that no gradient is NaN


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
        return pick(self.logits, index) - (_BESIDE * beside.square()).clamp(max=-_OUTSIDE)

    def cdf(self, value: Tensor) -> Tensor:
        return (self.logits.exp() * (self.points <= value.unsqueeze(-1))).sum(-1)

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        index = draw_index(self.logits.expand(*sample_shape, *self.logits.shape), generator)
        return pick(self.points.expand(*index.shape, -1), index)


class HistogramMixture(dist.Distribution):
    """Mixture of a Gaussian and a histogram over bins with inner `edges` (C, N - 1), mean `points`, `low` and `width`.

    Nothing lies above `high` (C,).
    """

    def __init__(
        self, params: Tensor, points: Tensor, edges: Tensor, low: Tensor, width: Tensor, high: Tensor, floor: float
    ) -> None:
        self.loc, self.log_scale, gate = params[..., 0], params[..., 1].clamp(min=floor), params[..., 2]
        self.log_share = torch.nn.functional.logsigmoid(gate)  # of the histogram
        self.log_rest = torch.nn.functional.logsigmoid(-gate)
        self.logits = params[..., 3:].log_softmax(-1)
        self.points, self.edges, self.low, self.width, self.high = points, edges, low, width, high
        super().__init__(params.shape[:-1], validate_args=False)

    @property
    def mean(self) -> Tensor:
        share = self.log_share.exp()
        return (1 - share) * self.loc + share * (self.logits.exp() * self.points).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        index = bin_of(value, self.edges)
        log_density = pick(self.logits, index) - pick(self.width.log().expand(*index.shape, -1), index)
        inside = (value >= self.low[:, 0]) & (value <= self.high)
        log_density = torch.where(inside, log_density, _OUTSIDE)
        log_normal = normal_log_density(value, self.loc, self.log_scale)
        return torch.logaddexp(self.log_rest + log_normal, self.log_share + log_density)

    def cdf(self, value: Tensor) -> Tensor:
        """Of what `sample` draws."""
        t = ((self.points - self.low) / self.width).clamp(0, 1)  # the bin's mean, from 0 to 1
        place = ((value.unsqueeze(-1) - self.low) / self.width).clamp(0, 1)
        above = 1 - t * (1 - place) / (1 - t).clamp(min=1e-6)  # with probability t, uniform between t and 1
        inside = torch.where(place < t, (1 - t) * place / t.clamp(min=1e-6), above)
        of_bins = (self.logits.exp() * inside).sum(-1)
        of_normal = torch.special.ndtr((value - self.loc) * torch.exp(-self.log_scale))
        return self.log_rest.exp() * of_normal + self.log_share.exp() * of_bins

    @torch.no_grad()
    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        index = draw_index(self.logits.expand(*sample_shape, *self.logits.shape), generator)
        low, width, point = (pick(t.expand(*index.shape, -1), index) for t in (self.low, self.width, self.points))

        def uniform() -> Tensor:
            return torch.empty_like(low).uniform_(generator=generator)

        # Uniform on either side of the bin's mean, which so stays the mean of the draws.
        t, u = ((point - low) / width).clamp(0, 1), uniform()
        from_bin = low + width * torch.where(uniform() < t, t + (1 - t) * u, t * u)
        normal = self.loc + self.log_scale.exp() * torch.empty_like(low).normal_(generator=generator)
        return torch.where(uniform() < self.log_share.exp(), from_bin, normal)


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
