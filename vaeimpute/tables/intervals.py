"""How wide an interval must be to hold what it promises: tails of held-out cells in units of the predicted ones."""

from __future__ import annotations

import torch
from torch import Tensor

from vaeimpute.likelihoods.margins import Margins
from vaeimpute.persistence import Fitted

_TAILS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
_PSEUDO_CELLS = 50  # of all columns together, beside a column's own
_QUANTILE_CELLS = 100_000
_FARTHEST = 6.0  # score that counts: a value at the end of a column reaches to infinity


class IntervalCalibration(Fitted):
    """Normal scores at which the interval of a cell ``Q(mu + sigma t)`` must end, for each column and level.

    Where a normal ``t`` would end at a quantile of the normal, the held-out cells' own is taken (split conformal: Lei
    et al., JASA 2018), both tails apart, and pulled to that of all columns.

    Attributes
    ----------
    truth : Tensor of shape (Q, D), in float64
        Training rows.
    held_out : bool Tensor of shape (Q, D)
        Which of their cells were hidden.
    mean, deviation : Tensor of shape (Q, D)
        What was then predicted.
    """

    truth: Tensor
    held_out: Tensor
    mean: Tensor
    deviation: Tensor

    buffer_names = ("truth", "held_out", "mean", "deviation")

    def __init__(self, **buffers: Tensor | None) -> None:
        super().__init__(**buffers)
        self._tails: Tensor | None = None

    def ends(self, level: float, margins: Margins) -> tuple[Tensor, Tensor]:
        """Scores (D,) where intervals of that level end; beyond the kept tails as much farther as a normal's."""
        if self._tails is None:  # two threads may both make them: they make the same
            self._tails = self._quantiles_of_tails(margins)
        tails = self._tails
        grid, at = torch.special.ndtri(torch.tensor([*_TAILS, (1 - level) / 2]).to(tails)).split([len(_TAILS), 1])
        i = int((grid < at).sum().clamp(1, len(_TAILS) - 1))
        share = ((at - grid[i - 1]) / (grid[i] - grid[i - 1])).clamp(min=0)
        ends = torch.lerp(tails[..., i - 1], tails[..., i], share) * (at / grid[0]).clamp(min=1)
        return ends[0], ends[1]

    def _quantiles_of_tails(self, margins: Margins) -> Tensor:
        """Of the held-out scores below and above, for the tail probabilities in ``_TAILS``, (2, D, P)."""
        mu, sigma = margins.matched(self.mean.double(), self.deviation.double())
        scores = (((score - mu) / sigma.clamp(min=1e-9)) for score in margins.score_ranges(self.truth))
        below, above = (score.clamp(-_FARTHEST, _FARTHEST) for score in scores)
        tail = torch.tensor(_TAILS).to(mu)
        # the lower end must lie below a repeated value's upper edge, the upper end above its lower one
        return torch.stack([_quantiles(above, self.held_out, tail), _quantiles(below, self.held_out, 1 - tail)])


def _quantiles(scores: Tensor, held_out: Tensor, probability: Tensor) -> Tensor:
    """Quantiles (D, P) of each column's scores, pulled to those of all columns by `_PSEUDO_CELLS`."""
    pooled = scores[held_out]
    if not len(pooled):
        return torch.special.ndtri(probability).expand(scores.shape[1], -1)
    pooled = pooled[:: max(1, len(pooled) // _QUANTILE_CELLS)].quantile(probability)
    n = held_out.sum(0).unsqueeze(1)
    own = torch.where(held_out, scores, torch.nan).nanquantile(probability, 0).T
    share = n / (n + _PSEUDO_CELLS)
    return share * own.nan_to_num() + (1 - share) * pooled
