"""Named arrays and a JSON header <-> one ``.safetensors`` file, written whole or not at all; never pickle."""

from __future__ import annotations

import importlib.metadata
import json
import os
import struct
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

FORMAT_NAME = "vaeimpute"
FORMAT_VERSION = 1  # raise it when an older reader would misread the file

# What a safetensors file can hold and NumPy can read back. bfloat16 is absent because NumPy has no such type.
_DTYPES = frozenset(
    ["bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)


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
