"""ResNets, compared with torchvision's."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from tests.models.oracles import perturbed
from tests.models.test_models import build, images
from vitctl.models import MODELS, build_model


@pytest.mark.parametrize("layers", [18, 34, 50, 101])
def test_logits_match_torchvision_with_a_small_stem(layers: int) -> None:
    ours = perturbed(build(f"res{layers}", 16))
    with torch.device("meta"):
        oracle = getattr(torchvision.models, f"resnet{layers}")(num_classes=10)
        oracle.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    oracle.maxpool = nn.Identity()
    oracle.load_state_dict(ours.state_dict(), assign=True)
    x = images(2, img_size=16)
    with torch.no_grad():
        # Rounding errors grow with depth, so the tolerance is relative to the largest logit.
        logits = ours.eval()(x).double()
        expected = oracle.double().eval()(x.double())
        scale = expected.abs().max().item()
        torch.testing.assert_close(logits, expected, atol=1e-5 * max(1, scale), rtol=1e-5)


@pytest.mark.parametrize("layers", [18, 50])
def test_logits_match_torchvision_in_training(layers: int) -> None:
    ours = build(f"res{layers}", 16)
    oracle = getattr(torchvision.models, f"resnet{layers}")(num_classes=10)
    oracle.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    oracle.maxpool = nn.Identity()
    oracle.load_state_dict(ours.state_dict())
    x = images(4, img_size=16)
    torch.testing.assert_close(ours.train()(x), oracle.train()(x), atol=1e-4, rtol=1e-4)


def test_stem_and_first_stage_keep_the_size_and_later_stages_halve_it() -> None:
    model = build("res18")
    sides: list[int] = []
    for name in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        model.get_submodule(name).register_forward_hook(lambda _, args, out: sides.append(out.shape[-1]))
    model(images(2))
    assert sides == [32, 32, 16, 8, 4]


def test_width_sets_the_channels_of_the_first_stage() -> None:
    model = build("res50", 8, width=16)
    assert model.get_parameter("layer1.0.conv1.weight").shape[0] == 16
    assert model.get_parameter("fc.weight").shape == (10, 16 * 8 * 4)


def test_initial_weights() -> None:
    weight = build("res18").get_parameter("layer4.1.conv1.weight")
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.05)
    bound = (512 * 9) ** -0.5
    weight = build("res18", init="predecessor").get_parameter("layer4.1.conv1.weight")
    assert 0.99 * bound < weight.abs().max().item() <= bound


@pytest.mark.parametrize("net", ["res18", "res50", "vgg"])
def test_batchnorm_keeps_its_scale_and_has_another_momentum(net: str) -> None:
    options = {"width": 8, "bn_momentum": 0.4, "bn_scale": False}
    model = build(net, 16, **options).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    seen: list[torch.Tensor] = []
    norms[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].mean((0, 2, 3)).detach()))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(images(4, img_size=16)).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(norms[0].running_mean, 0.4 * (0.6 * seen[0] + seen[1]))
    assert all((norm.weight == 1).all() and not norm.weight.requires_grad for norm in norms)
    assert any((norm.bias != 0).any() for norm in norms)


@pytest.mark.parametrize("net", ["res18", "vgg"])
def test_networks_of_earlier_versions_have_torch_s_batchnorm(net: str) -> None:
    options = {name: option.default for name, option in MODELS[net].options.items() if not name.startswith("bn_")}
    model = build_model(net, options, img_size=16, in_chans=3, num_classes=10)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.momentum == nn.BatchNorm2d(1).momentum and norm.weight.requires_grad for norm in norms)
