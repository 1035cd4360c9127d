"""Mixup, CutMix, random erasing and cutout, each image by its own draws.

Letters in shapes: B images, C channels, H and W their height and width, K classes.
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

Whole = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]

PARTS = 128
"""Mixup's shares are whole 128ths: then mixing is exact in 16-bit numbers, and equal on every device."""

ERASE_AREA = (0.02, 0.33)
ERASE_RATIO = (0.3, 3.3)
ERASE_TRIES = 10
"""Random erasing as torchvision has it: share of the image, height by width, and tries to fit one in."""


@dataclass(frozen=True)
class MixDraws:
    """With what each image of a batch is mixed.

    Attributes:
        partner: int64 ``[B]``, a permutation; no image is its own partner, unless it is alone.
        weight: int16 ``[B]``, parts of :data:`PARTS` that an image keeps of itself under mixup; all of them under CutMix.
        boxes: int64 ``[B, 4]``, what CutMix takes from the partner; empty under mixup.
        share: float32 ``[B]``, what the image's own label counts for.
    """

    partner: Tensor
    weight: Tensor
    boxes: Tensor
    share: Tensor

    def to(self, device: torch.device) -> MixDraws:
        """Return the draws on ``device``."""
        return MixDraws(*(to_device(each, device) for each in (self.partner, self.weight, self.boxes, self.share)))


def draw_mix(count: int, height: int, width: int, *, mixup: float, cutmix: float, seed: int) -> MixDraws:
    """Draw partners and shares, on the CPU.

    Mixup (Zhang et al. 2018, arXiv 1710.09412): an image keeps a share of Beta(alpha, alpha). CutMix (Yun et al. 2019, arXiv
    1905.04899): a box of the partner's is pasted in, whose area is 1 minus such a share where it lies in the frame whole,
    but for rounding down; its centre is uniform, and the image's share is then what was left of it. Where both are on,
    each image takes either with probability 1/2.

    Args:
        count: images of the batch, B.
        height: of the images.
        width: of the images.
        mixup: alpha; 0 is off.
        cutmix: alpha; 0 is off.
        seed: of this batch.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(count)
    partner = np.empty_like(order)
    partner[order] = np.roll(order, 1)  # one ring through all of them: nobody is its own partner
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


def cutmix_boxes(kept: Numbers, y: Whole, x: Whole, height: int, width: int) -> Whole:
    """Return the boxes of CutMix, which reach equally far, in whole pixels, to either side of their centres; int64 ``[B, 4]``.

    Args:
        kept: float ``[B]``, what a box that is not cut off leaves of the image, but for rounding down.
        y: int ``[B]``, rows of the centres.
        x: int ``[B]``, columns.
        height: of the images.
        width: of the images.
    """
    half = 0.5 * np.sqrt(1 - kept)
    return boxes_around(y, x, 2 * np.floor(half * height), 2 * np.floor(half * width), height, width)


def boxes_around(y: Whole, x: Whole, tall: Numbers, wide: Numbers, height: int, width: int) -> Whole:
    """Return boxes about centres, cut off at the frame, int64 ``[B, 4]``: first row, first column, row and column after.

    Args:
        y: int ``[B]``, rows of the centres.
        x: int ``[B]``, columns.
        tall: heights; rounded down.
        wide: widths; rounded down.
        height: of the images.
        width: of the images.
    """
    tall, wide = tall.astype(np.int64), wide.astype(np.int64)
    top, left = y - tall // 2, x - wide // 2
    corners: Whole = np.stack([top, left, top + tall, left + wide], 1)
    return np.clip(corners, 0, np.array([height, width, height, width]))


def mix(images: Tensor, draws: MixDraws, *, mixup: bool, cutmix: bool) -> Tensor:
    """Mix images with their partners, rounded to grey levels.

    Args:
        images: uint8 ``[B, C, H, W]``.
        draws: on the same device.
        mixup: some of the draws are mixup's.
        cutmix: some of the draws are CutMix's.

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
    """Return the share of each class in each image, float32 ``[B, K]``.

    Args:
        labels: int64 ``[B]``.
        draws: on the same device.
        classes: K.
    """
    shares = torch.zeros(len(labels), classes, device=labels.device)
    shares.scatter_(1, labels[:, None], draws.share[:, None])
    return shares.scatter_add_(1, labels[draws.partner, None], 1 - draws.share[:, None])


def erase_boxes(count: int, height: int, width: int, probability: float, seed: int) -> Tensor:
    """Draw the boxes of random erasing (Zhong et al. 2020, arXiv 1708.04896), int64 ``[B, 4]``, on the CPU.

    A box covers 2-33 % of the image, and is 0.3-3.3 times as tall as wide; it is empty where none is drawn, and, as in
    torchvision, where none of ten fits.

    Args:
        count: images of the batch, B.
        height: of the images.
        width: of the images.
        probability: that an image has a box.
        seed: of this batch.
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

    Every image has one, about a pixel drawn uniformly and cut off at the frame.

    Args:
        count: images of the batch, B.
        height: of the images.
        width: of the images.
        share: its sides as a share of the image's; at least a pixel.
        seed: of this batch.
    """
    random = np.random.default_rng(seed)
    tall, wide = (np.full(count, max(1, round(share * side))) for side in (height, width))
    y, x = random.integers(0, height, count), random.integers(0, width, count)
    return torch.from_numpy(boxes_around(y, x, tall, wide, height, width))
