"""Likelihoods ``p(x | theta)`` of cells: one class per family.

A family says four things about a group of its columns: how a cell enters the linear backbone (``features``), which
parameters the backbone's prediction of these features stands for (``base``), which distribution a row of parameters
is (``forward``), and what to average when several draws answer for one cell (``answers``, ``points``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch import distributions as dist

from vaeimpute.likelihoods.distributions import HistogramMixture, LevelDistribution, by_level, pick

_IMPOSSIBLE = -1e4  # logit of a level that only pads a group: finite, so that no gradient is NaN
_FAR = 1e4  # cut point above a level that only pads a group: finite for the same reason
_MAX_LEVELS = 32  # a number with at most so many values is decoded as classes over them
_MIN_PER_LEVEL = 5  # ... if each value is seen so often on average


@dataclass(frozen=True)
class CellSpec:
    """What a family learnt about one column, in plain numbers (JSON in and out).

    Attributes
    ----------
    family : str
        Key of ``LIKELIHOODS``.
    points : tuple of float
        Class frequencies, values of the levels, or the mean of each histogram bin.
    edges : tuple of float
        Cut points between levels, or edges of the histogram bins.
    """

    family: str
    points: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()


class Likelihood(nn.Module, ABC):
    """The likelihood of a group of C columns of one family; subclasses are final.

    Shape letters: C columns of the group, N levels or bins (padded to the widest column), P parameters per column.
    """

    n_params: int
    n_features: int  # of the whole group
    n_answers: int  # of the whole group
    numeric: bool  # whether the features are numbers on a line, one per column
    measured: bool = True  # whether the cells are numbers, and not codes of classes

    @classmethod
    @abstractmethod
    def fit(cls, x: Tensor, n_levels: int) -> CellSpec:
        """Learn the specification of a column from its observed cells `x` (n,)."""

    @abstractmethod
    def forward(self, params: Tensor) -> dist.Distribution:
        """Distributions of shape (..., C) for parameters (..., C, P)."""

    @abstractmethod
    def features(self, values: Tensor) -> Tensor:
        """What the linear backbone sees: (..., C) to (..., n_features)."""

    @abstractmethod
    def base(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Parameters (..., C, P) that say the same as a Gaussian prediction (..., n_features) of the features."""

    @abstractmethod
    def answers(self, params: Tensor) -> Tensor:
        """Expected value or class probabilities: (..., C, P) to (..., n_answers); linear to average over draws."""

    def targets(self, values: Tensor) -> Tensor:
        """Answer of an oracle that knows the cells: (..., C) to (..., n_answers)."""
        return values

    def points(self, answers: Tensor) -> Tensor:
        """Cells (..., C) from averaged answers (..., n_answers)."""
        return answers

    def feature_columns(self) -> Tensor:
        """Group-local column of each feature, (n_features,)."""
        return torch.arange(self.n_features)

    def answer_columns(self) -> Tensor:
        """Group-local column of each answer, (n_answers,)."""
        return torch.arange(self.n_answers)

    def noise_floor(self) -> Tensor:
        """Smallest noise variance of each feature in the linear backbone, (n_features,)."""
        return torch.zeros(self.n_features)


