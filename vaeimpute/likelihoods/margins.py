"""The margins of numbers: a column's quantile function, and the normal that Q carries to a given mean and spread.

A cell is ``Q(mu + sigma t)`` with a standard normal ``t``. ``Q`` is the column's own quantile function in units of a
normal score, with a step at every value that repeats: zeros, ceilings and lists of values come back with their
frequencies. ``mu`` and ``sigma`` are chosen so that mean and standard deviation of the cell are those predicted. Where
nothing is known they are 0 and 1, and the cell is drawn from the column; a nearly certain one is nearly
normal.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from vaeimpute.batching import row_slices
from vaeimpute.persistence import Fitted

_KNOTS = 96  # quantiles between values that repeat
_ATOMS, _ATOM_SHARE, _ATOM_CELLS = 96, 0.004, 3  # at most so many; repeated by that share of the cells, and so often
_NORMAL_DISTANCE = 0.9  # of Kolmogorov's statistic times the root of n (Lilliefors 1967: 5%)
_SIGMAS = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.6, 2.5)
_FARTHEST, _STEPS = 6.0, 241  # of mu, in normal scores
_NODES = 48  # of an average over t
_LARGEST_SCORE = 8.0  # of the outer end of a value that is the least or the largest, and repeats
_TAIL = 1.2816  # where the outermost tenth begins


class Margins(Fitted):
    """Quantile functions of D columns, piecewise linear in normal scores.

    Attributes
    ----------
    score, value : Tensor of shape (D, K), in float64
        Knots, ascending; padded with the last one. A value that repeats has two, and so does a jump between values.
    """

    score: Tensor
    value: Tensor

    buffer_names = ("score", "value")

    @classmethod
    def fit(cls, values: Tensor, observed: Tensor) -> Margins:
        """Learn from cells (n, D)."""
        columns = [_knots(values[observed[:, j], j].double().cpu()) for j in range(values.shape[1])]
        longest = max(2, *(len(score) for score, _ in columns))
        padded = [[torch.cat([part, part[-1:].expand(longest - len(part))]) for part in knots] for knots in columns]
        score, value = (torch.stack(part).to(values.device) for part in zip(*padded, strict=True))
        return cls(score=score, value=value)

    def quantile(self, score: Tensor) -> Tensor:
        """``Q`` of normal scores (n, D); beyond the knots it goes on as the normal that fits the end."""
        low, high = self._end_slopes[:, None]
        beyond = low * (score - self.score[:, 0]).clamp(max=0) + high * (score - self.score[:, -1]).clamp(min=0)
        return self._within(score) + beyond

    def mean(self, mu: Tensor, sigma: Tensor) -> Tensor:
        """Mean of ``Q(mu + sigma t)``, (n, D)."""
        nodes = _nodes(self.score)
        return sum((self.quantile(mu + sigma * node) for node in nodes), torch.zeros_like(mu)) / len(nodes)

    def scores(self, value: Tensor) -> Tensor:
        """Normal scores of cells (n, D): where `quantile` has them, and the middle of the step of what repeats."""
        knots, level = self.value.to(value.dtype), torch.special.ndtr(self.score)  # rounded as the cells are
        sought = value.T.contiguous()
        first, end = (torch.searchsorted(knots, sought, right=right) for right in (False, True))
        sought = sought.double()
        step = torch.special.ndtri((_at(level, first) + _at(level, end - 1)) / 2)
        low, high = _at(self.value, first - 1), _at(self.value, first)
        share = ((sought - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
        between = torch.lerp(_at(self.score, first - 1), _at(self.score, first), share)
        slopes = torch.where(self._end_slopes == 0, torch.inf, self._end_slopes).unsqueeze(-1)
        ends = self.value[:, [0, -1]].T.unsqueeze(-1)
        beyond = ((sought - ends[0]).clamp(max=0) / slopes[0]) + ((sought - ends[1]).clamp(min=0) / slopes[1])
        within = torch.where(end > first, step, between)
        return (within.clamp(-_FARTHEST, _FARTHEST) + beyond).T

    def score_ranges(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest normal score (n, D) at which ``Q`` has that value: two where it repeats."""
        sought = values.T.to(self.value).contiguous()
        edges = [_between(self.value, self.score, sought, right=right) for right in (False, True)]
        low, high = self._end_slopes[:, :, None].clamp(min=1e-12)
        beyond = (sought - self.value[:, :1]).clamp(max=0) / low + (sought - self.value[:, -1:]).clamp(min=0) / high
        beyond = beyond.clamp(-_LARGEST_SCORE, _LARGEST_SCORE)
        return (edges[0] + beyond).T, (edges[1] + beyond).T

    def matched(self, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """``mu`` and ``sigma`` (n, D) of cells with that mean and standard deviation (n, D)."""
        grid = torch.linspace(-_FARTHEST, _FARTHEST, _STEPS, dtype=self.score.dtype, device=self.score.device)
        m, s = mean.T.to(grid).contiguous(), deviation.T.to(grid)  # (D, n)
        bounded = self._end_slopes == 0
        mus, spreads = [], []
        for means, deviations in zip(*self._moments, strict=True):  # of a sigma, (D, G)
            at = torch.searchsorted(means, m).clamp(1, _STEPS - 1)
            low, high = means.gather(1, at - 1), means.gather(1, at)
            share = (m - low) / (high - low).clamp(min=1e-12)
            inside = share.clamp(0, 1)
            share = torch.where(torch.where(share < 0, bounded[0, :, None], bounded[1, :, None]), inside, share)
            mus.append(grid[at - 1] + share * (grid[at] - grid[at - 1]))
            spreads.append(torch.lerp(deviations.gather(1, at - 1), deviations.gather(1, at), inside))
        mu, sigma = _where_spread_is(s, torch.stack(mus), torch.stack(spreads))
        return mu.T, sigma.T

    def _within(self, score: Tensor) -> Tensor:
        """``Q`` of scores (n, D), constant beyond the knots."""
        return _between(self.score, self.value, score.T.contiguous(), upper=True).T

    @cached_property
    def _end_slopes(self) -> Tensor:
        """Of both tails, (2, D): from the outermost tenth of the cells; none beyond a value that repeats."""
        ends, values = (torch.stack([knots[:, 0], knots[:, -1]]) for knots in (self.score, self.value))
        low, high = (ends.abs() - 0.5).clamp(max=_TAIL)
        inner = torch.stack([-low, high])
        slope = (values - self._within(inner)) / (ends - inner)
        return torch.where(ends.abs() >= _LARGEST_SCORE, 0, slope)

    @cached_property
    def _moments(self) -> Tensor:
        """Mean and standard deviation of ``Q(mu + sigma t)`` on the grid of both, (2, S, D, G)."""
        nodes, n_columns = _nodes(self.score), len(self.score)
        mu = torch.linspace(-_FARTHEST, _FARTHEST, _STEPS, dtype=self.score.dtype, device=self.score.device)
        out = self.score.new_empty(
            2, len(_SIGMAS), n_columns, _STEPS
        )  # at once: what is kept must not split what is freed
        for some in row_slices(n_columns, 16 * _STEPS * _NODES):  # with all that `quantile` holds meanwhile
            part = Margins(score=self.score[some], value=self.value[some])
            for s, sigma in enumerate(_SIGMAS):
                scores = (mu.unsqueeze(1) + sigma * nodes).flatten().unsqueeze(1).expand(-1, len(part.score))
                cells = part.quantile(scores).T.unflatten(1, (_STEPS, _NODES))
                out[0, s, some] = cells.mean(-1) + 1e-7 * mu
                out[1, s, some] = cells.std(-1, correction=0)
        return out


def _nodes(like: Tensor) -> Tensor:
    """Normal scores whose average is one over t."""
    probability = (torch.arange(_NODES, dtype=like.dtype, device=like.device) + 0.5) / _NODES
    nodes = torch.special.ndtri(probability)
    return nodes / nodes.square().mean().sqrt()


def _at(knots: Tensor, index: Tensor) -> Tensor:
    """Knots (D, n) of each column, from the first to the last."""
    return knots.gather(1, index.clamp(0, knots.shape[1] - 1))


def _between(x: Tensor, y: Tensor, sought: Tensor, *, right: bool = False, upper: bool | None = None) -> Tensor:
    """Linear between knots ``(x, y)`` (D, K), constant beyond them, at `sought` (D, n).

    Of several knots with the sought x, those to the `right` of the first or of the last; at a jump its `upper` end.
    """
    at = torch.searchsorted(x, sought, right=right).clamp(1, x.shape[1] - 1)
    low, high = x.gather(1, at - 1), x.gather(1, at)
    at_jump = float(right if upper is None else upper)
    share = torch.where(high > low, (sought - low) / (high - low).clamp(min=1e-300), at_jump).clamp(0, 1)
    return torch.lerp(y.gather(1, at - 1), y.gather(1, at), share)


def _where_spread_is(deviation: Tensor, mus: Tensor, spreads: Tensor) -> tuple[Tensor, Tensor]:
    """Mu and sigma (D, n) where the spread is as asked for, between those of the grid's sigmas, (S, D, n)."""
    sigmas = torch.tensor(_SIGMAS, dtype=mus.dtype, device=mus.device)
    spreads = spreads.cummax(0).values
    at = (spreads < deviation).sum(0, keepdim=True).clamp(1, len(_SIGMAS) - 1)
    low, high = spreads.gather(0, at - 1), spreads.gather(0, at)
    share = ((deviation - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    mu = torch.lerp(mus.gather(0, at - 1), mus.gather(0, at), share)[0]
    sigma = torch.lerp(sigmas[at - 1], sigmas[at], share)
    sigma = sigma * (deviation / low.clamp(min=1e-12)).clamp(max=1)  # below the smallest one: in proportion
    return mu, sigma[0]


def _knots(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and values of one column's knots, from its observed cells (n,)."""
    n, score_of_normal = len(x), torch.tensor([-2.0, 2.0], dtype=torch.float64)
    if n == 0:
        return score_of_normal, score_of_normal
    values, count = x.unique(return_counts=True)
    upper = count.cumsum(0).double() / n
    lower = upper - count.double() / n
    often = count >= max(_ATOM_CELLS, _ATOM_SHARE * n)
    if often.sum() > _ATOMS:
        often &= count >= count.sort(descending=True).values[_ATOMS]
    if not often.any() and _is_normal(values, upper, lower):
        return score_of_normal, x.mean() + x.std(correction=0) * score_of_normal
    rest = (~often).nonzero().squeeze(-1)
    rest = rest[torch.linspace(0, len(rest) - 1, min(_KNOTS, len(rest))).round().long()] if len(rest) else rest
    level = torch.cat([lower[often], upper[often], (lower + upper)[rest] / 2])
    value = torch.cat([values[often], values[often], values[rest]])
    score = torch.special.ndtri(level).clamp(-_LARGEST_SCORE, _LARGEST_SCORE)
    return score.sort().values, value.sort().values


def _is_normal(values: Tensor, upper: Tensor, lower: Tensor) -> bool:
    """Whether Kolmogorov's distance from the normal with the sample's moments is as small as a normal sample's."""
    weight = upper - lower
    mean = (weight * values).sum()
    deviation = (weight * (values - mean).square()).sum().sqrt()
    if deviation == 0:
        return False
    expected = torch.special.ndtr((values - mean) / deviation)
    distance = torch.maximum((upper - expected).abs(), (lower - expected).abs()).max()
    n = (1 / weight.min()).item()
    return bool(distance * n**0.5 < _NORMAL_DISTANCE)
