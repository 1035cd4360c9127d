"""Memory layouts in the forward and backward pass, on devices that compute wrongly with some of them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

LAYOUT_BOUND = frozenset(
    (
        *(F.conv1d, F.conv2d, F.conv3d, F.interpolate, F.scaled_dot_product_attention, F.batch_norm, F.group_norm),
        *(F.max_pool2d, F.max_pool2d_with_indices, F.avg_pool2d, F.lp_pool2d, F.adaptive_avg_pool2d),
        *(F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices, F.relu, F.silu, F.hardswish),
    )
)
"""Functions whose results depend on the layout of their arguments on MPS; see :data:`vitctl.devices.faults.FAULTS`."""


class ContiguousLayouts(TorchFunctionMode):  # type: ignore[no-untyped-call]
    """Passes only contiguous tensors to :data:`LAYOUT_BOUND`, and contiguous gradients to their backward.

    It applies to every network, whatever library its layers are from. A gradient has the layout that the following
    layers gave it: that of an image is channels-last if a transformer transposed it to tokens.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in LAYOUT_BOUND:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, Tensor.contiguous, (args, kwargs))
        return tree_map_only(Tensor, with_contiguous_gradient, func(*args, **kwargs))


def with_contiguous_gradient(out: Tensor) -> Tensor:
    """Return ``out``, whose gradient will be contiguous when the function that computed it gets it."""
    if out.requires_grad:
        out.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
    return out
