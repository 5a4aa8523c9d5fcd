"""The one place that asks what the rows are: tables, images, or pixels as the columns of a table."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vaeimpute import images, tables
from vaeimpute.anomaly.calibration import CellCalibration, RowCalibration
from vaeimpute.anomaly.contamination import ContaminationDensity
from vaeimpute.anomaly.density import FittedModels
from vaeimpute.anomaly.lattice import Lattice
from vaeimpute.estimators._validation import check_images, check_table
from vaeimpute.frames.containers import as_columns
from vaeimpute.frames.encoded import Encoded
from vaeimpute.frames.encoder import TableEncoder
from vaeimpute.frames.schema import Column
from vaeimpute.gaussian.mixture import Mixture
from vaeimpute.images.density import ImageDensity, ImageMixture
from vaeimpute.images.encoder import ImageEncoder, bounded, pixel_shape
from vaeimpute.images.models import ConditionalImageVAE, JointImageVAE
from vaeimpute.likelihoods.margins import Margins
from vaeimpute.likelihoods.pixels import PIXELS
from vaeimpute.persistence import Fitted
from vaeimpute.tables.closed_form import ClosedFormStack, ClosedFormVAE
from vaeimpute.tables.covariates import CovariateModel
from vaeimpute.tables.density import MixtureDensity
from vaeimpute.tables.ensemble import TableEnsemble
from vaeimpute.tables.ensemble_density import EnsembleDensity
from vaeimpute.tables.intervals import IntervalCalibration
from vaeimpute.tables.models import JointVAE
from vaeimpute.vae.inference import Ensemble

_MANY, _UNLIKE = 50, 0.8  # values of a column of classes, and the share of different ones that makes it an identifier
_STACKLEVEL = 5  # of a warning, from here to the caller of `fit`


class Covariates(Protocol):
    """A model of the columns beside an outcome, in one chain with the completed table."""

    def propose(self, n_proposals: int) -> torch.Tensor:
        """Completed rows (K, r, d)."""

    def update(self, completed: torch.Tensor) -> None:
        """Draw the parameters anew given a completed table (n, d)."""


@dataclass(frozen=True)
class Domain:
    """A modality: everything that an estimator does differently for it.

    Attributes
    ----------
    name : str
    claims : callable
        Whether the parameters of an estimator ask for it.
    check : callable
        ``(estimator, X, reset=) -> X``: scikit-learn's checks of X.
    fit_encoder : callable
        ``(estimator, X, seed, robust=) -> (encoder, encoded)``, of the training rows.
    encoder : type
        Class of the encoder, which its `from_json` restores.
    to_data : callable
        ``(encoder, encoded, modelled, device) -> data``, of the modelled columns.
    fills_empty : bool
        Whether columns without any observed value are modelled.
    fit_imputer, fit_detector : callable
        ``(data, seed=, dtype=, ...) -> FittedModels``.
    parts : tuple of type
        Classes that a model file may hold.
    plot : callable
        ``(encoder, X, encoded, expected, scores, rows, ax) -> Axes``.
    covariates : callable, default=None
        ``(ensemble, values, observed, column, number, seed) -> Covariates``; None where rows have no outcomes.
    """

    name: str
    claims: Callable[[Any], bool]
    check: Callable[..., Any]
    fit_encoder: Callable[..., tuple[Any, Encoded]]
    encoder: Any
    to_data: Callable[[Any, Encoded, NDArray, torch.device], Any]
    fills_empty: bool
    fit_imputer: Callable[..., FittedModels]
    fit_detector: Callable[..., FittedModels]
    parts: tuple[type[Fitted], ...]
    plot: Callable[..., Any]
    covariates: Callable[..., Covariates] | None = None

    def modelled(self, encoded: Encoded) -> NDArray[np.bool_]:
        """Which columns the models are of, (D,)."""
        some = encoded.observed.any(0)
        return np.ones_like(some) if self.fills_empty else np.asarray(some)


def domain_of(estimator: Any) -> Domain:
    """The first of `DOMAINS` that claims the estimator's parameters."""
    return next(domain for domain in DOMAINS if domain.claims(estimator))


# --- tables -----------------------------------------------------------------------------------------------------------


def _fit_table_encoder(estimator: Any, X: Any, seed: int, *, robust: bool) -> tuple[TableEncoder, Encoded]:
    if isinstance(estimator.kinds, str):
        raise ValueError(f"kinds must be a dict of column name to kind, got {estimator.kinds!r}.")
    options: dict[str, Any] = {"kinds": estimator.kinds, "missing_values": estimator.missing_values}
    encoder, encoded = TableEncoder.fit_encode(X, robust=robust, **options)
    _report_poor(encoder.schema.columns)
    return encoder, encoded


def _report_poor(columns: tuple[Column, ...]) -> None:
    """Say which columns have too few values to learn from, or too many; refuse a table without any."""
    empty = [column.name for column in columns if column.n_observed == 0]
    single = [column.name for column in columns if column.n_observed == 1]
    if len(empty) == len(columns):
        raise ValueError("X has no observed value in any column: there is nothing to learn from.")
    if empty:
        what = f"Columns without any observed value are not modelled: {empty}."
        warnings.warn(what, UserWarning, stacklevel=_STACKLEVEL)
    unlike = [c.name for c in columns if c.n_observed >= _MANY and c.n_categories > _UNLIKE * c.n_observed]
    if unlike:
        what = f"Columns of classes where nearly every value is another one cannot be filled well: {unlike}. Drop them."
        warnings.warn(what, UserWarning, stacklevel=_STACKLEVEL)
    if single:
        what = f"Columns with a single observed value can only repeat it: {single}."
        warnings.warn(what, UserWarning, stacklevel=_STACKLEVEL)


