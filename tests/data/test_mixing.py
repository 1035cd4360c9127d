"""Mixup, CutMix, random erasing and cutout, compared with torchvision and timm."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta, binomtest, chisquare, ks_2samp
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor
from torchvision.transforms import RandomErasing
from torchvision.transforms.v2 import CutMix

from tests.data.augmenting import CPU
from vitctl.data import kernels
from vitctl.data.batches import CUTOUT, ERASE, Extras, TrainBatches, derive_seed
from vitctl.data.mixing import (
    PARTS,
    MixDraws,
    cutmix_boxes,
    cutout_boxes,
    draw_mix,
    erase_boxes,
    mix,
    mixed_labels,
)

FRAMES = [(32, 32), (24, 40), (8, 8)]
MIN_P = 1e-4


def noise(count: int, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def painted(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the masks of boxes, bool ``[B, H, W]``, computed one at a time."""
    found = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for i, (top, left, bottom, right) in enumerate(boxes.tolist()):
        found[i, top:bottom, left:right] = True
    return found


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 5.0])
def test_mixup_weights_have_a_beta_distribution(alpha: float) -> None:
    draws = draw_mix(40_000, 32, 32, mixup=alpha, cutmix=0, seed=1)
    assert torch.equal(draws.share, draws.weight / PARTS) and not draws.boxes.any()
    edges = np.array([-1, 4.5, 20.5, 45.5, 63.5, 82.5, 107.5, 123.5, PARTS + 1])  # between integer weights
    counts = np.histogram(draws.weight.numpy(), edges)[0]
    expected = np.diff(beta(alpha, alpha).cdf((edges / PARTS).clip(0, 1)))
    assert chisquare(counts, 40_000 * expected).pvalue > MIN_P


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_label_weights_match_the_shares_of_mixed_images(frame: tuple[int, int], mixup: float, cutmix: float) -> None:
    images = noise(60, *frame)
    draws = draw_mix(60, *frame, mixup=mixup, cutmix=cutmix, seed=4)
    assert torch.equal(draws.partner.sort().values, torch.arange(60))
    assert (draws.partner != torch.arange(60)).all(), "an image is its own partner"
    mixed = mix(images, draws, mixup=mixup > 0, cutmix=cutmix > 0)
    assert mixed.dtype == torch.uint8
    inside = painted(draws.boxes, *frame)
    kinds = set()
    for i in range(60):
        own, other, share = images[i].double(), images[draws.partner[i]].double(), float(draws.share[i])
        if inside[i].any():
            kinds.add("cutmix")
            expected = torch.where(inside[i], other, own)
            assert 1 - share == pytest.approx(inside[i].double().mean().item())
        else:
            kinds.add("mixup")
            expected = (share * own + (1 - share) * other + 0.5).floor()
        assert torch.equal(mixed[i].double(), expected)
    assert kinds >= {name for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha}


