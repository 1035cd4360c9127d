"""Swin, compared with its formula: masked attention over the complete map instead of attention in windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.oracles import perturbed
from tests.models.test_models import build, defaults, images
from vitctl.models.swin import Swin, WindowAttention, border_mask
from vitctl.registry import Value


def formula(model: Swin, x: Tensor, window: int, head_dim: int) -> Tensor:
    """Compute the logits of ``x``, ``[B, C, H, W]``, with F.unfold for merging and a mask over the map for windows."""
    w = dict(model.named_parameters())
    for stage, factor in enumerate((2, 2, 2, 1)):
        x = linear(F.unfold(x, factor, stride=factor).transpose(1, 2), w, f"stages.{stage}.merge.proj")  # [B, N, D]
        side = int(x.shape[1] ** 0.5)
        y, z = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        place = torch.stack((y.flatten(), z.flatten()), -1)  # [N, 2]
        for i in range(len(model.stages[stage].blocks)):
            name = f"stages.{stage}.blocks.{i}"
            shift = window // 2 if i % 2 else 0
            cell = (place - shift).div(window, rounding_mode="floor")  # [N, 2]
            together = (cell[:, None] == cell[None]).all(-1)  # [N, N]
            offset = (place[None] - place[:, None] + window - 1).clamp(0, 2 * window - 2)  # [N, N, 2]
            bias = w[f"{name}.attn.pos_embed"][offset[..., 0], offset[..., 1]]
            normed = F.layer_norm(x, x.shape[-1:], w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"])
            q, k, v = (normed @ w[f"{name}.attn.qkv.weight"].T).chunk(3, -1)
            heads = []
            for h in range(x.shape[-1] // head_dim):
                part = slice(h * head_dim, (h + 1) * head_dim)
                products = q[..., part] @ k[..., part].mT / head_dim**0.5 + bias
                heads.append(products.masked_fill(~together, float("-inf")).softmax(-1) @ v[..., part])
            x = x + linear(torch.cat(heads, -1), w, f"{name}.attn.proj")
            normed = F.layer_norm(x, x.shape[-1:], w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"])
            x = x + linear(F.gelu(linear(normed, w, f"{name}.mlp.fc1")), w, f"{name}.mlp.fc2")
        x = x.mT.unflatten(-1, (side, side))  # [B, D, H, W]
    pooled = F.layer_norm(x.mean((2, 3)), x.shape[1:2], w["norm.weight"], w["norm.bias"])
    return linear(pooled, w, "head")


def linear(x: Tensor, w: dict[str, nn.Parameter], name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


@pytest.mark.parametrize(
    ("img_size", "changed"),
    [
        (32, {}),
        (32, {"init": "predecessor"}),
        (64, {"embed_dim": 32}),
        (48, {"window_size": 3, "embed_dim": 32, "head_dim": 16, "depth": 3, "mlp_ratio": 1.5}),
        (8, {"window_size": 1, "embed_dim": 32}),
    ],
)
def test_logits_match_the_formula(img_size: int, changed: dict[str, Value]) -> None:
    model = perturbed(build("swin", img_size, **changed)).eval()
    assert isinstance(model, Swin)
    options = defaults("swin", **changed)
    x = images(2, img_size=img_size)
    with torch.no_grad():
        expected = formula(model, x, int(options["window_size"]), int(options["head_dim"]))
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_gradients_match_the_formula() -> None:
    model = perturbed(build("swin", 32, embed_dim=32, head_dim=16, depth=2)).eval()
    assert isinstance(model, Swin)
    x, weights = images(2), torch.randn(2, 10)
    (model(x) * weights).sum().backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    (formula(model, x, 4, 16) * weights).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_every_second_block_is_shifted() -> None:
    model = build("swin", embed_dim=32)
    assert [m.shift for m in model.modules() if isinstance(m, WindowAttention)] == [0, 2] * 6


def test_every_token_attends_to_some_token() -> None:
    mask = border_mask(8, 4, 2)
    assert mask.shape == (4, 16, 16)
    assert (mask == 0).any(-1).all() and (mask.diagonal(dim1=1, dim2=2) == 0).all()
    assert (mask[0] == 0).all() and (mask[3] == 0).float().mean() == 0.25


def test_drop_path_rate_rises_linearly() -> None:
    model = build("swin", embed_dim=32, drop_path_rate=0.22)
    rates = [getattr(m.drop_path, "drop_prob", 0.0) for m in model.modules() if hasattr(m, "drop_path")]
    assert rates == pytest.approx([0.02 * i for i in range(12)])


def test_masks_are_not_in_the_state_dict() -> None:
    assert not [name for name in build("swin", embed_dim=32).state_dict() if "mask" in name or "index" in name]
