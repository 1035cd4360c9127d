"""Tables of data sets and augmentations.

A data set is a function ``load(options: LoadOptions) -> Dataset`` (see :mod:`vitctl.data.dataset`), and an augmentation
is a function ``policy(shape, **options) -> Policy`` (see :mod:`vitctl.data.policies`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitctl.registry import Entry, Option, Value


@dataclass(frozen=True, kw_only=True)
class DatasetEntry(Entry):
    """A data set.

    Attributes:
        flip: whether a mirrored image keeps its class, so that training may flip images.
    """

    flip: bool = True


DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(
        target="vitctl.data.digits:load",
        summary="1,797 greyscale 8x8 digits, included in scikit-learn",
        flip=False,
    ),
    "folder": DatasetEntry(
        target="vitctl.data.folder:load",
        summary="images in --data-dir: train/CLASS/, and test/ or val/",
    ),
    "cifar10": DatasetEntry(
        target="vitctl.data.cifar:load_cifar10",
        summary="60,000 colour 32x32 images, 10 classes; downloaded if missing",
    ),
    "cifar100": DatasetEntry(
        target="vitctl.data.cifar:load_cifar100",
        summary="60,000 colour 32x32 images, 100 classes; downloaded if missing",
    ),
    "mnist": DatasetEntry(
        target="vitctl.data.named:load_mnist",
        summary="70,000 greyscale 28x28 digits; downloaded if missing",
        flip=False,
    ),
    "fashionmnist": DatasetEntry(
        target="vitctl.data.named:load_fashionmnist",
        summary="70,000 greyscale 28x28 clothes; downloaded if missing",
    ),
    "kmnist": DatasetEntry(
        target="vitctl.data.named:load_kmnist",
        summary="70,000 greyscale 28x28 characters; downloaded if missing",
        flip=False,
    ),
    "svhn": DatasetEntry(
        target="vitctl.data.named:load_svhn",
        summary="99,289 colour 32x32 house numbers; downloaded if missing",
        flip=False,
    ),
    "stl10": DatasetEntry(
        target="vitctl.data.named:load_stl10",
        summary="13,000 colour 96x96 images, 10 classes; downloaded if missing",
    ),
}
"""Data sets by ``--dataset`` name."""


@dataclass(frozen=True, kw_only=True)
class AugmentationEntry(Entry):
    """An augmentation; without a target it is crop and flip, or nothing.

    Attributes:
        crop: whether it includes random crop, and flip where the data set allows it.
    """

    target: str = ""
    crop: bool = True

    def policy(self, shape: tuple[int, int], options: Mapping[str, Value]) -> Any:
        """Return the :class:`~vitctl.data.policies.Policy` for images of a shape, without the options of the crop."""
        return self.load()(shape, **{name: value for name, value in options.items() if name not in CROP_OPTIONS})


CROP_OPTIONS = {
    "padding": Option(-1, "pixels to pad on each side before the crop; -1: an eighth of the side", low=-1),
    "padding_mode": Option("zeros", "what to pad with", choices=("zeros", "reflect")),
    "flip": Option("random", "flip at random, or each image in every other epoch", choices=("random", "alternate")),
}
"""Options of every augmentation that crops."""

CROP_DEFAULTS = {name: option.default for name, option in CROP_OPTIONS.items()}
"""Their defaults, with which runs of versions without these options were trained."""

_MAGNITUDE = "magnitude of the operations"

AUGMENTATIONS: dict[str, AugmentationEntry] = {
    "none": AugmentationEntry(summary="no augmentation", crop=False),
    "basic": AugmentationEntry(summary="random crop of the padded image, and horizontal flip", options=CROP_OPTIONS),
    "randaug": AugmentationEntry(
        target="vitctl.data.policies:randaug",
        summary="basic, then RandAugment: n of 14 operations, magnitude m",
        options={
            "n": Option(2, "operations per image", low=1, high=16),
            "m": Option(9, _MAGNITUDE, low=0, high=30),
            **CROP_OPTIONS,
        },
    ),
    "trivialaug": AugmentationEntry(
        target="vitctl.data.policies:trivialaug",
        summary="basic, then TrivialAugment: one operation, random magnitude",
        options=CROP_OPTIONS,
    ),
    "autoaug": AugmentationEntry(
        target="vitctl.data.policies:autoaug",
        summary="basic, then AutoAugment: one of 25 sub-policies for CIFAR-10",
        options=CROP_OPTIONS,
    ),
    "seed-randaug": AugmentationEntry(
        target="vitctl.data.policies:seed_randaug",
        summary="the original scripts' RandAugment, then basic",
        options={
            "n": Option(2, "operations per image", low=1, high=16),
            "m": Option(14, _MAGNITUDE, low=0, high=30),
            **CROP_OPTIONS,
        },
    ),
}
"""Augmentations by ``--aug`` name."""
