"""Fitted modules <-> named arrays and JSON <-> one ``.safetensors`` file, written whole or not at all; never pickle."""

from __future__ import annotations

import importlib.metadata
import json
import os
import struct
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes
from torch import nn

FORMAT_NAME = "vaeimpute"
FORMAT_VERSION = 4  # raise it when an older reader would misread the file

# What a safetensors file can hold and NumPy can read back. bfloat16 is absent because NumPy has no such type.
_DTYPES = frozenset(
    ["bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)


class Fitted(nn.Module):
    """A fitted part of a model: tensors are its parameters and buffers, all else is in `config`.

    Its constructor takes what `config` gives, and the parts that are `Fitted` themselves by their names; buffers may
    be None until `from_state` puts them in place, whatever their shape.

    Parameters
    ----------
    **buffers : Tensor
        By name, of those in ``buffer_names``.
    """

    buffer_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **buffers: torch.Tensor | None) -> None:
        super().__init__()
        for name in self.buffer_names:
            self.register_buffer(name, buffers.pop(name, None))
        if buffers:
            raise TypeError(f"{type(self).__name__} has no buffers {sorted(buffers)}")

    def config(self) -> dict[str, Any]:
        """Constructor arguments in plain values (JSON)."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], parts: Mapping[str, Any]) -> Self:
        """A module whose tensors are not yet in place, from what `config` gave."""
        return cls(**config, **parts)

    def _fitted_parts(self) -> dict[str, Fitted]:
        # not named_children(), which gives a part that stands under two names once
        return {name: part for name, part in self._modules.items() if isinstance(part, Fitted)}

    def _own_tensors(self) -> Iterator[tuple[nn.Module, str, str]]:
        """Module, path and name of every tensor that a file holds, but those of the parts."""
        parts = tuple(f"{name}." for name in self._fitted_parts())
        for path, module in self.named_modules(remove_duplicate=False):
            if f"{path}.".startswith(parts):
                continue
            for name in [*module._parameters, *module._buffers]:
                if name not in module._non_persistent_buffers_set:
                    yield module, path, name


def to_state(modules: Mapping[str, Fitted]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Fitted modules by name as tensors and as plain values (JSON). What several of them share is written once.

    Parameters
    ----------
    modules : mapping of str to Fitted

    Returns
    -------
    tensors : dict of str to Tensor
    description : dict
        Class, configuration and parts of each.
    """
    tensors: dict[str, torch.Tensor] = {}
    known: dict[int, str] = {}

    def described(module: Fitted, path: str) -> dict[str, Any]:
        if id(module) in known:
            return {"same": known[id(module)]}
        known[id(module)] = path
        unknown = []
        for owner, inner, name in module._own_tensors():
            key, tensor = ".".join(filter(None, (path, inner, name))), getattr(owner, name)
            if tensor is None:
                unknown.append(key)
            else:
                tensors[key] = tensor.detach().cpu()
        parts = {name: described(part, f"{path}.{name}") for name, part in module._fitted_parts().items()}
        about = {"class": type(module).__name__, "config": module.config(), "parts": parts}
        return about | ({"unknown": unknown} if unknown else {})

    return tensors, {name: described(module, name) for name, module in modules.items()}


def from_state(
    tensors: Mapping[str, np.ndarray | torch.Tensor],
    description: Mapping[str, Any],
    classes: Mapping[str, type[Fitted]],
    device: torch.device,
) -> dict[str, Any]:
    """The inverse of `to_state`, on any device.

    Parameters
    ----------
    tensors, description
        What `to_state` gave.
    classes : mapping of str to type
        The only ones that are built.
    device : torch.device

    Raises
    ------
    KeyError, TypeError, RuntimeError
        If classes, names or shapes are not those of this version.
    """
    built: dict[str, Fitted] = {}

    def restored(about: Mapping[str, Any], path: str) -> Fitted:
        if "same" in about:
            return built[about["same"]]
        parts = {name: restored(part, f"{path}.{name}") for name, part in about["parts"].items()}
        module = classes[about["class"]].from_config(about["config"], parts)
        of_parts = tuple(f"{path}.{name}." for name in parts)
        names = [key for key in tensors if key.startswith(f"{path}.") and not key.startswith(of_parts)]
        own = {key: _copied(tensors[key]) for key in names}
        floating = next((value.dtype for value in own.values() if value.is_floating_point()), None)
        for child in module.children():  # what is derived from the configuration has the precision of the tensors
            if not isinstance(child, Fitted):
                child.to(device, floating)
        for owner, inner, name in list(module._own_tensors()):
            key = ".".join(filter(None, (path, inner, name)))
            if key in about.get("unknown", ()):
                continue
            value = own.pop(key).to(device)
            if name not in owner._parameters:
                owner._buffers[name] = value
            elif value.shape == getattr(owner, name).shape:
                owner._parameters[name] = nn.Parameter(value)
            else:
                raise RuntimeError(f"'{key}' has shape {tuple(value.shape)}, not {tuple(getattr(owner, name).shape)}")
        if own:
            raise KeyError(f"{sorted(own)} have no place")
        built[path] = module.eval()
        return module

    return {name: restored(about, name) for name, about in description.items()}


def _copied(value: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A tensor of its own: what joblib maps into memory can be read only."""
    return value.clone() if isinstance(value, torch.Tensor) else torch.tensor(value)


def save(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray | torch.Tensor], header: Mapping[str, Any]
) -> None:
    """Write tensors and a header to one file, atomically.

    The bytes go to a temporary file in the same folder, which then takes the place of ``path``. A crash on the way
    leaves an earlier file as it was.

    Parameters
    ----------
    path : str or path-like
        The file to write. An existing file is replaced.
    tensors : mapping of str to ndarray or Tensor
        Real or boolean arrays of any shape. They come back bit for bit; device, gradient and memory order do not.
    header : mapping
        Anything that :func:`json.dumps` takes. Tuples come back as lists, keys as strings.

    Raises
    ------
    TypeError
        If a tensor has a dtype that the format cannot hold, or if the header is not JSON. Nothing is written then.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save(path, {"weight": np.eye(2)}, {"columns": ["age", "height"]})
    >>> tensors, header = load(path)
    >>> tensors["weight"]
    array([[1., 0.],
           [0., 1.]])
    >>> header
    {'columns': ['age', 'height']}
    """
    path = Path(path)
    metadata = {
        "format": FORMAT_NAME,
        "format_version": str(FORMAT_VERSION),
        "library_version": _library_version(),
        "header": json.dumps(dict(header)),
    }
    content = to_bytes({name: _as_array(name, tensor) for name, tensor in tensors.items()}, metadata)
    # Not tempfile: its files are readable by the owner only, and the finished model should follow the user's umask.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # gone already after the replace


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`save` wrote.

    Parameters
    ----------
    path : str or path-like
        A file written by :func:`save`.

    Returns
    -------
    tensors : dict of str to ndarray
    header : dict

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, damaged, not a safetensors file, not one of ours, or of another format
        version. The message says which.
    """
    path = Path(path)
    _check_container(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            _check_ours(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            header = json.loads(metadata["header"])
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"Model file '{path}' is damaged: {error}. Save the model again.") from error
    return tensors, header


def _as_array(name: str, tensor: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(tensor, torch.Tensor):
        tensor = tensor.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            raise TypeError(f"Tensor '{name}' is bfloat16, which NumPy cannot hold. Convert it to float32 first.")
        tensor = tensor.numpy()
    array = np.asarray(tensor)
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"Tensor '{name}' has dtype {array.dtype}; a model file holds {', '.join(sorted(_DTYPES))}.")
    # The writer takes the memory as it lies: rows first, and little- or big-endian as this machine has it.
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _check_container(path: Path) -> None:
    """Tell a missing, a foreign and a truncated file apart before the reader sees it.

    A safetensors file is 8 bytes with the length of a JSON object, that object, and the data it points into.
    """
    if not path.exists():
        raise FileNotFoundError(f"Model file '{path}' does not exist.")
    if not path.is_file():
        raise ValueError(f"Model file '{path}' is a folder; give the file that was saved.")
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(9)
        if len(start) < 9:
            raise ValueError(f"Model file '{path}' is truncated: it has {size} bytes, too few for any model.")
        (length,) = struct.unpack("<Q", start[:8])
        if start[8:] != b"{":
            raise ValueError(f"File '{path}' is not a safetensors file, so it is not a model saved by vaeimpute.")
        if 8 + length > size:
            raise ValueError(f"Model file '{path}' is truncated: its header needs {8 + length} bytes, it has {size}.")
        text = b"{" + file.read(length - 1)
    try:
        entries = json.loads(text)
        end = max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"File '{path}' is not a safetensors file, so it is not a model saved by vaeimpute."
        ) from error
    if size < 8 + length + end:
        raise ValueError(f"Model file '{path}' is truncated: it has {size} of {8 + length + end} bytes.")


def _check_ours(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT_NAME:
        raise ValueError(f"File '{path}' is a safetensors file, but not a model saved by vaeimpute.")
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        raise ValueError(
            f"Model file '{path}' has format version {version} (written by vaeimpute "
            f"{metadata.get('library_version', 'unknown')}); vaeimpute {_library_version()} reads format version "
            f"{FORMAT_VERSION}. Load it with the version that wrote it, or fit and save again."
        )


def _library_version() -> str:
    try:
        return importlib.metadata.version("vaeimpute")
    except importlib.metadata.PackageNotFoundError:  # run from a source folder that was never installed
        return "unknown"
