"""A guard that fails where a computation would reach a known fault of MPS; it runs with tensors of any device.

The dispatch mode sees each operation of the forward pass, the backward pass and the optimizer, after torch has chosen
memory layouts. The function mode sees calls of attention before torch decomposes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitctl.devices.policy import MPS

LAYOUT_OPERATIONS = (
    "pool",
    "batch_norm",
    "group_norm",
    "convolution",
    "upsample",
    "threshold_backward",
    "silu_backward",
)
"""Parts of the names of operations that must not get channels-last tensors, forwards and backwards."""

PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
"""Matrix products, with the position of the left operand."""


class Forbidden(Exception):
    """A computation that MPS gets wrong."""


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        check_dtypes(name, [*given, *(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        check_layouts(name, given)
        check_length(name, args)
        check_layer_norm(name, args)
        return out


class _Attention(TorchFunctionMode):  # type: ignore[no-untyped-call]
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            check_attention(*args[:3])
        return func(*args, **(kwargs or {}))


def check_dtypes(name: str, tensors: list[Tensor]) -> None:
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        raise Forbidden(f"{name} with float64")


def check_layouts(name: str, tensors: list[Tensor]) -> None:
    if any(part in name for part in LAYOUT_OPERATIONS):
        for tensor in tensors:
            if tensor.ndim == 4 and suggest_memory_format(tensor) == torch.channels_last:
                raise Forbidden(f"{name} with a channels-last tensor {tuple(tensor.shape)}")


def check_length(name: str, args: tuple[Any, ...]) -> None:
    assert MPS.longest_reduction is not None
    if name in PRODUCTS and args[PRODUCTS[name]].shape[-1] > MPS.longest_reduction:
        raise Forbidden(f"{name} with sums of {args[PRODUCTS[name]].shape[-1]} terms")


def check_layer_norm(name: str, args: tuple[Any, ...]) -> None:
    if name == "aten::native_layer_norm_backward" and not args[-1][0] and any(args[-1]):
        raise Forbidden(f"{name} without the gradient of its input")


def check_attention(*tensors: Tensor) -> None:
    for what, tensor in zip(("queries", "keys", "values"), tensors, strict=True):
        if not tensor.is_contiguous():
            raise Forbidden(f"attention with {what} that are not contiguous: {tuple(tensor.shape)}, {tensor.stride()}")


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Raise :class:`Forbidden` on an operation that MPS computes wrongly."""
    with _Operations(), _Attention():  # type: ignore[no-untyped-call]
        yield
