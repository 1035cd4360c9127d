"""VGG-19, compared with timm's convolutions."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from tests.models.oracles import perturbed
from tests.models.test_models import build, images


@pytest.mark.parametrize("img_size", [32, 48, 64])
def test_logits_match_timms_convolutions_and_a_linear_layer(img_size: int) -> None:
    ours = perturbed(build("vgg", img_size)).eval()
    with torch.device("meta"):  # skips the initialisation of timm's classifier with 120 million weights
        features = timm.create_model("vgg19_bn").features.eval()
    features.load_state_dict(ours.get_submodule("features").state_dict(), assign=True)
    x = images(2, img_size=img_size)
    with torch.no_grad():
        expected = ours.get_submodule("head")(features(x).mean((2, 3)))
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("img_size", "poolings"), [(4, 2), (8, 3), (16, 4), (31, 4), (32, 5), (384, 5)])
def test_small_images_get_fewer_poolings(img_size: int, poolings: int) -> None:
    model = build("vgg", img_size, width=8)
    assert sum(isinstance(module, nn.MaxPool2d) for module in model.modules()) == poolings
    assert model.state_dict().keys() == build("vgg", 32, width=8).state_dict().keys()
