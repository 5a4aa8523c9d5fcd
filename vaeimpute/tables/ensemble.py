"""The models of a table as one: what it expects of a cell, and rows drawn from it.

The margin of a missing cell is that of the models which expect it best. What the missing cells of a row share, and what
the table leaves open, is that of a linear VAE's posterior: a Gaussian copula whose parameters are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from vaeimpute.anomaly.lattice import Lattice
from vaeimpute.batching import row_slices
from vaeimpute.gaussian.factor_analysis import ConditionalGaussian, FactorAnalysis, conditional
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.likelihoods.margins import Margins
from vaeimpute.tables.closed_form import ClosedFormStack, ClosedFormVAE
from vaeimpute.tables.intervals import IntervalCalibration
from vaeimpute.tables.models import JointVAE
from vaeimpute.tables.row_draws import CellMargins, Placement, RowDraws
from vaeimpute.tables.row_posterior import N_DRAWS, RowPosterior
from vaeimpute.tables.synthesis import SequentialTrees
from vaeimpute.training.runtime import make_generator
from vaeimpute.vae import inference
from vaeimpute.vae.inference import Ensemble
from vaeimpute.vae.noise import row_keys, row_uniform
from vaeimpute.vae.shift import Shift

_SEED = 0  # of what is learnt when it is first needed: the same in every process


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
    self_masked : bool Tensor of shape (D,), optional
        Columns of numbers whose cells are taken to hide themselves: they enter the linear VAE of draws by their normal
        scores. None without any.
    """

    joint: JointVAE
    conditional: ClosedFormVAE | ClosedFormStack
    rows: Tensor
    known: Tensor
    floor: Tensor
    is_linear: Tensor
    self_masked: Tensor | None

    buffer_names = (*Ensemble.buffer_names, "rows", "known", "floor", "is_linear", "self_masked")

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

    def hide_themselves(self, columns: Tensor) -> None:
        """Take the cells of some columns of numbers (D,) to hide themselves, before anything is drawn."""
        self.self_masked = columns.to(self.is_linear.device)

    @property
    def likelihoods(self) -> ColumnLikelihoods:
        """The product over all cells of a row."""
        return self.conditional.likelihoods

    @torch.no_grad()
    def impute(self, values: Tensor, observed: Tensor) -> Tensor:
        if self.self_masked is None:
            return super().impute(values, observed)
        points = self.likelihoods.point_estimates(self._expectations(values, observed))
        return torch.where(observed, values.double(), points)

    @torch.no_grad()
    def medians(self, values: Tensor, observed: Tensor) -> Tensor:
        margins = self.cell_margins(values, observed, self._given(values, observed))
        return self.lattice.nearest(self.margins.quantile(margins.mu))

    @torch.no_grad()
    def intervals(self, values: Tensor, observed: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """Ends (n, D) of the intervals of numbers, calibrated on held-out cells."""
        if self.self_masked is None:
            expectations, variance = self._predict(values, observed)
            mu, sigma = self.margins.matched(self.likelihoods.point_estimates(expectations).double(), variance.sqrt())
        else:
            mu, sigma, _ = self.cell_margins(values, observed, self._given(values, observed))
        low, high = self.calibration.ends(level, self.margins)
        return self.margins.quantile(mu + sigma * low), self.margins.quantile(mu + sigma * high)

    @torch.no_grad()
    def draw(self, values: Tensor, observed: Tensor, n_draws: int, seed: int, shifts: Sequence[Shift] = ()) -> Tensor:
        """Completed rows (n_draws, n, D) in float64; draw k has the same parameters whatever the rows.

        Hidden cells may be shifted: one shift for all draws, or one for each.
        """
        out = values.double().expand(n_draws, -1, -1).clone()
        keys = row_keys(values, observed)
        which = _order(seed)
        for rows in row_slices(len(values), self.conditional.numbers_per_row(1)):
            draws = self._row_draws(values[rows], observed[rows])
            for k in range(n_draws):
                shift = shifts[k % len(shifts)].at(rows) if shifts else None
                out[k, rows] = draws.completed(keys[rows], seed, k, which[k % N_DRAWS], shift)
        return out

    @torch.no_grad()
    def impute_shifted(self, values: Tensor, observed: Tensor, shift: Shift, *, median: bool = False) -> Tensor:
        """Points (n, D): those of hidden cells move by the average by which their draws do.

        Parameters
        ----------
        values, observed : Tensor of shape (n, D)
        shift : Shift
        median : bool
            Of numbers, instead of their mean.
        """
        likelihoods, keys = self.likelihoods, row_keys(values, observed)
        expectations = self._expectations(values, observed)
        if median:
            is_class = expectations.new_zeros(values.shape[1], dtype=torch.bool)
            is_class[likelihoods.class_columns] = True
            columns = likelihoods.expectation_columns
            expectations = torch.where(is_class[columns], expectations, self.medians(values, observed)[:, columns])
        moved = torch.zeros_like(expectations)
        for rows in row_slices(len(values), self.conditional.numbers_per_row(1)):
            draws, here = self._row_draws(values[rows], observed[rows]), shift.at(rows)
            for k in range(N_DRAWS):
                cells = [draws.completed(keys[rows], _SEED, k, k, each) for each in (here, None)]
                moved[rows] += (likelihoods.targets(cells[0]) - likelihoods.targets(cells[1])) / N_DRAWS
        points = likelihoods.point_estimates(expectations + moved)
        exact = likelihoods.point_estimates(expectations) + shift.added  # but for the chance of rounding
        points = torch.where(shift.columns & (shift.added != 0), exact, points)
        points = self.lattice.nearest(points) if median else points
        return torch.where(observed, values.double(), points)

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
        if self.self_masked is None:
            return CellMargins(*self.margins.matched(mean, variance.sqrt()), probabilities.double())
        scores = given.mean[:, first], given.variance[:, first].sqrt()
        at_random = self._linear_at_random(values, observed)
        # what the mask tells of a cell is in proportion to what the row leaves open of it
        left = (variance / at_random.variance[:, first]).clamp(max=1)
        moved = mean + left * (self.margins.mean(*scores) - at_random.mean[:, first])
        mu, sigma = self.margins.matched(torch.where(self.self_masked, moved, mean), variance.sqrt())
        own = self.self_masked & is_linear
        return CellMargins(torch.where(own, scores[0], mu), torch.where(own, scores[1], sigma), probabilities.double())

    @torch.no_grad()
    def self_masking(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Columns (J,) that hide themselves, draws of their slopes (K, J), and what that does to points.

        By how much those of hidden cells are higher than at random, on average over training rows, (J,), in standard
        deviations of the observed ones.
        """
        if self.self_masked is None or self._posterior.masking is None:
            return None
        values, hidden = self.rows.to(self.stacking_weight), ~self.known[:, self.self_masked]
        points = (self.impute(values, self.known), super().impute(values, self.known).double())
        difference = (points[0] - points[1])[:, self.self_masked]
        shift = torch.where(hidden, difference, 0).sum(0) / hidden.sum(0).clamp(min=1)
        return self.self_masked.nonzero().squeeze(-1), self._posterior.masking.c, shift

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
        nothing = torch.ones_like(self.floor).double()  # that parameters scatter
        return self._placement.cells(margins, t.flatten(0, 1), nothing).unflatten(0, t.shape[:2])

    @cached_property
    def _posterior(self) -> RowPosterior:
        """Two threads may both make it: they make the same."""
        x, known = self.features(self.rows.to(self.stacking_weight), self.known)
        start = FactorAnalysis(*(part[0] for part in self.joint.backbone))
        masked = None if self.self_masked is None else self.likelihoods.first_features[self.self_masked]
        return RowPosterior(x, known, start, self.floor, _SEED, masked)

    @cached_property
    def _trees(self) -> SequentialTrees:
        completed = self.draw(self.rows.to(self.stacking_weight), self.known, 1, _SEED)[0]
        rows = torch.where(self.known, self.rows, completed).cpu().numpy()
        return SequentialTrees(rows, self.likelihoods.class_columns, _SEED)

    def features(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Features (n, F) of rows (n, D), and which are observed."""
        visible = observed[:, self.likelihoods.feature_columns]
        return torch.where(visible, self._features_of(values), 0), visible

    def _features_of(self, cells: Tensor) -> Tensor:
        """Features (n, F) of cells (n, D); those that hide themselves enter by their normal scores."""
        features = self.likelihoods.features(cells)
        if self.self_masked is not None:
            own = self.likelihoods.first_features[self.self_masked]
            features[:, own] = self.margins.scores(cells)[:, self.self_masked].to(features)
        return features

    def _linear_at_random(self, values: Tensor, observed: Tensor) -> ConditionalGaussian:
        """What the linear VAE that knows of no mask says of rows (n, D)."""
        visible = observed[:, self.likelihoods.feature_columns]
        x = torch.where(visible, self.likelihoods.features(values), 0).double()
        return conditional(x, visible, FactorAnalysis(*(part[0].double() for part in self.joint.backbone)))

    def _given(self, values: Tensor, observed: Tensor) -> ConditionalGaussian:
        """What the linear VAE says of each cell, given the observed ones, and that the others hide themselves."""
        return self._given_features(*self.features(values, observed), values, observed)

    def _given_features(self, x: Tensor, visible: Tensor, values: Tensor, observed: Tensor) -> ConditionalGaussian:
        if self.self_masked is None:
            return self._posterior.given(x, visible)
        return self._posterior.given_masks(x, visible, row_keys(values, observed))

    def _expectations(self, values: Tensor, observed: Tensor) -> Tensor:
        """Expectations (n, A) in float64; of cells that hide themselves those of their margins."""
        expectations = inference.expectations(self, values, observed).double()
        if self.self_masked is None:
            return expectations
        given, likelihoods = self._given(values, observed), self.likelihoods
        margins, columns = self.cell_margins(values, observed, given), likelihoods.expectation_columns
        means = torch.where(
            self.self_masked, self.margins.mean(margins.mu, margins.sigma), given.mean[:, likelihoods.first_features]
        )
        replaced = self.self_masked | self.is_linear
        replaced[likelihoods.class_columns] = False
        return torch.where(replaced[columns], means[:, columns], expectations)

    @property
    def _placement(self) -> Placement:
        return Placement(self.likelihoods, self.margins, self.lattice, self.is_linear)

    def _row_draws(self, values: Tensor, observed: Tensor) -> RowDraws:
        x, visible = self.features(values, observed)
        given = self._given_features(x, visible, values, observed)
        margins = self.cell_margins(values, observed, given)
        return RowDraws(
            self._placement, self._features_of, self._posterior, values, observed, x, visible, given, margins
        )


def _order(seed: int) -> list[int]:
    """Which of the posterior's parameters each draw has."""
    return torch.randperm(N_DRAWS, generator=make_generator(seed)).tolist()
