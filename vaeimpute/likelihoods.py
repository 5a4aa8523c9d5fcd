"""Likelihoods ``p(x | theta)`` of cells: one class per family, and their product over the columns of a table.

A family says four things about a group of its columns: how a cell enters the linear backbone (``features``), which
parameters the backbone's prediction of these features stands for (``base``), which distribution a row of parameters
is (``forward``), and what to average when several draws answer for one cell (``answers``, ``points``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributions as dist

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


class _Levels(dist.Distribution):
    """Distribution over the values ``points`` (C, N) with `logits` (..., C, N)."""

    def __init__(self, logits: Tensor, points: Tensor, cuts: Tensor) -> None:
        self.logits = logits.log_softmax(-1)
        self.points, self.cuts = points, cuts
        super().__init__(logits.shape[:-1], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return (self.logits.exp() * self.points).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        return _pick(self.logits, _bin(value, self.cuts))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        index = dist.Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
        return _pick(self.points.expand(*index.shape, -1), index)


class Levels(Likelihood):
    """A number with few distinct values as classes over these values; the answer is their mean.

    The backbone's Gaussian gives the starting logits, ``-((v - mean) / scale)^2 / 2``.
    """

    numeric = True

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float) -> None:
        super().__init__()
        self.n_features = self.n_answers = len(specs)
        self.n_params = max(len(s.points) for s in specs)
        points, valid = _padded([s.points for s in specs])
        cuts, _ = _padded([s.edges for s in specs], fill=math.inf)
        self.register_buffer("grid", points, persistent=False)
        self.register_buffer("cuts", cuts, persistent=False)
        self.register_buffer("mask", torch.where(valid, 0.0, _IMPOSSIBLE), persistent=False)

    @classmethod
    def fit(cls, x: Tensor, n_levels: int) -> CellSpec:
        levels = x.unique() if len(x) else x.new_zeros(1)
        cuts = (levels[1:] + levels[:-1]) / 2
        return CellSpec("levels", tuple(levels.tolist()), tuple(cuts.tolist()))

    def forward(self, params: Tensor) -> dist.Distribution:
        return _Levels(params, self.grid, self.cuts)

    def features(self, values: Tensor) -> Tensor:
        return values

    def base(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        standard = (self.grid - mean.unsqueeze(-1)) * torch.exp(-log_scale).unsqueeze(-1)
        return -0.5 * standard.square().clamp(max=-_IMPOSSIBLE) + self.mask

    def answers(self, params: Tensor) -> Tensor:
        return (params.softmax(-1) * self.grid).sum(-1)


class _Histogram(dist.Distribution):
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
        index = _bin(value, self.edges)
        log_density = _pick(self.logits, index) - _pick(self.width.log().expand(*index.shape, -1), index)
        inside = (value >= self.low[:, 0]) & (value <= self.high)
        log_density = torch.where(inside, log_density, _IMPOSSIBLE)
        standard = (value - self.loc) * torch.exp(-self.log_scale)
        log_normal = -0.5 * standard.square() - self.log_scale - 0.5 * math.log(2 * math.pi)
        return torch.logaddexp(self.log_rest + log_normal, self.log_share + log_density)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        index = dist.Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
        low, width, point = (_pick(t.expand(*index.shape, -1), index) for t in (self.low, self.width, self.points))
        # Uniform on either side of the bin's mean, which so stays the mean of the draws.
        t = ((point - low) / width).clamp(0, 1)
        u = torch.rand_like(low)
        from_bin = low + width * torch.where(torch.rand_like(low) < t, t + (1 - t) * u, t * u)
        normal = self.loc + self.log_scale.exp() * torch.randn_like(low)
        return torch.where(torch.rand_like(low) < self.log_share.exp(), from_bin, normal)


class Histogram(Likelihood):
    """A number as a mixture of a Gaussian and a histogram over its quantiles; values that repeat get a bin each.

    Near-deterministic columns need the Gaussian, spiky and stepped ones the histogram. Parameters: mean, log scale,
    logit of the histogram's share, N logits. The answer is the mean of the mixture.
    """

    numeric = True
    n_bins, common = 32, 0.03
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
        self.register_buffer("mask", torch.where(valid, self.width.log(), _IMPOSSIBLE), persistent=False)

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
        return _Histogram(params, self.grid, self.edges, self.low, self.width, self.high, self.log_scale_floor)

    def features(self, values: Tensor) -> Tensor:
        return values

    def base(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        standard = (self.grid - mean.unsqueeze(-1)) * torch.exp(-log_scale).unsqueeze(-1)
        logits = -0.5 * standard.square().clamp(max=60.0) + self.mask
        gate = torch.full_like(mean, self._start_logit)
        return torch.cat([torch.stack([mean, log_scale.expand_as(mean), gate], -1), logits], -1)

    def answers(self, params: Tensor) -> Tensor:
        return self(params).mean


class Categorical(Likelihood):
    """Classes without an order. The backbone predicts standardised indicators, whose mean is read as probabilities.

    A class with L levels enters as L features ``(1_l - p_l) / (sqrt(p_l (1 - p_l) + 1e-3) sqrt(L - 1))`` with noise
    floored at ``1 / (L - 1)``, so that a class weighs as much as a number, however many levels it has.
    """

    numeric = False

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float) -> None:
        super().__init__()
        frequency, valid = _padded([s.points for s in specs])
        self.n_params = frequency.shape[1]
        levels = valid.sum(1, keepdim=True).clamp(min=2)
        scale = (frequency * (1 - frequency) + 1e-3).sqrt() * (levels - 1).sqrt()
        self.flat = valid.flatten().nonzero().squeeze(-1).tolist()
        self.n_features = self.n_answers = len(self.flat)
        back = torch.full((valid.numel(),), len(self.flat))
        back[self.flat] = torch.arange(len(self.flat))
        for name, value in [("frequency", frequency), ("scale", scale), ("back", back), ("valid", valid)]:
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("forth", torch.tensor(self.flat), persistent=False)
        self.register_buffer("mask", torch.where(valid, 0.0, _IMPOSSIBLE), persistent=False)

    @classmethod
    def fit(cls, x: Tensor, n_levels: int) -> CellSpec:
        n_levels = max(n_levels, 1)
        count = torch.bincount(x.long(), minlength=n_levels).double() + 0.5
        return CellSpec("categorical", tuple((count / count.sum()).tolist()))

    def forward(self, params: Tensor) -> dist.Distribution:
        return dist.Categorical(logits=params + self.mask, validate_args=False)

    def features(self, values: Tensor) -> Tensor:
        standard = (self._one_hot(values) - self.frequency) / self.scale
        return standard.flatten(-2).index_select(-1, self.forth)

    def base(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        padded = nn.functional.pad(mean, (0, 1)).index_select(-1, self.back)
        p = padded.unflatten(-1, self.frequency.shape) * self.scale + self.frequency
        return (nn.functional.softplus(p, beta=20) + 1e-4).log() + self.mask

    def answers(self, params: Tensor) -> Tensor:
        return (params + self.mask).softmax(-1).flatten(-2).index_select(-1, self.forth)

    def targets(self, values: Tensor) -> Tensor:
        return self._one_hot(values).flatten(-2).index_select(-1, self.forth)

    def points(self, answers: Tensor) -> Tensor:
        padded = nn.functional.pad(answers, (0, 1), value=-1.0).index_select(-1, self.back)
        return padded.unflatten(-1, self.frequency.shape).argmax(-1).to(answers.dtype)

    def feature_columns(self) -> Tensor:
        return torch.arange(len(self.valid)).unsqueeze(1).expand_as(self.valid)[self.valid.cpu()]

    def noise_floor(self) -> Tensor:
        return (1 / (self.valid.cpu().sum(1).clamp(min=2) - 1.0))[self.feature_columns()]

    def _one_hot(self, values: Tensor) -> Tensor:
        levels = torch.arange(self.n_params, device=values.device)
        return (values.unsqueeze(-1) == levels).to(values.dtype)


class Ordinal(Likelihood):
    """Ordered classes by a cumulative logit, ``P(x <= l) = sigmoid((c_l - loc) / scale)`` (McCullagh 1980).

    The cut points ``c_l`` reproduce the observed frequencies; location and scale come from the backbone and network.
    """

    n_params, numeric = 2, True

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float) -> None:
        super().__init__()
        self.n_features = len(specs)
        scores, valid = _padded([s.points for s in specs])
        cuts, _ = _padded([s.edges for s in specs], fill=_FAR)
        self.flat = valid.flatten().nonzero().squeeze(-1).tolist()
        self.n_answers = len(self.flat)
        back = torch.full((valid.numel(),), len(self.flat))
        back[self.flat] = torch.arange(len(self.flat))
        for name, value in [("scores", scores), ("cuts", cuts), ("back", back), ("valid", valid)]:
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("forth", torch.tensor(self.flat), persistent=False)

    @classmethod
    def fit(cls, x: Tensor, n_levels: int) -> CellSpec:
        n_levels = max(n_levels, 1)
        count = torch.bincount(x.long(), minlength=n_levels).double() + 0.5
        p = count / count.sum()
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
        return _pick(self.scores.expand(*index.shape, -1), index)

    def base(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        # a logistic of scale s has standard deviation s pi / sqrt 3
        return torch.stack([mean, log_scale.expand_as(mean) + math.log(math.sqrt(3) / math.pi)], -1)

    def answers(self, params: Tensor) -> Tensor:
        return self._probabilities(params).flatten(-2).index_select(-1, self.forth)

    def targets(self, values: Tensor) -> Tensor:
        levels = torch.arange(self.scores.shape[1], device=values.device)
        one_hot = (values.unsqueeze(-1) == levels).to(values.dtype)
        return one_hot.flatten(-2).index_select(-1, self.forth)

    def points(self, answers: Tensor) -> Tensor:
        padded = nn.functional.pad(answers, (0, 1), value=-1.0).index_select(-1, self.back)
        return padded.unflatten(-1, self.scores.shape).argmax(-1).to(answers.dtype)

    def _probabilities(self, params: Tensor) -> Tensor:
        loc, log_scale = params.unsqueeze(-2).unbind(-1)  # (..., C, 1)
        upper = torch.sigmoid((self.cuts - loc) * torch.exp(-log_scale.clamp(-4, 4)))
        upper = nn.functional.pad(upper, (0, 1), value=1.0)
        lower = nn.functional.pad(upper[..., :-1], (1, 0))
        return torch.where(self.valid, (upper - lower).clamp(min=1e-7), 0)


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


class ColumnLikelihoods(nn.Module):
    """The product of the columns' likelihoods: the one place that splits the decoder's output.

    Columns of one family and of similar width form a group, so that 500 Gaussian columns are one call. Parameters and
    features are laid out group after group; cells and answers stay in the table's column order, so that the answers
    of two readings of one table can be averaged.

    Parameters
    ----------
    specs : sequence of CellSpec
        One per column.
    log_scale_floor : float
        Smallest log standard deviation of a Gaussian, in units of the standardised column.
    """

    def __init__(self, specs: Sequence[CellSpec], log_scale_floor: float = -3.5) -> None:
        super().__init__()
        self.specs = tuple(specs)
        members: dict[tuple[str, int], list[int]] = {}
        for column, spec in enumerate(specs):
            width = math.ceil(math.log2(max(len(spec.points), 4)))
            members.setdefault((spec.family, width), []).append(column)
        self.groups = nn.ModuleList(
            LIKELIHOODS[family]([specs[c] for c in columns], log_scale_floor)
            for (family, _), columns in members.items()
        )
        order = [column for columns in members.values() for column in columns]
        self.columns = [list(columns) for columns in members.values()]
        self._sorted = order == list(range(len(order)))
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("inverse", torch.tensor(order).argsort(), persistent=False)
        features = [torch.tensor(c)[g.feature_columns()] for c, g in zip(self.columns, self.groups, strict=True)]
        answers = [
            torch.tensor(c)[g.feature_columns() if g.n_answers == g.n_features else _repeat(g)]
            for c, g in zip(self.columns, self.groups, strict=True)
        ]
        answer_columns, answer_order = torch.cat(answers).sort(stable=True)
        self.register_buffer("feature_columns", torch.cat(features), persistent=False)
        self.register_buffer("answer_columns", answer_columns, persistent=False)
        self.register_buffer("answer_order", answer_order, persistent=False)
        self.register_buffer("answer_inverse", answer_order.argsort(), persistent=False)
        numeric = [torch.full((g.n_features,), g.numeric) for g in self.groups]
        self.register_buffer("numeric_features", torch.cat(numeric).nonzero().squeeze(-1), persistent=False)
        self.n_params = sum(len(c) * g.n_params for c, g in zip(self.columns, self.groups, strict=True))
        self._param_sizes = [len(c) * g.n_params for c, g in zip(self.columns, self.groups, strict=True)]
        self._feature_sizes = [g.n_features for g in self.groups]
        self._answer_sizes = [g.n_answers for g in self.groups]
        self.n_features, self.n_answers = sum(self._feature_sizes), sum(self._answer_sizes)

    def features(self, values: Tensor) -> Tensor:
        """What the linear backbone sees: (..., D) to (..., F)."""
        return torch.cat([g.features(v) for g, v in zip(self.groups, self._split(values), strict=True)], -1)

    def noise_floor(self) -> Tensor:
        """Smallest noise variance of each feature, (F,)."""
        return torch.cat([g.noise_floor() for g in self.groups])

    def base(self, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Parameters (..., P) of the linear prediction with mean and log standard deviation (..., F)."""
        means, scales = mean.split(self._feature_sizes, -1), log_scale.split(self._feature_sizes, -1)
        return torch.cat([g.base(m, s).flatten(-2) for g, m, s in zip(self.groups, means, scales, strict=True)], -1)

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        """Log-likelihood of each cell: (..., P) and (..., D) to (..., D)."""
        parts = zip(self.groups, self._params(params), self._split(values), strict=True)
        return self._join([g(p).log_prob(v) for g, p, v in parts])

    def sample(self, params: Tensor) -> Tensor:
        """One draw of each cell, (..., D), from PyTorch's global generator."""
        parts = zip(self.groups, self._params(params), strict=True)
        return self._join([g(p).sample().to(params.dtype) for g, p in parts])

    def answers(self, params: Tensor) -> Tensor:
        """Expected numbers and class probabilities, (..., A): what is averaged over draws, members and readings."""
        parts = [g.answers(p) for g, p in zip(self.groups, self._params(params), strict=True)]
        return self._join_answers(parts)

    def targets(self, values: Tensor) -> Tensor:
        """The answers of an oracle, (..., A)."""
        return self._join_answers([g.targets(v) for g, v in zip(self.groups, self._split(values), strict=True)])

    def points(self, answers: Tensor) -> Tensor:
        """Cells (..., D) from averaged answers: the mean of a number, the mode of a class."""
        ordered = answers if self._sorted else answers.index_select(-1, self.answer_inverse)
        parts = ordered.split(self._answer_sizes, -1)
        return self._join([g.points(a) for g, a in zip(self.groups, parts, strict=True)])

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        ordered = values if self._sorted else values.index_select(-1, self.order)
        return ordered.split([len(c) for c in self.columns], -1)

    def _params(self, params: Tensor) -> list[Tensor]:
        parts = params.split(self._param_sizes, -1)
        return [p.unflatten(-1, (-1, g.n_params)) for p, g in zip(parts, self.groups, strict=True)]

    def _join(self, parts: list[Tensor]) -> Tensor:
        cells = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return cells if self._sorted else cells.index_select(-1, self.inverse)

    def _join_answers(self, parts: list[Tensor]) -> Tensor:
        answers = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return answers if self._sorted else answers.index_select(-1, self.answer_order)


def _repeat(group: Likelihood) -> Tensor:
    """Group-local column of each answer where a column has one feature but several answers."""
    width = group.scores.shape[1]
    return torch.tensor(group.flat) // width


def _padded(rows: Sequence[Sequence[float]], fill: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rows of different length as one tensor, and which entries are real."""
    width = max(max(len(row) for row in rows), 1)
    padded = torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows], dtype=torch.float64)
    valid = torch.tensor([[i < len(row) for i in range(width)] for row in rows])
    return padded, valid


def _bin(values: Tensor, cuts: Tensor) -> Tensor:
    """Index of the bin of each value (..., C) among sorted inner edges (C, N - 1)."""
    flat = values.reshape(-1, values.shape[-1]).T.contiguous()
    return torch.searchsorted(cuts.to(values.dtype).contiguous(), flat, right=True).T.reshape(values.shape)


def _pick(table: Tensor, index: Tensor) -> Tensor:
    """Entry of `table` (..., N) at each `index` (...)."""
    return table.gather(-1, index.expand(table.shape[:-1]).unsqueeze(-1)).squeeze(-1)