def test_mixup_and_cutmix_together_take_half_of_the_images_each() -> None:
    draws = draw_mix(20_000, 32, 32, mixup=1.0, cutmix=1.0, seed=2)
    pasted = draws.weight == PARTS
    assert binomtest(int(pasted.sum()), 20_000, 0.5 * (1 + 1 / PARTS)).pvalue > MIN_P
    assert not draws.boxes[~pasted].any()


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_cutmix_boxes_match_torchvision(frame: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    height, width = frame
    generator = np.random.default_rng(0)
    kept = np.concatenate([generator.random(300), [0.0, 1.0, 0.75, 0.4375]])
    y, x = generator.integers(0, height, len(kept)), generator.integers(0, width, len(kept))
    ours = cutmix_boxes(kept, y, x, height, width)
    theirs = CutMix(num_classes=10)
    image = torch.zeros(2, 3, height, width)
    for i, box in enumerate(ours):
        theirs._dist = SimpleNamespace(sample=lambda shape, i=i: torch.tensor(kept[i], dtype=torch.float64))
        centre = iter((torch.tensor(x[i]), torch.tensor(y[i])))
        monkeypatch.setattr(torch, "randint", lambda *args, c=centre, **more: next(c))
        found: dict[str, Any] = theirs.make_params([image])
        left, top, right, bottom = found["box"]
        assert box.tolist() == [top, left, bottom, right]
        area = (box[2] - box[0]) * (box[3] - box[1])
        assert 1 - area / (height * width) == pytest.approx(found["lam_adjusted"])


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix_distributions_match_torchvision(alpha: float) -> None:
    frame = 24, 40
    torch.manual_seed(1)
    made = CutMix(alpha=alpha, num_classes=10)
    theirs = [made.make_params([torch.zeros(2, 3, *frame)]) for _ in range(4000)]
    draws = draw_mix(20_000, *frame, mixup=0, cutmix=alpha, seed=3)
    boxes = np.array([each["box"] for each in theirs])[:, [1, 0, 3, 2]]
    pixels = [
        np.rint(24 * 40 * np.array(each)) for each in (draws.share.numpy(), [each["lam_adjusted"] for each in theirs])
    ]
    assert ks_2samp(*pixels).pvalue > MIN_P
    for edge in range(4):
        assert ks_2samp(draws.boxes[:, edge].numpy(), boxes[:, edge]).pvalue > MIN_P


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_and_loss_match_timm(smoothing: float) -> None:
    """timm pairs each image with the one at the same index from the end."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (64,), generator=generator)
    share = torch.rand(64, generator=generator)
    draws = MixDraws(
        partner=torch.arange(64).flip(0),
        weight=torch.zeros(64, dtype=torch.int16),
        boxes=torch.zeros(64, 4, dtype=torch.int64),
        share=share,
    )
    ours = mixed_labels(labels, draws, 7)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.sum(1), torch.ones(64))
    theirs = mixup_target(labels, 7, lam=share[:, None], smoothing=smoothing)
    torch.testing.assert_close(ours * (1 - smoothing) + smoothing / 7, theirs)
    logits = torch.randn(64, 7, generator=generator)
    loss = F.cross_entropy(logits, ours, label_smoothing=smoothing, reduction="sum") / 64  # as in the training loop
    torch.testing.assert_close(loss, SoftTargetCrossEntropy()(logits, theirs))


def test_an_image_mixed_with_its_own_class_keeps_its_label() -> None:
    draws = draw_mix(30, 8, 8, mixup=1.0, cutmix=1.0, seed=0)
    shares = mixed_labels(torch.full((30,), 2), draws, 4)
    torch.testing.assert_close(shares, torch.eye(4)[[2]].expand(30, 4))


def torchvision_boxes(count: int, height: int, width: int) -> Tensor:
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    found = []
    for _ in range(count):
        top, left, tall, wide, _ = RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])
        found.append((top, left, top + tall, left + wide) if (tall, wide) != (height, width) else (0, 0, 0, 0))
    return torch.tensor(found)


@pytest.mark.parametrize("frame", FRAMES, ids=str)
def test_random_erasing_boxes_match_torchvision(frame: tuple[int, int]) -> None:
    theirs = torchvision_boxes(4000, *frame)
    ours = erase_boxes(20_000, *frame, 1.0, seed=0)
    assert (ours >= 0).all() and (ours[:, 2:] <= torch.tensor(frame)).all()
    for measure in (
        lambda box: box[:, 2] - box[:, 0],
        lambda box: box[:, 3] - box[:, 1],
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        assert ks_2samp(measure(ours).numpy(), measure(theirs).numpy()).pvalue > MIN_P


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_random_erasing_has_the_given_probability(probability: float) -> None:
    boxes = erase_boxes(20_000, 32, 32, probability, seed=1)
    erased = int((boxes[:, 2] > boxes[:, 0]).sum())
    # for 999 of 1000 images, one of ten boxes fits
    assert erased == pytest.approx(20_000 * probability, abs=400)
    assert (erased == 0) == (probability == 0)


@pytest.mark.parametrize(("share", "side"), [(0.5, 16), (0.25, 8), (0.1, 3), (1e-6, 1), (1.0, 32)])
def test_cutout_boxes_are_uniform_and_clipped_to_the_image(share: float, side: int) -> None:
    boxes = cutout_boxes(20_000, 32, 32, share, seed=0)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.max() == side and (boxes >= 0).all() and (boxes <= 32).all()
    assert (sides == side).all(1).float().mean() == pytest.approx(((33 - side) / 32) ** 2, abs=0.02)
    middle = boxes[:, 0] + side // 2
    counts = torch.bincount(middle[boxes[:, 0] > 0])[side // 2 + 1 :]
    assert chisquare(counts.numpy()).pvalue > MIN_P if len(counts) > 1 else True


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("extra", "boxes", "purpose"), [("erase", erase_boxes, ERASE), ("cutout", cutout_boxes, CUTOUT)]
)
def test_only_boxes_are_filled_with_the_given_colour(extra: str, boxes: Any, purpose: int, channels: int) -> None:
    images = noise(30, 24, 40, channels)
    colour = (10, 20, 30)[:channels]
    made = [
        TrainBatches(
            images,
            torch.zeros(30, dtype=torch.int64),
            torch.arange(30),
            batch_size=30,
            device=CPU,
            seed=6,
            augment=False,
            flip=False,
            extras=Extras(colour=colour, **{extra: share}),
        )
        for share in (0.0, 0.5)
    ]
    plain, erased = (each.batch(2, 0)[0] for each in made)
    inside = painted(boxes(30, 24, 40, 0.5, derive_seed(6, 2, 0, purpose)), 24, 40)[:, None]
    assert inside.any() and not inside.all()
    assert torch.equal(erased, torch.where(inside, torch.tensor(colour, dtype=torch.uint8).view(1, -1, 1, 1), plain))


def test_empty_boxes_change_nothing() -> None:
    images = noise(3)
    boxes = torch.tensor([[0, 0, 0, 0], [5, 5, 5, 9], [5, 5, 6, 6]])
    result = kernels.fill_boxes(images, boxes, torch.tensor([1, 2, 3], dtype=torch.uint8))
    assert torch.equal(result[:2], images[:2]) and result[2, :, 5, 5].tolist() == [1, 2, 3]


@pytest.mark.parametrize("alpha", [1e-9, 1e6])
def test_extreme_alphas_give_valid_weights(alpha: float) -> None:
    draws = draw_mix(500, 8, 8, mixup=alpha, cutmix=alpha, seed=0)
    assert ((draws.share >= 0) & (draws.share <= 1)).all()
