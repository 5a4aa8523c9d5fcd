"""The families of likelihoods of cells: Gaussian, discrete numbers, categories, ordered categories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch import distributions as dist

from vaeimpute.likelihoods.base import CellSpec, Likelihood
from vaeimpute.likelihoods.distributions import (
    DiscreteDistribution,
    by_category,
    draw_index,
    pick,
)

_IMPOSSIBLE = -1e4  # logit of a category that only pads a group: finite, so that no gradient is NaN
_FAR = 1e4  # cut point above a category that only pads a group: finite for the same reason
_MAX_VALUES = 32  # a number with at most so many values is decoded as classes over them
_MIN_PER_VALUE = 5  # ... if each value is seen so often on average


class Gaussian(Likelihood):
    """``N(x; mean, exp(log_scale)^2)`` with ``log_scale`` floored, for numbers without structure."""

    n_params = 2

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float) -> None:
        super().__init__()
        self.n_features = self.n_expectations = len(specs)
        self.log_scale_floor = log_scale_floor

    @classmethod
    def fit(cls, x: Tensor, n_categories: int) -> CellSpec:
        return CellSpec("gaussian")

    def forward(self, params: Tensor) -> dist.Distribution:
        mean, log_scale = params.unbind(-1)
        return dist.Normal(mean, log_scale.clamp(min=self.log_scale_floor).exp(), validate_args=False)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_scale = params.unbind(-1)
        noise = torch.empty_like(mean).normal_(generator=generator)
        return mean + log_scale.clamp(min=self.log_scale_floor).exp() * noise

    def features(self, values: Tensor) -> Tensor:
        return values

    def from_gaussian(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        return torch.stack([mean, log_scale.expand_as(mean)], -1)

    def gaussian_expectations(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        return mean

    def expectations(self, params: Tensor) -> Tensor:
        return params[..., 0]


class Discrete(Likelihood):
    """A number with few distinct values as classes over these values; its point estimate is their mean.

    The backbone's Gaussian gives the starting logits, ``-((v - mean) / scale)^2 / 2``.
    """

    grid: Tensor  # (C, N)
    cuts: Tensor  # (C, N - 1)
    mask: Tensor  # (C, N)
    step: Tensor  # (C,)

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float) -> None:
        super().__init__()
        self.n_features = self.n_expectations = len(specs)
        self.n_params = max(len(s.points) for s in specs)
        points, valid = _padded([s.points for s in specs])
        cuts, _ = _padded([s.edges for s in specs], fill=math.inf)
        self.register_buffer("grid", points, persistent=False)
        self.register_buffer("cuts", cuts, persistent=False)
        self.register_buffer("mask", torch.where(valid, 0.0, _IMPOSSIBLE), persistent=False)
        step = [min((b - a for a, b in pairwise(s.points)), default=1.0) for s in specs]
        self.register_buffer("step", torch.tensor(step, dtype=points.dtype), persistent=False)

    @classmethod
    def fit(cls, x: Tensor, n_categories: int) -> CellSpec:
        values = x.unique() if len(x) else x.new_zeros(1)
        cuts = (values[1:] + values[:-1]) / 2
        return CellSpec("discrete", tuple(values.tolist()), tuple(cuts.tolist()))

    def forward(self, params: Tensor) -> DiscreteDistribution:
        return DiscreteDistribution(params, self.grid, self.cuts, self.step)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        return self(params).sample(generator=generator)

    def features(self, values: Tensor) -> Tensor:
        return values

    def from_gaussian(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        standard = (self.grid - mean.unsqueeze(-1)) * torch.exp(-log_scale).unsqueeze(-1)
        return -0.5 * standard.square().clamp(max=-_IMPOSSIBLE) + self.mask

    def gaussian_expectations(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        # not the mean of the classes: a wide Gaussian would put weight on rare values far away
        highest = torch.where(self.mask == 0, self.grid, -torch.inf).amax(-1)
        return torch.minimum(torch.maximum(mean, self.grid[:, 0]), highest)

    def expectations(self, params: Tensor) -> Tensor:
        return (by_category(torch.softmax, params) * self.grid).sum(-1)


class _Categories(nn.Module):
    """The categories of a group of columns: as a padded table (C, N), and flat with the real ones only (A,)."""

    valid: Tensor  # (C, N)
    forth: Tensor  # (A,) position of each real category in the padded table
    back: Tensor  # (C * N,) position of each padded category among the real ones; A where there is none

    def __init__(self, valid: Tensor) -> None:
        super().__init__()
        forth = valid.flatten().nonzero().squeeze(-1)
        back = torch.full((valid.numel(),), len(forth)).index_put((forth,), torch.arange(len(forth)))
        self.n_flat = len(forth)
        for name, value in [("valid", valid), ("forth", forth), ("back", back)]:
            self.register_buffer(name, value, persistent=False)

    def one_hot(self, values: Tensor) -> Tensor:
        """Codes (..., C) to indicators (..., C, N)."""
        codes = torch.arange(self.valid.shape[1], device=values.device)
        return (values.unsqueeze(-1) == codes).to(values.dtype)

    def flat(self, padded: Tensor) -> Tensor:
        """(..., C, N) to (..., A)."""
        return padded.flatten(-2).index_select(-1, self.forth)

    def padded(self, flat: Tensor, fill: float = 0.0) -> Tensor:
        """(..., A) to (..., C, N)."""
        filled = nn.functional.pad(flat, (0, 1), value=fill)
        return filled.index_select(-1, self.back).unflatten(-1, self.valid.shape)

    def modes(self, probabilities: Tensor) -> Tensor:
        """Codes (..., C) of the most probable categories."""
        return self.padded(probabilities, fill=-1.0).argmax(-1).to(probabilities.dtype)

    def columns(self) -> Tensor:
        """Group-local column of each real category, (A,)."""
        return self.valid.cpu().nonzero()[:, 0]


class Categorical(Likelihood):
    """Classes without an order. The backbone predicts standardised indicators, whose mean is read as probabilities.

    A class with L categories enters as L features ``(1_l - p_l) / (sqrt(p_l (1 - p_l) + 1e-3) sqrt(L - 1))`` with noise
    floored at ``1 / (L - 1)``, so that a class weighs as much as a number, however many categories it has.
    """

    is_numeric = False
    frequency: Tensor  # (C, N)
    scale: Tensor  # (C, N)
    mask: Tensor  # (C, N)

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float) -> None:
        super().__init__()
        frequency, valid = _padded([s.points for s in specs])
        self.categories = _Categories(valid)
        self.n_params = frequency.shape[1]
        self.n_features = self.n_expectations = self.categories.n_flat
        n_categories = valid.sum(1, keepdim=True).clamp(min=2)
        scale = (frequency * (1 - frequency) + 1e-3).sqrt() * (n_categories - 1).sqrt()
        for name, value in [("frequency", frequency), ("scale", scale)]:
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("mask", torch.where(valid, 0.0, _IMPOSSIBLE), persistent=False)

    @classmethod
    def fit(cls, x: Tensor, n_categories: int) -> CellSpec:
        return CellSpec("categorical", tuple(_frequencies(x, n_categories).tolist()))

    def forward(self, params: Tensor) -> dist.Distribution:
        return dist.Categorical(logits=params + self.mask, validate_args=False)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        return draw_index(by_category(torch.log_softmax, params + self.mask), generator).to(params.dtype)

    def features(self, values: Tensor) -> Tensor:
        return self.categories.flat((self.categories.one_hot(values) - self.frequency) / self.scale)

    def from_gaussian(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        p = self.categories.padded(mean) * self.scale + self.frequency
        return (nn.functional.softplus(p, beta=20) + 1e-4).log() + self.mask

    def expectations(self, params: Tensor) -> Tensor:
        return self.categories.flat(by_category(torch.softmax, params + self.mask))

    def targets(self, values: Tensor) -> Tensor:
        return self.categories.flat(self.categories.one_hot(values))

    def point_estimates(self, expectations: Tensor) -> Tensor:
        return self.categories.modes(expectations)

    def feature_columns(self) -> Tensor:
        return self.categories.columns()

    def expectation_columns(self) -> Tensor:
        return self.categories.columns()

    def indicator_range(self) -> Tensor:
        no = -self.frequency / self.scale
        return torch.stack([self.categories.flat(no), self.categories.flat(no + 1 / self.scale)])

    def noise_floor(self) -> Tensor:
        n_categories = self.categories.valid.cpu().sum(1).clamp(min=2)
        return (1 / (n_categories - 1.0))[self.feature_columns()]


class Ordinal(Likelihood):
    """Ordered classes by a cumulative logit, ``P(x <= l) = sigmoid((c_l - loc) / scale)`` (McCullagh 1980).

    The cut points ``c_l`` reproduce the observed frequencies; location and scale come from the backbone and network.
    """

    n_params, is_numeric = 2, False
    scores: Tensor  # (C, N)
    cuts: Tensor  # (C, N - 1)

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float) -> None:
        super().__init__()
        scores, valid = _padded([s.points for s in specs])
        cuts, _ = _padded([s.edges for s in specs], fill=_FAR)
        self.categories = _Categories(valid)
        self.n_features, self.n_expectations = len(specs), self.categories.n_flat
        for name, value in [("scores", scores), ("cuts", cuts)]:
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def fit(cls, x: Tensor, n_categories: int) -> CellSpec:
        p = _frequencies(x, n_categories)
        upper = p.cumsum(0)
        scores = torch.logit(upper - p / 2)
        mean = (p * scores).sum()
        scale = (p * (scores - mean).square()).sum().sqrt().clamp(min=1e-6)
        cuts = torch.logit(upper[:-1].clamp(max=1 - 1e-9))
        return CellSpec("ordinal", tuple(((scores - mean) / scale).tolist()), tuple(((cuts - mean) / scale).tolist()))

    def forward(self, params: Tensor) -> dist.Distribution:
        return dist.Categorical(probs=self._probabilities(params), validate_args=False)

    def sample(self, params: Tensor, generator: torch.Generator) -> Tensor:
        return draw_index(self._probabilities(params).log(), generator).to(params.dtype)

    def features(self, values: Tensor) -> Tensor:
        index = values.long().clamp(0, self.scores.shape[1] - 1)
        return pick(self.scores.expand(*index.shape, -1), index)

    def from_gaussian(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        # a logistic of scale s has standard deviation s pi / sqrt 3
        return torch.stack([mean, log_scale.expand_as(mean) + math.log(math.sqrt(3) / math.pi)], -1)

    def expectations(self, params: Tensor) -> Tensor:
        return self.categories.flat(self._probabilities(params))

    def targets(self, values: Tensor) -> Tensor:
        return self.categories.flat(self.categories.one_hot(values))

    def point_estimates(self, expectations: Tensor) -> Tensor:
        return self.categories.modes(expectations)

    def expectation_columns(self) -> Tensor:
        return self.categories.columns()

    def _probabilities(self, params: Tensor) -> Tensor:
        loc, log_scale = params.unsqueeze(-2).unbind(-1)  # (..., C, 1)
        upper = torch.sigmoid((self.cuts - loc) * torch.exp(-log_scale.clamp(-4, 4)))
        upper = nn.functional.pad(upper, (0, 1), value=1.0)
        lower = nn.functional.pad(upper[..., :-1], (1, 0))
        return torch.where(self.categories.valid, (upper - lower).clamp(min=1e-7), 0)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "discrete": Discrete,
    "categorical": Categorical,
    "ordinal": Ordinal,
}


def is_discrete(x: Tensor) -> bool:
    """Whether a number has so few distinct values, each often enough, that they are decoded as classes."""
    n_values = len(x.unique())
    return 2 <= n_values <= min(_MAX_VALUES, len(x) // _MIN_PER_VALUE)


def _frequencies(x: Tensor, n_categories: int) -> Tensor:
    """Share of each category among the codes `x`, half a cell added to each."""
    count = torch.bincount(x.long(), minlength=max(n_categories, 1)).double() + 0.5
    return count / count.sum()


def _padded(rows: Sequence[Sequence[float]], fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rows of different length as one tensor, and which entries are real."""
    width = max(max(len(row) for row in rows), 1)
    padded = torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows], dtype=torch.float64)
    valid = torch.tensor([[i < len(row) for i in range(width)] for row in rows])
    return padded, valid
