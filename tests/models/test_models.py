"""What every network of the table keeps to; a new row is held to it without a new test."""

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
from vitctl.models.count import count_parameters, count_tokens, forward_mflop
from vitctl.registry import Option, Value

NARROW: dict[str, Value] = {"embed_dim": 32, "depth": 2, "head_dim": 8, "conv_width": 8}
"""Options that make a network quick, where it has them."""

each_net = pytest.mark.parametrize("net", MODELS)


def defaults(net: str, **changed: Value) -> dict[str, Value]:
    """Return the options of ``net``, those of ``changed`` that it has set."""
    options = {name: option.default for name, option in MODELS[net].options.items()}
    return {**options, **{name: value for name, value in changed.items() if name in options}}


def build(net: str, img_size: int = 32, in_chans: int = 3, num_classes: int = 10, **changed: Value) -> nn.Module:
    torch.manual_seed(0)
    return build_model(net, defaults(net, **changed), img_size=img_size, in_chans=in_chans, num_classes=num_classes)


def pictures(count: int, in_chans: int = 3, img_size: int = 32) -> Tensor:
    return torch.randn(count, in_chans, img_size, img_size, generator=torch.Generator().manual_seed(1))


def test_there_are_networks() -> None:
    assert {"vit", "vit_small", "vit_tiny", "cct_2", "cct_4", "cct_6", "cct_7", "res18"} <= set(MODELS)


@each_net
@pytest.mark.parametrize(
    ("img_size", "in_chans", "num_classes", "count"), [(32, 3, 10, 2), (16, 1, 7, 3), (8, 3, 2, 1), (48, 3, 100, 1)]
)
def test_logits(net: str, img_size: int, in_chans: int, num_classes: int, count: int) -> None:
    model = build(net, img_size, in_chans, num_classes, **NARROW).eval()
    with torch.no_grad():
        logits = model(pictures(count, in_chans, img_size))
    assert logits.shape == (count, num_classes)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert logits.std() > 0


@each_net
def test_every_parameter_gets_a_gradient(net: str) -> None:
    model = build(net, img_size=16)
    F.cross_entropy(model(pictures(4, img_size=16)), torch.tensor([1, 2, 3, 4])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@each_net
def test_evaluation_is_deterministic_whatever_is_dropped_in_training(net: str) -> None:
    drops = {name: 0.5 for name in MODELS[net].options if "drop" in name}
    model = build(net, img_size=16, **{**NARROW, **drops}).eval()
    x = pictures(4, img_size=16)
    torch.manual_seed(1)
    first = model(x)
    torch.manual_seed(2)
    assert torch.equal(model(x), first)


@each_net
def test_state_dict_round_trip(net: str) -> None:
    model = build(net, img_size=16, **NARROW)
    model(pictures(4, img_size=16))  # moves the statistics of BatchNorm
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    torch.manual_seed(7)
    other = build_model(net, defaults(net, **NARROW), img_size=16, in_chans=3, num_classes=10)
    x = pictures(4, img_size=16)
    assert not torch.equal(other.eval()(x), model.eval()(x))
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(other(x), model(x))


@each_net
def test_parameters_lie_in_rows(net: str) -> None:
    """Fused optimizers walk a parameter and their state in memory order, so every tensor has the plain one."""
    for name, tensor in build(net, img_size=16, **NARROW).state_dict().items():
        assert tensor.is_contiguous(), name


@each_net
def test_figures_of_the_table(net: str) -> None:
    entry = MODELS[net]
    make = partial(build, net)
    with torch.device("meta"):
        assert count_parameters(make()) == entry.params
    assert round(forward_mflop(make, 3, 32), 1) == entry.mflop
    assert count_tokens(make, 3, 32) == entry.tokens


@each_net
def test_batchnorm_is_declared(net: str) -> None:
    model = build(net, img_size=16, **NARROW)
    assert any(isinstance(module, _BatchNorm) for module in model.modules()) == MODELS[net].batchnorm


@pytest.mark.parametrize("net", [net for net, entry in MODELS.items() if not entry.batchnorm])
def test_pictures_do_not_see_each_other(net: str) -> None:
    model = build(net, img_size=16, **{**NARROW, "dropout": 0.0, "emb_dropout": 0.0})
    x = pictures(4, img_size=16)
    torch.testing.assert_close(model(x)[:2], model(x[:2]), atol=1e-6, rtol=1e-5)


@each_net
def test_options_are_the_builders_parameters(net: str) -> None:
    parameters = inspect.signature(MODELS[net].load()).parameters
    assert set(parameters) == {"img_size", "in_chans", "num_classes", *MODELS[net].options, *MODELS[net].fixed}
    assert not set(MODELS[net].options) & set(MODELS[net].fixed)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())


def another_value(option: Option, value: Value) -> Value:
    if isinstance(value, str):
        return next(choice for choice in option.choices if choice != value)
    if isinstance(value, int):
        return 2 * value
    return 0.5 if option.below else 2 * value


@pytest.mark.parametrize(("net", "name"), [(net, name) for net, entry in MODELS.items() for name in entry.options])
def test_every_option_does_something(net: str, name: str) -> None:
    def fingerprint(**changed: Value) -> tuple[int, list[float]]:
        model = build(net, img_size=16, **{**NARROW, **changed})
        torch.manual_seed(3)
        logits: Tensor = model(pictures(8, img_size=16))
        return count_parameters(model), logits.flatten().tolist()

    usual = defaults(net, **NARROW)[name]
    other = another_value(MODELS[net].options[name], usual)
    assert MODELS[net].options[name].parse(other, name) == other
    assert fingerprint(**{name: other}) != fingerprint(**{name: usual})


@each_net
def test_learns_64_digits(net: str) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.tensor(digits.images[:64] / 8 - 1, dtype=torch.float32)[:, None]  # [64, 1, 8, 8]
    x = F.interpolate(small, size=12, mode="bilinear", antialias=True)
    y = torch.tensor(digits.target[:64])
    model = build(net, img_size=12, in_chans=1, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses: list[float] = []
    while len(losses) < 15 and (not losses or losses[-1] > 0.7 * losses[0]):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] <= 0.7 * losses[0]


@pytest.mark.parametrize(
    ("net", "changed", "img_size", "message"),
    [
        ("vit", {"patch_size": 5}, 32, r"--patch 5 does not divide --size 32 .*: 1, 2, 4, 8, 16, 32$"),
        ("vit_small", {}, 30, r"--patch 4 does not divide --size 30 .*: 1, 2, 3, 5, 6, 10, 15, 30$"),
        ("cct_2", {"num_heads": 3}, 32, r"--net cct_2:num_heads=3 does not divide embed_dim=128; .*: 1, 2, 4, 8, "),
        (
            "cct_2",
            {"embed_dim": 9, "num_heads": 1, "mlp_ratio": 0.1},
            32,
            r"mlp_ratio=0.1 leaves .* the least is 0.112",
        ),
        ("vit", {"embed_dim": 8, "mlp_ratio": 0.1}, 32, r"--net vit:mlp_ratio=0.1 leaves no hidden unit"),
    ],
)
def test_what_cannot_be_built(net: str, changed: dict[str, Any], img_size: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build(net, img_size, **changed)


def test_heads_of_a_given_width_need_not_divide() -> None:
    assert build("vit", 8, num_heads=3, embed_dim=32, depth=1)(pictures(1, img_size=8)).shape == (1, 10)
