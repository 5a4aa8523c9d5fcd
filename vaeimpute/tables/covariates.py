"""A model of a table's rows without one of its columns, whose parameters are drawn again as the table is completed.

The linear VAE of the draws, on the scale of each column's margin. Models that know only the cells that are observed
will not do: where a cell is missing by what the column left out holds, these are others than those that are missing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vaeimpute.batching import row_slices
from vaeimpute.gaussian.factor_analysis import FactorAnalysis, conditional, decode
from vaeimpute.gaussian.gibbs import draw_latents, draw_parameters
from vaeimpute.tables.ensemble import TableEnsemble
from vaeimpute.training.runtime import make_generator

_SWEEPS = 3  # from one draw of the parameters to the next


class CovariateModel:
    """One chain: parameters given a completed table, and proposals of the missing cells given these.

    Parameters
    ----------
    ensemble : TableEnsemble
        Where the chain begins, and what columns are like.
    values, observed : Tensor of shape (r, D)
        The incomplete rows.
    column : int
        Which is left out.
    number, seed : int
        The chain begins with the parameters of this draw.
    """

    @torch.no_grad()
    def __init__(
        self, ensemble: TableEnsemble, values: Tensor, observed: Tensor, column: int, number: int, seed: int
    ) -> None:
        self.ensemble, self.values = ensemble, values
        self.observed = observed.clone()
        self.observed[:, column] = False
        self.kept = ensemble.likelihoods.feature_columns != column
        self.generator = make_generator(seed + number, values.device)
        start = ensemble.parameters_of_draw(number, seed)
        self.model = FactorAnalysis(*(part[self.kept] for part in start))

    @torch.no_grad()
    def propose(self, n_proposals: int) -> Tensor:
        """Completed rows (K, r, D) in float64; of no use in the column that is left out."""
        out = self.values.double().expand(n_proposals, -1, -1).clone()
        model = self._whole()
        for rows in row_slices(len(self.values), n_proposals * (4 * sum(model.W.shape) + model.rank**2)):
            v, o = self.values[rows], self.observed[rows]
            x, visible = self.ensemble.features(v, o)
            x, (r, F) = x.double(), x.shape
            given = conditional(x, visible, model)
            noise = torch.empty(n_proposals, r, model.rank + F, dtype=x.dtype, device=x.device)
            of_latents, of_cells = noise.normal_(generator=self.generator).split([model.rank, F], -1)
            drawn = decode(draw_latents(x, visible, model, of_latents), model) + model.psi.sqrt() * of_cells
            t = (drawn - given.mean) / given.variance.sqrt()
            cells = self.ensemble.linear_cells(given, t)
            out[:, rows] = torch.where(o, v.double(), cells)
        return out

    @torch.no_grad()
    def update(self, completed: Tensor) -> None:
        """Draw the parameters anew given all rows of a completed table (n, D)."""
        x, known = self.ensemble.features(completed.to(self.values), torch.ones_like(completed, dtype=torch.bool))
        floor = self.ensemble.floor.double()[self.kept]
        drawn, _ = draw_parameters(
            x.double()[:, self.kept],
            known[:, self.kept],
            self.model,
            floor,
            1,
            self.generator,
            n_warm_up=0,
            n_between=_SWEEPS,
        )
        self.model = FactorAnalysis(*(part[0] for part in drawn))

    def _whole(self) -> FactorAnalysis:
        """The model with the features that are left out, as noise."""
        W, b, psi = self.model
        out = FactorAnalysis(
            W.new_zeros(len(self.kept), W.shape[1]), b.new_zeros(len(self.kept)), psi.new_ones(len(self.kept))
        )
        for part, new in zip(out, self.model, strict=True):
            part[self.kept] = new
        return out
