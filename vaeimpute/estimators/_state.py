"""A fitted estimator as arrays and plain values and back: what a model file and a pickle hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from vaeimpute.anomaly.calibration import MaskCalibration, RowCalibration
from vaeimpute.frames.encoder import TableEncoder
from vaeimpute.images import density as images
from vaeimpute.images.encoder import ImageEncoder
from vaeimpute.images.models import ConditionalImageVAE, JointImageVAE
from vaeimpute.tables import density as detection
from vaeimpute.tables.models import ConditionalVAE, JointVAE
from vaeimpute.training.loop import seeded
from vaeimpute.vae import inference

# What a fit of either estimator sets besides its core; each adds its own names of plain values, arrays and parts.
LEARNED = ("n_features_in_", "feature_names_in_", "encoder_", "modelled_", "had_holes_")
CALIBRATED = ("mask_calibration_", "cell_surprise_")  # by the imputer
IMAGES = ("image_mixture_", "row_calibration_")  # by the imputer of images
_ARRAYS = ("modelled_", "had_holes_", "cell_surprise_")


def _density_state(density: detection.Density | images.ImageDensity) -> tuple[dict[str, NDArray], dict]:
    return images.to_state(density) if isinstance(density, images.ImageDensity) else detection.to_state(density)


def _density_from(tensors: Mapping[str, NDArray], header: Mapping, device: torch.device) -> Any:
    return (images if "config" in header else detection).from_state(tensors, header, device)


_MODELS = {kind.__name__: kind for kind in (JointVAE, ConditionalVAE, JointImageVAE, ConditionalImageVAE)}

# Parts that know how to become arrays and plain values, and how to come back: attribute -> (there, back).
_PARTS: dict[str, tuple[Callable, Callable]] = {
    "image_mixture_": (images.mixture_state, images.mixture_from),
    "ensemble_": (inference.to_state, partial(inference.from_state, classes=_MODELS)),
    "density_": (_density_state, _density_from),
    "mask_calibration_": (MaskCalibration.to_state, MaskCalibration.from_state),
    "row_calibration_": (RowCalibration.to_state, RowCalibration.from_state),
}


def learned_state(learned: Mapping[str, Any]) -> tuple[dict[str, NDArray], dict]:
    """What a fit has set, as arrays and as plain values.

    Parameters
    ----------
    learned : mapping
        The attributes by name.
    """
    tensors = {name: learned[name] for name in _ARRAYS if name in learned}
    header: dict[str, Any] = {}
    for name in sorted(_PARTS.keys() & learned.keys()):
        arrays, header[name] = _PARTS[name][0](learned[name])
        tensors |= {f"{name}/{key}": array for key, array in arrays.items()}
    names = learned.get("feature_names_in_")
    plain = set(learned) - {"encoder_", "feature_names_in_", *_PARTS, *_ARRAYS}
    header |= {
        "encoder": learned["encoder_"].to_json(),
        "feature_names": None if names is None else names.tolist(),
        "plain": {name: learned[name] for name in sorted(plain)},
    }
    return tensors, header


def from_learned_state(tensors: Mapping[str, NDArray], header: Mapping, device: torch.device) -> dict[str, Any]:
    """The inverse of `learned_state`, on any device."""
    learned: dict[str, Any] = {name: tensors[name] for name in _ARRAYS if name in tensors}
    learned["encoder_"] = (TableEncoder if "schema" in header["encoder"] else ImageEncoder).from_json(header["encoder"])
    with seeded(0):  # PyTorch draws weights for a new module, before these take their place
        for name in _PARTS.keys() & header.keys():
            prefix = f"{name}/"
            arrays = {key.removeprefix(prefix): array for key, array in tensors.items() if key.startswith(prefix)}
            learned[name] = _PARTS[name][1](arrays, header[name], device)
    if header["feature_names"] is not None:
        learned["feature_names_in_"] = np.asarray(header["feature_names"], dtype=object)
    return learned | header["plain"]


def plain_params(estimator: BaseEstimator) -> dict:
    """Constructor parameters that JSON can hold; a generator's state is not part of a model."""
    params = estimator.get_params(deep=False)
    if not isinstance(params["random_state"], Integral | None):
        params["random_state"] = None
    if isinstance(params["kinds"], dict):  # column names need not be text, but the keys of a JSON object are
        params["kinds"] = [[name, str(kind)] for name, kind in params["kinds"].items()]
    if type(params["missing_values"]).__name__ == "NAType":  # pandas.NA is no JSON; it always means missing anyway
        params["missing_values"] = np.nan
    if params["image_shape"] is not None:
        params["image_shape"] = [int(side) for side in params["image_shape"]]
    params["device"] = str(params["device"])
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in params.items()}


def from_plain_params(params: Mapping) -> dict:
    """The inverse of `plain_params`."""
    if params["image_shape"] is not None:
        params = {**params, "image_shape": tuple(params["image_shape"])}
    if not isinstance(params["kinds"], list):
        return dict(params)
    kinds = {tuple(name) if isinstance(name, list) else name: kind for name, kind in params["kinds"]}
    return {**params, "kinds": kinds}
