"""Optimizers ``timm/NAME``, from timm's registry."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from vitctl.errors import RequestError
from vitctl.models import MODELS, build_model
from vitctl.optim import find_optimizer
from vitctl.optim.build import build_optimizer
from vitctl.optim.timm_rows import timm_names
from vitctl.training.checkpoint import content_digest

ELSEWHERE = ("bnb", "fused", "adahessian")  # they need CUDA and more packages, or second derivatives
USABLE = [name for name in timm_names() if not name.removeprefix("timm/").startswith(ELSEWHERE)]
QUICK = {f"timm/{name}" for name in ("lamb", "adafactor", "adafactorbv", "nadamw", "rmsprop", "muon", "sgdp", "adopt")}


def network() -> nn.Module:
    torch.manual_seed(0)
    options = MODELS["cct_2"].resolve_options({"embed_dim": 32, "depth": 1, "conv_width": 8}, "cct_2")
    return build_model("cct_2", options, img_size=8, in_chans=1, num_classes=3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), torch.arange(32) % 3)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def test_timm_has_more_than_forty_usable_optimizers() -> None:
    assert len(USABLE) > 40 and "timm/lamb" in USABLE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in USABLE]
)
def test_it_trains_and_resumes_bit_identically(name: str) -> None:
    entry = find_optimizer(name)
    options = entry.resolve_options({}, name)
    assert entry.summary and entry.lr > 0 and entry.weight_decay >= 0

    def fresh(model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(name, options, model, lr=min(entry.lr, 1e-3), weight_decay=0.01)

    uninterrupted = network()
    torch.manual_seed(2)
    optimizer = fresh(uninterrupted)
    losses = train(uninterrupted, optimizer, 3)
    saved = copy.deepcopy((uninterrupted.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    losses += train(uninterrupted, optimizer, 3)
    assert losses[-1] < losses[0]

    assert content_digest({"optimizer": saved[1]})  # raises for values that a checkpoint cannot hold

    resumed = network()
    again = fresh(resumed)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    train(resumed, again, 3)
    assert all(torch.equal(p, q) for p, q in zip(uninterrupted.parameters(), resumed.parameters(), strict=True))
    assert {group["weight_decay"] for group in again.param_groups} == {0.0, 0.01}


@pytest.mark.parametrize(
    ("name", "given", "attribute", "value"),
    [
        ("timm/lamb", {"eps": "1e-4"}, "eps", 1e-4),
        ("timm/lamb", {"beta1": "0.5"}, "betas", (0.5, 0.999)),
        ("timm/sgdp", {"momentum": "0.5"}, "momentum", 0.5),
        ("timm/rmsprop", {}, "alpha", 0.9),
        ("timm/adafactor", {"beta1": 0.8}, "beta1", 0.8),
        ("timm/muon", {"ns_steps": "3"}, "ns_steps", 3),
    ],
)
def test_options_reach_the_optimizer(name: str, given: dict[str, Any], attribute: str, value: Any) -> None:
    options = find_optimizer(name).resolve_options(given, name)
    optimizer = build_optimizer(name, options, nn.Linear(3, 3), lr=0.01, weight_decay=0.0)
    assert optimizer.param_groups[0].get(attribute, optimizer.defaults.get(attribute)) == value


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("timm/lam", {}, "unknown --opt 'timm/lam'\nhint: did you mean timm/lamb"),
        ("timm/", {}, "unknown --opt 'timm/'"),
        ("timm/adahessian", {}, "second derivatives"),
        ("timm/bnbadam", {}, "needs CUDA and the package bitsandbytes"),
        ("timm/lamb", {"esp": 1}, "did you mean eps"),
        ("timm/lamb", {"eps": "small"}, "takes a number"),
        ("timm/lamb", {"beta1": 1.5}, "1.5 is too large\nhint: use a value of at least 0 and less than 1"),
        ("timm/sgdp", {"momentum": 1.5}, "is too large"),
        ("timm/lars", {"momentum": -0.5}, "-0.5 is too small"),
        ("timm/lamb", {"trust_clip": "maybe"}, "takes true or false"),
        ("timm/lion", {"eps": 1e-8}, "has no option 'eps'"),
        ("timm/muon", {"conv_mode": "skip"}, "rejects the given options.*\nhint: use --opt timm/muon without options"),
        ("timm/radam", {"eps": -1}, "rejects the given options"),
    ],
)
def test_bad_options_are_refused_with_a_hint(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        find_optimizer(name).resolve_options(given, f"--opt {name}")
    assert caught.value.hint and "\n" not in caught.value.message
