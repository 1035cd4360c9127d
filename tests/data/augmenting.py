"""Helpers for the tests of augmentation: images, and a policy that applies given operations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitctl.data import AUGMENTATIONS
from vitctl.data.augment import Augment
from vitctl.data.policies import Operation, Policy

CPU = torch.device("cpu")
SHAPES = [(3, 32, 32), (1, 8, 8), (3, 24, 40), (1, 33, 17)]
"""Channels, height, width: CIFAR, digits, and images that are not square, with even and odd sides."""

POLICIES = [name for name, entry in AUGMENTATIONS.items() if entry.target]
assert len(POLICIES) >= 4


def policy(name: str, shape: tuple[int, int] = (32, 32), **options: int) -> Policy:
    """Return the policy ``name`` with ``options``, or their defaults."""
    entry = AUGMENTATIONS[name]
    made: Policy = entry.policy(shape, entry.resolve_options(options, f"--aug {name}"))
    return made


class Listed:
    """A policy that applies the ``i``-th operation to the ``i``-th image."""

    before_crop = False
    length = 1

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = list(operations)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        assert count == len(self.operations)
        return torch.arange(count)[None]


def applied(images: Tensor, operations: Sequence[Operation], centres: Tensor | None = None) -> Tensor:
    """Apply one operation to each image, as a batch; ``centres``, ``[B, 2]``, are the positions of cutout."""
    augment = Augment(Listed(operations), tuple(images.shape[1:]), CPU)  # type: ignore[arg-type]
    where = torch.zeros(len(images), 2, dtype=torch.float64) if centres is None else centres
    return augment.apply(images, torch.arange(len(images))[None], where[None])


def make_images(shape: tuple[int, int, int]) -> Tensor:
    """Return difficult images: noise, few grey levels, one colour, a ramp, a dark half, and smooth ones."""
    C, H, W = shape
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (7, C, H, W), generator=generator, dtype=torch.uint8)
    noise[1] = noise[1] // 4 + 60
    noise[2] = 77
    noise[3] = (torch.arange(W) * 255 // W).to(torch.uint8)
    noise[4, :, : H // 2] //= 8
    for i in (5, 6):
        soft = Image.fromarray(noise[i, :, :4, :4].permute(1, 2, 0).numpy()[..., 0]).resize(
            (W, H), Image.Resampling.BICUBIC
        )
        noise[i] = torch.from_numpy(np.array(soft)) // (torch.arange(C)[:, None, None] + 1)
    return noise


def to_pil(image: Tensor) -> Image.Image:
    """Return uint8 ``[C, H, W]`` as a PIL image."""
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])


def from_pil(image: Image.Image) -> Tensor:
    """Return a PIL image as uint8 ``[C, H, W]``."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def greatest_difference(a: Tensor, b: Tensor) -> int:
    """Return the largest difference between two images, in grey levels."""
    assert a.shape == b.shape and a.dtype == b.dtype == torch.uint8
    return int((a.int() - b.int()).abs().max())
