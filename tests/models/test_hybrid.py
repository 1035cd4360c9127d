"""The hybrids compared with their definition in plain functions, and their proportions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.oracles import records_group, records_stem
from tests.models.test_models import build, images
from vitctl.models import MODELS, build_model
from vitctl.models.count import forward_cost

HYBRIDS = [name for name, entry in MODELS.items() if entry.family == "hybrid"]


def reference(state: dict[str, Tensor], x: Tensor, *, stride: int, heads: int, late_groups: int) -> Tensor:
    """Return the logits in training mode: attention by einsum, norms by their formulas."""

    def layer_norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    x = torch.einsum("bchw->bhwc", records_stem(state, x, groups=2, stride=stride))
    side = x.shape[1]
    x = x.flatten(1, 2)
    if "embed.weight" in state:
        x = x @ state["embed.weight"].T
    x = x + state["pos_embed"]
    for i in range(2):
        block = f"blocks.{i}"
        q, k, v = (layer_norm(x) @ state[f"{block}.attn.qkv.weight"].T).chunk(3, dim=-1)
        out = torch.zeros_like(v)
        width = v.shape[-1] // heads
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            logits = torch.einsum("bnd,bmd->bnm", q[..., part], k[..., part]) / width**0.5
            out[..., part] = torch.einsum("bnm,bmd->bnd", logits.softmax(-1), v[..., part])
        x = x + out @ state[f"{block}.attn.proj.weight"].T
        hidden = (layer_norm(x) @ state[f"{block}.mlp.fc1.weight"].T).clamp(min=0) ** 2
        x = x + hidden @ state[f"{block}.mlp.fc2.weight"].T
    x = torch.einsum("bhwc->bchw", x.unflatten(1, (side, side)))
    for i in range(late_groups):
        x = records_group(state, x, f"late_groups.{i}")
    return x.mean((2, 3)) @ state["head.weight"].T / 9


@pytest.mark.parametrize(
    ("img_size", "in_chans", "stride", "embed_dim", "late_groups"),
    [(32, 3, 2, 16, 0), (8, 1, 2, 24, 0), (27, 3, 1, 16, 1), (40, 1, 3, 24, 2), (16, 3, 2, 24, 1)],
)
def test_logits_match_the_definition(
    img_size: int, in_chans: int, stride: int, embed_dim: int, late_groups: int
) -> None:
    options = {"width": 8, "stride": stride, "embed_dim": embed_dim, "depth": 2, "num_heads": 2}
    model = build("hybrid_tiny", img_size, in_chans, 7, **options, late_groups=late_groups).double().train()
    x = images(6, in_chans, img_size).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
        torch.testing.assert_close(
            model(x), reference(model.state_dict(), x, stride=stride, heads=2, late_groups=late_groups)
        )


def test_blocks_start_as_the_identity() -> None:
    model = build("hybrid_tiny").eval()
    x = images(2, 3, 32)
    with torch.no_grad():
        tokens = model.stem(x).flatten(2).transpose(1, 2)
        torch.testing.assert_close(model.blocks(tokens), tokens)


@pytest.mark.parametrize("net", HYBRIDS)
def test_blocks_have_a_quarter_of_the_operations_on_9_to_64_tokens(net: str) -> None:
    options = {name: option.default for name, option in MODELS[net].options.items()}

    def cost(**changed: object) -> float:
        def new() -> torch.nn.Module:
            return build_model(net, {**options, **changed}, img_size=32, in_chans=3, num_classes=10)  # type: ignore[dict-item]

        return forward_cost(new, 3, 32).mflop

    assert cost() - cost(depth=0) >= cost() / 4
    assert 9 <= MODELS[net].tokens <= 64


def test_there_are_three_sizes() -> None:
    assert len({MODELS[net].mflop for net in HYBRIDS}) >= 3