class Gaussian(Likelihood):
    """``N(x; mean, exp(log_scale)^2)`` with ``log_scale`` floored, for numbers without structure."""

    n_params, numeric = 2, True

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float) -> None:
        super().__init__()
        self.n_features = self.n_answers = len(specs)
        self.log_scale_floor = log_scale_floor

    @classmethod
    def fit(cls, x: Tensor, n_levels: int) -> CellSpec:
        return CellSpec("gaussian")

    def forward(self, params: Tensor) -> dist.Distribution:
        mean, log_scale = params.unbind(-1)
        return dist.Normal(mean, log_scale.clamp(min=self.log_scale_floor).exp(), validate_args=False)

    def features(self, values: Tensor) -> Tensor:
        return values

    def base(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        return torch.stack([mean, log_scale.expand_as(mean)], -1)

    def answers(self, params: Tensor) -> Tensor:
        return params[..., 0]


class Levels(Likelihood):
    """A number with few distinct values as classes over these values; the answer is their mean.

    The backbone's Gaussian gives the starting logits, ``-((v - mean) / scale)^2 / 2``.
    """

    numeric = True
    grid: Tensor  # (C, N)
    cuts: Tensor  # (C, N - 1)
    mask: Tensor  # (C, N)
    step: Tensor  # (C,)

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float) -> None:
        super().__init__()
        self.n_features = self.n_answers = len(specs)
        self.n_params = max(len(s.points) for s in specs)
        points, valid = _padded([s.points for s in specs])
        cuts, _ = _padded([s.edges for s in specs], fill=math.inf)
        self.register_buffer("grid", points, persistent=False)
        self.register_buffer("cuts", cuts, persistent=False)
        self.register_buffer("mask", torch.where(valid, 0.0, _IMPOSSIBLE), persistent=False)
        step = [min((b - a for a, b in pairwise(s.points)), default=1.0) for s in specs]
        self.register_buffer("step", torch.tensor(step, dtype=points.dtype), persistent=False)

    @classmethod
    def fit(cls, x: Tensor, n_levels: int) -> CellSpec:
        levels = x.unique() if len(x) else x.new_zeros(1)
        cuts = (levels[1:] + levels[:-1]) / 2
        return CellSpec("levels", tuple(levels.tolist()), tuple(cuts.tolist()))

    def forward(self, params: Tensor) -> dist.Distribution:
        return LevelDistribution(params, self.grid, self.cuts, self.step)

    def features(self, values: Tensor) -> Tensor:
        return values

    def base(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        standard = (self.grid - mean.unsqueeze(-1)) * torch.exp(-log_scale).unsqueeze(-1)
        return -0.5 * standard.square().clamp(max=-_IMPOSSIBLE) + self.mask

    def answers(self, params: Tensor) -> Tensor:
        return (by_level(torch.softmax, params) * self.grid).sum(-1)


class Histogram(Likelihood):
    """A number as a mixture of a Gaussian and a histogram over its quantiles; values that repeat get a bin each.

    Near-deterministic columns need the Gaussian, spiky and stepped ones the histogram. Parameters: mean, log scale,
    logit of the histogram's share, N logits. The answer is the mean of the mixture.
    """

    numeric = True
    n_bins, common = 32, 0.03
    grid: Tensor  # (C, N)
    edges: Tensor  # (C, N - 1)
    low: Tensor  # (C, N)
    width: Tensor  # (C, N)
    high: Tensor  # (C,)
    mask: Tensor  # (C, N)
    _start_logit = -2.0

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float) -> None:
        super().__init__()
        self.n_features = self.n_answers = len(specs)
        self.log_scale_floor = log_scale_floor
        grid, valid = _padded([s.points for s in specs])
        edges, _ = _padded([s.edges[1:-1] for s in specs], fill=math.inf)
        low, _ = _padded([s.edges[:-1] for s in specs])
        high, _ = _padded([s.edges[1:] for s in specs], fill=1.0)
        self.n_params = 3 + grid.shape[1]
        for name, value in [("grid", grid), ("edges", edges), ("low", low), ("width", (high - low).clamp(min=1e-6))]:
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("high", torch.tensor([s.edges[-1] for s in specs], dtype=torch.float64), persistent=False)
        self.register_buffer("mask", torch.where(valid, 0.0, _IMPOSSIBLE), persistent=False)

    @classmethod
    def fit(cls, x: Tensor, n_levels: int) -> CellSpec:
        x = x if len(x) else x.new_zeros(1)
        levels, count = x.unique(return_counts=True)
        n_bins = min(cls.n_bins, max(4, len(x) // 20))
        atoms = levels[count > max(cls.common * len(x), 2)]
        # Wide enough for single precision; other numbers may share an atom's bin, two atoms may not.
        half = min(atoms.diff().min().item() / 3, 1e-3) if len(atoms) > 1 else 1e-3
        rest = x[~torch.isin(x, atoms)]
        parts = [atoms - half, atoms + half]
        if len(rest):
            parts.append(torch.quantile(rest[:: max(1, len(rest) // 100_000)], torch.linspace(0, 1, n_bins + 1).to(x)))
        edges = torch.cat(parts).unique()
        # a quantile inside an atom's own little bin would split it
        inside = ((edges.unsqueeze(1) > atoms - half) & (edges.unsqueeze(1) < atoms + half)).any(1)
        edges = edges[~inside]
        if len(edges) < 2:
            edges = torch.stack([levels[0] - half, levels[-1] + half])
        index = torch.bucketize(x, edges[1:-1].contiguous(), right=True)
        n_cells = torch.bincount(index, minlength=len(edges) - 1)
        total = torch.zeros_like(edges[1:]).index_add_(0, index, x)
        points = torch.where(n_cells > 0, total / n_cells.clamp(min=1), (edges[1:] + edges[:-1]) / 2)
        return CellSpec("histogram", tuple(points.tolist()), tuple(edges.tolist()))

    def forward(self, params: Tensor) -> dist.Distribution:
        return HistogramMixture(params, self.grid, self.edges, self.low, self.width, self.high, self.log_scale_floor)

    def features(self, values: Tensor) -> Tensor:
        return values

    def base(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        # the Gaussian's own mass in each bin, the end bins open
        edges = self.edges[:, : self.grid.shape[1] - 1].clamp(max=1e8)
        below = torch.special.ndtr((edges - mean.unsqueeze(-1)) * torch.exp(-log_scale).unsqueeze(-1))
        mass = nn.functional.pad(nn.functional.pad(below, (0, 1), value=1.0), (1, 0)).diff(dim=-1)
        gate = torch.full_like(mean, self._start_logit)
        head = torch.stack([mean, log_scale.expand_as(mean), gate], -1)
        return torch.cat([head, mass.clamp(min=1e-6).log() + self.mask], -1)

    def answers(self, params: Tensor) -> Tensor:
        return self(params).mean


class _Classes(nn.Module):
    """The levels of a group of class columns: as a padded table (C, N), and flat with the real ones only (A,)."""

    valid: Tensor  # (C, N)
    forth: Tensor  # (A,) position of each real level in the padded table
    back: Tensor  # (C * N,) position of each padded level among the real ones; A where there is none

    def __init__(self, valid: Tensor) -> None:
        super().__init__()
        forth = valid.flatten().nonzero().squeeze(-1)
        back = torch.full((valid.numel(),), len(forth)).index_put((forth,), torch.arange(len(forth)))
        self.n_flat = len(forth)
        for name, value in [("valid", valid), ("forth", forth), ("back", back)]:
            self.register_buffer(name, value, persistent=False)

    def one_hot(self, values: Tensor) -> Tensor:
        """Codes (..., C) to indicators (..., C, N)."""
        levels = torch.arange(self.valid.shape[1], device=values.device)
        return (values.unsqueeze(-1) == levels).to(values.dtype)

    def flat(self, padded: Tensor) -> Tensor:
        """(..., C, N) to (..., A)."""
        return padded.flatten(-2).index_select(-1, self.forth)

    def padded(self, flat: Tensor, fill: float = 0.0) -> Tensor:
        """(..., A) to (..., C, N)."""
        filled = nn.functional.pad(flat, (0, 1), value=fill)
        return filled.index_select(-1, self.back).unflatten(-1, self.valid.shape)

    def modes(self, answers: Tensor) -> Tensor:
        """Codes (..., C) of the most probable levels."""
        return self.padded(answers, fill=-1.0).argmax(-1).to(answers.dtype)

    def columns(self) -> Tensor:
        """Group-local column of each real level, (A,)."""
        return self.valid.cpu().nonzero()[:, 0]


class Categorical(Likelihood):
    """Classes without an order. The backbone predicts standardised indicators, whose mean is read as probabilities.

    A class with L levels enters as L features ``(1_l - p_l) / (sqrt(p_l (1 - p_l) + 1e-3) sqrt(L - 1))`` with noise
    floored at ``1 / (L - 1)``, so that a class weighs as much as a number, however many levels it has.
    """

    numeric = measured = False
    frequency: Tensor  # (C, N)
    scale: Tensor  # (C, N)
    mask: Tensor  # (C, N)

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float) -> None:
        super().__init__()
        frequency, valid = _padded([s.points for s in specs])
        self.classes = _Classes(valid)
        self.n_params = frequency.shape[1]
        self.n_features = self.n_answers = self.classes.n_flat
        levels = valid.sum(1, keepdim=True).clamp(min=2)
        scale = (frequency * (1 - frequency) + 1e-3).sqrt() * (levels - 1).sqrt()
        for name, value in [("frequency", frequency), ("scale", scale)]:
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("mask", torch.where(valid, 0.0, _IMPOSSIBLE), persistent=False)

    @classmethod
    def fit(cls, x: Tensor, n_levels: int) -> CellSpec:
        return CellSpec("categorical", tuple(_frequencies(x, n_levels).tolist()))

    def forward(self, params: Tensor) -> dist.Distribution:
        return dist.Categorical(logits=params + self.mask, validate_args=False)

    def features(self, values: Tensor) -> Tensor:
        return self.classes.flat((self.classes.one_hot(values) - self.frequency) / self.scale)

    def base(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        p = self.classes.padded(mean) * self.scale + self.frequency
        return (nn.functional.softplus(p, beta=20) + 1e-4).log() + self.mask

    def answers(self, params: Tensor) -> Tensor:
        return self.classes.flat(by_level(torch.softmax, params + self.mask))

    def targets(self, values: Tensor) -> Tensor:
        return self.classes.flat(self.classes.one_hot(values))

    def points(self, answers: Tensor) -> Tensor:
        return self.classes.modes(answers)

    def feature_columns(self) -> Tensor:
        return self.classes.columns()

    def answer_columns(self) -> Tensor:
        return self.classes.columns()

    def noise_floor(self) -> Tensor:
        n_levels = self.classes.valid.cpu().sum(1).clamp(min=2)
        return (1 / (n_levels - 1.0))[self.feature_columns()]


class Ordinal(Likelihood):
    """Ordered classes by a cumulative logit, ``P(x <= l) = sigmoid((c_l - loc) / scale)`` (McCullagh 1980).

    The cut points ``c_l`` reproduce the observed frequencies; location and scale come from the backbone and network.
    """

    n_params, numeric, measured = 2, True, False
    scores: Tensor  # (C, N)
    cuts: Tensor  # (C, N - 1)

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float) -> None:
        super().__init__()
        scores, valid = _padded([s.points for s in specs])
        cuts, _ = _padded([s.edges for s in specs], fill=_FAR)
        self.classes = _Classes(valid)
        self.n_features, self.n_answers = len(specs), self.classes.n_flat
        for name, value in [("scores", scores), ("cuts", cuts)]:
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def fit(cls, x: Tensor, n_levels: int) -> CellSpec:
        p = _frequencies(x, n_levels)
        upper = p.cumsum(0)
        scores = torch.logit(upper - p / 2)
        mean = (p * scores).sum()
        scale = (p * (scores - mean).square()).sum().sqrt().clamp(min=1e-6)
        cuts = torch.logit(upper[:-1].clamp(max=1 - 1e-9))
        return CellSpec("ordinal", tuple(((scores - mean) / scale).tolist()), tuple(((cuts - mean) / scale).tolist()))

    def forward(self, params: Tensor) -> dist.Distribution:
        return dist.Categorical(probs=self._probabilities(params), validate_args=False)

    def features(self, values: Tensor) -> Tensor:
        index = values.long().clamp(0, self.scores.shape[1] - 1)
        return pick(self.scores.expand(*index.shape, -1), index)

    def base(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        # a logistic of scale s has standard deviation s pi / sqrt 3
        return torch.stack([mean, log_scale.expand_as(mean) + math.log(math.sqrt(3) / math.pi)], -1)

    def answers(self, params: Tensor) -> Tensor:
        return self.classes.flat(self._probabilities(params))

    def targets(self, values: Tensor) -> Tensor:
        return self.classes.flat(self.classes.one_hot(values))

    def points(self, answers: Tensor) -> Tensor:
        return self.classes.modes(answers)

    def answer_columns(self) -> Tensor:
        return self.classes.columns()

    def _probabilities(self, params: Tensor) -> Tensor:
        loc, log_scale = params.unsqueeze(-2).unbind(-1)  # (..., C, 1)
        upper = torch.sigmoid((self.cuts - loc) * torch.exp(-log_scale.clamp(-4, 4)))
        upper = nn.functional.pad(upper, (0, 1), value=1.0)
        lower = nn.functional.pad(upper[..., :-1], (1, 0))
        return torch.where(self.classes.valid, (upper - lower).clamp(min=1e-7), 0)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "levels": Levels,
    "histogram": Histogram,
    "categorical": Categorical,
    "ordinal": Ordinal,
}


def is_discrete(x: Tensor) -> bool:
    """Whether a number has so few distinct values, each often enough, that they are decoded as classes."""
    n_levels = len(x.unique())
    return 2 <= n_levels <= min(_MAX_LEVELS, len(x) // _MIN_PER_LEVEL)


def _frequencies(x: Tensor, n_levels: int) -> Tensor:
    """Share of each level among the codes `x`, half a cell added to each."""
    count = torch.bincount(x.long(), minlength=max(n_levels, 1)).double() + 0.5
    return count / count.sum()


def _padded(rows: Sequence[Sequence[float]], fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rows of different length as one tensor, and which entries are real."""
    width = max(max(len(row) for row in rows), 1)
    padded = torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows], dtype=torch.float64)
    valid = torch.tensor([[i < len(row) for i in range(width)] for row in rows])
    return padded, valid
