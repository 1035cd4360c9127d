"""The records' network compared with its definition in plain functions, and its initial weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.oracles import records_stem
from tests.models.test_models import build, images
from vitctl.models.airbench import ConvStem
from vitctl.models.whitening import whiten


def reference(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the logits in training mode, from batch statistics."""
    return records_stem(state, x, groups=3).amax((2, 3)) @ state["head.weight"].T / 9


@pytest.mark.parametrize(("img_size", "in_chans"), [(32, 3), (8, 1), (10, 3), (27, 1), (64, 3)])
def test_logits_match_the_definition(img_size: int, in_chans: int) -> None:
    model = build("airbench94", img_size, in_chans, 7, width=8).double().train()
    x = images(6, in_chans, img_size).double()
    whiten(model, x)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
        torch.testing.assert_close(model(x), reference(model.state_dict(), x))


def test_convolutions_start_as_the_identity_and_norms_do_not_scale() -> None:
    model = build("airbench94")
    state = model.state_dict()
    widths = {"0.conv1": (24, 64), "0.conv2": (64, 64), "1.conv1": (64, 256), "2.conv2": (256, 256)}
    for name, (width, out_width) in widths.items():
        weight = state[f"stem.groups.{name}.weight"]
        assert weight.shape == (out_width, width, 3, 3)
        x = images(2, width, 5)
        torch.testing.assert_close(F.conv2d(x, weight, padding=1)[:, :width], x)
        assert out_width == width or weight[width:].std() > 0
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    norms = {f"stem.groups.{i}.norm{j}.weight" for i in range(3) for j in (1, 2)}
    assert frozen == {"stem.whiten.weight", *norms}
    assert all((state[name] == 1).all() for name in norms)


def test_narrower_groups_start_with_the_first_channels() -> None:
    weight = build("airbench94", width=8).state_dict()["stem.groups.0.conv1.weight"]
    x = images(2, 24, 5)
    torch.testing.assert_close(F.conv2d(x, weight, padding=1), x[:, :8])


@pytest.mark.parametrize(
    ("img_size", "widths", "kernel", "stride", "side"),
    [
        (32, (8, 16), 2, 1, 7),
        (32, (8, 16, 16), 2, 1, 3),
        (32, (8, 16), 3, 2, 3),
        (33, (8,), 4, 3, 5),
        (8, (8, 8, 8, 8), 2, 1, 1),
        (2, (8,), 2, 1, 1),
    ],
)
def test_the_stem_has_the_side_of_its_map(
    img_size: int, widths: tuple[int, ...], kernel: int, stride: int, side: int
) -> None:
    stem = ConvStem(img_size=img_size, in_chans=3, widths=widths, kernel_size=kernel, stride=stride)
    assert stem.side == side
    assert stem(images(2, 3, img_size)).shape == (2, widths[-1], side, side)


def test_training_on_constant_images_leaves_finite_logits_for_others() -> None:
    model = build("airbench94", 16, width=8)
    same = torch.full((8, 3, 16, 16), 0.3)
    whiten(model, same)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(60):  # BatchNorm's running variances approach 0
        F.cross_entropy(model(same), torch.arange(8)).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
    assert model.eval()(images(4, 3, 16)).isfinite().all()
