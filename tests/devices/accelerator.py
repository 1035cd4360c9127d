"""A fake accelerator: tensors that claim to be on another device, and compute on the CPU.

It raises what an accelerator would raise or wait for: operations on tensors of two devices, and reading a value back.
torch's own ``FakeTensorMode`` could not run a whole step, as it fakes tensors on the CPU too.

Creating it changes torch for the rest of the process, so that tests use it in a child process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "fake"

READS = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim", "_unique2"}
"""Operations that wait for the device and read values."""


class DeviceMismatch(Exception):
    """Tensors of two devices in one operation."""


class ReadBack(Exception):
    """A value of the device was read."""


class Float64(Exception):
    """A float64 tensor reached the device."""


class OnDevice(Tensor):
    """A tensor on the fake accelerator; ``inner`` is its value on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Self:
        if inner.dtype == torch.float64:
            raise Float64(tuple(inner.shape))
        made: Self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=torch.device(NAME, 0)
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _EveryOperation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Also runs operations whose arguments are all on the CPU, such as copies to the device; names those on it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = run(func, args, kwargs or {})
        if any(isinstance(leaf, OnDevice) for leaf in tree_leaves((args, kwargs, out))):
            self.names.add(str(func).removeprefix("aten.").removesuffix(".default"))
        return out


AUTOCAST = ("linear", "matmul", "bmm", "baddbmm", "conv2d", "scaled_dot_product_attention")
"""Operations that autocast computes in half precision."""

_LIBRARIES: list[torch.library.Library] = []
"""Registrations, which end with these objects."""

_reads_allowed = False


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, and return its result on the device that torch would put it on."""
    name = func._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    leaves = not ours  # the result is on the CPU
    if kwargs.get("device") is not None:
        leaves = torch.device(kwargs["device"]).type != NAME
        if not leaves:
            kwargs = {**kwargs, "device": torch.device("cpu")}
    if name == "copy_":
        leaves = not isinstance(args[0], OnDevice)
    elif ours and any(tensor.ndim for tensor in tensors if not isinstance(tensor, OnDevice)):
        raise DeviceMismatch(name)
    if ours and not _reads_allowed and (name in READS or leaves or _indexes_by_mask(name, args)):
        raise ReadBack(name)
    inner_args, inner_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.inner, (args, kwargs))
    out = func(*inner_args, **inner_kwargs)
    if leaves:
        return out
    known = {id(tensor.inner): tensor for tensor in ours}  # operations in place return their argument
    return tree_map_only(Tensor, lambda x: known[id(x)] if id(x) in known else OnDevice(x), out)


def _indexes_by_mask(name: str, args: Any) -> bool:
    return name in ("index", "index_put_", "index_put") and any(
        index.dtype == torch.bool for index in args[1] if index is not None
    )


def create() -> torch.device:
    """Create the accelerator and return its device.

    Raises:
        ImportError: this version of torch lacks the private functions for it.
    """
    from torch.utils.backend_registration import (
        _DummyBackendModule,
        _setup_privateuseone_for_python_backend,
    )

    class Module(_DummyBackendModule):  # type: ignore[no-untyped-call]
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16]

    _setup_privateuseone_for_python_backend(rename=NAME, backend_module=Module())
    _register_autocast()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    return torch.device(NAME, 0)


def _register_autocast() -> None:
    key = torch._C.DispatchKey.AutocastPrivateUse1
    every, aten = (torch.library.Library(space, "IMPL", key.name) for space in ("_", "aten"))
    every.fallback(torch.library.fallthrough_kernel)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(torch.get_autocast_dtype(NAME)) if tensor.is_floating_point() else tensor

    def lowered(operation: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
                return operation(*tree_map_only(Tensor, cast, args), **tree_map_only(Tensor, cast, kwargs))

        return call

    for name in AUTOCAST:
        aten.impl(name, lowered(getattr(torch.ops.aten, name)))
    _LIBRARIES.extend((every, aten))


@contextlib.contextmanager
def active() -> Iterator[set[str]]:
    """Make the accelerator usable, and yield the names of the operations on it, such as ``add.Tensor``."""
    with _EveryOperation() as mode:  # type: ignore[no-untyped-call]
        yield mode.names


@contextlib.contextmanager
def reads_allowed() -> Iterator[None]:
    """Allow values to be read, as between steps."""
    global _reads_allowed
    before, _reads_allowed = _reads_allowed, True
    try:
        yield
    finally:
        _reads_allowed = before
