"""The data sets and the augmentations: tables of names.

A data set is a function ``load(options: LoadOptions) -> Dataset`` (see :mod:`vitctl.data.dataset`). An augmentation is a
function ``policy(shape, **options) -> Policy`` (see :mod:`vitctl.data.policies`).
"""

from __future__ import annotations

from dataclasses import dataclass

from vitctl.registry import Entry, Option


@dataclass(frozen=True, kw_only=True)
class DatasetEntry(Entry):
    """A data set of the table.

    Attributes:
        flip: mirrored images are still of their class, so training may flip them.
    """

    flip: bool = True


DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(
        target="vitctl.data.digits:load",
        summary="1,797 handwritten digits of 8x8 grey pixels; comes with scikit-learn, needs no network",
        flip=False,
    ),
    "folder": DatasetEntry(
        target="vitctl.data.folder:load",
        summary="--data-dir with train/ and test/ (or val/), a folder of images per class",
    ),
    "cifar10": DatasetEntry(
        target="vitctl.data.cifar:load_cifar10",
        summary="60,000 colour images of 32x32 pixels in 10 classes; downloaded where it is not found",
    ),
    "cifar100": DatasetEntry(
        target="vitctl.data.cifar:load_cifar100",
        summary="60,000 colour images of 32x32 pixels in 100 classes; downloaded where it is not found",
    ),
}
"""Every data set that ``--dataset`` takes."""


@dataclass(frozen=True, kw_only=True)
class AugmentationEntry(Entry):
    """An augmentation of the table; one without a target has no operations but crop and flip.

    Attributes:
        crop: random crop is part of it, and flip where the data set allows it.
    """

    target: str = ""
    crop: bool = True


_STRENGTH = "magnitude of all operations"

AUGMENTATIONS: dict[str, AugmentationEntry] = {
    "none": AugmentationEntry(summary="images as they are", crop=False),
    "basic": AugmentationEntry(
        summary="random crop of the padded image, and flip where mirrored images keep their class"
    ),
    "randaug": AugmentationEntry(
        target="vitctl.data.policies:randaug",
        summary="basic, then n of RandAugment's 14 operations at magnitude m of 30",
        options={
            "n": Option(2, "operations per image", low=1, high=16),
            "m": Option(9, _STRENGTH, low=0, high=30),
        },
    ),
    "trivialaug": AugmentationEntry(
        target="vitctl.data.policies:trivialaug",
        summary="basic, then one of TrivialAugment's 14 operations at a random magnitude",
    ),
    "autoaug": AugmentationEntry(
        target="vitctl.data.policies:autoaug",
        summary="basic, then one of the 25 pairs of operations that AutoAugment found on CIFAR-10",
    ),
    "seed-randaug": AugmentationEntry(
        target="vitctl.data.policies:seed_randaug",
        summary="the predecessor's RandAugment, whose ranges blank out many small images, then basic",
        options={
            "n": Option(2, "operations per image", low=1, high=16),
            "m": Option(14, _STRENGTH, low=0, high=30),
        },
    ),
}
"""Every augmentation that ``--aug`` takes."""
