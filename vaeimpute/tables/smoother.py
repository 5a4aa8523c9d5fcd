"""Training rows as evidence: a kernel smoother over reference rows, local-linear around the linear backbone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaeimpute.gaussian.factor_analysis import ConditionalGaussian, FactorAnalysis, conditional_mean

# Bandwidth of each head at the start, in standard deviations of a feature, and whether a reference row whose own cell
# is missing counts by the linear model's uncertainty of it, or by its mean as if it were observed.
HEADS = ((0.3, True), (1.0, True), (0.3, False), (1.0, False))
_SMALLEST_WIDTH = 1e-6  # squared, of a kernel: distances are differences of large numbers in single precision
_BACKBONE = 1e-3  # weight of the backbone's mean beside the reference rows


class KernelEstimates(NamedTuple):
    """What the heads estimate for every cell, (M, H, B, F).

    Attributes
    ----------
    mean, variance : Tensor
        Of the reference rows' own cells, the mean moved along the backbone.
    share : Tensor
        Of the kernel's weight, how much is of rows in which the cell is observed.
    """

    mean: Tensor
    variance: Tensor
    share: Tensor


class KernelSmoother(nn.Module):
    """Estimates the hidden cells of a row from reference rows, by a Gaussian kernel on its visible cells.

    Nadaraya-Watson with one learnt bandwidth per feature and head. The kernel of a reference row's missing cell is its
    expectation under the linear backbone, ``N(q; mean, bandwidth^2 + variance)``. Local-linear: an estimate moves by
    what the backbone makes of the way from the reference rows' weighted mean to the row itself, as far as `slope` lets
    it. Gates mix the backbone's mean and the heads' estimates, per feature.

    Shape letters: M members (1 where all see the same), H heads, B rows, N reference rows, F features.

    Parameters
    ----------
    n_reference, n_features : int
    """

    reference: Tensor  # (N, F) training rows, their missing cells filled by the linear model
    variance: Tensor  # (N, F) the linear model's uncertainty of what is filled
    row_numbers: Tensor  # (N,) their numbers in the training table
    counts_variance: Tensor  # (H, 1, 1) whether a missing cell of a reference row counts by its uncertainty
    visible: Tensor  # (M, N, F) which of their cells each member may use

    def __init__(self, n_reference: int, n_features: int) -> None:
        super().__init__()
        H, F = len(HEADS), n_features
        self.register_buffer("reference", torch.zeros(n_reference, F))
        self.register_buffer("variance", torch.zeros(n_reference, F))
        self.register_buffer("row_numbers", torch.full((n_reference,), -1))
        self.register_buffer("visible", torch.zeros(1, n_reference, F, dtype=torch.bool))
        bandwidth, counts_variance = torch.tensor(HEADS, dtype=torch.float).view(H, 2, 1, 1).unbind(1)
        self.register_buffer("counts_variance", counts_variance, persistent=False)
        self.log_bandwidth = nn.Parameter(bandwidth.log().expand(H, 1, F).clone())
        self.slope = nn.Parameter(torch.zeros(H, 1, F))
        self.log_scale = nn.Parameter(torch.tensor([[0.0], [-2.0]]).expand(2, F).clone())
        self.log_error = nn.Parameter(torch.zeros(F))  # of the mixture, in units of the backbone's
        self.gate = nn.Parameter(torch.full((H, 1, F), -4.0))  # nearly closed: the start is the backbone's mean

    @torch.no_grad()
    def set_reference(self, x: Tensor, observed: Tensor, given: ConditionalGaussian, row_numbers: Tensor) -> None:
        """Take rows (N, F) as the reference; `row_numbers` (N,) are theirs in the training table."""
        self.reference.copy_(torch.where(observed, x, given.mean))
        self.variance.copy_(torch.where(observed, 0, given.variance))
        self.row_numbers.copy_(row_numbers)

    def forward(
        self,
        x: Tensor,
        visible: Tensor,
        given: ConditionalGaussian,
        backbone: FactorAnalysis,
        rows: Tensor | None,
        part: slice,
    ) -> KernelEstimates:
        """Estimate all cells of some rows.

        Parameters
        ----------
        x, visible : Tensor of shape (M, B, F)
            Features and which of them may be used.
        given : ConditionalGaussian
            What `backbone` makes of them.
        backbone : FactorAnalysis
        rows : Tensor of shape (M, B), optional
            The rows' own numbers in the training table, when they are part of it.
        part : slice
            The part of the reference rows that is used.
        """
        reference, known = self.reference[part], self.visible[:, part].to(x.dtype)
        weights = self._weights(x, visible, rows, part, known).transpose(1, 2)  # (M, B, H, N)
        cells = reference * known
        columns = torch.cat([cells, cells * reference, known, reference.expand_as(known)], -1)
        sums = (weights.flatten(1, 2) @ columns).unflatten(1, weights.shape[1:3])
        estimate, squares, share, center = sums.transpose(1, 2).chunk(4, -1)
        mean = given.mean.unsqueeze(1)
        total = share + _BACKBONE  # where no reference row has the cell, the backbone does
        estimate = (estimate + _BACKBONE * mean) / total
        squares = (squares + _BACKBONE * (mean.square() + given.variance.unsqueeze(1))) / total
        way = mean - conditional_mean(center, visible.unsqueeze(1), backbone.per_head(), given.inverse)
        variance = (squares - estimate.square()).clamp(min=0)
        move = torch.sigmoid(self.slope) * share / total  # the backbone's own mean is where the row is
        return KernelEstimates(estimate + move * way, variance, share.expand_as(estimate))

    def mix(
        self, given: ConditionalGaussian, estimates: KernelEstimates, more: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (M, B, F) of the backbone and the kernel estimates, mixed by the gates.

        `more` is added to the gates' logits. The variance is a multiple of the backbone's plus one of the estimates'.
        """
        logits = (self.gate + more).expand_as(estimates.mean)
        share = torch.softmax(nn.functional.pad(logits, (0, 0, 0, 0, 1, 0)), 1)
        mean = share[:, 0] * given.mean + (share[:, 1:] * estimates.mean).sum(1)
        of_backbone, of_estimates = torch.exp(2 * self.log_scale)
        between = (share[:, 1:].detach() * estimates.variance.detach()).sum(1)
        return mean, 0.5 * (of_backbone * given.variance + of_estimates * between).log()

    def _weights(self, x: Tensor, visible: Tensor, rows: Tensor | None, part: slice, known: Tensor) -> Tensor:
        """Kernel weights (M, H, B, N), summing to one over the reference rows.

        ``log N(q; mean, v) = q^2 (-1 / 2v) + q (mean / v) - mean^2 / 2v - log(v) / 2``: products of what depends on
        the row and what depends on the reference row.
        """
        width = torch.exp(2 * self.log_bandwidth).clamp(min=_SMALLEST_WIDTH)  # (H, 1, F)
        reference = self.reference[part]
        precision = 1 / (width + self.counts_variance * self.variance[part])  # (H, N, F)
        scaled = precision * reference
        constant = 0.5 * ((width * precision).log() - scaled * reference)
        of_reference = torch.cat([-0.5 * precision, scaled, constant], -1)
        q = torch.where(visible, x, 0)
        of_row = torch.cat([q.square(), q, visible.to(x.dtype)], -1)
        # All members may get the same row, but each may use other cells of the reference rows.
        of_row = of_row.expand(max(len(of_row), len(known)), -1, -1)
        scores = of_row.flatten(0, 1) @ of_reference.flatten(0, 1).T  # one product for all members and heads
        scores = scores.view(*of_row.shape[:2], *of_reference.shape[:2])  # (M, B, H, N)
        # Neither a row itself nor one that has none of the hidden cells may draw the weight to it.
        nothing = torch.finfo(scores.dtype).min
        if rows is not None:
            member, row, place = (rows.unsqueeze(-1) == self.row_numbers[part]).nonzero(as_tuple=True)
            scores.detach()[member, row, :, place] = nothing  # detached: no gradient passes a weight of zero anyway
        else:
            useless = (~visible).to(x.dtype) @ known.transpose(-1, -2) < 0.5
            scores.detach().masked_fill_(useless.unsqueeze(2), nothing)
        return torch.softmax(scores, -1).transpose(1, 2)
