"""Data sets, and their split into training, validation and test images.

Letters in shapes: n images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from vitctl.data import DATASETS
from vitctl.data.choice import Keys, hash_keys, identity_keys, keys_below, places_in_class
from vitctl.data.manifest import Manifest
from vitctl.data.reading import FULL, Traits
from vitctl.errors import RequestError
from vitctl.observer import SILENT, Observer
from vitctl.registry import lookup
from vitctl.units import plural


@dataclass(frozen=True)
class Examples:
    """Images and their classes.

    Attributes:
        images: uint8 [n, C, H, W] on the CPU; may be a memory-mapped file, so read it in pieces.
        labels: int64 [n], from 0 to K - 1 for K classes.
        paths: file of each image, relative to the data set's source; empty if images have no files.
        identities: ``CLASS/PATH`` of each image, with the path below its class; empty if images have no files.
        digests: uint8 [n, 16], see :func:`vitctl.data.duplicates.image_digests`; None if not computed yet.
    """

    images: torch.Tensor
    labels: torch.Tensor
    paths: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    digests: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A loaded data set.

    Attributes:
        name: key in ``DATASETS``.
        classes: class names, in the order of the labels.
        mean: mean per channel of the training images, scaled to 0-1.
        std: standard deviation per channel of the training images, scaled to 0-1; never 0.
        train: training set.
        val: the data set's own validation set, if it has one.
        test: test set.
        source: its folder or origin, for messages.
        skipped: paths of unreadable images that were left out, relative to the source, escaped.
        manifest: its images and their content; None if they have no files.
        value_range: value range of its images, see :class:`~vitctl.data.reading.Reading`.
        traits: statistics of the training images' files; None if they have no files.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Examples
    val: Examples | None
    test: Examples
    source: str
    skipped: tuple[str, ...] = ()
    manifest: Manifest | None = None
    value_range: str = FULL
    traits: Traits | None = None


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of a data set's ``load`` function.

    Attributes:
        data_dir: ``--data-dir``, if given.
        size: side in pixels to decode images to, for data sets without a size of their own; some others reduce larger
            images to it.
        skip_bad_images: leave out unreadable images instead of failing.
        observer: receives the progress of downloads and decoding.
        download: download a missing data set instead of failing.
        labels: CSV file with the labels of a folder's images, absolute or relative to the folder.
        test_classes: classes of a trained network, to read only the images of a folder that it can be tested on.
        test_fraction: share of each class to use as test set, for folders without one; None for no such share.
        fit: how image files become square, a key of :data:`~vitctl.data.reading.FITS`.
        value_range: ``--value-range``, for image files.
    """

    data_dir: str | None
    size: int
    skip_bad_images: bool
    observer: Observer
    download: bool = True
    labels: str | None = None
    test_classes: tuple[str, ...] | None = None
    test_fraction: float | None = None
    fit: str = "crop"
    value_range: str = FULL


def load_dataset(
    name: str,
    *,
    data_dir: str | None,
    size: int,
    skip_bad_images: bool,
    observer: Observer = SILENT,
    download: bool = True,
    labels: str | None = None,
    test_classes: tuple[str, ...] | None = None,
    test_fraction: float | None = None,
    fit: str = "crop",
    value_range: str = FULL,
) -> Dataset:
    """Read the data set ``name`` of ``DATASETS``.

    Args:
        name: key in ``DATASETS``.
        data_dir: folder of the data set, if not in the default places.
        size: side in pixels to decode images to, for data sets without a size of their own; some others reduce larger
            images to it.
        skip_bad_images: leave out unreadable images, and list them in :attr:`Dataset.skipped`.
        observer: receives the progress of downloads and decoding, in this thread.
        download: download a missing data set instead of failing.
        labels: CSV file with the labels of a folder's images, absolute or relative to the folder.
        test_classes: classes of a trained network, to read only the images of a folder that it can be tested on.
        test_fraction: share of each class to use as test set, for folders without one.
        fit: how image files become square, a key of :data:`~vitctl.data.reading.FITS`.
        value_range: ``--value-range``, for image files.

    Raises:
        RequestError: the data set is unknown, missing, damaged or has the wrong layout.
        RunFailed: the disk filled up during a download or decoding.
    """
    load = lookup(DATASETS, name, "--dataset").load()
    dataset: Dataset = load(
        LoadOptions(
            data_dir=data_dir or None,
            size=size,
            skip_bad_images=skip_bad_images,
            observer=observer,
            download=download,
            labels=labels,
            test_classes=test_classes,
            test_fraction=test_fraction,
            fit=fit,
            value_range=value_range,
        )
    )
    return dataset


@dataclass(frozen=True)
class Subset:
    """A subset of images.

    Attributes:
        examples: all images.
        index: int64 [m], ascending indices of the subset.
    """

    examples: Examples
    index: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)


