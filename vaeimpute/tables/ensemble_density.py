"""An imputer's density of a table's rows and cells: that of its joint model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vaeimpute.anomaly.calibration import CellCalibration, RowCalibration, baseline_nll
from vaeimpute.anomaly.density import Density
from vaeimpute.tables.data import Table
from vaeimpute.vae import inference
from vaeimpute.vae.base import VAE
from vaeimpute.vae.inference import Ensemble

_ROWS = 2000  # training rows that are scored for calibration
_CELL_ROWS = 100  # and those whose cells are; the mean of a column needs no more
_CELL_PASSES = 20  # over these rows; in wide tables several columns share one
_FEWEST_CELL_ROWS, _FEWEST_CELL_PASSES = 20, 4  # of very wide tables
_CELL_DRAWS, _DRAWS = 16, 64  # of a cell, for calibration and for a score
_CELL_NUMBERS = 5e7  # parameters decoded by all passes: one second on a laptop's core
_FEW_ROWS, _FEW_NUMBERS = 200, 2e6  # where a time budget is spent
_REMASKED_SHARE, _REMASKED_RATE = 0.75, 0.8  # of the rows that get further cells hidden, and of their cells at most


class EnsembleDensity(Density):
    """The joint model of an imputer as a density of rows.

    Parameters
    ----------
    ensemble : Ensemble
    baseline : Tensor of shape (D,), optional
        Average negative log-likelihood of each column's cells given the rest of their rows.
    """

    baseline: Tensor

    buffer_names = ("baseline",)

    def __init__(
        self,
        ensemble: Ensemble,
        row_calibration: RowCalibration | None = None,
        cell_calibration: CellCalibration | None = None,
        baseline: Tensor | None = None,
    ) -> None:
        super().__init__(row_calibration, cell_calibration, baseline=baseline)
        self.ensemble = ensemble
        self.likelihoods = ensemble.joint.likelihoods

    @property
    def weights(self) -> Tensor:
        return self.ensemble.joint.weights

    def log_likelihood(self, values: Tensor, observed: Tensor) -> Tensor:
        return inference.log_likelihood(self.ensemble, values, observed)

    def row_scores(self, values: Tensor, observed: Tensor) -> Tensor:
        return -self.log_likelihood(values, observed).double().expand(1, 1, -1)

    def cell_scores(self, values: Tensor, observed: Tensor) -> Tensor:
        return -inference.cell_log_likelihood(self.ensemble, values, observed, _DRAWS) - self.baseline


def fit_ensemble_density(
    ensemble: Ensemble,
    table: Table,
    *,
    seed: int,
    blind: tuple[VAE, Tensor] | None = None,
    hurry: bool = False,
) -> EnsembleDensity:
    """Learn what the training table's rows and cells score.

    Parameters
    ----------
    ensemble : Ensemble
    table : Table
    seed : int
    blind : VAE and int Tensor of shape (n,), optional
        A model like the joint one, and which of its members has not seen a row (-1: none has): it scores the row.
        Without it rows are scored by models that have seen them.
    hurry : bool
        From few rows.
    """
    rng = np.random.default_rng(seed)
    device, n_columns = table.values.device, table.values.shape[1]
    n_rows, most_numbers = (_FEW_ROWS, _FEW_NUMBERS) if hurry else (_ROWS, _CELL_NUMBERS)
    rows = torch.as_tensor(rng.permutation(len(table.values))[:n_rows], device=device)
    values, observed = table.values[rows].to(ensemble.stacking_weight), table.observed[rows]

    numbers = ensemble.joint.numbers_per_row(_CELL_DRAWS)
    n_passes = min(n_columns, _CELL_PASSES, max(_FEWEST_CELL_PASSES, int(most_numbers / (_FEWEST_CELL_ROWS * numbers))))
    few = slice(0, max(_FEWEST_CELL_ROWS, min(_CELL_ROWS, int(most_numbers / (n_passes * numbers)))))
    # Columns that are hidden together are others in every row: two that tell one another must not always be.
    order = torch.as_tensor(rng.random(values[few].shape).argsort(1), device=device)
    log_px = inference.cell_log_likelihood(ensemble, values[few], observed[few], _CELL_DRAWS, n_passes, order)
    nll, seen = -log_px.double().cpu().numpy(), observed[few].cpu().numpy()
    baseline = baseline_nll(-nll, seen)
    cell_calibration = CellCalibration.fit((nll - baseline)[seen])

    rate = rng.uniform(0, _REMASKED_RATE, (len(rows), 1)) * (rng.random((len(rows), 1)) < _REMASKED_SHARE)
    kept = observed & torch.as_tensor(rng.random(observed.shape) >= rate).to(device)
    scores = torch.empty(len(rows), dtype=torch.float64, device=device)
    member = torch.full_like(rows, -1) if blind is None else blind[1][rows]
    fresh, rest = ((member >= 0).nonzero().squeeze(-1), (member < 0).nonzero().squeeze(-1))
    if len(rest):
        scores[rest] = -inference.log_likelihood(ensemble, values[rest], kept[rest]).double()
    if blind is not None and len(fresh):
        by_member = inference.member_log_likelihoods(blind[0], values[fresh], kept[fresh])
        scores[fresh] = -by_member[member[fresh], torch.arange(len(fresh), device=device)].double()
    mask = kept.cpu().numpy()
    row_calibration = RowCalibration.fit(scores.cpu().numpy()[None], mask, np.zeros(len(mask), dtype=int))
    return EnsembleDensity(ensemble, row_calibration, cell_calibration, torch.as_tensor(baseline).to(values))
