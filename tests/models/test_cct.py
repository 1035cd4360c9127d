"""Compact transformers, compared with vit-pytorch's."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from vit_pytorch import cct as oracle

from tests.models.oracles import assert_same_gradients, copy_weights, perturbed, renamed
from tests.models.test_models import build, defaults, images
from vitctl.models.cct import Block, ConvTokenizer
from vitctl.registry import Value

NAMES = [
    (r"tokenizer\.convs\.(\d+)\.", r"tokenizer.conv_layers.\1.0."),
    (r"^pos_embed", "classifier.positional_emb"),
    (r"^blocks\.(\d+)\.norm1\.", r"classifier.blocks.\1.pre_norm."),
    (r"^blocks\.(\d+)\.norm2\.", r"classifier.blocks.\1.norm1."),
    (r"^blocks\.(\d+)\.attn\.", r"classifier.blocks.\1.self_attn."),
    (r"^blocks\.(\d+)\.mlp\.fc", r"classifier.blocks.\1.linear"),
    (r"^norm\.", "classifier.norm."),
    (r"^attention_pool\.", "classifier.attention_pool."),
    (r"^head\.", "classifier.fc."),
]
"""Patterns of our parameter names, and vit-pytorch's names."""


def pair(net: str, img_size: int = 32, in_chans: int = 3, **changed: int) -> tuple[nn.Module, nn.Module]:
    """Return our network and vit-pytorch's, with the same weights and in evaluation mode."""
    ours = perturbed(build(net, img_size, in_chans, 10, **changed)).eval()
    options = defaults(net, **changed)
    kernel = int(options["conv_kernel"])
    theirs = oracle.CCT(
        img_size=img_size,
        n_input_channels=in_chans,
        embedding_dim=options["embed_dim"],
        num_layers=options["depth"],
        num_heads=options["num_heads"],
        mlp_ratio=options["mlp_ratio"],
        n_conv_layers=options["conv_layers"],
        kernel_size=kernel,
        stride=max(1, kernel // 2 - 1),
        padding=max(1, kernel // 2),
        positional_embedding="learnable",
        num_classes=10,
    )
    copy_weights(ours, theirs, NAMES)
    return ours, theirs.eval()


@pytest.mark.parametrize("net", ["cct_2", "cct_4", "cct_6", "cct_7"])
def test_logits_match_vit_pytorch(net: str) -> None:
    ours, theirs = pair(net)
    x = images(3)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("img_size", "in_chans", "changed"),
    [
        (8, 1, {}),
        (9, 3, {"conv_layers": 4}),
        (33, 3, {"conv_layers": 1, "conv_kernel": 7}),
        (32, 3, {"conv_kernel": 2}),
        (20, 1, {"conv_kernel": 1, "conv_layers": 3}),
    ],
)
def test_logits_match_for_other_sizes_and_tokenizers(img_size: int, in_chans: int, changed: dict[str, int]) -> None:
    ours, theirs = pair("cct_2", img_size, in_chans, **changed)
    x = images(3, in_chans, img_size)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


def test_gradients_match_vit_pytorch() -> None:
    ours, theirs = pair("cct_2", 16)
    x = images(3, img_size=16)
    weights = torch.randn(3, 10)
    (ours(x) * weights).sum().backward()
    (theirs(x) * weights).sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[renamed(name, NAMES)], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 6, 7, 8])
def test_grid_matches_the_number_of_tokens(kernel: int, layers: int) -> None:
    with torch.device("meta"):
        tokenizer = ConvTokenizer([3, *[4] * layers], kernel)
        for img_size in (*range(4, 40), 64, 97, 224, 384):
            tokens: Tensor = tokenizer(torch.empty(1, 3, img_size, img_size))
            assert tokens.shape == (1, tokenizer.grid(img_size) ** 2, 4)
            assert tokens.shape[1] >= 1


def test_drop_path_rate_rises_linearly() -> None:
    model = build("cct_4", drop_path_rate=0.3)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_initial_weights() -> None:
    model = build("cct_6")
    weights = dict(model.named_parameters())
    assert weights["pos_embed"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["blocks.0.attn.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["tokenizer.convs.1.weight"].std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert not weight.any(), name


PATCH_NAMES = [(r"^cls_token", "classifier.class_emb"), *NAMES]


def patch_pair(net: str, img_size: int = 32, in_chans: int = 3, **changed: Value) -> tuple[nn.Module, nn.Module]:
    """Return our patch network and one of vit-pytorch's parts, with the same weights and in evaluation mode."""
    ours = perturbed(build(net, img_size, in_chans, 10, **changed)).eval()
    options = defaults(net, **changed)
    patch = int(options["patch_size"])
    tokenizer = oracle.Tokenizer(
        kernel_size=patch,
        stride=patch,
        padding=0,
        n_input_channels=in_chans,
        n_output_channels=options["embed_dim"],
        max_pool=False,
    )
    classifier = oracle.TransformerClassifier(
        seq_pool=net == "cvt",
        embedding_dim=options["embed_dim"],
        num_layers=options["depth"],
        num_heads=options["num_heads"],
        mlp_ratio=options["mlp_ratio"],
        num_classes=10,
        positional_embedding="learnable",
        sequence_length=(img_size // patch) ** 2,
    )
    theirs = nn.Sequential(OrderedDict(tokenizer=tokenizer, classifier=classifier)).eval()
    copy_weights(ours, theirs, PATCH_NAMES)
    return ours, theirs


@pytest.mark.parametrize("net", ["cvt", "vit_lite"])
@pytest.mark.parametrize(("img_size", "in_chans", "patch_size"), [(32, 3, 4), (48, 3, 8), (9, 1, 3)])
def test_logits_of_patch_networks_match_vit_pytorch(net: str, img_size: int, in_chans: int, patch_size: int) -> None:
    ours, theirs = patch_pair(net, img_size, in_chans, patch_size=patch_size)
    x = images(2, in_chans, img_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("net", ["cvt", "vit_lite"])
def test_gradients_of_patch_networks_match_vit_pytorch(net: str) -> None:
    ours, theirs = patch_pair(net, 16, embed_dim=32, depth=2)
    assert_same_gradients(ours, theirs, PATCH_NAMES, images(3, img_size=16))
