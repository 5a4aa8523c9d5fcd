"""What scores rows and cells: the face that the density of every modality has, and what a wing's fit gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vaeimpute.anomaly.calibration import CellCalibration, RowCalibration
from vaeimpute.persistence import Fitted
from vaeimpute.vae.inference import Ensemble


class CellPredictions(NamedTuple):
    """What the rest of its row tells of each cell, (n, D) each.

    Attributes
    ----------
    expected : Tensor
        What should stand there.
    scores : Tensor
        Scores of the cells that are there, which compare between columns: higher is more anomalous.
    log_odds : Tensor
        Log-odds that they are wrong, in nats, or what stands for them: above zero they are taken to be.
    """

    expected: Tensor
    scores: Tensor
    log_odds: Tensor


class Density(Fitted, ABC):
    """A fitted density of rows, and what reference rows and cells score under it.

    Shape letters: n rows, D columns, V scores of a row, M members.

    Parameters
    ----------
    row_calibration : RowCalibration, optional
    cell_calibration : CellCalibration, optional
        Learnt last, from the scores of the density itself.
    """

    row_calibration: RowCalibration
    cell_calibration: CellCalibration
    likelihoods: Any  # the product over all cells of a row

    def __init__(
        self,
        row_calibration: RowCalibration | None = None,
        cell_calibration: CellCalibration | None = None,
        **buffers: Tensor | None,
    ) -> None:
        super().__init__(**buffers)
        self.row_calibration = row_calibration or RowCalibration()
        self.cell_calibration = cell_calibration or CellCalibration()

    @property
    @abstractmethod
    def weights(self) -> Tensor:
        """Any tensor that has the dtype and the device to compute with."""

    @property
    def n_components(self) -> int:
        """Components of a mixture; one where there is none."""
        return 1

    @abstractmethod
    def log_likelihood(self, values: Tensor, observed: Tensor) -> Tensor:
        """Log-likelihood of each row's observed cells (n,), in nats."""

    @abstractmethod
    def row_scores(self, values: Tensor, observed: Tensor) -> Tensor:
        """Scores of each row under each member, (V, M, n) in float64: higher is more anomalous."""

    @abstractmethod
    def cell_scores(self, values: Tensor, observed: Tensor) -> Tensor:
        """Scores of cells (n, D), which compare between columns: higher is more anomalous."""

    def predict_cells(self, values: Tensor, observed: Tensor) -> CellPredictions:
        """The same scores, and what should stand there instead: a detector's density tells."""
        raise NotImplementedError(f"{type(self).__name__} scores cells, but expects none.")

    def mask(self, observed: Tensor) -> NDArray:
        """What the scores of a row depend on besides its values, (n, ...)."""
        return observed.cpu().numpy()

    def anomaly_score(self, values: Tensor, observed: Tensor) -> NDArray:
        """Surprisal of each row among reference rows, (n,), in nats."""
        return self.row_calibration.surprisal(*self._combined(values, observed))

    def p_values(self, values: Tensor, observed: Tensor) -> NDArray:
        """Conformal p-value of each row, (n,)."""
        return self.row_calibration.p_values(*self._combined(values, observed))

    def cell_anomaly_score(self, values: Tensor, observed: Tensor) -> Tensor:
        """Surprisal of each cell among reference cells, (n, D), in nats."""
        return self.cell_calibration.surprisal(self.cell_scores(values, observed))

    def _combined(self, values: Tensor, observed: Tensor) -> tuple[NDArray, NDArray]:
        """Combined score of each row under each member (M, n), and what stands for its mask."""
        mask = self.mask(observed)
        return self.row_calibration.combined(np.asarray(self.row_scores(values, observed).cpu()), mask), mask


@dataclass(frozen=True)
class FittedModels:
    """What the fit of an imputer or of a detector leaves behind.

    Attributes
    ----------
    density : Density
        Scores rows and cells.
    ensemble : Ensemble, optional
        Imputes and draws: an imputer's.
    history : list of dict
        Records of all evaluations, each with the name of its model.
    interrupted : bool
        Whether Ctrl-C ended the training early.
    left_out : tuple of str
        What a time budget left no time for.
    """

    density: Density
    ensemble: Ensemble | None = None
    history: tuple[dict, ...] = ()
    interrupted: bool = False
    left_out: tuple[str, ...] = ()
