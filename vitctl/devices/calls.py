"""Calls of torch's functions in the way in which a device computes correctly and fast."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from vitctl.devices.policy import DevicePolicy

LAYOUT_BOUND = frozenset(
    (
        *(F.conv1d, F.conv2d, F.conv3d, F.interpolate, F.scaled_dot_product_attention, F.batch_norm, F.group_norm),
        *(F.max_pool2d, F.max_pool2d_with_indices, F.avg_pool2d, F.lp_pool2d, F.adaptive_avg_pool2d),
        *(F.adaptive_max_pool2d, F.adaptive_max_pool2d_with_indices, F.relu, F.silu, F.hardswish),
    )
)
"""Functions that compute wrongly on MPS if their arguments or gradients are not contiguous."""


class AdaptedCalls(TorchFunctionMode):
    """Adapts calls of functions to what a device computes correctly and fast, in layers of any library.

    With ``contiguous``, the functions of :data:`LAYOUT_BOUND` get contiguous tensors, and contiguous gradients in the
    backward pass. A gradient has the layout that the following layers gave it: that of an image is channels-last if a
    transformer transposed it to tokens.

    Without ``half_attention``, attention is computed by matrix products: the backward pass of torch's fused kernel for
    the CPU takes two to five times as long in half precision as in fp32.

    Args:
        policy: the device's policy.
    """

    def __init__(self, policy: DevicePolicy) -> None:
        super().__init__()
        self.policy = policy

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LAYOUT_BOUND and self.policy.contiguous:
            args, kwargs = tree_map_only(Tensor, Tensor.contiguous, (args, kwargs))
            return tree_map_only(Tensor, _with_contiguous_gradient, func(*args, **kwargs))
        if func is F.layer_norm and not self.policy.norms_constants:
            args = (_with_gradient(args[0]), *args[1:])
        if func is F.scaled_dot_product_attention and not self.policy.half_attention:
            func = attention_by_products
        return func(*args, **kwargs)


def attention_by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute ``F.scaled_dot_product_attention`` by two batched matrix products and a softmax.

    Calls with dropout, causal masks or grouped queries are left to torch. Arguments and result are torch's.
    """
    if dropout_p or is_causal or enable_gqa:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT  # [..., N, N]
    if attn_mask is not None:
        bias = (
            attn_mask if attn_mask.is_floating_point() else torch.zeros_like(logits).masked_fill(~attn_mask, -torch.inf)
        )
        logits = logits + bias
    return logits.softmax(-1).to(value.dtype) @ value


def _with_contiguous_gradient(out: Tensor) -> Tensor:
    if out.requires_grad:
        out.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
    return out


def _with_gradient(x: Tensor) -> Tensor:
    """Return ``x`` as a tensor whose gradient is computed, though nothing uses it, if gradients are computed at all."""
    return x if x.requires_grad or not torch.is_grad_enabled() else x.detach().requires_grad_()
