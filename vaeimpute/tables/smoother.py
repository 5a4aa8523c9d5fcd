"""Training rows as evidence: a kernel smoother over reference rows, local-linear around the linear VAE."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vaeimpute.gaussian.factor_analysis import FactorAnalysis

# Bandwidth of each head at the start, in standard deviations of a feature, and whether a reference row whose own cell
# is missing counts by the linear model's uncertainty of it, or by its mean as if it were observed.
HEADS = ((0.3, True), (1.0, True))
N_HEADS = len(HEADS)
_SMALLEST_WIDTH = 1e-6  # squared, of a kernel: distances are differences of large numbers in single precision
_BACKBONE = 1e-4  # weight of the linear mean beside the reference rows
_MANY_LEVELS = 32  # of a class that is looked up, level by level, and estimated only where it is hidden


class Given(NamedTuple):
    """What the linear VAEs make of some rows, (..., B, F) each.

    Attributes
    ----------
    x, visible : Tensor
        Features, zero where not visible; which are visible, as numbers.
    own_mean, variance : Tensor
        Of every feature, by the linear VAE of the best rank (its noise included).
    mean : Tensor
        The average of all ranks.
    cov : Tensor of shape (..., B, L, L)
        Posterior covariance of the latent of the best rank.
    """

    x: Tensor
    visible: Tensor
    own_mean: Tensor
    variance: Tensor
    mean: Tensor
    cov: Tensor

    def at(self, index: Tensor | slice | int) -> Given:
        """Some of the rows."""
        return Given(*(part[index] for part in self))

    def of(self, features: slice | Tensor) -> Given:
        """Some of the features."""
        x, visible, own_mean, variance, mean = (part[..., features] for part in self[:-1])
        return Given(x, visible, own_mean, variance, mean, self.cov)


class Reference(NamedTuple):
    """Training rows that are looked at, (N, F) each.

    Attributes
    ----------
    values : Tensor
        Features, missing ones filled by the linear VAEs.
    variance : Tensor
        The linear VAE's uncertainty of what is filled; zero elsewhere.
    known : Tensor
        Which are observed, as numbers.
    """

    values: Tensor
    variance: Tensor
    known: Tensor

    def at(self, index: Tensor | slice) -> Reference:
        """Some of the rows."""
        return Reference(*(part[index] for part in self))


class KernelEstimates(NamedTuple):
    """What each head estimates for every feature, and the variance of what it averages (or zero), (S, B, H, F)."""

    mean: Tensor
    variance: Tensor


def start_theta(n_features: int) -> Tensor:
    """Parameters (3 H + 1, F) of a smoother before it has learnt: log bandwidths, gates, slopes, log error."""
    bandwidth = torch.tensor([head[0] for head in HEADS]).log().unsqueeze(1).expand(-1, n_features)
    return torch.cat([bandwidth, torch.full((2 * N_HEADS, n_features), -1.0), torch.zeros(1, n_features)])


def gates(theta: Tensor) -> Tensor:
    """Share of the linear mean and of each head in the answer, (S, 1, H + 1, F)."""
    logits = theta[:, N_HEADS : 2 * N_HEADS]
    return torch.nn.functional.pad(logits, (0, 0, 1, 0)).softmax(1).unsqueeze(1)


def mix(theta: Tensor, mean: Tensor, votes: KernelEstimates) -> tuple[Tensor, Tensor]:
    """The answers of the smoothers (S, B, F), and the variance of what their heads average, by the gates.

    Parameters
    ----------
    theta : Tensor of shape (S, 3 H + 1, F)
    mean : Tensor of shape (S or 1, B, F)
        Of the linear VAEs.
    votes : KernelEstimates
    """
    share = gates(theta)
    answer = share[:, :, 0] * mean + (share[:, :, 1:] * votes.mean).sum(2)
    return answer, (share[:, :, 1:] * votes.variance).sum(2)


class Layout(NamedTuple):
    """Where the features of classes of many levels stand, and those of all other columns.

    Attributes
    ----------
    classes : list of slice
    rest : slice or int Tensor
    no_yes : Tensor of shape (2, F)
        What a feature of a class is where the cell is of another level, and where it is of this one.
    """

    classes: list[slice]
    rest: slice | Tensor
    no_yes: Tensor

    @classmethod
    def of(cls, columns: Tensor, no_yes: Tensor) -> Layout:
        """That of features of these columns (F,)."""
        wide = (torch.bincount(columns) >= _MANY_LEVELS).nonzero()
        of_wide = [(columns == column).nonzero() for column in wide]
        classes = [slice(int(own[0]), int(own[-1]) + 1) for own in of_wide]
        rest = (~torch.isin(columns, wide)).nonzero().squeeze(-1) if classes else slice(None)
        return cls(classes, rest, no_yes)


class PreparedClass(NamedTuple):
    """What depends on the reference rows alone, of a class with C levels.

    Attributes
    ----------
    features : slice
    score : Tensor of shape (S, C, H N)
        The kernel's logarithm where a row is of that level.
    averaged : Tensor of shape (N, 1 + 2 C)
    projected : Tensor of shape (N, L)
        What its levels, were they visible, would tell of the latent: projected before they are averaged.
    """

    features: slice
    score: Tensor
    averaged: Tensor
    projected: Tensor


class Prepared(NamedTuple):
    """The same of all features of other columns: factors (S, 3 F, H N), and what is averaged (N, 4 F)."""

    score: Tensor
    averaged: Tensor
    rest: slice | Tensor
    classes: list[PreparedClass]


def prepare(theta: Tensor, reference: Reference, layout: Layout, backbone: FactorAnalysis) -> Prepared:
    """Factors of the kernel's logarithm.

    ``log N(q; mean, v) = q^2 (-1 / 2v) + q (mean / v) - mean^2 / 2v - log(v) / 2``, summed over what is visible:
    products of what depends on the row and what depends on the reference row. Of a class they are sums over its levels,
    of which one is the row's own.
    """
    rest = layout.rest
    score = torch.cat(_factors(theta, reference, rest), -1)
    values, known = reference.values[:, rest], reference.known[:, rest]
    cells = values * known
    averaged = torch.cat([cells, known, values, cells * values], -1)
    classes = [_prepare_class(theta, reference, own, layout.no_yes[:, own], backbone) for own in layout.classes]
    return Prepared(score.flatten(1, 2).transpose(1, 2), averaged, rest, classes)


def _prepare_class(
    theta: Tensor, reference: Reference, own: slice, no_yes: Tensor, backbone: FactorAnalysis
) -> PreparedClass:
    square, linear, constant = _factors(theta, reference, own)
    no, yes = ((square * says + linear) * says + constant for says in no_yes)
    score = no.sum(-1, keepdim=True) + (yes - no)  # (S, H, N, C)
    values, known = reference.values[:, own], reference.known[:, own]
    averaged = torch.cat([known[:, :1], values * known, values.square() * known], -1)
    W, b, psi = (part[own] for part in backbone)
    projected = (values - b) @ (W / psi.unsqueeze(1))
    return PreparedClass(own, score.flatten(1, 2).transpose(1, 2), averaged, projected)


def _factors(theta: Tensor, reference: Reference, features: slice | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the squares of some features, of themselves, and of one, (S, H, N, F)."""
    values, variance, _ = (part[:, features] for part in reference)
    counts = torch.tensor([[[float(head[1])]] for head in HEADS]).to(values)
    width = torch.exp(2 * theta[:, :N_HEADS, features]).clamp(min=_SMALLEST_WIDTH).unsqueeze(2)  # (S, H, 1, F)
    precision = 1 / (width + counts * variance)
    scaled = precision * values
    return -0.5 * precision, scaled, 0.5 * ((width * precision).log() - scaled * values)


