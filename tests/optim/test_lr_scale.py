"""Roles of parameters, and learning rates by role."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from tests.conftest import TINY, Cli
from tests.models.test_models import NARROW, build, small_size
from vitctl.errors import RequestError
from vitctl.models import MODELS
from vitctl.optim import OPTIMIZERS, ROLES, find_optimizer
from vitctl.optim.build import build_optimizer
from vitctl.optim.groups import hidden_matrices, param_groups, parameter_roles, split_by_role


class Whitened(nn.Conv2d):
    """A layer that names the role of its bias itself."""

    def parameter_roles(self) -> dict[str, str]:
        return {"bias": "whitening_bias"}


class Hybrid(nn.Module):
    """A whitened convolution, a convolution, a block and a head, in which one parameter has each role."""

    def __init__(self) -> None:
        super().__init__()
        self.whiten = Whitened(1, 4, 2)
        self.conv = nn.Conv2d(4, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 3)


def names(model: nn.Module) -> dict[str, str]:
    roles = parameter_roles(model)
    return {name: roles[parameter] for name, parameter in model.named_parameters() if parameter in roles}


def test_each_parameter_has_the_role_of_its_layer() -> None:
    assert names(Hybrid()) == {
        "whiten.bias": "whitening_bias",
        "conv.weight": "convolutions",
        "norm.weight": "norm_weight",
        "norm.bias": "norm_bias",
        "qkv.weight": "matrices",
        "head.weight": "head",
        "head.bias": "head",
    }


@pytest.mark.parametrize("net", MODELS)
def test_roles_of_every_network_follow_its_layers(net: str) -> None:
    model = build(net, small_size(net), **NARROW)
    roles = names(model)
    assert set(roles.values()) <= set(ROLES)
    assert {name for name, role in roles.items() if role in ("matrices", "convolutions")} == set(hidden_matrices(model))
    head = "fc" if net.startswith("res") else "head"
    assert all(roles[f"{head}.{name}"] == "head" for name, _ in model.get_submodule(head).named_parameters())
    norms = {"norm_weight", "norm_bias"} & set(roles.values())
    assert bool(norms) == any("norm" in type(module).__name__.lower() for module in model.modules())


@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("second", [1.0, 2.0])
def test_the_rate_of_each_parameter_is_multiplied_by_its_factor(opt: str, second: float) -> None:
    model, entry = Hybrid(), find_optimizer(opt)
    options = entry.resolve_options({entry.second_lr: 0.1 * second} if entry.second_lr else {}, opt)
    factors = {"head": 0.5, "norm_bias": 64.0, "convolutions": 4.0, "whitening_bias": 0.0}
    optimizer = build_optimizer(opt, options, model, lr=0.1, weight_decay=0.1, lr_scale=factors)
    rates = {p: 0.1 * group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    roles = parameter_roles(model)
    plain = {p: group["weight_decay"] for group in param_groups(model, 0.1) for p in group["params"]}
    assert decays == plain
    for parameter in model.parameters():
        role = roles.get(parameter, "")
        own = entry.second_lr is None or role in ("matrices", "convolutions")
        assert rates[parameter] == pytest.approx(0.1 * (1 if own else second) * factors.get(role, 1.0))


def test_factors_multiply_those_of_the_layers() -> None:
    model = build("vit", 16, **NARROW)
    options = find_optimizer("adamw").resolve_options({}, "adamw")
    optimizer = build_optimizer(
        "adamw", options, model, lr=0.1, weight_decay=0.1, layer_decay=0.5, lr_scale={"matrices": 3.0}
    )
    scale = {p: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    first, last = model.blocks[0], model.blocks[1]
    assert [scale[block.attn.qkv.weight] for block in (first, last)] == [0.75, 1.5]
    assert [scale[block.norm1.bias] for block in (first, last)] == [0.25, 0.5]


def test_a_role_that_no_trained_parameter_has_is_refused() -> None:
    model = Hybrid()
    model.norm.weight.requires_grad_(False)
    message = (
        r"--lr-scale norm_weight=2 does nothing: .*\n"
        r"hint: use only head, matrices, convolutions, norm_bias or whitening_bias in --lr-scale"
    )
    with pytest.raises(RequestError, match=message):
        split_by_role(param_groups(model, 0.1), model, {"norm_weight": 2.0})
    with pytest.raises(RequestError, match="hint: remove --lr-scale"):
        split_by_role(param_groups(nn.Embedding(2, 2), 0.1), nn.Embedding(2, 2), {"head": 2.0})


def test_a_factor_acts_like_another_rate() -> None:
    results = []
    for lr, factors in ((0.1, {"head": 0.5}), (0.05, {})):
        torch.manual_seed(0)
        head = nn.Linear(4, 2)
        optimizer = build_optimizer(
            "sgd", {"momentum": 0.9, "nesterov": True}, head, lr=lr, weight_decay=0.1, lr_scale=factors
        )
        for step in range(3):
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            for p in head.parameters():
                p.grad = torch.full_like(p, float(step))
            optimizer.step()
        results.append(head.weight.detach().clone())
    assert torch.equal(*results)


def test_a_run_stores_the_factors_and_resumes_with_them(cli: Cli) -> None:
    factors = "head=0.5,matrices=2"
    run = ["train", *TINY, "--lr", 0.01, "--schedule", "constant", "--warmup", 0, "--lr-scale", factors]
    assert cli(*run, "--max-steps", 4, "--name", "whole").code == 0
    assert cli(*run, "--max-steps", 2, "--name", "parts").code == 0
    assert cli("train", "--resume", "runs/parts", "--max-steps", 4, "--lr-scale", "matrices=2,norm_bias=1").code == 0
    with open("runs/parts/config.json") as file:
        assert json.load(file)["config"]["lr_scale"] == {"head": 0.5, "matrices": 2.0}
    whole, parts = (torch.load(f"runs/{name}/checkpoints/last.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole["model"][name], value) for name, value in parts["model"].items())
    assert {group["lr"] for group in parts["optimizer"]["param_groups"]} == {0.005, 0.01, 0.02}
    refused = cli("train", "--resume", "runs/parts", "--lr-scale", "head=2")
    assert "cannot change --lr-scale head=2 (the run has head=0.5,matrices=2)" in refused.err
