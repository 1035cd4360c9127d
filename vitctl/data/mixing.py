"""Mixup, CutMix, random erasing and cutout, drawn for each image.

Letters in shapes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitctl.data import kernels
from vitctl.devices import to_device

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]

PARTS = 128
"""Mixup's weights are multiples of 1/128, so that mixing is exact in 16-bit integers and the same on every device."""

ERASE_AREA = (0.02, 0.33)
"""Range of random erasing's share of the image, as in torchvision."""

ERASE_RATIO = (0.3, 3.3)
"""Range of random erasing's aspect ratio, height / width, as in torchvision."""

ERASE_TRIES = 10
"""Number of boxes to try until one fits, as in torchvision."""


@dataclass(frozen=True)
class MixDraws:
    """Draws of mixup and CutMix for a batch.

    Attributes:
        partner: int64 ``[B]``, index of the image to mix with, a permutation; differs from the image's own index if B > 1.
        weight: int16 ``[B]``, weight of the image itself in mixup, of :data:`PARTS`; :data:`PARTS` for CutMix.
        boxes: int64 ``[B, 4]``, box that CutMix copies from the partner; empty for mixup.
        share: float32 ``[B]``, weight of the image's own label.
    """

    partner: Tensor
    weight: Tensor
    boxes: Tensor
    share: Tensor

    def to(self, device: torch.device) -> MixDraws:
        """Return the draws on ``device``."""
        return MixDraws(*(to_device(each, device) for each in (self.partner, self.weight, self.boxes, self.share)))


