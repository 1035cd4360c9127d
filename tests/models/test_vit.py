"""Vision Transformers, compared with vit-pytorch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from vit_pytorch import simple_vit as simple_oracle
from vit_pytorch import vit as plain_oracle
from vit_pytorch import vit_for_small_dataset as small_oracle

from tests.models.oracles import assert_same_gradients, copy_weights, perturbed, renamed
from tests.models.test_models import build, defaults, images
from vitctl.models.count import count_parameters, forward_cost
from vitctl.models.dropout import Dropout
from vitctl.models.vit import SINCOS_SCALE, Block, LocalitySelfAttention, PatchTokens, ShiftedPatchTokens
from vitctl.registry import Value

NAMES = [
    (r"^pos_embed", "pos_embedding"),
    (r"^blocks\.(\d+)\.norm1\.", r"transformer.layers.\1.0.norm."),
    (r"^blocks\.(\d+)\.attn\.temperature", r"transformer.layers.\1.0.temperature"),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"transformer.layers.\1.0.to_qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"transformer.layers.\1.0.to_out.0."),
    (r"^blocks\.(\d+)\.norm2\.", r"transformer.layers.\1.1.net.0."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"transformer.layers.\1.1.net.1."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"transformer.layers.\1.1.net.4."),
]
PLAIN = [
    *NAMES,
    (r"^patch_embed\.proj\.", "to_patch_embedding.2."),
    (r"^norm\.", "transformer.norm."),
    (r"^head\.", "mlp_head."),
]
SMALL = [
    *NAMES,
    (r"^patch_embed\.norm\.", "to_patch_embedding.to_patch_tokens.1."),
    (r"^patch_embed\.proj\.", "to_patch_embedding.to_patch_tokens.2."),
    (r"^fc_norm\.", "mlp_head.0."),
    (r"^head\.", "mlp_head.1."),
]
"""Patterns of our parameter names, and vit-pytorch's names."""


def pair(net: str, img_size: int = 32, in_chans: int = 3, **changed: Value) -> tuple[nn.Module, nn.Module]:
    """Return our network and vit-pytorch's, with the same weights and in evaluation mode."""
    ours = perturbed(build(net, img_size, in_chans, 10, **changed)).eval()
    options = defaults(net, **changed)
    kind = plain_oracle.ViT if net == "vit" else small_oracle.ViT
    theirs = kind(
        image_size=img_size,
        patch_size=options["patch_size"],
        channels=in_chans,
        num_classes=10,
        dim=options["embed_dim"],
        depth=options["depth"],
        heads=options["num_heads"],
        dim_head=options["head_dim"],
        mlp_dim=int(float(options["embed_dim"]) * float(options["mlp_ratio"])),
        pool="cls" if options["pool"] == "cls" else "mean",
    )
    if net == "vit":
        theirs.to_patch_embedding[1] = nn.Identity()
        theirs.to_patch_embedding[3] = nn.Identity()
    state = {renamed(name, PLAIN if net == "vit" else SMALL): tensor for name, tensor in ours.state_dict().items()}
    expected = theirs.state_dict()
    if net == "vit" and options["pool"] == "avg":
        state["cls_token"] = expected["cls_token"]  # not used with mean pooling
    theirs.load_state_dict({name: tensor.view_as(expected[name]) for name, tensor in state.items()})
    return ours, theirs.eval()


@pytest.mark.parametrize("pool", ["cls", "avg"])
@pytest.mark.parametrize(
    ("net", "changed"),
    [
        ("vit", {"patch_size": 2, "depth": 2}),
        ("vit", {}),
        ("vit", {"patch_size": 8, "depth": 2}),
        ("vit_small", {}),
        ("vit_tiny", {}),
    ],
)
def test_logits_match_vit_pytorch(net: str, changed: dict[str, Value], pool: str) -> None:
    ours, theirs = pair(net, **changed, pool=pool)
    x = images(2)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("net", ["vit", "vit_small"])
def test_logits_match_for_greyscale_images_of_another_size(net: str) -> None:
    ours, theirs = pair(net, 15, 1, patch_size=3, embed_dim=40, depth=2, num_heads=3, head_dim=12, mlp_ratio=1.5)
    x = images(2, 1, 15)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("net", "names"), [("vit", PLAIN), ("vit_small", SMALL)])