def image_names(dataset: Dataset, examples: Examples, index: Sequence[int]) -> list[str]:
    """Return the path of each image relative to the source, or ``PART/INDEX`` for images without files.

    Args:
        dataset: the data set.
        examples: one of its parts; held-out images are in ``train``.
        index: indices of the images in this part.
    """
    if examples.paths:
        return [examples.paths[i] for i in index]
    part = "train" if examples is dataset.train else "test" if examples is dataset.test else "val"
    return [f"{part}/{i}" for i in index]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Training, validation and test images.

    Attributes:
        train: images to train on.
        val: images to evaluate on after each epoch.
        test: images for the final evaluation.
        val_split: source of ``val``: ``holdout`` (held out from the training set), ``val`` (the data set's own
            validation set), ``test`` (the test set), or None.
    """

    train: Subset
    val: Subset | None
    test: Subset
    val_split: Literal["holdout", "val", "test"] | None


def split(
    dataset: Dataset,
    *,
    val: str,
    val_fraction: float,
    split_seed: int,
    holdout_by: str,
    limit_train: int | None,
    limit_test: int | None,
) -> Splits:
    """Choose the training, validation and test images.

    The choice depends only on ``split_seed``, not on any library's random numbers. By position, the images of a class
    are ordered by a hash of the seed and their index, and the first ones are taken. By identity, an image is held out
    if the hash of the seed and its identity is small enough, so that adding or removing images does not move others.

    Args:
        dataset: the data set.
        val: ``holdout``, ``test`` or ``none``, as in ``--val``. With ``holdout``, the data set's own validation set
            replaces held-out images.
        val_fraction: share of each class to hold out; at least one image of each class, and never all.
        split_seed: seeds the choice.
        holdout_by: ``identity`` or ``position``; images without an identity are chosen by position.
        limit_train: largest number of training images, spread evenly over the classes; held-out images do not change.
        limit_test: largest number of validation images and of test images; classes keep their shares, so that
            accuracy is still an estimate for all images.

    Raises:
        RequestError: a class has too few images to hold one out.
    """
    by_identity = holdout_by == "identity" and bool(dataset.train.identities)

    def keys_of(examples: Examples) -> Keys:
        if by_identity:
            return identity_keys(examples.identities, split_seed)
        return hash_keys(len(examples), split_seed)

    everything = torch.arange(len(dataset.train)).numpy()
    held_out: npt.NDArray[np.int64] | None = None
    if val == "holdout" and dataset.val is None:
        held_out = _hold_out(dataset, keys_of(dataset.train), val_fraction, by_identity)
        everything = np.setdiff1d(everything, held_out, assume_unique=True)
    train = _limit(dataset.train, everything, limit_train, keys_of, evenly=True)
    test = _limit(dataset.test, np.arange(len(dataset.test)), limit_test, keys_of)
    if val == "none":
        return Splits(train=train, val=None, test=test, val_split=None)
    if val == "test":
        return Splits(train=train, val=test, test=test, val_split="test")
    if val != "holdout":
        raise ValueError(f"unknown protocol {val!r}")
    if held_out is not None:
        chosen = _limit(dataset.train, held_out, limit_test, keys_of)
        return Splits(train=train, val=chosen, test=test, val_split="holdout")
    assert dataset.val is not None
    own = _limit(dataset.val, np.arange(len(dataset.val)), limit_test, keys_of)
    return Splits(train=train, val=own, test=test, val_split="val")


def _hold_out(dataset: Dataset, keys: Keys, fraction: float, by_identity: bool) -> npt.NDArray[np.int64]:
    """Return the indices of the held-out training images, int64 [m], ascending."""
    labels = dataset.train.labels.numpy()
    counts = np.bincount(labels, minlength=len(dataset.classes))
    for name, count in zip(dataset.classes, counts, strict=True):
        if count < 2:
            raise RequestError(
                f"class {name!r} has {plural(count, 'training image')} in {dataset.source}, too few to hold one out",
                hint="add images to the class, or use --val none or --val test",
            )
    if by_identity:
        return np.flatnonzero(keys_below(fraction, labels, keys))
    share = np.clip(np.floor(counts * fraction + 0.5).astype(np.int64), 1, counts - 1)
    return np.flatnonzero(places_in_class(labels, keys) < share[labels])


def _limit(
    examples: Examples,
    index: npt.NDArray[np.int64],
    limit: int | None,
    keys_of: Callable[[Examples], Keys],
    *,
    evenly: bool = False,
) -> Subset:
    """Return at most ``limit`` of the images in ``index``, spread evenly over the classes or in their shares."""
    if limit is not None and limit < len(index):
        labels = examples.labels.numpy()[index]
        places = places_in_class(labels, keys_of(examples)[index])
        # Evenly: the first image of every class, then the second, ... Else: by relative rank within the class.
        turn = places if evenly else (places + 0.5) / np.bincount(labels)[labels]
        index = np.sort(index[np.lexsort((labels, turn))[:limit]])
    return Subset(examples, torch.from_numpy(index.astype(np.int64)))
