"""The models of a table as one: what it expects of a cell, and rows drawn from it.

The margin of a missing cell is that of the models which expect it best. What the missing cells of a row share, and what
the table leaves open, is that of a linear VAE's posterior: a Gaussian copula whose parameters are drawn.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from vaeimpute.anomaly.lattice import Lattice
from vaeimpute.batching import row_slices
from vaeimpute.gaussian.factor_analysis import ConditionalGaussian, FactorAnalysis
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.likelihoods.margins import Margins
from vaeimpute.tables.closed_form import ClosedFormStack, ClosedFormVAE
from vaeimpute.tables.intervals import IntervalCalibration
from vaeimpute.tables.models import JointVAE
from vaeimpute.tables.row_posterior import N_DRAWS, RowPosterior
from vaeimpute.tables.synthesis import SequentialTrees
from vaeimpute.training.runtime import make_generator
from vaeimpute.vae import inference
from vaeimpute.vae.inference import Ensemble
from vaeimpute.vae.noise import row_keys, row_normal, row_uniform

_SEED = 0  # of what is learnt when it is first needed: the same in every process


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


class TableEnsemble(Ensemble):
    """The joint and the closed-form model of a table, the margins of its columns, and rows of it.

    Parameters
    ----------
    joint : JointVAE
    conditional : ClosedFormVAE or ClosedFormStack
    margins : Margins
        Of all columns; those of classes are not used.
    lattice : Lattice
        Where numbers stand.
    calibration : IntervalCalibration
    stacking_weight : Tensor of shape (D,)
        Weight of the joint model in each column's expectation; the conditional one has the rest.
    rows, known : Tensor of shape (N, D)
        Training rows in float64, and which of their cells are observed.
    floor : Tensor of shape (F,)
        Smallest noise variance of each feature when parameters are drawn.
    is_linear : bool Tensor of shape (D,)
        Columns that a linear VAE expects as well as all models together: its margins are proper.
    """

    joint: JointVAE
    conditional: ClosedFormVAE | ClosedFormStack
    rows: Tensor
    known: Tensor
    floor: Tensor
    is_linear: Tensor

    buffer_names = (*Ensemble.buffer_names, "rows", "known", "floor", "is_linear")

    def __init__(
        self,
        joint: JointVAE,
        conditional: ClosedFormVAE | ClosedFormStack,
        margins: Margins,
        lattice: Lattice,
        calibration: IntervalCalibration,
        **buffers: Tensor | None,
    ) -> None:
        super().__init__(joint, conditional, **buffers)
        self.margins, self.lattice, self.calibration = margins, lattice, calibration

    @property
    def likelihoods(self) -> ColumnLikelihoods:
        """The product over all cells of a row."""
        return self.conditional.likelihoods

    @torch.no_grad()
    def medians(self, values: Tensor, observed: Tensor) -> Tensor:
        margins = self.cell_margins(values, observed, self._given(values, observed))
        return self.lattice.nearest(self.margins.quantile(margins.mu))

    @torch.no_grad()
    def intervals(self, values: Tensor, observed: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """Ends (n, D) of the intervals of numbers, calibrated on held-out cells."""
        expectations, variance = self._predict(values, observed)
        mu, sigma = self.margins.matched(self.likelihoods.point_estimates(expectations).double(), variance.sqrt())
        low, high = self.calibration.ends(level, self.margins)
        return self.margins.quantile(mu + sigma * low), self.margins.quantile(mu + sigma * high)

    @torch.no_grad()
    def draw(self, values: Tensor, observed: Tensor, n_draws: int, seed: int) -> Tensor:
        """Completed rows (n_draws, n, D) in float64; draw k has the same parameters whatever the rows."""
        out = values.double().expand(n_draws, -1, -1).clone()
        keys = row_keys(values, observed)
        which = _order(seed)
        for rows in row_slices(len(values), self.conditional.numbers_per_row(1)):
            v, o = values[rows], observed[rows]
            given = self._given(v, o)
            margins = self.cell_margins(v, o, given)
            x, visible = self.features(v, o)
            for k in range(n_draws):
                noise = row_normal(keys[rows], self._posterior.n_noise, seed, k)
                t = self._posterior.deviates(x, visible, given, which[k % N_DRAWS], noise)
                out[k, rows] = torch.where(o, v.double(), self._cells(margins, t, self._posterior.variance.sqrt()))
        return out

    @torch.no_grad()
    def sample(self, n_samples: int, seed: int) -> Tensor:
        """New rows (n_samples, D) in float64."""
        keys = torch.arange(n_samples, device=self.rows.device)
        uniform = row_uniform(keys, self.rows.shape[1], seed)
        return torch.as_tensor(self._trees.sample(uniform.cpu().numpy())).to(self.rows)

    def cell_margins(self, values: Tensor, observed: Tensor, given: ConditionalGaussian) -> CellMargins:
        """Margins of the cells of rows (n, D), of which the linear VAE says what is `given`."""
        likelihoods, first = self.likelihoods, self.likelihoods.first_features
        is_linear = self.is_linear | ~observed.any(1, keepdim=True)  # others have never met a row without cells
        expectations, variance = self._predict(values, observed)
        linear = likelihoods.gaussian_expectations(given.mean.to(values), 0.5 * given.variance.log().to(values))
        probabilities = torch.where(is_linear[:, likelihoods.expectation_columns], linear, expectations)
        mean = torch.where(is_linear, given.mean[:, first], likelihoods.point_estimates(expectations).double())
        variance = torch.where(is_linear, given.variance[:, first], variance)
        return CellMargins(*self.margins.matched(mean, variance.sqrt()), probabilities.double())

    def _predict(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Expectations (n, A), and the variance (n, D) of numbers in float64."""
        expectations, variance = self.conditional.cell_moments(values, observed)
        if self.stacking_weight.any():
            expectations = inference.expectations(self, values, observed)
        return expectations, variance.double()

    def parameters_of_draw(self, number: int, seed: int) -> FactorAnalysis:
        """What `draw` draws table `number` with."""
        which = _order(seed)[number % N_DRAWS]
        return FactorAnalysis(*(part[which] for part in self._posterior.draws))

    def linear_cells(self, given: ConditionalGaussian, t: Tensor) -> Tensor:
        """Cells (K, n, D) at deviates (K, n, F) from what some linear VAE says of rows, all by its margins."""
        likelihoods, first = self.likelihoods, self.likelihoods.first_features
        probabilities = likelihoods.gaussian_expectations(given.mean, 0.5 * given.variance.log())
        matched = self.margins.matched(given.mean[:, first], given.variance[:, first].sqrt())
        margins = CellMargins(*(part.repeat(len(t), 1) for part in (*matched, probabilities)))
        return self._cells(margins, t.flatten(0, 1), torch.ones_like(self.floor).double()).unflatten(0, t.shape[:2])

    @cached_property
    def _posterior(self) -> RowPosterior:
        """Two threads may both make it: they make the same."""
        x, known = self.features(self.rows.to(self.stacking_weight), self.known)
        start = FactorAnalysis(*(part[0] for part in self.joint.backbone))
        return RowPosterior(x, known, start, self.floor, _SEED)

    @cached_property
    def _trees(self) -> SequentialTrees:
        completed = self.draw(self.rows.to(self.stacking_weight), self.known, 1, _SEED)[0]
        rows = torch.where(self.known, self.rows, completed).cpu().numpy()
        return SequentialTrees(rows, self.likelihoods.class_columns, _SEED)

    def features(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, F) of rows (n, D), and which are observed."""
        visible = observed[:, self.likelihoods.feature_columns]
        return torch.where(visible, self.likelihoods.features(values), 0), visible

    def _given(self, values: Tensor, observed: Tensor) -> ConditionalGaussian:
        return self._posterior.given(*self.features(values, observed))

    def _cells(self, margins: CellMargins, t: Tensor, scatter: Tensor) -> Tensor:
        """Cells (n, D) whose normal scores are the deviates (n, F), which parameters scatter (F,)."""
        likelihoods = self.likelihoods
        own = likelihoods.first_features
        # of a linear margin, what parameters leave open is part of the draw; others were judged with it
        t_numbers = t[:, own] / torch.where(self.is_linear, 1, scatter[own])
        cells = self.lattice.nearest(self.margins.quantile(margins.mu + margins.sigma * t_numbers))
        uniform = torch.special.ndtr(t / scatter)
        for j in likelihoods.class_columns:
            p = margins.probabilities[:, likelihoods.expectation_columns == j]
            cells[:, j] = _classes(p, uniform[:, likelihoods.feature_columns == j])
        return cells


def _order(seed: int) -> list[int]:
    """Which of the posterior's parameters each draw has."""
    return torch.randperm(N_DRAWS, generator=make_generator(seed)).tolist()


def _classes(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Codes (n,) with these probabilities (n, N), from uniform numbers of the column's features (n, 1 or N)."""
    p = probabilities.clamp(min=1e-9)
    if min(uniform.shape[1], p.shape[1]) <= 2:  # ordered, or two of them
        upper = p.cumsum(1)[:, :-1] / p.sum(1, keepdim=True)
        return (upper < uniform[:, -1:]).sum(1).to(p)
    gumbel = -(-uniform.clamp(1e-9, 1 - 1e-9).log()).log()
    return (p.log() + gumbel).argmax(1).to(p)
