"""Training rows as evidence: a kernel smoother over a bank of them, local-linear around the linear backbone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vaeimpute.linear import Conditional, Linear, conditional_mean

# Bandwidth of each head at the start, in standard deviations of a feature, and whether a row of the bank whose own cell
# is unknown counts by the linear model's uncertainty of it, or by its mean as if it were known.
HEADS = ((0.3, True), (1.0, True), (0.3, False), (1.0, False))
_SMALLEST_VARIANCE = 1e-6  # of a kernel: distances are differences of large numbers in single precision


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
        self.gate = nn.Parameter(torch.full((H, 1, F), -4.0))  # nearly closed: the start is the backbone's answer

    @torch.no_grad()
    def fill(self, x: Tensor, observed: Tensor, given: Conditional, numbers: Tensor) -> None:
        """Take rows (N, F) as the bank; `numbers` (N,) are theirs in the training table."""
        self.bank.copy_(torch.where(observed, x, given.mean))
        self.variance.copy_(torch.where(observed, 0, given.variance))
        self.numbers.copy_(numbers)

    def forward(
        self, x: Tensor, kept: Tensor, given: Conditional, linear: Linear, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Votes of each head, (M, H, B, F), and the share of the weight that knew the cell, likewise.

        Parameters
        ----------
        x, kept : Tensor of shape (M, B, F)
            Features and which of them may be looked at.
        given : Conditional
            What `linear` makes of them.
        rows : Tensor of shape (M, B), optional
            The rows' own numbers in the training table, when they are part of it.
        """
        weights = self._weights(x, kept, rows)
        known = self.known.to(x.dtype)
        values = torch.cat([self.bank * known, known, self.bank.expand_as(known)], -1)
        voted, share, center = (weights.flatten(1, 2) @ values).unflatten(1, weights.shape[1:3]).chunk(3, -1)
        mean = given.mean.unsqueeze(1)
        voted = (voted + 1e-3 * mean) / (share + 1e-3)
        way = mean - conditional_mean(center, kept.unsqueeze(1), linear.per_head(), given.chol.unsqueeze(1))
        return voted + torch.sigmoid(self.slope) * way, share.expand_as(voted)

    def mix(self, mean: Tensor, voted: Tensor, more: Tensor | float = 0.0) -> Tensor:
        """The backbone's mean (M, B, F) and the heads' votes, mixed by the gates; `more` is added to their logits."""
        logits = (self.gate + more).expand_as(voted)
        share = torch.softmax(nn.functional.pad(logits, (0, 0, 0, 0, 1, 0)), 1)
        return share[:, 0] * mean + (share[:, 1:] * voted).sum(1)

    def _weights(self, x: Tensor, kept: Tensor, rows: Tensor | None) -> Tensor:
        """Kernel weights (M, H, B, N), summing to one over the bank.

        ``log N(q; mean, v) = q^2 (-1 / 2v) + q (mean / v) - mean^2 / 2v - log(v) / 2``: products of what depends on
        the row and what depends on the bank.
        """
        width = torch.exp(2 * self.log_bandwidth).clamp(min=_SMALLEST_VARIANCE)  # (H, 1, F)
        precision = 1 / (width + self.doubt * self.variance)  # (H, N, F)
        scaled = precision * self.bank
        of_bank = torch.cat([-0.5 * precision, scaled, 0.5 * ((width * precision).log() - scaled * self.bank)], -1)
        q = torch.where(kept, x, 0)
        of_row = torch.cat([q.square(), q, kept.to(x.dtype)], -1)
        scores = of_row.unsqueeze(1) @ of_bank.transpose(-1, -2)  # (M, H, B, N)
        # Neither a row itself nor one that knows nothing of what is asked may draw the weight to it.
        if rows is not None:
            useless = rows.unsqueeze(-1) == self.numbers
        else:
            useless = (~kept).to(x.dtype) @ self.known.to(x.dtype).transpose(-1, -2) < 0.5
        return torch.softmax(scores.masked_fill(useless.unsqueeze(1), torch.finfo(scores.dtype).min), -1)
