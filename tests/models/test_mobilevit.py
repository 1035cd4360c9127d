"""MobileViT, compared with vit-pytorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vit_pytorch import mobile_vit as oracle

from tests.models.oracles import assert_same_gradients, copy_weights, perturbed
from tests.models.test_models import build, images
from vitctl.models.mobilevit import MobileViTBlock
from vitctl.registry import Value

DIMS = {"xxs": [64, 80, 96], "xs": [96, 120, 144], "s": [144, 192, 240]}
CHANNELS = {
    "xxs": [16, 16, 24, 24, 48, 48, 64, 64, 80, 80, 320],
    "xs": [16, 32, 48, 48, 64, 64, 80, 80, 96, 96, 384],
    "s": [16, 32, 64, 64, 96, 96, 128, 128, 160, 160, 640],
}
INNER = [
    (r"\.conv\.0\.0\.", ".conv.0."),
    (r"\.conv\.0\.1\.", ".conv.1."),
    (r"\.conv\.1\.0\.", ".conv.3."),
    (r"\.conv\.1\.1\.", ".conv.4."),
    (r"\.conv\.2\.0\.", ".conv.6."),
    (r"\.conv\.2\.1\.", ".conv.7."),
]
BLOCK = [
    (r"conv_in\.", "conv1."),
    (r"widen\.", "conv2."),
    (r"narrow\.", "conv3."),
    (r"conv_out\.", "conv4."),
    (r"blocks\.(\d+)\.norm1\.", r"transformer.layers.\1.0.norm."),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"transformer.layers.\1.0.to_qkv."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"transformer.layers.\1.0.to_out.0."),
    (r"blocks\.(\d+)\.norm2\.", r"transformer.layers.\1.1.net.0."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"transformer.layers.\1.1.net.1."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"transformer.layers.\1.1.net.4."),
]
NAMES = [
    *INNER,
    *BLOCK,
    (r"^stem\.", "conv1."),
    (r"^stages\.0\.0\.", "stem.0."),
    (r"^stages\.1\.0\.", "stem.1."),
    (r"^stages\.1\.1\.", "stem.2."),
    (r"^stages\.1\.2\.", "stem.3."),
    (r"^stages\.2\.", "trunk.0."),
    (r"^stages\.3\.", "trunk.1."),
    (r"^stages\.4\.", "trunk.2."),
    (r"^last\.", "to_logits.0."),
    (r"^head\.", "to_logits.2."),
]


def pair(img_size: int, reduction: int, variant: str = "xxs") -> tuple[nn.Module, nn.Module]:
    """Return our network and vit-pytorch's, with the same weights and strides and in evaluation mode."""
    ours = perturbed(build("mobilevit", img_size, variant=variant, reduction=reduction)).eval()
    theirs = oracle.MobileViT(
        (img_size, img_size),
        DIMS[variant],
        CHANNELS[variant],
        num_classes=10,
        expansion=2 if variant == "xxs" else 4,
    )
    early = [theirs.conv1[0], theirs.stem[1].conv[3], theirs.trunk[0][0].conv[3]]
    for convolution in early[: {4: 3, 8: 2, 16: 1, 32: 0}[reduction]]:
        convolution.stride = (1, 1)
    copy_weights(ours, theirs, NAMES)
    return ours, theirs.eval()


@pytest.mark.parametrize(
    ("img_size", "reduction", "variant"),
    [(64, 32, "xxs"), (32, 16, "xxs"), (32, 8, "xxs"), (8, 4, "xxs"), (64, 32, "xs"), (16, 8, "s")],
)
def test_logits_match_vit_pytorch(img_size: int, reduction: int, variant: str) -> None:
    ours, theirs = pair(img_size, reduction, variant)
    x = images(2, img_size=img_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_gradients_match_vit_pytorch() -> None:
    ours, theirs = pair(16, 8)
    assert_same_gradients(ours, theirs, NAMES, images(3, img_size=16))


@pytest.mark.parametrize("side", [1, 3, 5])
def test_maps_of_odd_size_are_resized_only_for_attention(side: int) -> None:
    block = perturbed(MobileViTBlock(6, 16, 2, 2.0, 0.0)).eval()
    theirs = oracle.MobileViTBlock(16, 2, 6, 3, (2, 2), 32)
    copy_weights(block, theirs, BLOCK)
    theirs.eval()
    x = torch.randn(2, 6, side, side)
    local = F.interpolate(theirs.conv2(theirs.conv1(x)), side + 1, mode="bilinear")
    tokens = local.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 4, 5, 2, 3, 1)  # [B, 2, 2, y, x, D]
    attended = theirs.transformer(tokens.flatten(3, 4).flatten(1, 2)).view(tokens.shape)
    attended = attended.permute(0, 5, 3, 1, 4, 2).reshape(local.shape)  # [B, D, H, W]
    attended = F.interpolate(attended, side, mode="bilinear")
    expected = theirs.conv4(torch.cat((theirs.conv3(attended), x), 1))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("reduction", "side"), [(4, 8), (8, 4), (16, 2), (32, 1)])
def test_reduction_determines_the_size_of_the_last_map(reduction: int, side: int) -> None:
    model = build("mobilevit", reduction=reduction).eval()
    sides: list[int] = []
    model.stages.register_forward_hook(lambda _, args, out: sides.append(out.shape[-1]))
    model(images(1))
    assert sides == [side]


def test_variants_have_about_the_parameters_of_the_paper() -> None:
    """The paper has 1.3, 2.3 and 5.6 million with 1,000 classes, and with heads that are four times as wide in xxs."""
    counts: dict[str, int] = {}
    for variant in ("xxs", "xs", "s"):
        options: dict[str, Value] = {"variant": variant}
        counts[variant] = sum(p.numel() for p in build("mobilevit", num_classes=1000, **options).parameters())
    assert 1.2e6 < counts["xxs"] < 1.4e6 and 1.9e6 < counts["xs"] < 2.4e6 and 4.7e6 < counts["s"] < 5.7e6
