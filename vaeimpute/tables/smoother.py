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

    def at(self, index: Tensor | slice) -> Given:
        """Some of the rows."""
        return Given(*(part[index] for part in self))


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


class Prepared(NamedTuple):
    """What depends on the reference rows alone: factors of the scores (S, 3 F, H N), and what is averaged (N, 4 F)."""

    score: Tensor
    averaged: Tensor


def prepare(theta: Tensor, reference: Reference) -> Prepared:
    """Factors of the kernel's logarithm.

    ``log N(q; mean, v) = q^2 (-1 / 2v) + q (mean / v) - mean^2 / 2v - log(v) / 2``, summed over what is visible:
    products of what depends on the row and what depends on the reference row.
    """
    values, variance, known = reference
    counts = torch.tensor([[[float(head[1])]] for head in HEADS]).to(values)
    width = torch.exp(2 * theta[:, :N_HEADS]).clamp(min=_SMALLEST_WIDTH).unsqueeze(2)  # (S, H, 1, F)
    precision = 1 / (width + counts * variance)
    scaled = precision * values
    constant = 0.5 * ((width * precision).log() - scaled * values)
    score = torch.cat([-0.5 * precision, scaled, constant], -1)
    cells = values * known
    averaged = torch.cat([cells, known, values, cells * values], -1)
    return Prepared(score.flatten(1, 2).transpose(1, 2), averaged)


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
    makes of the way from the reference rows' weighted mean to the row itself, as far as the slope lets it.

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
    S, (B, F), N = len(theta), given.x.shape[1:], len(prepared.averaged)
    of_row = torch.cat([given.x.square(), given.x, given.visible], -1)
    scores = torch.matmul(of_row, prepared.score).view(S, B, N_HEADS, N)
    own = own.expand(S, -1)
    smoother, row = (own >= 0).nonzero(as_tuple=True)
    # detached: no gradient passes a weight of zero anyway
    scores.detach()[smoother, row, :, own[smoother, row]] = torch.finfo(scores.dtype).min
    weights = torch.softmax(scores, -1).view(-1, N)
    sums = (weights @ prepared.averaged[:, : (4 if with_variance else 3) * F]).view(S, B, N_HEADS, -1)
    voted, share, center = sums[..., : 3 * F].split(F, -1)
    total = share + _BACKBONE
    mean = given.mean.unsqueeze(2)
    voted = (voted + _BACKBONE * mean) / total
    W, b, psi = backbone
    back = (((center - b) * given.visible.unsqueeze(2)) @ (W / psi.unsqueeze(1)) @ given.cov) @ W.T + b
    move = torch.sigmoid(theta[:, 2 * N_HEADS : 3 * N_HEADS]).unsqueeze(1) * share / total
    variance = torch.zeros_like(voted)
    if with_variance:
        squares = (sums[..., 3 * F :] + _BACKBONE * (mean.square() + given.variance.unsqueeze(2))) / total
        variance = (squares - voted.square()).clamp(min=0)
    return KernelEstimates(voted + move * (given.own_mean.unsqueeze(2) - back), variance)
