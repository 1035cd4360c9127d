"""Small data sets of generated images, in place of those that a reader has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vitctl.data.cifar import CIFAR10


def write_classes(folder: Path, classes: tuple[str, ...], count: int, side: int) -> None:
    """Write random images, brighter for later classes, as ``CLASS/NUMBER.png``."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        random = np.random.default_rng([label, count])
        brightness = np.uint8(130 * label // len(classes))
        for number in range(count):
            pixels = random.integers(0, 120, (side, side, 3), dtype=np.uint8) + brightness
            Image.fromarray(pixels).save(folder / name / f"{number:04}.png")


def write_cifar10(data: Path) -> None:
    """Write a CIFAR-10 of 400 training and 100 test images into ``VITCTL_DATA``."""
    write_classes(data / "cifar10" / "train", CIFAR10.classes, 40, 32)
    write_classes(data / "cifar10" / "test", CIFAR10.classes, 10, 32)


def write_photos(folder: Path) -> None:
    """Write 40 photos in two classes into the folder ``photos``."""
    write_classes(folder / "photos", ("cat", "dog"), 20, 80)