def _to_table(
    encoder: TableEncoder | ImageEncoder, encoded: Encoded, modelled: NDArray, device: torch.device
) -> tables.Table:
    columns = np.flatnonzero(modelled)
    kinds, n_categories = encoder.kinds, encoder.n_categories  # each goes through all columns
    return tables.Table(
        torch.as_tensor(encoded.values[:, columns], device=device),
        torch.as_tensor(encoded.observed[:, columns], device=device),
        [kinds[j] for j in columns],
        [n_categories[j] for j in columns],
    )


def _plot_rows(
    encoder: TableEncoder, X: Any, encoded: Encoded, expected: NDArray, scores: NDArray, rows: NDArray, ax: Any
) -> Any:
    filled = encoder.fill(X, expected, encoded.observed)
    return tables.draw_rows(as_columns(X), as_columns(filled), scores, rows, encoder.names, ax)


TABLES = Domain(
    name="tables",
    claims=lambda estimator: estimator.image_shape is None,
    check=check_table,
    fit_encoder=_fit_table_encoder,
    encoder=TableEncoder,
    to_data=_to_table,
    fills_empty=False,
    fit_imputer=tables.fit_imputer,
    fit_detector=tables.fit_detector,
    parts=(
        *(JointVAE, ClosedFormVAE, ClosedFormStack, TableEnsemble, EnsembleDensity, MixtureDensity, Mixture),
        *(Margins, IntervalCalibration, ContaminationDensity, Lattice, RowCalibration, CellCalibration),
    ),
    plot=_plot_rows,
    covariates=CovariateModel,
)


# --- images -----------------------------------------------------------------------------------------------------------


def _fit_image_encoder(estimator: Any, X: NDArray, seed: int, *, robust: bool) -> tuple[ImageEncoder, Encoded]:
    encoder = _image_encoder(estimator, X, estimator.kinds)
    return encoder, encoder.encode(bounded(X, encoder.shape, seed))


def _fit_pixel_encoder(estimator: Any, X: NDArray, seed: int, *, robust: bool) -> tuple[ImageEncoder, Encoded]:
    encoder = _image_encoder(estimator, X, estimator.kinds)
    if encoder.kind == "count":  # a column of a table is standardised
        encoder = _image_encoder(estimator, X, "numeric")
    encoded = encoder.encode(bounded(X, encoder.shape, seed))
    if n_empty := int((~encoded.observed.any(0)).sum()):
        what = f'Pixels without any observed value are not modelled: {n_empty}. networks="auto" fills them.'
        warnings.warn(what, UserWarning, stacklevel=_STACKLEVEL - 1)
    return encoder, encoded


def _image_encoder(estimator: Any, X: NDArray, kind: Any) -> ImageEncoder:
    if isinstance(kind, dict):
        raise ValueError(f"With image_shape, kinds must be one of {sorted(PIXELS)} for all pixels, got a dict.")
    shape = pixel_shape(estimator.image_shape)
    return ImageEncoder.fit(X, shape, kind=kind, missing_values=estimator.missing_values)


def _to_images(encoder: ImageEncoder, encoded: Encoded, modelled: NDArray, device: torch.device) -> images.Images:
    values, observed = (torch.as_tensor(part, device=device) for part in (encoded.values, encoded.observed))
    return images.Images(values, observed, encoder.shape, encoder.kind, encoder.max_level)


def _plot_images(
    encoder: ImageEncoder, X: Any, encoded: Encoded, expected: NDArray, scores: NDArray, rows: NDArray, ax: Any
) -> Any:
    pixels = np.where(encoded.observed, encoded.values, np.nan)
    return images.draw_images(pixels, scores, rows, encoder.shape, ax)


PIXELS_AS_COLUMNS = Domain(
    name="pixels as columns",
    claims=lambda estimator: estimator.image_shape is not None and estimator.networks == "mlp",
    check=check_images,
    fit_encoder=_fit_pixel_encoder,
    encoder=ImageEncoder,
    to_data=_to_table,
    fills_empty=False,
    fit_imputer=tables.fit_imputer,
    fit_detector=tables.fit_detector,
    parts=TABLES.parts,
    plot=_plot_images,
)

IMAGES = Domain(
    name="images",
    claims=lambda estimator: estimator.image_shape is not None,
    check=check_images,
    fit_encoder=_fit_image_encoder,
    encoder=ImageEncoder,
    to_data=_to_images,
    fills_empty=True,
    fit_imputer=images.fit_imputer,
    fit_detector=images.fit_detector,
    parts=(
        *(JointImageVAE, ConditionalImageVAE, Ensemble, ImageDensity, ImageMixture, Mixture),
        *(RowCalibration, CellCalibration),
    ),
    plot=_plot_images,
)

DOMAINS = [TABLES, PIXELS_AS_COLUMNS, IMAGES]  # the first that claims an estimator has it