def test_gradients_match_vit_pytorch(net: str, names: list[tuple[str, str]]) -> None:
    ours, theirs = pair(net, 16, depth=3)
    x = images(3, img_size=16)
    weights = torch.randn(3, 10)
    (ours(x) * weights).sum().backward()
    (theirs(x) * weights).sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    temperatures = 0
    for name, parameter in ours.named_parameters():
        gradient = expected[renamed(name, names)]
        assert gradient is not None
        torch.testing.assert_close(parameter.grad, gradient.view_as(parameter), atol=1e-5, rtol=1e-4)
        temperatures += name.endswith("temperature") and bool(gradient.abs() > 1e-4)
    assert temperatures == (3 if net == "vit_small" else 0)


@pytest.mark.parametrize(
    ("net", "patch_size", "params", "mflop"),
    [
        ("vit", 2, 9_603_594, 5665.5),
        ("vit", 4, 9_523_722, 1281.9),
        ("vit", 8, 9_572_874, 327.6),
        ("vit_small", 4, 9_622_512, 1294.5),
        ("vit_tiny", 4, 4_371_438, 587.0),
    ],
)
def test_costs_match_the_original_scripts(net: str, patch_size: int, params: int, mflop: float) -> None:
    assert count_parameters(build(net, patch_size=patch_size)) == params

    def complete() -> nn.Module:
        model = build(net, patch_size=patch_size)
        model.blocks[-1].first_only = False  # the original scripts compute all tokens of the last block
        return model

    assert forward_cost(complete, 3, 32).mflop == pytest.approx(mflop, abs=0.051)
    saved = 1 - forward_cost(lambda: build(net, patch_size=patch_size), 3, 32).mflop / mflop
    assert 0.08 < saved < 0.17


@pytest.mark.parametrize("net", ["vit", "vit_small"])
def test_the_last_block_skips_only_unused_tokens(net: str) -> None:
    model = build(net, patch_size=4).eval()
    images = torch.randn(3, 3, 32, 32)
    first_only = model(images)
    model.blocks[-1].first_only = False
    torch.testing.assert_close(first_only, model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("img_size", "patch_size", "in_chans"), [(8, 4, 3), (12, 3, 1), (6, 1, 2), (5, 5, 3)])
def test_shifted_patches_match_vit_pytorch(img_size: int, patch_size: int, in_chans: int) -> None:
    ours = ShiftedPatchTokens(img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=16)
    perturbed(ours)
    theirs = small_oracle.SPT(dim=16, patch_size=patch_size, channels=in_chans)
    theirs.to_patch_tokens[1].load_state_dict(ours.norm.state_dict())
    theirs.to_patch_tokens[2].load_state_dict(ours.proj.state_dict())
    x = images(2, in_chans, img_size)
    assert ours(x).shape == (2, ours.num_patches, 16)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-6)


def test_values_of_a_patch_are_ordered_by_row_column_channel() -> None:
    tokens = PatchTokens(img_size=4, patch_size=2, in_chans=3, embed_dim=1)
    x = torch.arange(48.0).view(1, 4, 4, 3).permute(0, 3, 1, 2)  # [1, 3, 4, 4], numbered row, column, channel
    upper_right = [*range(6, 12), *range(18, 24)]
    assert tokens.patchify(x)[0, 1].tolist() == upper_right


def attention(num_tokens: int) -> LocalitySelfAttention:
    torch.manual_seed(0)
    return LocalitySelfAttention(8, num_heads=2, attn_head_dim=4, proj_drop=0.0, num_tokens=num_tokens)


def test_no_token_attends_to_itself() -> None:
    layer = attention(3)
    x = torch.randn(1, 3, 8, requires_grad=True)
    v = nn.Parameter(layer.qkv.weight.detach()[16:])

    # Queries and keys are constant, so a token's output depends on x only through the values it attends to.
    def forward(values: Tensor) -> Tensor:
        qk = layer.qkv(torch.ones(1, 3, 8))[..., :16]
        layer_input = torch.cat((qk, values @ v.T), dim=-1)
        return _with_qkv(layer, layer_input)

    for token in range(3):
        gradient = torch.autograd.grad(forward(x)[0, token].sum(), x)[0][0]
        assert not gradient[token].any()
        assert all(gradient[other].any() for other in range(3) if other != token)


