"""Properties of every network of the table; a new row needs no new test."""

from __future__ import annotations

import inspect
import io
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitctl.errors import RequestError
from vitctl.models import MODELS, build_model
from vitctl.models.count import count_parameters, forward_cost
from vitctl.registry import Option, Value

NARROW: dict[str, Value] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "head_dim": 8, "conv_width": 8, "width": 8}
"""Options that make a network fast, if it has them."""

SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 384)
"""Image sizes to test."""

each_net = pytest.mark.parametrize("net", MODELS)


def defaults(net: str, **changed: Value) -> dict[str, Value]:
    """Return the default options of ``net``, updated with those of ``changed`` that it has."""
    options = {name: option.default for name, option in MODELS[net].options.items()}
    return {**options, **{name: value for name, value in changed.items() if name in options}}


def build(net: str, img_size: int = 32, in_chans: int = 3, num_classes: int = 10, **changed: Value) -> nn.Module:
    torch.manual_seed(0)
    return build_model(net, defaults(net, **changed), img_size=img_size, in_chans=in_chans, num_classes=num_classes)


def images(count: int, in_chans: int = 3, img_size: int = 32) -> Tensor:
    return torch.randn(count, in_chans, img_size, img_size, generator=torch.Generator().manual_seed(1))


def takes(net: str, img_size: int, **changed: Value) -> bool:
    try:
        MODELS[net].check_size(net, defaults(net, **changed), img_size)
    except RequestError:
        return False
    return True


def small_size(net: str, least: int = 16, **changed: Value) -> int:
    """Return the smallest size of at least ``least`` that is possible for the network."""
    return next(size for size in SIZES if size >= least and takes(net, size, **changed))


KNOWN = {
    *("vit", "vit_small", "vit_tiny", "simplevit", "dyt", "cait", "cait_small", "swin", "mlpmixer", "convmixer"),
    *("mobilevit", "res18", "res34", "res50", "res101", "vgg", "vit_timm", "vit_small_timm", "vit_lite", "cvt"),
    *("cct_2", "cct_4", "cct_6", "cct_7", "airbench94"),
}
"""Networks that must stay in the table."""


def test_known_networks_are_in_the_table() -> None:
    assert set(MODELS) >= KNOWN


@each_net
@pytest.mark.parametrize(("in_chans", "num_classes", "count"), [(3, 10, 2), (1, 7, 3), (3, 100, 1)])
def test_logits_have_the_right_shape_and_are_finite(net: str, in_chans: int, num_classes: int, count: int) -> None:
    size = small_size(net)
    model = build(net, size, in_chans, num_classes, **NARROW).eval()
    with torch.no_grad():
        logits = model(images(count, in_chans, size))
    assert logits.shape == (count, num_classes)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert logits.std() > 0


@each_net
@pytest.mark.parametrize("img_size", SIZES)
def test_a_size_works_or_the_hint_names_one(net: str, img_size: int) -> None:
    options = defaults(net, **NARROW)
    in_chans = 1 if img_size % 16 else 3
    if not takes(net, img_size):
        with pytest.raises(RequestError, match=rf"--size {img_size}( is not a multiple.*)?\nhint: use .*--size \d"):
            build_model(net, options, img_size=img_size, in_chans=in_chans, num_classes=10)
        return
    with torch.device("meta"), torch.no_grad():
        model = build(net, img_size, in_chans, 10, **NARROW)
        assert model.eval()(torch.empty(2, in_chans, img_size, img_size)).shape == (2, 10)


def test_every_network_works_at_a_size_of_8_to_32() -> None:
    for net, entry in MODELS.items():
        assert takes(net, entry.img_size)
        assert small_size(net, 8) <= 32, net
    impossible = {net: [size for size in SIZES if not takes(net, size)] for net in MODELS}
    assert {net: sizes for net, sizes in impossible.items() if sizes and net in KNOWN} == {
        "swin": [8, 12, 16, 24, 48],
        "vit_timm": [8, 12, 24],
        "vit_small_timm": [8, 12, 24],
    }


