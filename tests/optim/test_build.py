from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vitctl.errors import RequestError
from vitctl.models import MODELS, build_model
from vitctl.optim import OPTIMIZERS, find_optimizer
from vitctl.optim.build import build_optimizer
from vitctl.optim.groups import param_groups


def network(name: str = "vit_small") -> nn.Module:
    options = MODELS[name].resolve_options({"embed_dim": 16, "depth": 1, "num_heads": 2, "head_dim": 8}, name)
    return build_model(name, options, img_size=8, in_chans=1, num_classes=3)


def test_biases_norms_embeddings_and_temperatures_are_not_decayed() -> None:
    model = network()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, undecayed = param_groups(model, 0.05)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.05, 0.0)
    undecayed_names = {names[id(p)] for p in undecayed["params"]}
    for word in ("pos_embed", "cls_token", "temperature", "bias", "norm"):
        assert any(word in name for name in undecayed_names), word
        assert not any(word in names[id(p)] for p in decayed["params"]), word
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert len(decayed["params"]) + len(undecayed["params"]) == len(names)


def test_decay_all_decays_every_parameter() -> None:
    model = network()
    (group,) = param_groups(model, 0.05, decay_all=True)
    assert len(group["params"]) == len(list(model.parameters())) and group["weight_decay"] == 0.05


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss_and_has_plain_state(name: str) -> None:
    torch.manual_seed(0)
    model, entry = network(), OPTIMIZERS[name]
    options = {key: option.default for key, option in entry.options.items()}
    optimizer = build_optimizer(name, options, model, lr=1e-2, weight_decay=entry.weight_decay)
    x, y = torch.randn(32, 1, 8, 8), torch.arange(32) % 3
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model.eval()(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05

    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(map(plain, value.values()))
        if isinstance(value, (list, tuple)):
            return all(map(plain, value))
        return value is None or isinstance(value, (bool, int, float, str, torch.Tensor))

    assert plain(optimizer.state_dict())


def _adan(p: Any) -> Any:
    from adan_pytorch import Adan

    return Adan(p, lr=0.01, betas=(0.3, 0.2, 0.1), eps=1e-6, weight_decay=0.1)


def _official(p: Any) -> Any:
    from timm.optim import Adan

    return Adan(p, lr=0.01, betas=(0.7, 0.8, 0.9), eps=1e-6, weight_decay=0.1, no_prox=True, foreach=False)


def _lion(p: Any) -> Any:
    from timm.optim import Lion

    return Lion(p, lr=0.01, betas=(0.7, 0.8), weight_decay=0.1, foreach=False)


@pytest.mark.parametrize(
    ("name", "options", "reference"),
    [
        (
            "adam",
            {"beta1": 0.8, "beta2": 0.9, "eps": 1e-6},
            lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, foreach=False),
        ),
        (
            "adamw",
            {"beta1": 0.8, "beta2": 0.9, "eps": 1e-6},
            lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, foreach=False),
        ),
        (
            "sgd",
            {"momentum": 0.8, "nesterov": True},
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8, nesterov=True, weight_decay=0.1, foreach=False),
        ),
        (
            "sgd",
            {"momentum": 0.8, "nesterov": False},
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8, weight_decay=0.1, foreach=False),
        ),
        ("adan", {"beta1": 0.3, "beta2": 0.2, "beta3": 0.1, "eps": 1e-6}, _adan),
        ("adan_pytorch", {"beta1": 0.3, "beta2": 0.2, "beta3": 0.1, "eps": 1e-6}, _adan),
        ("adan_official", {"beta1": 0.7, "beta2": 0.8, "beta3": 0.9, "eps": 1e-6, "no_prox": True}, _official),
        ("lion", {"beta1": 0.7, "beta2": 0.8}, _lion),
    ],
)
def test_options_reach_the_optimizer(name: str, options: dict[str, Any], reference: Callable[[Any], Any]) -> None:
    ours, theirs = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    theirs.load_state_dict(ours.state_dict())
    a = build_optimizer(name, options, ours, lr=0.01, weight_decay=0.1)
    b = reference(list(theirs.parameters()))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradient = torch.randn(3, 4, generator=generator)
        ours.weight.grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_torch_optimizers_are_fused_on_the_cpu(name: str) -> None:
    options = find_optimizer(name).resolve_options({}, name)
    assert build_optimizer(name, options, nn.Linear(2, 2), lr=0.1, weight_decay=0.0).defaults["fused"]


def test_muon_without_hidden_matrices_is_refused() -> None:
    options = find_optimizer("muon").resolve_options({}, "muon")
    with pytest.raises(RequestError, match="is a hidden matrix\nhint: use --opt adamw"):
        build_optimizer("muon", options, nn.LayerNorm(4), lr=0.1, weight_decay=0.0)


def test_nesterov_without_momentum_is_plain_sgd() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer("sgd", {"momentum": 0.0, "nesterov": True}, model, lr=0.1, weight_decay=0)
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before - 0.1)
