"""Attention by matrix products, which replaces torch's fused attention in half precision on CPUs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import profile

from vitctl import devices
from vitctl.devices.calls import attention_by_products

CPU = torch.device("cpu")


def tensors(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 5, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def with_gradients(attention: Callable[..., Tensor], inputs: list[Tensor], **arguments: object) -> list[Tensor]:
    out = attention(*inputs, **arguments)
    return [out, *torch.autograd.grad(out.square().sum(), inputs)]


MASKS = {
    "none": None,
    "bool": torch.ones(5, 5).tril().bool(),
    "float": torch.linspace(-2, 2, 25).view(5, 5).double(),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_products_equal_torchs_attention(mask: str, scale: float | None) -> None:
    found, expected = (
        with_gradients(attention, tensors(torch.float64), attn_mask=MASKS[mask], scale=scale)
        for attention in (attention_by_products, F.scaled_dot_product_attention)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("arguments", [{"is_causal": True}, {"enable_gqa": True}])
def test_other_calls_are_left_to_torch(arguments: dict[str, object]) -> None:
    found, expected = (
        with_gradients(attention, tensors(torch.float64), **arguments)
        for attention in (attention_by_products, F.scaled_dot_product_attention)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("precision", "fused"), [("fp32", True), ("bf16", False)])
def test_fused_attention_is_avoided_in_half_precision_only(precision: str, fused: bool) -> None:
    inputs = tensors(torch.float32)
    with profile() as profiler, devices.autocast(CPU, precision):
        out = F.scaled_dot_product_attention(*inputs)
    names = {event.name for event in profiler.events() or []}
    assert any("flash_attention_for_cpu" in name for name in names) == fused
    torch.testing.assert_close(out.float(), F.scaled_dot_product_attention(*inputs), atol=0.03, rtol=0.03)