def _with_qkv(layer: LocalitySelfAttention, qkv: Tensor) -> Tensor:
    """Run ``layer`` with given queries, keys and values."""
    handle = layer.qkv.register_forward_hook(lambda *_: qkv)
    try:
        out: Tensor = layer(torch.zeros(1, 3, 8))
        return out
    finally:
        handle.remove()


def test_a_single_token_attends_to_itself() -> None:
    layer = attention(1)
    x = torch.randn(2, 1, 8, requires_grad=True)
    out = layer(x)
    torch.testing.assert_close(out, layer.proj(layer.qkv(x)[..., 16:]))
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_two_tokens_attend_to_each_other() -> None:
    layer = attention(2)
    x = torch.randn(2, 2, 8)
    torch.testing.assert_close(layer(x), layer.proj(layer.qkv(x)[..., 16:]).flip(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_locality_self_attention_works_in_other_precisions(dtype: torch.dtype) -> None:
    layer, x = attention(5), torch.randn(2, 5, 8)
    exact = layer(x)
    out = layer.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, atol=1e-2, rtol=1e-2)


def test_autocast_gives_finite_gradients() -> None:
    model = build("vit_small", 8, depth=1, embed_dim=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images(2, img_size=8))
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_mask_is_not_in_the_state_dict() -> None:
    assert not [name for name in build("vit_small", 8).state_dict() if "diagonal" in name]


def test_temperature_starts_at_the_standard_scale() -> None:
    assert attention(3).temperature.exp().item() == pytest.approx(4**-0.5)


@pytest.mark.parametrize("net", ["vit", "vit_small"])
def test_initial_weights(net: str) -> None:
    for name, parameter in build(net, depth=1).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name


@pytest.mark.parametrize("net", ["vit", "vit_small"])
def test_predecessor_init(net: str) -> None:
    for name, parameter in build(net, depth=1, init="predecessor").named_parameters():
        if name in ("pos_embed", "cls_token"):
            assert parameter.std().item() == pytest.approx(1, rel=0.1), name
        elif parameter.ndim > 1:
            bound = parameter.shape[1] ** -0.5
            assert 0.99 * bound < parameter.abs().max().item() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name


@pytest.mark.parametrize("net", ["vit", "vit_small", "vit_tiny", "dyt"])
@pytest.mark.parametrize(("pool", "init"), [("cls", "vit"), ("avg", "predecessor")])
def test_positions_can_start_from_sin_cos(net: str, pool: str, init: str) -> None:
    models = {}
    for pos_init in ("normal", "sincos"):
        torch.manual_seed(0)
        models[pos_init] = build(net, depth=1, embed_dim=64, pool=pool, init=init, pos_init=pos_init)
    normal, sincos = models["normal"].state_dict(), models["sincos"].state_dict()
    assert all(torch.equal(sincos[name], normal[name]) for name in normal if name != "pos_embed")
    theirs = simple_oracle.posemb_sincos_2d(8, 8, 64)
    assert torch.allclose(sincos["pos_embed"][0, -64:], SINCOS_SCALE * theirs, atol=1e-6)
    assert torch.equal(sincos["pos_embed"][0, :-64], normal["pos_embed"][0, :-64]), "that of the class token is normal"
    assert models["sincos"].get_parameter("pos_embed").requires_grad


@pytest.mark.parametrize("net", ["vit", "vit_small"])
def test_drop_path_rate_rises_linearly(net: str) -> None:
    model = build(net, 8, depth=4, drop_path_rate=0.3)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    assert [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_dropout_follows_embeddings_and_projections() -> None:
    model = build("vit", 8, depth=1, dropout=0.25, emb_dropout=0.5)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, Dropout)}
    assert rates == {
        "pos_drop": 0.5,
        "blocks.0.attn.proj_drop": 0.25,
        "blocks.0.mlp.drop1": 0.25,
        "blocks.0.mlp.drop2": 0.25,
    }


