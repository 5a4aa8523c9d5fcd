"""A second device that keeps its numbers in ordinary memory: what would fail on a GPU fails on it, on any machine.

As on a GPU, a tensor there has no `numpy`, meets no tensor of the CPU but single numbers, and indices into it, and is
drawn by a generator of its own device only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar
from unittest import mock
from weakref import WeakValueDictionary

import torch
from torch.utils import backend_registration
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "far"
aten = torch.ops.aten
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_MOVING = {aten._to_copy.default, aten.copy_.default}


class Far(torch.Tensor):
    """A tensor of the far device around one of the CPU."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        layout = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        out = torch.Tensor._make_wrapper_subclass(cls, near.size(), device=torch.device(NAME, 0), **layout)
        out.near = near
        return out

    def __repr__(self) -> str:
        return f"Far({self.near!r})"

    def tolist(self) -> Any:
        return self.near.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a far tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


class FarGenerator(torch.Generator):
    """A generator of the far device: one of the CPU that draws nothing for it."""

    known: ClassVar[WeakValueDictionary] = WeakValueDictionary()  # operations get another object around the same one

    def __init__(self) -> None:
        self.known[self._cdata] = self

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)


_Generator = torch.Generator


class _AnyGenerator(type(_Generator)):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _Generator)


class GeneratorOfAnyDevice(_Generator, metaclass=_AnyGenerator):
    """`torch.Generator`, which knows the far device too; a class, since PyTorch's own annotations name it."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        return FarGenerator() if torch.device(device).type == NAME else _Generator(device)


class _Everything(TorchDispatchMode):
    """Also sees what makes new tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    _refuse_two_devices(func, args, kwargs)
    leaves = tree_leaves((args, kwargs))
    far = any(isinstance(leaf, Far) for leaf in leaves)
    if kwargs.get("device") is not None:
        far = torch.device(kwargs["device"]).type == NAME
        kwargs = kwargs | {"device": "cpu"} if far else kwargs
    _refuse_another_generator(func, leaves, far)
    out = func(*tree_map(_near, args), **tree_map(_near, kwargs))
    given = [*args, *(kwargs.get(a.name) for a in func._schema.arguments[len(args) :])]
    written = [x for x, a in zip(given, func._schema.arguments, strict=False) if a.alias_info and a.alias_info.is_write]
    if written and len(func._schema.returns) == len(written):  # in place: the same tensors as before
        return written[0] if len(written) == 1 else tuple(written)
    return tree_map(lambda leaf: Far(leaf) if isinstance(leaf, torch.Tensor) else leaf, out) if far else out


def _near(leaf: Any) -> Any:
    return leaf.near if isinstance(leaf, Far) else leaf


def _refuse_two_devices(func: Any, args: tuple, kwargs: dict) -> None:
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if func in _INDEXING and isinstance(args[0], Far):  # indices may come from the CPU, but not the other way round
        leaves = [args[0], *(x for x in args[2:] if isinstance(x, torch.Tensor))]
    near = any(not isinstance(leaf, Far) and leaf.dim() > 0 for leaf in leaves)
    if near and any(isinstance(leaf, Far) for leaf in leaves) and func not in _MOVING:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found two")


def _refuse_another_generator(func: Any, leaves: list, far: bool) -> None:
    for leaf in leaves:
        if isinstance(leaf, _Generator) and (leaf._cdata in FarGenerator.known) != far:
            raise RuntimeError(f"{func}: expected a generator of the device of the tensor, but found another")


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


@cache
def register() -> None:
    """Announce the device to PyTorch, which counts its devices at the first backward pass of a process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())


def _sent(make: Callable) -> Callable:
    """`torch.tensor` and `torch.as_tensor` make tensors below what a dispatch mode sees."""

    def made(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        there = device is not None and torch.device(device).type == NAME
        return make(data, **options).to(device) if there else make(data, device=device, **options)

    return made


@contextmanager
def far_device() -> Iterator[str]:
    """The device exists for a while: its name."""
    register()
    fused = [*_get_fused_kernels_supported_devices(), NAME]
    with (
        mock.patch.object(torch, "tensor", _sent(torch.tensor)),
        mock.patch.object(torch, "as_tensor", _sent(torch.as_tensor)),
        mock.patch.object(torch, "Generator", GeneratorOfAnyDevice),
        mock.patch("torch.optim.optimizer._get_fused_kernels_supported_devices", return_value=fused),
        _Everything(),
    ):
        yield NAME