@pytest.mark.parametrize("net", ["swin", "vit_timm"])
def test_smaller_windows_and_patches_allow_8_pixels(net: str) -> None:
    smaller: dict[str, Value] = {"window_size": 1, "patch_size": 4}
    model = build(net, 8, **{**NARROW, **smaller})
    assert model.eval()(images(2, img_size=8)).shape == (2, 10)


@each_net
def test_evaluation_does_not_depend_on_the_batch(net: str) -> None:
    size = small_size(net)
    model = build(net, size, **NARROW).eval()
    x = images(3, img_size=size)
    with torch.no_grad():
        torch.testing.assert_close(model(x[1:2]), model(x)[1:2], atol=1e-5, rtol=1e-5)


@each_net
def test_every_trained_parameter_gets_a_gradient(net: str) -> None:
    size = small_size(net)
    model = build(net, img_size=size, **({} if size == 16 and "timm" not in net and net != "res101" else NARROW))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # layers before a weight of zeros get no gradient
                parameter.normal_(std=0.02)
    F.cross_entropy(model(images(4, img_size=size)), torch.tensor([1, 2, 3, 4])).backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@each_net
def test_evaluation_is_deterministic_with_dropout(net: str) -> None:
    drops = {name: 0.5 for name in MODELS[net].options if "drop" in name}
    size = small_size(net)
    model = build(net, img_size=size, **{**NARROW, **drops}).eval()
    x = images(4, img_size=size)
    torch.manual_seed(1)
    first = model(x)
    torch.manual_seed(2)
    assert torch.equal(model(x), first)


@each_net
def test_state_dict_round_trip(net: str) -> None:
    size = small_size(net)
    model = build(net, img_size=size, **NARROW)
    model(images(4, img_size=size))  # changes the statistics of BatchNorm
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    torch.manual_seed(7)
    other = build_model(net, defaults(net, **NARROW), img_size=size, in_chans=3, num_classes=10)
    x = images(4, img_size=size)
    assert not torch.equal(other.eval()(x), model.eval()(x))
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(other(x), model(x))


@each_net
def test_parameters_are_contiguous(net: str) -> None:
    """Fused optimizers process a parameter and its state in memory order, so both need the same layout."""
    for name, tensor in build(net, img_size=small_size(net), **NARROW).state_dict().items():
        assert tensor.is_contiguous(), name


@each_net
def test_figures_of_the_table_match_the_network(net: str) -> None:
    entry = MODELS[net]
    make = partial(build, net, entry.img_size)
    with torch.device("meta"):
        assert count_parameters(make()) == entry.params
    cost = forward_cost(make, 3, entry.img_size)
    assert round(cost.mflop, 1) == entry.mflop
    assert cost.tokens == entry.tokens


ORIGINAL = {
    "vit": (9_523_722, 1281.9),
    "vit_small": (9_622_512, 1294.5),
    "vit_tiny": (4_371_438, 587.0),
    "simplevit": (9_486_858, 1261.4),
    "dyt": (9_523_735, 1281.9),
    "cait": (12_685_322, None),
    "cait_small": (8_488_522, None),
    "swin": (26_601_718, 1056.8),
    "mlpmixer": (1_819_530, 405.8),
    "convmixer": (1_339_402, 2685.9),
    "res18": (11_173_962, 1110.8),
    "res34": (21_282_122, 2318.8),
    "res50": (23_520_842, 2595.7),
    "res101": (42_512_970, 5020.0),
    "vgg": (20_040_522, 796.3),
}
"""Parameters and MFLOP measured with the original scripts."""


@pytest.mark.parametrize("net", ORIGINAL)
def test_figures_match_the_original_scripts_except_as_noted(net: str) -> None:
    entry = MODELS[net]
    params, mflop = ORIGINAL[net]
    if entry.params != params:
        assert f"{params:,} parameters in the original scripts" in entry.note and params - entry.params == 3072
    if mflop is not None and entry.mflop != mflop:
        assert f"{mflop:,} MFLOP in the original scripts" in entry.note and 0.8 < entry.mflop / mflop < 1