class Tanh(nn.Module):
    """Dynamic Tanh, as printed in the paper."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1) * 0.5)
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.tanh(self.alpha * x) + self.bias


def dyt_pair(img_size: int = 32, **changed: Value) -> tuple[nn.Module, nn.Module]:
    """Return our ``dyt`` and vit-pytorch's ViT with Dynamic Tanh, with the same weights and in evaluation mode."""
    ours = perturbed(build("dyt", img_size, **changed)).eval()
    options = defaults("dyt", **changed)
    theirs = plain_oracle.ViT(
        image_size=img_size,
        patch_size=4,
        num_classes=10,
        dim=options["embed_dim"],
        depth=options["depth"],
        heads=options["num_heads"],
        dim_head=options["head_dim"],
        mlp_dim=int(float(options["embed_dim"]) * float(options["mlp_ratio"])),
    )
    theirs.to_patch_embedding[1] = theirs.to_patch_embedding[3] = nn.Identity()
    for module in list(theirs.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, Tanh(child.normalized_shape[0]))
    copy_weights(ours, theirs, PLAIN)
    return ours, theirs.eval()


def test_dyt_matches_vit_pytorch_with_replaced_norms() -> None:
    ours, theirs = dyt_pair()
    with torch.no_grad():
        torch.testing.assert_close(ours(images(2)), theirs(images(2)), atol=1e-5, rtol=1e-5)


def test_dyt_gradients_match_vit_pytorch() -> None:
    ours, theirs = dyt_pair(16, embed_dim=32, depth=2, num_heads=3, head_dim=8)
    assert_same_gradients(ours, theirs, PLAIN, images(3, img_size=16))


def test_dyt_has_no_layer_norm() -> None:
    assert not [module for module in build("dyt", 8).modules() if isinstance(module, nn.LayerNorm)]


SIMPLE = [
    (r"^patch_embed\.proj\.", "to_patch_embedding.2."),
    (r"^blocks\.(\d+)\.norm1\.", r"transformer.layers.\1.0.norm."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"transformer.layers.\1.0.to_qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"transformer.layers.\1.0.to_out."),
    (r"^blocks\.(\d+)\.norm2\.", r"transformer.layers.\1.1.net.0."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"transformer.layers.\1.1.net.1."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"transformer.layers.\1.1.net.3."),
    (r"^fc_norm\.", "linear_head.0."),
    (r"^head\.", "linear_head.1."),
]


def simple_pair(img_size: int = 32, **changed: Value) -> tuple[nn.Module, nn.Module]:
    """Return our ``simplevit`` and vit-pytorch's with the norms of its first version, with the same weights."""
    ours = perturbed(build("simplevit", img_size, **changed)).eval()
    options = defaults("simplevit", **changed)
    dim = int(options["embed_dim"])
    theirs = simple_oracle.SimpleViT(
        image_size=img_size,
        patch_size=options["patch_size"],
        num_classes=10,
        dim=dim,
        depth=options["depth"],
        heads=options["num_heads"],
        dim_head=options["head_dim"],
        mlp_dim=int(dim * float(options["mlp_ratio"])),
    )
    theirs.to_patch_embedding[1] = theirs.to_patch_embedding[3] = nn.Identity()
    theirs.transformer.norm = nn.Identity()  # normalises after pooling instead
    theirs.linear_head = nn.Sequential(nn.LayerNorm(dim), theirs.linear_head)
    copy_weights(ours, theirs, SIMPLE)
    return ours, theirs.eval()


@pytest.mark.parametrize(("img_size", "changed"), [(32, {}), (48, {"patch_size": 8, "embed_dim": 24, "num_heads": 3})])
def test_simplevit_matches_vit_pytorch(img_size: int, changed: dict[str, Value]) -> None:
    ours, theirs = simple_pair(img_size, **changed)
    x = images(2, img_size=img_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_simplevit_gradients_match_vit_pytorch() -> None:
    ours, theirs = simple_pair(16, embed_dim=32, depth=2)
    assert_same_gradients(ours, theirs, SIMPLE, images(3, img_size=16))


def test_fixed_positions_are_a_buffer_outside_the_state_dict() -> None:
    model = build("simplevit", 8)
    assert "patch_embed.positions" in dict(model.named_buffers())
    assert not [name for name in model.state_dict() if "positions" in name]
