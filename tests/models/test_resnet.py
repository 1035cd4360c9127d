"""The ResNet against timm's."""

from __future__ import annotations

import timm
import torch
from torch import nn

from tests.models.test_models import build, pictures


def test_logits_equal_timms_with_a_small_stem() -> None:
    ours = build("res18")
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data += 0.2 * torch.rand_like(tensor)
    oracle = timm.create_model("resnet18", num_classes=10)
    oracle.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    oracle.maxpool = nn.Identity()
    oracle.load_state_dict(ours.state_dict())
    x = pictures(3)
    torch.testing.assert_close(ours.eval()(x), oracle.eval()(x), atol=1e-5, rtol=1e-5)


def test_stem_keeps_the_size_and_the_stages_halve_it() -> None:
    model = build("res18")
    sides: list[int] = []
    for name in ("maxpool", "layer1", "layer2", "layer3", "layer4"):
        model.get_submodule(name).register_forward_hook(lambda _, args, out: sides.append(out.shape[-1]))
    model(pictures(2))
    assert sides == [32, 32, 16, 8, 4]
