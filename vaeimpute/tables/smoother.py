"""Training rows as evidence: a kernel smoother over a bank of them, local-linear around the linear backbone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaeimpute.gaussian.factor_analysis import Conditional, Linear, conditional_mean

# Bandwidth of each head at the start, in standard deviations of a feature, and whether a row of the bank whose own cell
# is unknown counts by the linear model's uncertainty of it, or by its mean as if it were known.
HEADS = ((0.3, True), (1.0, True), (0.3, False), (1.0, False))
_SMALLEST_WIDTH = 1e-6  # squared, of a kernel: distances are differences of large numbers in single precision
_BACKBONE = 1e-3  # weight of the backbone's answer beside the votes


class Votes(NamedTuple):
    """What the heads say of every cell, (M, H, B, F).

    Attributes
    ----------
    mean, variance : Tensor
        Of the voters' own cells, the mean moved along the backbone.
    share : Tensor
        Of the weight, how much knew the cell.
    """

    mean: Tensor
    variance: Tensor
    share: Tensor


class Neighbours(nn.Module):
    """Rows of the training table vote on the hidden cells of a row, by a Gaussian kernel on its kept cells.

    Nadaraya-Watson with one learnt bandwidth per feature and head. The kernel of a bank row's unknown cell is its
    expectation under the linear backbone, ``N(q; mean, bandwidth^2 + variance)``. Local-linear: a vote moves by
    what the backbone says of the way from the voters' weighted mean to the row itself, as far as `slope` lets it.
    Gates mix the backbone's mean and the heads' votes, per feature.

    Shape letters: M members (1 where all are asked the same), H heads, B rows, N rows of the bank, F features.

    Parameters
    ----------
    n_bank, n_features : int
    """

    bank: Tensor  # (N, F) training rows, their holes filled by the linear model
    variance: Tensor  # (N, F) the linear model's uncertainty of what is filled
    numbers: Tensor  # (N,) their numbers in the training table
    doubt: Tensor  # (H, 1, 1) whether an unknown cell of the bank counts by its uncertainty
    known: Tensor  # (M, N, F) which of their cells each member may use

    def __init__(self, n_bank: int, n_features: int) -> None:
        super().__init__()
        H, F = len(HEADS), n_features
        self.register_buffer("bank", torch.zeros(n_bank, F))
        self.register_buffer("variance", torch.zeros(n_bank, F))
        self.register_buffer("numbers", torch.full((n_bank,), -1))
        self.register_buffer("known", torch.zeros(1, n_bank, F, dtype=torch.bool))
        bandwidth, doubt = torch.tensor(HEADS, dtype=torch.float).view(H, 2, 1, 1).unbind(1)
        self.register_buffer("doubt", doubt, persistent=False)
        self.log_bandwidth = nn.Parameter(bandwidth.log().expand(H, 1, F).clone())
        self.slope = nn.Parameter(torch.zeros(H, 1, F))
        self.log_scale = nn.Parameter(torch.tensor([[0.0], [-2.0]]).expand(2, F).clone())
        self.log_error = nn.Parameter(torch.zeros(F))  # of the mixture, in units of the backbone's
        self.gate = nn.Parameter(torch.full((H, 1, F), -4.0))  # nearly closed: the start is the backbone's answer

    @torch.no_grad()
    def fill(self, x: Tensor, observed: Tensor, given: Conditional, numbers: Tensor) -> None:
        """Take rows (N, F) as the bank; `numbers` (N,) are theirs in the training table."""
        self.bank.copy_(torch.where(observed, x, given.mean))
        self.variance.copy_(torch.where(observed, 0, given.variance))
        self.numbers.copy_(numbers)

    def forward(
        self, x: Tensor, kept: Tensor, given: Conditional, linear: Linear, rows: Tensor | None, voters: slice
    ) -> Votes:
        """Ask the bank.

        Parameters
        ----------
        x, kept : Tensor of shape (M, B, F)
            Features and which of them may be looked at.
        given : Conditional
            What `linear` makes of them.
        rows : Tensor of shape (M, B), optional
            The rows' own numbers in the training table, when they are part of it.
        voters : slice
            The part of the bank that is asked.
        """
        bank, known = self.bank[voters], self.known[:, voters].to(x.dtype)
        weights = self._weights(x, kept, rows, voters, known).transpose(1, 2)  # (M, B, H, N)
        cells = bank * known
        values = torch.cat([cells, cells * bank, known, bank.expand_as(known)], -1)
        sums = (weights.flatten(1, 2) @ values).unflatten(1, weights.shape[1:3])
        voted, squares, share, center = sums.transpose(1, 2).chunk(4, -1)
        mean = given.mean.unsqueeze(1)
        total = share + _BACKBONE  # where nobody knows the cell, the backbone does
        voted = (voted + _BACKBONE * mean) / total
        squares = (squares + _BACKBONE * (mean.square() + given.variance.unsqueeze(1))) / total
        way = mean - conditional_mean(center, kept.unsqueeze(1), linear.per_head(), given.inverse)
        variance = (squares - voted.square()).clamp(min=0)
        move = torch.sigmoid(self.slope) * share / total  # the backbone answers where the row is
        return Votes(voted + move * way, variance, share.expand_as(voted))

    def mix(self, given: Conditional, votes: Votes, more: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation (M, B, F) of the backbone and the votes, mixed by the gates.

        `more` is added to the gates' logits. The variance is a multiple of the backbone's plus one of the votes'.
        """
        logits = (self.gate + more).expand_as(votes.mean)
        share = torch.softmax(nn.functional.pad(logits, (0, 0, 0, 0, 1, 0)), 1)
        mean = share[:, 0] * given.mean + (share[:, 1:] * votes.mean).sum(1)
        of_backbone, of_votes = torch.exp(2 * self.log_scale)
        variance = of_backbone * given.variance + of_votes * (share[:, 1:].detach() * votes.variance.detach()).sum(1)
        return mean, 0.5 * variance.log()

    def _weights(self, x: Tensor, kept: Tensor, rows: Tensor | None, voters: slice, known: Tensor) -> Tensor:
        """Kernel weights (M, H, B, N), summing to one over the bank.

        ``log N(q; mean, v) = q^2 (-1 / 2v) + q (mean / v) - mean^2 / 2v - log(v) / 2``: products of what depends on
        the row and what depends on the bank.
        """
        width = torch.exp(2 * self.log_bandwidth).clamp(min=_SMALLEST_WIDTH)  # (H, 1, F)
        bank = self.bank[voters]
        precision = 1 / (width + self.doubt * self.variance[voters])  # (H, N, F)
        scaled = precision * bank
        of_bank = torch.cat([-0.5 * precision, scaled, 0.5 * ((width * precision).log() - scaled * bank)], -1)
        q = torch.where(kept, x, 0)
        of_row = torch.cat([q.square(), q, kept.to(x.dtype)], -1)
        # One question may go to all members, but each may use other cells.
        of_row = of_row.expand(max(len(of_row), len(known)), -1, -1)
        scores = of_row.flatten(0, 1) @ of_bank.flatten(0, 1).T  # one product for all members and heads
        scores = scores.view(*of_row.shape[:2], *of_bank.shape[:2])  # (M, B, H, N)
        # Neither a row itself nor one that knows nothing of what is asked may draw the weight to it.
        nothing = torch.finfo(scores.dtype).min
        if rows is not None:
            member, row, place = (rows.unsqueeze(-1) == self.numbers[voters]).nonzero(as_tuple=True)
            scores.detach()[member, row, :, place] = nothing  # detached: no gradient passes a weight of zero anyway
        else:
            useless = (~kept).to(x.dtype) @ known.transpose(-1, -2) < 0.5
            scores.detach().masked_fill_(useless.unsqueeze(2), nothing)
        return torch.softmax(scores, -1).transpose(1, 2)
