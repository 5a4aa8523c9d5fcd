"""The linear start of a table: rank and noise floor chosen, then one exact fit per member, and per fold of the rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from vaeimpute.gaussian.factor_analysis import FLOORS, FactorAnalysis, choose_factor_analysis, fit_factor_analysis
from vaeimpute.likelihoods.base import CellSpec
from vaeimpute.likelihoods.columns import ColumnLikelihoods
from vaeimpute.tables.data import Table
from vaeimpute.tables.defaults import EM_ROWS, MIN_ROWS
from vaeimpute.vae.masking import HeldOutCells

_N_FOLDS = 4
_FOLD_SWEEPS = 20


class CrossFit(NamedTuple):
    """Row numbers of each fold, and per fold a linear backbone fitted on the rows of the others."""

    rows: list[Tensor]
    backbones: list[FactorAnalysis]


class LinearStart:
    """Linear backbones of one table, for both of its models.

    The models have the same features in another order; here they stand in the order of the table's columns.
    """

    def __init__(self, table: Table, specs: list[CellSpec], held_out: HeldOutCells, generator: Generator) -> None:
        n, n_columns = table.values.shape
        rows = torch.randperm(n, device=table.values.device, generator=generator)[:EM_ROWS]
        likelihoods = ColumnLikelihoods(specs).to(rows.device, torch.float64)
        order = likelihoods.feature_columns.argsort(stable=True)
        columns = likelihoods.feature_columns[order]
        features = likelihoods.features(table.values[rows].double())[:, order]
        observed = table.observed[rows][:, columns]
        hidden = held_out(rows, n_columns)[..., columns]
        floor = likelihoods.noise_floor().to(order.device)[order].double()
        weight = 1 / torch.bincount(columns)[columns].double()
        at_most = floor.clamp(min=FLOORS[0])
        self.rank, chosen = choose_factor_analysis(features, observed, hidden[0] & observed, at_most, weight=weight)
        self.level = min(chosen.min().item(), FLOORS[0])
        floor = floor.clamp(min=self.level)
        # Members are blind to their held-out cells, a fold's backbone to the rows of that fold.
        self.members = [fit_factor_analysis(features, observed & ~h, self.rank, floor) for h in hidden]
        self.fold_rows, self.folds = [], []
        if MIN_ROWS <= n <= EM_ROWS:
            fold = torch.arange(n, device=rows.device) % _N_FOLDS
            self.fold_rows = [rows[fold == f] for f in range(_N_FOLDS)]
            parts = [fold != f for f in range(_N_FOLDS)]
            self.folds = [
                fit_factor_analysis(features[part], observed[part], self.rank, floor, _FOLD_SWEEPS) for part in parts
            ]

    def backbones(self, likelihoods: ColumnLikelihoods, dtype: torch.dtype) -> tuple[FactorAnalysis, CrossFit | None]:
        """The members' and the folds', as one model lays out its features."""
        place = likelihoods.feature_columns.argsort(stable=True).argsort()
        members, folds = (
            [FactorAnalysis(*(p[place] for p in fit)).to(dtype) for fit in fits] for fits in (self.members, self.folds)
        )
        stacked = FactorAnalysis(*map(torch.stack, zip(*members, strict=True)))
        return stacked, CrossFit(self.fold_rows, folds) if folds else None
