"""A detector's density of a table's rows and cells: a mixture of linear VAEs beside distances to neighbours.

Every member is blind to the rows of its fold, so that all rows of the table can tell what reference rows score. (A
network on top raises the likelihood, but finds no more outliers: see benchmarks/README.md.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaeimpute.anomaly.calibration import CellCalibration, RowCalibration
from vaeimpute.anomaly.cellwise import GivenOthers, average_over_clean_masks
from vaeimpute.anomaly.contamination import ContaminationDensity
from vaeimpute.anomaly.density import CellPredictions, Density, FittedModels
from vaeimpute.anomaly.lattice import Lattice
from vaeimpute.anomaly.neighbours import knn_distances
from vaeimpute.batching import row_slices
from vaeimpute.gaussian.mixture import (
    Mixture,
    choose_mixture,
    fit_mixture,
    leave_block_out,
    leave_one_out,
    log_likelihood,
)
from vaeimpute.gaussian.trimmed import CONTAMINATION, fit_trimmed, trimmed_share
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.tables.data import Table, density_specs

FLOOR = 0.05  # smallest noise variance of a standardised column
N_FOLDS = 4
_MIN_ROWS = 4  # below, one member sees all rows
_LOG_SCALE_FLOOR = -10.0  # of the likelihoods: the mixture has a floor of its own
_REACH = 30.0  # standard deviations that a cell is away at most when a trimmed fit begins
_EM_ROWS = 10_000  # a mixture does not improve with more
_REFERENCE_ROWS = 4096  # rows that can be neighbours
_NEIGHBOURS = 3
_MANY_NEIGHBOURS = 20  # where some may be outliers
_BULK = 0.8  # share of the rows that can be neighbours then
_NARROW = 1e-3  # half an interquartile range that says nothing: most cells of the column are equal
_CALIBRATION_ROWS = 8000
_REMASKED, _REMASKED_RATE = 4000, 0.8  # of these, with further cells hidden, and how many at most
_CALIBRATION_CELLS = 4000  # of which each row has as many as there are columns
_CONTAMINATION_WEIGHT = 0.5  # of the log-odds by value; all of them would trust the densities too much


class MixtureDensity(Density):
    """Mixtures of linear VAEs, reference rows, and where the clean and the wrong cells of a column stand.

    Parameters
    ----------
    specs : sequence of CellSpec
        The likelihood of each column.
    mixture : Mixture
        Of all members: ``log_weight`` (M, C), ``W`` (M, C, F, L) and so on.
    cell_mixture : Mixture
        The one that scores cells. A trimmed fit leaves out rows for the other, but of a row with a wrong cell this one
        learns from the rest.
    contamination : ContaminationDensity
    lattice : Lattice
    reference : Tensor of shape (N, F)
        Rows to be neighbours, their missing cells filled by the first member.
    margins : Tensor of shape (2, F)
        Median and half the interquartile range of each feature.
    robust : bool
        Whether there were outliers among the training rows.
    """

    reference: Tensor
    margins: Tensor
    likelihoods: ColumnLikelihoods

    buffer_names = ("reference", "margins")

    def __init__(
        self,
        specs: Sequence[CellSpec],
        mixture: Mixture,
        cell_mixture: Mixture,
        contamination: ContaminationDensity,
        lattice: Lattice,
        row_calibration: RowCalibration | None = None,
        cell_calibration: CellCalibration | None = None,
        reference: Tensor | None = None,
        margins: Tensor | None = None,
        *,
        robust: bool,
    ) -> None:
        super().__init__(row_calibration, cell_calibration, reference=reference, margins=margins)
        self.likelihoods = ColumnLikelihoods(specs, _LOG_SCALE_FLOOR)
        self.robust = robust
        self.mixture, self.cell_mixture = mixture, cell_mixture
        self.contamination, self.lattice = contamination, lattice

    def config(self) -> dict[str, Any]:
        return {"specs": [asdict(spec) for spec in self.likelihoods.specs], "robust": self.robust}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], parts: Mapping[str, Any]) -> Self:
        specs = [CellSpec.from_json(spec) for spec in config["specs"]]
        return cls(**{**config, "specs": specs}, **parts)

    @property
    def weights(self) -> Tensor:
        return self.reference

    @property
    def n_components(self) -> int:
        """Components of each member."""
        return self.mixture.log_weight.shape[1]

    def log_likelihood(self, values: Tensor, observed: Tensor) -> Tensor:
        """Log-likelihood of each row's observed cells (n,), in nats: members are averaged as densities."""
        members = log_likelihood(*self._inputs(values, observed), self.mixture)
        return torch.logsumexp(members, 0) - math.log(len(members))

    def row_scores(self, values: Tensor, observed: Tensor) -> Tensor:
        """Three scores of each row under each member, (3, M, n) in float64: higher is more anomalous.

        The first is the negative log-likelihood of the observed cells, in nats. The others, the same for all members,
        are the distance to the nearest reference row over these cells and the mean distance to some of the nearest.
        After a trimmed fit, where a few outliers may have found their way among the reference rows, the second is the
        negative log-likelihood of independent Cauchy-distributed columns, which see no relation between columns, and so
        none between outliers, and more neighbours count.
        """
        x, o = self._inputs(values, observed)
        nll = -log_likelihood(x, o, self.mixture)
        nearest = knn_distances(self.reference, x, o, _MANY_NEIGHBOURS if self.robust else _NEIGHBOURS)
        other = _cauchy_nll(x, o, self.margins) if self.robust else nearest[:, 0]
        return torch.stack([nll, other.expand_as(nll), nearest.mean(-1).expand_as(nll)]).double()

    def cell_scores(self, values: Tensor, observed: Tensor) -> Tensor:
        return self.predict_cells(values, observed).scores

    def predict_cells(self, values: Tensor, observed: Tensor) -> CellPredictions:
        """What the rest of its row makes of each cell, where cells that are likely wrong have as little say.

        Cells that are not observed have no say, but are predicted like the others. The score is
        ``-log p(x_j | the clean others)`` and half of the log-density that the cell would have if it were wrong. What
        stands off its column's lattice, or is new to it, is so much less likely.
        """
        return self._predict_cells(values, observed, self.cell_mixture.flatten())

    def _predict_cells(self, values: Tensor, observed: Tensor, mixture: Mixture) -> CellPredictions:
        expectations, scores, log_odds = [], [], []
        for rows in row_slices(len(values), 4 * mixture.numbers_per_row):
            wrong = self.contamination.log_density(values[rows])
            right = self.lattice.log_probability(values[rows])
            even = (
                math.log(1 / CONTAMINATION - 1) - wrong + right
            )  # negative log-likelihood at which both are as likely
            given = (values[rows], observed[rows], even, self.likelihoods.expectation_columns)
            pred = average_over_clean_masks(lambda x, clean: self._leave_one_out(mixture, x, clean), *given)
            expectations.append(pred.expectations)
            scores.append(_CONTAMINATION_WEIGHT * wrong - pred.log_px - right)
            log_odds.append(-pred.log_px - even)
        expected = self.likelihoods.point_estimates(torch.cat(expectations))
        return CellPredictions(expected, torch.cat(scores), torch.cat(log_odds))

    def _leave_one_out(self, mixture: Mixture, values: Tensor, clean: Tensor) -> GivenOthers:
        """Every cell given the other clean ones of its row; the features of a class leave together."""
        columns, expectation_columns = self.likelihoods.feature_columns, self.likelihoods.expectation_columns
        x, o = self._inputs(values, clean)
        mean, variance, log_weight = leave_one_out(x, o, mixture)
        log_weight = log_weight[..., self.likelihoods.first_features]  # (C, B, D)
        for j in torch.bincount(columns).gt(1).nonzero().squeeze(-1).tolist():
            own = (columns == j).nonzero().squeeze(-1)
            mean[..., own], variance[..., own], weight = leave_block_out(x, o, mixture, own)
            log_weight[..., j] = weight[..., 0]
        params = self.likelihoods.from_gaussian(mean, 0.5 * variance.log())
        log_px = self.likelihoods.log_prob(params, values)
        expected = log_weight[..., expectation_columns].exp() * self.likelihoods.expectations(params)
        return GivenOthers(expected.sum(0), torch.logsumexp(log_weight + log_px, 0))

    def _inputs(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Features and which of them are observed, (n, F)."""
        return self.likelihoods.features(values), observed[:, self.likelihoods.feature_columns]


def fit_detector(table: Table, *, seed: int, dtype: torch.dtype, robust: bool = False) -> FittedModels:
    """Fit a mixture to the rows outside of each fold, and learn what the rows of the fold score.

    Parameters
    ----------
    table : Table
    seed : int
    dtype : torch.dtype
        Precision of scores; the fit itself is in float64.
    robust : bool
        Whether the table may hold outliers: the least likely rows are then left out. Few components of rows, too: more
        would find one for each group of outliers.
    """
    rng = np.random.default_rng(seed)
    n, device = len(table.values), table.values.device
    specs = density_specs(table)
    likelihoods = ColumnLikelihoods(specs, _LOG_SCALE_FLOOR).to(device, torch.float64)
    order = torch.as_tensor(rng.permutation(n), device=device)
    n_members = N_FOLDS if n >= _MIN_ROWS else 1
    fold = torch.empty_like(order)
    fold[order] = torch.arange(n, device=device) % n_members
    some = order[:_EM_ROWS]
    values, observed = table.values[some].to(dtype), table.observed[some]
    lattice = Lattice.fit(values, observed, table.n_categories, wrong=CONTAMINATION if robust else 0.0)
    contamination = ContaminationDensity.fit(table.values.to(dtype), table.observed, table.n_categories, some)
    x, o = likelihoods.features(table.values[some].double()), observed[:, likelihoods.feature_columns]
    x = x.clamp(-_REACH, _REACH) if robust else x
    members = [(fold[some] != m) | (n_members == 1) for m in range(n_members)]
    floor = likelihoods.noise_floor().to(x).clamp(min=FLOOR)
    if robust:
        off_lattice = lattice.is_off(values)[:, likelihoods.feature_columns]
        mixtures, of_cells, clean = fit_trimmed(x, o, off_lattice, members, floor, trimmed_share(n), seed)
    else:
        size = choose_mixture(x, o, ~members[0], floor, seed=seed)
        mixtures = of_cells = [fit_mixture(x[own], o[own], *size, floor, seed=seed) for own in members]
        clean = o
    margins = _margins(x, o)
    first_x, first_o = x[:_REFERENCE_ROWS], o[:_REFERENCE_ROWS]
    near = _reference_rows(first_x, first_o, mixtures[0], margins, robust=robust)
    reference = _filled(first_x[near], first_o[near], mixtures[0])
    mixture, cell_mixture = (Mixture.stack(fits).to(dtype) for fits in (mixtures, of_cells))
    density = MixtureDensity(
        specs,
        mixture,
        cell_mixture,
        contamination,
        lattice,
        reference=reference.to(dtype),
        margins=margins.to(dtype),
        robust=robust,
    )
    density.likelihoods.to(device, dtype)
    density.row_calibration = _calibrate_rows(density, table, fold, rng)
    density.cell_calibration = _calibrate_cells(
        density, values, observed, clean[:, likelihoods.first_features], fold[some]
    )
    return FittedModels(density)


def _calibrate_rows(density: MixtureDensity, table: Table, fold: Tensor, rng: np.random.Generator) -> RowCalibration:
    """What rows score under the member that has not seen them, as they are and with further cells hidden."""
    n, device = len(fold), fold.device
    plain = rng.permutation(n)[:_CALIBRATION_ROWS]
    again = rng.choice(plain, _REMASKED)
    rows = torch.as_tensor(np.concatenate([plain, again]), device=device)
    rate = np.concatenate([np.zeros(len(plain)), rng.uniform(0, _REMASKED_RATE, _REMASKED)])
    kept = torch.as_tensor(rng.random((len(rows), table.observed.shape[1])) >= rate[:, None], device=device)
    values, observed = table.values[rows].to(density.weights), table.observed[rows] & kept
    scores = density.row_scores(values, observed)
    own = scores[:, fold[rows], torch.arange(len(rows), device=device)]
    return RowCalibration.fit(*(part.cpu().numpy() for part in (own, observed, fold[rows], rows)))


def _calibrate_cells(
    density: MixtureDensity, values: Tensor, observed: Tensor, clean: Tensor, fold: Tensor
) -> CellCalibration:
    """What clean cells of some rows score under the member that has not seen them."""
    n_rows = max(1, min(len(values), _CALIBRATION_CELLS // values.shape[1]))
    values, observed, clean, fold = (part[:n_rows] for part in (values, observed, clean, fold))
    scores: list[NDArray] = []
    members = density.cell_mixture
    for m in range(len(members.log_weight)):
        own = fold == m
        mixture = Mixture(members.log_weight[m], type(members.components)(*(p[m] for p in members.components)))
        if own.any():
            of_member = density._predict_cells(values[own], observed[own], mixture).scores
            scores.append(of_member[clean[own]].double().cpu().numpy())
    return CellCalibration.fit(np.concatenate(scores))


def _reference_rows(x: Tensor, o: Tensor, mixture: Mixture, margins: Tensor, *, robust: bool) -> Tensor:
    """Which rows (n,) can be neighbours: all, or those that are likely no outliers."""
    if not robust:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    scores = torch.stack([-log_likelihood(x, o, mixture), _cauchy_nll(x, o, margins)]) / o.sum(1).clamp(min=1)
    rank = scores.argsort(1).argsort(1).sum(0)
    return rank <= rank.double().quantile(_BULK)


def _filled(x: Tensor, o: Tensor, mixture: Mixture) -> Tensor:
    """Rows with their missing cells at the expected value."""
    parts = [x[:0]]
    for rows in row_slices(len(x), 4 * mixture.numbers_per_row):
        rest = leave_one_out(x[rows], o[rows], mixture)  # of a missing cell, the others are all that is known
        parts.append((rest.log_weight.exp() * rest.mean).sum(0))
    return torch.where(o, x, torch.cat(parts))


def _margins(x: Tensor, o: Tensor) -> Tensor:
    """Median and half the interquartile range of each feature, (2, F)."""
    low, middle, high = torch.where(o, x, math.nan).nanquantile(torch.tensor([0.25, 0.5, 0.75]).to(x), 0)
    half = (high - low) / 2
    deviation = ((x - middle).square() * o).sum(0).div(o.sum(0)).sqrt()
    return torch.stack([middle, torch.where(half > _NARROW, half, deviation.clamp(min=_NARROW))])


def _cauchy_nll(x: Tensor, o: Tensor, margins: Tensor) -> Tensor:
    """Negative log-likelihood (n,) of independent Cauchy-distributed features, up to a constant."""
    middle, half = margins
    return torch.where(o, ((x - middle) / half).square().log1p(), 0).sum(-1)
