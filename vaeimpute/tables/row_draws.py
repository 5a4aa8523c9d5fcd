"""Rows of a table, completed by random draws: margins of the cells, joined by the deviates of a linear VAE.

Hidden cells of some columns may be shifted from what "missing at random" says of them: pattern-mixture models with an
offset (Rubin 1977), which may depend on other columns (NARFCS: Tompsett et al., Statistics in Medicine 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vaeimpute.anomaly.lattice import Lattice
from vaeimpute.gaussian.factor_analysis import ConditionalGaussian
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.likelihoods.margins import Margins
from vaeimpute.tables.row_posterior import RowPosterior
from vaeimpute.vae.noise import row_uniform
from vaeimpute.vae.shift import Shift

_ROUNDING = 1  # a stream of uniform numbers of its own


class CellMargins(NamedTuple):
    """Distributions of the cells of some rows.

    Attributes
    ----------
    mu, sigma : Tensor of shape (n, D)
        Of a number, which is ``Q(mu + sigma t)`` with a standard normal t and the column's quantile function.
    probabilities : Tensor of shape (n, A)
        Of classes, where expectations have their columns.
    """

    mu: Tensor
    sigma: Tensor
    probabilities: Tensor


class Placement(NamedTuple):
    """Where drawn cells stand: what is the same for all rows of a table.

    Attributes
    ----------
    likelihoods : ColumnLikelihoods
    quantiles : Margins
    lattice : Lattice
    is_linear : bool Tensor of shape (D,)
        Columns whose margins are the linear VAE's.
    """

    likelihoods: ColumnLikelihoods
    quantiles: Margins
    lattice: Lattice
    is_linear: Tensor

    def cells(self, margins: CellMargins, t: Tensor, scatter: Tensor) -> Tensor:
        """Cells (n, D) whose normal scores are the deviates (n, F), which parameters scatter by that much (F,)."""
        own = self.likelihoods.first_features
        # of a linear margin, what parameters leave open is part of the draw; others were judged with it
        t_numbers = t[:, own] / torch.where(self.is_linear, 1, scatter[own])
        cells = self.lattice.nearest(self.quantiles.quantile(margins.mu + margins.sigma * t_numbers))
        uniform = torch.special.ndtr(t / scatter)
        for j in self.likelihoods.class_columns:
            p = margins.probabilities[:, self.likelihoods.expectation_columns == j]
            cells[:, j] = _classes(p, uniform[:, self.likelihoods.feature_columns == j])
        return cells


class RowDraws:
    """Draws of the hidden cells of some rows.

    Parameters
    ----------
    placement : Placement
    features : callable
        Cells (n, D) to what the linear VAE sees, (n, F).
    posterior : RowPosterior
    values, observed : Tensor of shape (n, D)
    x, visible : Tensor of shape (n, F)
        Their features.
    given : ConditionalGaussian
        What the linear VAE says of them.
    margins : CellMargins
    """

    def __init__(
        self,
        placement: Placement,
        features: Callable[[Tensor], Tensor],
        posterior: RowPosterior,
        values: Tensor,
        observed: Tensor,
        x: Tensor,
        visible: Tensor,
        given: ConditionalGaussian,
        margins: CellMargins,
    ) -> None:
        self._placement, self._features, self._posterior = placement, features, posterior
        self._values, self._observed = values.double(), observed
        self._x, self._visible, self._given, self._margins = x, visible, given, margins

    def completed(self, keys: Tensor, seed: int, k: int, which: int, shift: Shift | None = None) -> Tensor:
        """Rows (n, D), completed by draw k.

        Parameters
        ----------
        keys : Tensor of shape (n,)
            Of the rows' noise.
        seed, k : int
        which : int
            Number of the draw of the parameters.
        shift : Shift, optional
        """
        t = self._posterior.deviates(self._x, self._visible, self._given, which, keys, seed, k)
        cells = self._cells(self._margins, t)
        if shift is not None:
            cells = self._shifted(cells, t, which, shift, row_uniform(keys, cells.shape[1], seed, k, _ROUNDING))
        return torch.where(self._observed, self._values, cells)

    def _shifted(self, cells: Tensor, t: Tensor, which: int, shift: Shift, uniform: Tensor) -> Tensor:
        """Shift cells (n, D) that have these deviates; the others of the row are drawn given the shifted ones."""
        likelihoods, own = self._placement.likelihoods, shift.columns & ~self._observed
        moved = self._cells(_towards(self._margins, shift.log_odds, likelihoods), t)
        moved = torch.where(shift.added == 0, moved, self._placement.lattice.between(moved + shift.added, uniform))
        changed = own[:, likelihoods.feature_columns]
        change = torch.where(changed, self._features(moved) - self._features(cells), 0)
        follow = self._posterior.following(change, self._visible | changed, self._given, which)
        return torch.where(own, moved, self._cells(self._margins, t + follow))

    def _cells(self, margins: CellMargins, t: Tensor) -> Tensor:
        return self._placement.cells(margins, t, self._posterior.variance.sqrt())


def _towards(margins: CellMargins, log_odds: Tensor, likelihoods: ColumnLikelihoods) -> CellMargins:
    """The same margins, with other odds of classes."""
    p = margins.probabilities.clamp(min=0) * log_odds.exp()
    columns = likelihoods.expectation_columns
    total = torch.zeros_like(margins.mu).index_add(1, columns, p)
    return margins._replace(probabilities=p / total[:, columns].clamp(min=1e-300))


def _classes(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Codes (n,) with these probabilities (n, N), from uniform numbers of the column's features (n, 1 or N)."""
    p = probabilities.clamp(min=1e-9)
    if min(uniform.shape[1], p.shape[1]) <= 2:  # ordered, or two of them
        upper = p.cumsum(1)[:, :-1] / p.sum(1, keepdim=True)
        return (upper < uniform[:, -1:]).sum(1).to(p)
    gumbel = -(-uniform.clamp(1e-9, 1 - 1e-9).log()).log()
    return (p.log() + gumbel).argmax(1).to(p)