def test_only_these_networks_have_notes() -> None:
    assert {net for net in KNOWN if MODELS[net].note} == {
        *("vit", "vit_small", "vit_tiny", "dyt", "swin", "mobilevit", "cait", "cait_small")
    }


@each_net
def test_the_table_declares_batchnorm(net: str) -> None:
    model = build(net, img_size=small_size(net), **NARROW)
    assert any(isinstance(module, _BatchNorm) for module in model.modules()) == MODELS[net].batchnorm


@pytest.mark.parametrize("net", [net for net, entry in MODELS.items() if not entry.batchnorm])
def test_images_of_a_batch_are_independent_without_batchnorm(net: str) -> None:
    size = small_size(net)
    model = build(net, img_size=size, **{**NARROW, "dropout": 0.0, "emb_dropout": 0.0, "layer_dropout": 0.0})
    x = images(4, img_size=size)
    torch.testing.assert_close(model(x)[:2], model(x[:2]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("net", [net for net, entry in MODELS.items() if entry.channels_last])
def test_channels_last_images_give_the_same_gradients(net: str) -> None:
    size = small_size(net)
    # Evaluation mode, because BatchNorm statistics of so few values would amplify rounding errors.
    model = build(net, img_size=size, **NARROW).eval()
    x = images(4, img_size=size)

    def step(x: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        logits = model(x)
        F.cross_entropy(logits, torch.tensor([1, 2, 3, 4])).backward()
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        return {"logits": logits.detach(), **{name: grad.clone() for name, grad in grads.items() if grad is not None}}

    contiguous, channels_last = step(x), step(x.contiguous(memory_format=torch.channels_last))
    for name, expected in contiguous.items():
        assert (channels_last[name] - expected).norm() <= 2e-5 * expected.norm() + 1e-7, name
        # Fused optimizers process a parameter, its gradient and its state in memory order.
        assert channels_last[name].is_contiguous(), name


@each_net
def test_options_match_the_parameters_of_the_function(net: str) -> None:
    parameters = inspect.signature(MODELS[net].load()).parameters
    assert set(parameters) == {"img_size", "in_chans", "num_classes", *MODELS[net].options, *MODELS[net].fixed}
    assert not set(MODELS[net].options) & set(MODELS[net].fixed)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())


def another_value(option: Option, value: Value) -> Value:
    if option.choices:
        return next(choice for choice in option.choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 2 * value or 8
    return 0.5 if option.below else 2 * float(value)


TABLE_OPTIONS = {
    (MODELS[net].target, name): (net, name) for net, entry in MODELS.items() for name in entry.options
}.values()
"""Each option of each function, once, with a network that has it."""


@pytest.mark.parametrize(("net", "name"), TABLE_OPTIONS)
def test_every_option_has_an_effect(net: str, name: str) -> None:
    size = 64 if net == "swin" else 16  # 64 px also suit windows of twice the size

    def fingerprint(**changed: Value) -> tuple[Any, ...]:
        model = build(net, img_size=size, **{**NARROW, "patch_size": 4, **changed})
        torch.manual_seed(3)
        x = images(8, img_size=size)
        logits: Tensor = model(x)  # in training
        learned = [name for name, p in model.named_parameters() if p.requires_grad]
        return count_parameters(model), learned, logits.tolist(), model.eval()(x).tolist()

    default = defaults(net, **{**NARROW, "patch_size": 4})[name]
    other = another_value(MODELS[net].options[name], default)
    assert MODELS[net].options[name].parse(other, name) == other
    assert fingerprint(**{name: other}) != fingerprint(**{name: default})


@each_net
def test_the_loss_falls_on_64_digits(net: str) -> None:
    from sklearn.datasets import load_digits

    quick: dict[str, Value] = {"depth": 1, "num_heads": 4, "head_dim": 16, "conv_width": 16, "window_size": 2}
    quick |= {"embed_dim": {"dyt": 512, "swin": 32}.get(net, 64), "width": 32 if net == "airbench94" else 8}
    size = small_size(net, 12, **quick)
    digits = load_digits()
    small = torch.tensor(digits.images[:64] / 8 - 1, dtype=torch.float32)[:, None]  # [64, 1, 8, 8]
    x = F.interpolate(small, size=size, mode="bilinear", antialias=True)
    y = torch.tensor(digits.target[:64])
    model = build(net, img_size=size, in_chans=1, **quick)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[float] = []
    while len(losses) < 25 and (not losses or losses[-1] > 0.7 * losses[0]):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] <= 0.7 * losses[0]


@pytest.mark.parametrize("net", [net for net, entry in MODELS.items() if entry.img_size > 32])
def test_the_loss_of_large_networks_falls_in_two_steps(net: str) -> None:
    model = build(net, 64, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x, y = images(2, img_size=64), torch.tensor([1, 2])
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("net", "changed", "img_size", "message"),
    [
        (
            "vit",
            {"patch_size": 5},
            32,
            r"^--patch 5 does not divide --size 32\nhint: use --patch 1, 2, 4, 8, 16 or 32, or --size 30 or 35$",
        ),
        (
            "vit_small",
            {},
            30,
            r"--patch 4 does .* --size 30\nhint: use --patch 1, 2, 3, 5, 6, 10, 15 or 30, or --size 28 or 32$",
        ),
        (
            "cct_2",
            {"num_heads": 3},
            32,
            r"--net cct_2:num_heads=3 does not divide embed_dim=128\n.*num_heads=1, 2, 4, 8, ",
        ),
        (
            "cct_2",
            {"embed_dim": 9, "num_heads": 1, "mlp_ratio": 0.1},
            32,
            r"mlp_ratio=0.1 leaves .*\n.*use mlp_ratio=0.112 or more$",
        ),
        ("vit", {"embed_dim": 8, "mlp_ratio": 0.1}, 32, r"--net vit:mlp_ratio=0.1 leaves no hidden unit"),
        (
            "swin",
            {},
            48,
            r"--size 48 is not a multiple of 32.*\n.*use --size 32 or 64, or --net swin:window_size=1, 2, 3 or 6$",
        ),
        ("swin", {}, 30, r"--size 30 is not a multiple of 32, as --net swin:window_size=4 req.*\n.*use --size 32$"),
        (
            "swin",
            {"embed_dim": 40},
            32,
            r"head_dim=32 does not divide embed_dim=40\n.*head_dim=1, 2, 4, 5, 8, 10, 20 or 40$",
        ),
        ("vit", {"embed_dim": 30, "pos_init": "sincos"}, 32, r"embed_dim=30 is not a multiple of 4.*\n.*=28 or 32$"),
        ("simplevit", {"embed_dim": 30}, 32, r"embed_dim=30 is not a multiple of 4.*\n.*use embed_dim=28 or 32$"),
        ("mlpmixer", {"token_ratio": 0.2, "patch_size": 16}, 32, r"=0.2 leaves .* with 4 tokens\n.*=0.25 or more$"),
        ("vit_timm", {}, 40, r"--patch 16 does not divide --size 40\n"),
        (
            "vit",
            {"embed_dim": 1 << 40},
            32,
            r"--net vit:.*embed_dim=1099511627776.* does not fit into memory\n.*smaller embed_dim, depth or --size$",
        ),
        ("vit_timm", {}, 8, r"or --size 16$"),
        ("hybrid_tiny", {"stride": 6}, 6, r"=6 needs images of 7 px or more, not --size 6\n.*stride=5 or less, or --size 7$"),
    ],
)
def test_impossible_options_are_refused_with_a_hint(
    net: str, changed: dict[str, Any], img_size: int, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        build(net, img_size, **changed)


def test_the_number_of_heads_need_not_divide_the_width_with_head_dim() -> None:
    assert build("vit", 8, num_heads=3, embed_dim=32, depth=1)(images(1, img_size=8)).shape == (1, 10)
