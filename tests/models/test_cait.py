"""CaiT, compared with vit-pytorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from vit_pytorch import cait as oracle

from tests.models.oracles import assert_same_gradients, copy_weights, perturbed
from tests.models.test_models import build, defaults, images
from vitctl.models.cait import Layer, TalkingHeadsAttention
from vitctl.registry import Value

NAMES = [
    (r"^pos_embed", "pos_embedding"),
    (r"^patch_embed\.proj\.", "to_patch_embedding.2."),
    (r"^class_blocks\.(\d+)\.", r"cls_transformer.layers.\1."),
    (r"^blocks\.(\d+)\.", r"patch_transformer.layers.\1."),
    (r"\.norm1\.", ".0.fn.norm."),
    (r"\.attn\.mix_before", ".0.fn.mix_heads_pre_attn"),
    (r"\.attn\.mix_after", ".0.fn.mix_heads_post_attn"),
    (r"\.attn\.q\.", ".0.fn.to_q."),
    (r"\.attn\.kv\.", ".0.fn.to_kv."),
    (r"\.attn\.proj\.", ".0.fn.to_out.0."),
    (r"\.gamma1", ".0.scale"),
    (r"\.norm2\.", ".1.fn.net.0."),
    (r"\.mlp\.fc1\.", ".1.fn.net.1."),
    (r"\.mlp\.fc2\.", ".1.fn.net.4."),
    (r"\.gamma2", ".1.scale"),
    (r"^norm\.", "mlp_head.0."),
    (r"^head\.", "mlp_head.1."),
]


def pair(net: str, img_size: int = 32, **changed: Value) -> tuple[nn.Module, nn.Module]:
    """Return our network and vit-pytorch's, with the same weights and in evaluation mode."""
    ours = perturbed(build(net, img_size, **changed)).eval()
    options = defaults(net, **changed)
    theirs = oracle.CaiT(
        image_size=img_size,
        patch_size=options["patch_size"],
        num_classes=10,
        dim=options["embed_dim"],
        depth=options["depth"],
        cls_depth=options["class_depth"],
        heads=options["num_heads"],
        dim_head=options["head_dim"],
        mlp_dim=int(float(options["embed_dim"]) * float(options["mlp_ratio"])),
    )
    theirs.to_patch_embedding[1] = theirs.to_patch_embedding[3] = nn.Identity()  # norms that later versions added
    copy_weights(ours, theirs, NAMES)
    return ours, theirs.eval()


@pytest.mark.parametrize("net", ["cait", "cait_small"])
@pytest.mark.parametrize("init", ["vit", "predecessor"])
def test_logits_match_vit_pytorch(net: str, init: str) -> None:
    ours, theirs = pair(net, init=init)
    with torch.no_grad():
        torch.testing.assert_close(ours(images(2)), theirs(images(2)), atol=1e-5, rtol=1e-5)


def test_gradients_match_vit_pytorch() -> None:
    ours, theirs = pair("cait", 16, embed_dim=64, depth=2, class_depth=2, num_heads=3, head_dim=8)
    assert_same_gradients(ours, theirs, NAMES, images(3, img_size=16))


def test_layer_scale_decreases_with_depth() -> None:
    model = build("cait", 8, embed_dim=8, depth=26, num_heads=1, head_dim=4)
    scales = [block.gamma1[0].item() for block in model.blocks]
    assert scales == pytest.approx([0.1] * 18 + [1e-5] * 6 + [1e-6] * 2)
    assert [block.gamma2[0].item() for block in model.class_blocks] == pytest.approx([0.1, 0.1])


def test_predecessor_init() -> None:
    model = build("cait", init="predecessor")
    assert model.pos_embed.std().item() == pytest.approx(1, rel=0.05)
    mixes = [m.mix_before for m in model.modules() if isinstance(m, TalkingHeadsAttention)]
    assert torch.stack(mixes).std().item() == pytest.approx(1, rel=0.15)
    bound = 512**-0.5
    assert 0.99 * bound < model.blocks[0].attn.q.weight.abs().max().item() <= bound


def test_head_mixing_starts_near_the_identity() -> None:
    for module in build("cait").modules():
        if isinstance(module, TalkingHeadsAttention):
            torch.testing.assert_close(module.mix_before.detach(), torch.eye(8), atol=0.1, rtol=0)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_images_skip_layers_independently(rate: float) -> None:
    torch.manual_seed(0)
    layer = Layer(8, 2, 4, 1.0, dropout=0.0, layer_dropout=rate, scale=0.1)
    nn.init.eye_(layer.attn.mix_before)
    nn.init.eye_(layer.attn.mix_after)
    x = torch.randn(4000, 1, 8)
    complete = layer.eval()(x)
    out = layer.train()(x)
    skipped, kept = (out == x).all((1, 2)), torch.isclose(out, complete, atol=1e-6).all((1, 2))
    assert (skipped ^ kept).all()
    assert skipped.double().mean().item() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 4000) ** 0.5)