def estimate(
    theta: Tensor,
    prepared: Prepared,
    given: Given,
    own: Tensor,
    backbone: FactorAnalysis,
    *,
    with_variance: bool = False,
) -> KernelEstimates:
    """Kernel estimates of all features of some rows, by each of S smoothers.

    Nadaraya-Watson with one bandwidth per feature and head. Local-linear: an estimate moves by what the linear VAE
    makes of the way from the reference rows' weighted mean to the row itself, as far as the slope lets it. Classes of
    many levels are only estimated where they are hidden: elsewhere they stay at the linear mean, without variance.

    Parameters
    ----------
    theta : Tensor of shape (S, 3 H + 1, F)
    prepared : Prepared
        What `prepare` makes of these and the reference rows.
    given : Given
        Of rows (S or 1, B, F).
    own : int Tensor of shape (S or 1, B)
        Where the row itself stands among the reference rows, or -1; it has no say.
    backbone : FactorAnalysis
        The linear VAE behind `given`.
    with_variance : bool
    """
    rest, n = prepared.rest, prepared.averaged.shape[1] // 4
    weights = _weights(prepared, given, own, len(theta))
    sums = _average(weights, prepared.averaged[:, : (4 if with_variance else 3) * n])
    voted, share, center, *squares = sums.split(n, -1)
    way = _way(prepared, given, weights, center, backbone)
    line = FactorAnalysis(*(part[rest] for part in backbone))
    of_rest = _local_linear(theta[:, :, rest], given.of(rest), way, line, voted, share, *squares)
    if not prepared.classes:
        return of_rest
    mean = given.mean.unsqueeze(2).expand(len(theta), -1, N_HEADS, -1).clone()
    votes = KernelEstimates(mean, torch.zeros_like(mean))
    for part, of_part in zip(votes, of_rest, strict=True):
        part[..., rest] = of_part
    for one in prepared.classes:
        for s in range(len(theta)):
            of_smoother = given.of(one.features).at(s % len(given.x))
            rows = (of_smoother.visible[:, 0] == 0).nonzero().squeeze(-1)
            of_class = _of_class(
                theta[s],
                one,
                of_smoother.at(rows),
                weights[s, rows],
                way[s, rows],
                backbone,
                with_variance=with_variance,
            )
            for part, of_part in zip(votes, of_class, strict=True):
                part[s, rows, :, one.features] = of_part
    return votes


