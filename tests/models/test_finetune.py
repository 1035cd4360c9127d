"""Networks for fine-tuning, compared with timm's."""

from __future__ import annotations

import pytest
import timm
import torch

from tests.models.oracles import perturbed
from tests.models.test_models import build, images


@pytest.mark.parametrize(("net", "name", "depth"), [("vit_timm", "vit_base", 2), ("vit_small_timm", "vit_small", 12)])
def test_logits_match_timm(net: str, name: str, depth: int) -> None:
    ours = perturbed(build(net, 32, depth=depth)).eval()
    theirs = timm.create_model(f"{name}_patch16_384", img_size=32, num_classes=10, depth=depth).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images(2)), theirs(images(2)), atol=1e-5, rtol=1e-5)


def test_the_head_does_not_start_at_zero() -> None:
    assert build("vit_small_timm", 32, depth=1).get_parameter("head.weight").std().item() == pytest.approx(
        0.02, rel=0.1
    )
