"""Attention rollout equals a direct computation from the layers' weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitctl.inference.rollout import attention_map, explainable, rollout
from vitctl.models import build_model, find_model


def network(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    full = find_model(name).resolve_options(options, f"--net {name}")
    model = build_model(name, full, img_size=16, in_chans=3, num_classes=4).eval()
    with torch.no_grad():  # so that attention is far from uniform, also where layers start at zero
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs_of_attention(model: nn.Module, images: Tensor) -> list[tuple[Any, Tensor]]:
    """Return each attention layer with its input, ``[B, N, D]``."""
    found: list[tuple[Any, Tensor]] = []
    layers = [block.attn for block in model.blocks]  # type: ignore[union-attr]
    handles = [layer.register_forward_pre_hook(lambda own, args: found.append((own, args[0]))) for layer in layers]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


def by_hand(layer: Any, x: Tensor) -> np.ndarray[Any, Any]:
    """Return the attention of a layer for one image, averaged over its heads, ``[N, N]``, with loops over heads."""
    tokens = x[0].double().numpy()
    weight = layer.qkv.weight.detach().double().numpy()
    heads = layer.num_heads
    query, key, _ = np.split(tokens @ weight.T, 3, axis=1)
    width = query.shape[1] // heads
    total = 0
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        products = query[:, part] @ key[:, part].T / math.sqrt(width)
        if hasattr(layer, "temperature"):
            products *= math.sqrt(width) * math.exp(layer.temperature.item())
            np.fill_diagonal(products, -np.inf)
        powers = np.exp(products - products.max(1, keepdims=True))
        total = total + powers / powers.sum(1, keepdims=True)
    return np.asarray(total / heads)


TINY = {"embed_dim": 16, "depth": 3, "num_heads": 2}
CASES = {
    "vit": ("vit", {**TINY, "head_dim": 8, "pool": "cls"}, "class"),
    "vit, mean": ("vit", {**TINY, "head_dim": 8, "pool": "avg"}, "mean"),
    "vit_small": ("vit_small", {**TINY, "head_dim": 8}, "class"),
    "vit_small, mean": ("vit_small", {**TINY, "head_dim": 8, "pool": "avg"}, "mean with class"),
    "cct_2": ("cct_2", {**TINY, "conv_width": 8}, "learned"),
    "hybrid_tiny": ("hybrid_tiny", {"width": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}, "mean"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_map_equals_a_direct_computation(case: str) -> None:
    name, options, pool = CASES[case]
    model = network(name, **options)
    images = torch.randn(1, 3, 16, 16)
    layers = inputs_of_attention(model, images)
    assert len(layers) == 3
    rolled = np.eye(layers[0][1].shape[1])
    for layer, x in layers:
        joined = by_hand(layer, x) + np.eye(len(rolled))
        rolled = joined / joined.sum(1, keepdims=True) @ rolled
    if pool == "learned":
        seen: list[Tensor] = []
        model.attention_pool.register_forward_hook(lambda own, args, out: seen.append(out))  # type: ignore[union-attr, operator]
        with torch.no_grad():
            model(images)
        powers = np.exp(seen[0][0, :, 0].double().numpy())
        expected = powers / powers.sum() @ rolled
    elif pool == "class":
        expected = rolled[0, 1:]
    elif pool == "mean with class":
        expected = rolled.mean(0)[1:]
    else:
        expected = rolled.mean(0)
    found = attention_map(model, images)
    side = math.isqrt(len(expected))
    assert found.shape == (1, side, side) and explainable(model)
    assert found[0].numpy() == pytest.approx((expected / expected.sum()).reshape(side, side), rel=1e-4)


def test_rollout_of_uniform_attention_is_uniform_beyond_the_residual() -> None:
    uniform = torch.full((1, 4, 4), 0.25)
    expected = 0.5 * torch.eye(4) + 0.125
    assert torch.allclose(rollout([uniform])[0], expected)
    assert torch.allclose(rollout([uniform, uniform])[0], expected @ expected)


@pytest.mark.parametrize("name", ["res18", "cait", "mlpmixer", "airbench94"])
def test_networks_without_plain_attention_are_not_explained(name: str) -> None:
    options = find_model(name).resolve_options({}, f"--net {name}")
    assert not explainable(build_model(name, options, img_size=32, in_chans=3, num_classes=4))
