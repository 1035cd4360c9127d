"""Layer-wise learning rates compared with timm's."""

from __future__ import annotations

import pytest
import timm.optim
import torch
from torch import nn

from tests.conftest import TINY, Cli
from tests.models.test_models import KNOWN, NARROW, build, small_size
from vitctl.errors import RequestError
from vitctl.models import MODELS
from vitctl.optim.groups import param_groups, split_by_layer


def scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    groups = split_by_layer(param_groups(model, 0.1), model, layer_decay)
    by_parameter = {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(by_parameter) == sum(len(group["params"]) for group in groups)
    return {name: by_parameter[parameter] for name, parameter in trained(model).items()}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("net", MODELS)
def test_scales_match_timm(net: str) -> None:
    model = build(net, small_size(net), **NARROW)
    if net not in KNOWN and not hasattr(model, "group_matcher"):
        pytest.skip("a network may leave the order of its layers undefined; --layer-decay is then refused")
    theirs: dict[nn.Parameter, float] = {}
    for group in timm.optim.param_groups_layer_decay(model, 0.1, layer_decay=0.7):
        theirs.update({parameter: group["lr_scale"] for parameter in group["params"]})
    ours = scales(model, 0.7)
    assert ours == pytest.approx({name: theirs[parameter] for name, parameter in trained(model).items()})
    head = "fc" if net.startswith("res") else "head"
    assert ours[f"{head}.weight"] == 1
    first = next(name for name in ours if name not in ("pos_embed", "cls_token"))
    assert ours[first] == min(ours.values()) < 1


def test_scales_increase_from_layer_to_layer() -> None:
    ours = scales(build("vit", 16, **NARROW), 0.5)
    assert [ours[name] for name in ("pos_embed", "blocks.0.norm1.weight", "blocks.1.norm1.weight", "norm.weight")] == [
        0.125,
        0.25,
        0.5,
        0.5,
    ]
    ours = scales(build("cait", 16, **NARROW), 0.5)
    names = [*(f"blocks.{i}" for i in range(2)), *(f"class_blocks.{i}" for i in range(2))]
    assert [ours[f"{name}.gamma1"] for name in names] == [0.0625, 0.125, 0.25, 0.5]
    ours = scales(build("vgg", 16, **NARROW), 0.5)
    # 16 convolutions and the head, each with its normalization
    assert ours["features.0.weight"] == ours["features.1.weight"] == 0.5**16
    assert ours["features.3.weight"] == ours["features.4.weight"] == 0.5**15
    ours = scales(build("hybrid_tiny", 16, width=8, embed_dim=24, depth=2, num_heads=2, late_groups=1), 0.5)
    names = ["whiten.bias", "groups.0.conv1.weight", "groups.0.norm2.bias", "groups.1.conv2.weight"]
    names = [*(f"stem.{name}" for name in names), "embed.weight", "pos_embed"]
    names += ["blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "late_groups.0.conv1.weight", "head.weight"]
    assert [ours[name] for name in names] == [0.5**power for power in (7, 6, 6, 5, 4, 4, 3, 2, 1, 0)]


def test_layer_decay_keeps_the_weight_decay_of_each_parameter() -> None:
    model = build("vit", 16, **NARROW)
    plain = {p: group["weight_decay"] for group in param_groups(model, 0.1) for p in group["params"]}
    split = split_by_layer(param_groups(model, 0.1), model, 0.5)
    assert {p: group["weight_decay"] for group in split for p in group["params"]} == plain


def test_a_network_without_a_defined_layer_order_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(RequestError, match=r"--layer-decay 0.5 needs the order .*\nhint: use --layer-decay 1"):
        split_by_layer(param_groups(model, 0.1), model, 0.5)


@pytest.mark.parametrize("opt", ["adamw", "sgd", "adan"])
def test_a_run_scales_the_learning_rate_of_each_layer(cli: Cli, opt: str) -> None:
    run = ["train", *TINY, "--opt", opt, "--lr", 0.01, "--weight-decay", 0, "--max-steps", 2, "--schedule", "constant"]
    assert cli(*run, "--layer-decay", 0.5, "--pretrained", save_start(cli), "--name", "l").code == 0
    groups = torch.load("runs/l/checkpoints/last.pt", weights_only=True)["optimizer"]["param_groups"]
    assert {group["lr_scale"] for group in groups} == {0.25, 0.5, 1.0}
    assert all(group["lr"] == pytest.approx(0.01 * group["lr_scale"]) for group in groups)
    assert cli("train", "--resume", "runs/l", "--max-steps", 4).code == 0


def save_start(cli: Cli) -> str:
    """Train for one step and return the checkpoint."""
    assert cli("train", *TINY, "--max-steps", 1, "--name", "start").code == 0
    return "runs/start/checkpoints/last.pt"