def draw_mix(count: int, height: int, width: int, *, mixup: float, cutmix: float, seed: int) -> MixDraws:
    """Draw partners and weights, on the CPU.

    Mixup (Zhang et al. 2018, arXiv 1710.09412) draws the weight of an image from Beta(alpha, alpha). CutMix (Yun et al.
    2019, arXiv 1905.04899) draws a share to keep from the same distribution and pastes a box of the partner with the
    remaining area. The box has a uniform centre, its sides are rounded down, and it is clipped to the image; the label's
    weight is the share of the image that is left. If both are enabled, each image uses either with probability 1/2.

    Args:
        count: number of images, B.
        height: image height.
        width: image width.
        mixup: alpha of mixup; 0 disables it.
        cutmix: alpha of CutMix; 0 disables it.
        seed: seeds this batch.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(count)
    partner = np.empty_like(order)
    partner[order] = np.roll(order, 1)  # a single cycle: no image is its own partner
    kept = random.beta(mixup, mixup, count) if mixup else np.ones(count)
    weight = np.rint(PARTS * kept)
    share = weight / PARTS
    boxes = np.zeros((count, 4), dtype=np.int64)
    if cutmix:
        left = random.beta(cutmix, cutmix, count)
        y, x = random.integers(0, height, count), random.integers(0, width, count)
        boxes = cutmix_boxes(left, y, x, height, width)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        pasted = random.random(count) < 0.5 if mixup else np.ones(count, dtype=bool)
        boxes[~pasted] = 0
        weight = np.where(pasted, PARTS, weight)
        share = np.where(pasted, 1 - area / (height * width), share)
    return MixDraws(
        partner=torch.from_numpy(partner),
        weight=torch.from_numpy(weight.astype(np.int16)),
        boxes=torch.from_numpy(boxes),
        share=torch.from_numpy(share.astype(np.float32)),
    )


def cutmix_boxes(kept: Numbers, y: Integers, x: Integers, height: int, width: int) -> Integers:
    """Return the boxes of CutMix, int64 ``[B, 4]``; before clipping they extend equally far on both sides of the centre.

    Args:
        kept: float ``[B]``, share of the image that a box leaves, before rounding and clipping.
        y: int ``[B]``, rows of the centres.
        x: int ``[B]``, columns of the centres.
        height: image height.
        width: image width.
    """
    half = 0.5 * np.sqrt(1 - kept)
    return boxes_around(y, x, 2 * np.floor(half * height), 2 * np.floor(half * width), height, width)


def boxes_around(y: Integers, x: Integers, tall: Numbers, wide: Numbers, height: int, width: int) -> Integers:
    """Return boxes around centres, clipped to the image, int64 ``[B, 4]``: top, left, bottom, right.

    Args:
        y: int ``[B]``, rows of the centres.
        x: int ``[B]``, columns of the centres.
        tall: ``[B]``, heights of the boxes; rounded down.
        wide: ``[B]``, widths of the boxes; rounded down.
        height: image height.
        width: image width.
    """
    tall, wide = tall.astype(np.int64), wide.astype(np.int64)
    top, left = y - tall // 2, x - wide // 2
    corners: Integers = np.stack([top, left, top + tall, left + wide], 1)
    return np.clip(corners, 0, np.array([height, width, height, width]))


def mix(images: Tensor, draws: MixDraws, *, mixup: bool, cutmix: bool) -> Tensor:
    """Mix images with their partners.

    Args:
        images: uint8 ``[B, C, H, W]``.
        draws: draws for the batch, on the same device.
        mixup: whether any image uses mixup.
        cutmix: whether any image uses CutMix.

    Returns:
        uint8 ``[B, C, H, W]``.
    """
    other = images.index_select(0, draws.partner)
    mixed = images
    if mixup:
        weight = draws.weight.view(-1, 1, 1, 1)
        mixed = (
            (images * weight).add_(other * (PARTS - weight)).add_(PARTS // 2).bitwise_right_shift_(7).to(torch.uint8)
        )
    if cutmix:
        mixed = torch.where(kernels.inside_boxes(draws.boxes, *images.shape[2:]), other, mixed)
    return mixed


def mixed_labels(labels: Tensor, draws: MixDraws, classes: int) -> Tensor:
    """Return the share of each class in each mixed image, float32 ``[B, K]``.

    Args:
        labels: int64 ``[B]``.
        draws: draws for the batch, on the same device.
        classes: number of classes, K.
    """
    shares = torch.zeros(len(labels), classes, device=labels.device)
    shares.scatter_(1, labels[:, None], draws.share[:, None])
    return shares.scatter_add_(1, labels[draws.partner, None], 1 - draws.share[:, None])


def erase_boxes(count: int, height: int, width: int, probability: float, seed: int) -> Tensor:
    """Draw the boxes of random erasing (Zhong et al. 2020, arXiv 1708.04896), int64 ``[B, 4]``, on the CPU.

    A box covers 2-33 % of the image, and is 0.3-3.3 times as tall as wide. It is empty for images that are not erased
    and, as in torchvision, if none of ten boxes fits.

    Args:
        count: number of images, B.
        height: image height.
        width: image width.
        probability: probability of erasing an image.
        seed: seeds this batch.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(count, generator=generator) < probability
    area, shape, *place = torch.rand(4, count, ERASE_TRIES, generator=generator, dtype=torch.float64)
    low, high = ERASE_AREA
    area = height * width * (low + (high - low) * area)
    low, high = map(math.log, ERASE_RATIO)
    ratio = (low + (high - low) * shape).exp()
    tall, wide = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()  # [B, tries]
    fits = (tall < height) & (wide < width)
    top, left = (place[0] * (height - tall + 1)).floor(), (place[1] * (width - wide + 1)).floor()
    boxes = torch.stack([top, left, top + tall, left + wide], 2)  # [B, tries, 4]
    first = fits.int().argmax(1)[:, None, None].expand(-1, 1, 4)
    wanted = chosen & fits.any(1)
    first_fitting = boxes.gather(1, first)[:, 0].long()  # [B, 4]
    return first_fitting.mul_(wanted[:, None])


def cutout_boxes(count: int, height: int, width: int, share: float, seed: int) -> Tensor:
    """Draw the boxes of cutout (DeVries and Taylor 2017, arXiv 1708.04552), int64 ``[B, 4]``, on the CPU.

    Every image has one box, centred on a uniformly drawn pixel and clipped to the image.

    Args:
        count: number of images, B.
        height: image height.
        width: image width.
        share: side of the box relative to the image's side; at least one pixel.
        seed: seeds this batch.
    """
    random = np.random.default_rng(seed)
    tall, wide = (np.full(count, max(1, round(share * side))) for side in (height, width))
    y, x = random.integers(0, height, count), random.integers(0, width, count)
    return torch.from_numpy(boxes_around(y, x, tall, wide, height, width))
