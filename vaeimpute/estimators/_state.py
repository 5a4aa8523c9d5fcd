"""A fitted estimator as arrays and plain values and back: what a model file and a pickle hold."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from vaeimpute.estimators._domains import Domain
from vaeimpute.persistence import Fitted, from_state, to_state


def learned(estimator: BaseEstimator) -> dict[str, Any]:
    """What a fit has set: by scikit-learn's convention, all attributes whose names end in an underscore."""
    return {name: value for name, value in vars(estimator).items() if name.endswith("_") and not name.startswith("_")}


def learned_state(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a fit has set, as arrays and as plain values (JSON).

    Parameters
    ----------
    attributes : mapping
        The attributes by name: the encoder, fitted modules, arrays and plain values.
    """
    modules = {name: value for name, value in attributes.items() if isinstance(value, Fitted)}
    tensors, described = to_state(modules)
    header: dict[str, Any] = {"modules": described, "names": {}, "plain": {}}
    arrays: dict[str, Any] = {}
    for name, value in attributes.items():
        if name == "encoder_":
            header["encoder"] = value.to_json()
        elif isinstance(value, np.ndarray) and value.dtype == object:
            header["names"][name] = value.tolist()
        elif isinstance(value, np.ndarray):
            arrays[name] = value
        elif name not in modules:
            header["plain"][name] = value
    return {**{name: tensor.numpy() for name, tensor in tensors.items()}, **arrays}, header


def from_learned_state(
    tensors: Mapping[str, Any], header: Mapping[str, Any], domain: Domain, device: torch.device
) -> dict[str, Any]:
    """The inverse of `learned_state`, on any device."""
    arrays = {name: value for name, value in tensors.items() if "." not in name}
    modules = {name: value for name, value in tensors.items() if "." in name}
    classes = {part.__name__: part for part in domain.parts}
    return {
        "encoder_": domain.encoder.from_json(header["encoder"]),
        **from_state(modules, header["modules"], classes, device),
        **{name: np.asarray(names, dtype=object) for name, names in header["names"].items()},
        **arrays,
        **header["plain"],
    }


def plain_params(estimator: BaseEstimator) -> dict[str, Any]:
    """Constructor parameters that JSON can hold; a generator's state is not part of a model."""
    params = estimator.get_params(deep=False)
    if not isinstance(params["random_state"], Integral | None):
        params["random_state"] = None
    if isinstance(params["kinds"], dict):  # column names need not be text, but the keys of a JSON object are
        params["kinds"] = [[name, str(kind)] for name, kind in params["kinds"].items()]
    if isinstance(params.get("missingness"), dict):
        params["missingness"] = [[name, how] for name, how in params["missingness"].items()]
    if type(params["missing_values"]).__name__ == "NAType":  # pandas.NA is no JSON; it always means missing anyway
        params["missing_values"] = np.nan
    if params["image_shape"] is not None:
        params["image_shape"] = [int(side) for side in params["image_shape"]]
    params["device"] = str(params["device"])
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in params.items()}


def from_plain_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `plain_params`."""
    if params["image_shape"] is not None:
        params = {**params, "image_shape": tuple(params["image_shape"])}
    listed = {key: params[key] for key in ("kinds", "missingness") if isinstance(params.get(key), list)}
    return {**params, **{key: {_key(name): value for name, value in pairs} for key, pairs in listed.items()}}


def _key(name: Any) -> Any:
    return tuple(name) if isinstance(name, list) else name
