"""A fitted estimator as arrays and plain values and back: what a model file and a pickle hold."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from vaeimpute import inference
from vaeimpute.encoding import TableEncoder
from vaeimpute.scoring import MaskCalibration

# All that a fit sets; an estimator may add names of plain values to its own list.
LEARNED = (
    "n_features_in_",
    "feature_names_in_",
    "encoder_",
    "modelled_",
    "had_holes_",
    "ensemble_",
    "history_",
    "n_iter_",
    "mask_calibration_",
    "cell_surprise_",
)
_ARRAYS = ("modelled_", "had_holes_", "cell_surprise_")


def learned_state(learned: Mapping[str, Any]) -> tuple[dict[str, NDArray], dict]:
    """What a fit has set, as arrays and as plain values.

    Parameters
    ----------
    learned : mapping
        The attributes by name.
    """
    tensors, header = inference.to_state(learned["ensemble_"])
    calibration: MaskCalibration = learned["mask_calibration_"]
    tensors |= {"location": calibration.location, "variance": calibration.variance}
    tensors |= {name: learned[name] for name in _ARRAYS}
    names = learned.get("feature_names_in_")
    plain = set(learned) - {"ensemble_", "mask_calibration_", "encoder_", "feature_names_in_", *_ARRAYS}
    header |= {
        "floor": calibration.floor,
        "encoder": learned["encoder_"].to_json(),
        "feature_names": None if names is None else names.tolist(),
        "plain": {name: learned[name] for name in sorted(plain)},
    }
    return tensors, header


def from_learned_state(tensors: Mapping[str, NDArray], header: Mapping, device: torch.device) -> dict[str, Any]:
    """The inverse of `learned_state`, on any device."""
    weights = {key: value for key, value in tensors.items() if key not in (*_ARRAYS, "location", "variance")}
    with torch.random.fork_rng(devices=[]):  # PyTorch draws weights for a new module, before these take their place
        ensemble = inference.from_state(weights, header, device)
    learned = {name: tensors[name] for name in _ARRAYS} | {
        "ensemble_": ensemble,
        "mask_calibration_": MaskCalibration(tensors["location"], tensors["variance"], header["floor"]),
        "encoder_": TableEncoder.from_json(header["encoder"]),
    }
    if header["feature_names"] is not None:
        learned["feature_names_in_"] = np.asarray(header["feature_names"], dtype=object)
    return learned | header["plain"]


def plain_params(estimator: BaseEstimator) -> dict:
    """Constructor parameters that JSON can hold; a generator's state is not part of a model."""
    params = estimator.get_params(deep=False)
    if not isinstance(params["random_state"], Integral | None):
        params["random_state"] = None
    if params["kinds"] is not None:  # column names need not be text, but the keys of a JSON object are
        params["kinds"] = [[name, str(kind)] for name, kind in params["kinds"].items()]
    if type(params["missing_values"]).__name__ == "NAType":  # pandas.NA is no JSON; it always means missing anyway
        params["missing_values"] = np.nan
    params["device"] = str(params["device"])
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in params.items()}


def from_plain_params(params: Mapping) -> dict:
    """The inverse of `plain_params`."""
    if params["kinds"] is None:
        return dict(params)
    kinds = {tuple(name) if isinstance(name, list) else name: kind for name, kind in params["kinds"]}
    return {**params, "kinds": kinds}