def _of_class(
    theta: Tensor,
    one: PreparedClass,
    given: Given,
    weights: Tensor,
    way: Tensor,
    backbone: FactorAnalysis,
    *,
    with_variance: bool,
) -> KernelEstimates:
    """Estimates (B, H, C) of the levels of a class that is hidden, by one smoother (3 H + 1, F)."""
    n, features = given.x.shape[-1], one.features
    sizes = [1, n, n] if with_variance else [1, n]
    share, voted, *squares = _average(weights, one.averaged[:, : sum(sizes)]).split(sizes, -1)
    line = FactorAnalysis(*(part[features] for part in backbone))
    return _local_linear(theta[:, features], given, way, line, voted, share, *squares)


def _weights(prepared: Prepared, given: Given, own: Tensor, S: int) -> Tensor:
    """Of the reference rows for each row, (S, B, H, N)."""
    x, visible = given.x[..., prepared.rest], given.visible[..., prepared.rest]
    scores = torch.matmul(torch.cat([x.square(), x, visible], -1), prepared.score)
    smoothers = torch.arange(S, device=x.device).unsqueeze(1)
    for one in prepared.classes:
        level, is_visible = given.x[..., one.features].argmax(-1), given.visible[..., one.features.start]
        scores = scores + is_visible.unsqueeze(-1) * one.score[smoothers, level]
    scores = scores.unflatten(-1, (N_HEADS, -1))
    own = own.expand(S, -1)
    smoother, row = (own >= 0).nonzero(as_tuple=True)
    # detached: no gradient passes a weight of zero anyway
    scores.detach()[smoother, row, :, own[smoother, row]] = torch.finfo(scores.dtype).min
    return torch.softmax(scores, -1)


def _average(weights: Tensor, averaged: Tensor) -> Tensor:
    """Over the reference rows (N, A), of weights (..., N): one product."""
    return (weights.flatten(0, -2) @ averaged).view(*weights.shape[:-1], averaged.shape[1])


def _way(prepared: Prepared, given: Given, weights: Tensor, center: Tensor, backbone: FactorAnalysis) -> Tensor:
    """Latent (S, B, H, L) of the reference rows' weighted mean, by the cells that are visible in the row itself."""
    W, b, psi = backbone
    rest = prepared.rest
    way = ((center - b[rest]) * given.visible[..., rest].unsqueeze(2)) @ (W / psi.unsqueeze(1))[rest]
    for one in prepared.classes:
        way = way + given.visible[..., one.features.start, None, None] * _average(weights, one.projected)
    return way @ given.cov


def _local_linear(
    theta: Tensor,
    given: Given,
    way: Tensor,
    backbone: FactorAnalysis,
    voted: Tensor,
    share: Tensor,
    squares: Tensor | None = None,
) -> KernelEstimates:
    """Sums over the reference rows, beside the linear mean, moved by the way from their mean to the row itself."""
    total = share + _BACKBONE
    mean = given.mean.unsqueeze(-2)
    voted = (voted + _BACKBONE * mean) / total
    back = way @ backbone.W.T + backbone.b
    move = torch.sigmoid(theta[..., 2 * N_HEADS : 3 * N_HEADS, :]).unsqueeze(-3) * share / total
    variance = torch.zeros_like(voted)
    if squares is not None:
        squares = (squares + _BACKBONE * (mean.square() + given.variance.unsqueeze(-2))) / total
        variance = (squares - voted.square()).clamp(min=0)
    return KernelEstimates(voted + move * (given.own_mean.unsqueeze(-2) - back), variance)
