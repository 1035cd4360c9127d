"""What a data set is once it is read, and which of its images train, select and test.

Letters in shapes: n images, C channels, H and W their height and width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from vitctl.data import DATASETS
from vitctl.errors import RequestError
from vitctl.observer import SILENT, Observer
from vitctl.registry import lookup
from vitctl.units import plural


@dataclass(frozen=True)
class Examples:
    """Images and their classes.

    Attributes:
        images: uint8 [n, C, H, W] on the CPU; may be a memory-mapped file, so read it piece by piece.
        labels: int64 [n], each 0 <= label < K classes.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set, read.

    Attributes:
        name: its name in ``DATASETS``.
        classes: what the labels stand for.
        mean: per channel, over the training images, of values scaled to 0..1.
        std: likewise the standard deviation, never 0.
        train: the training part.
        val: a part that selects, where the data set brings one of its own.
        test: the test part.
        source: where it was found, for messages.
        skipped: images left out because they cannot be read, as paths within the source.
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


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What a data set's loader is told.

    Attributes:
        data_dir: ``--data-dir``, where given.
        size: side in pixels that images of any size are decoded to; data sets of one size keep theirs.
        skip_bad_images: leave out what cannot be read instead of failing.
        observer: is notified of downloads and decoding.
        download: download what is not here; else it is missing.
    """

    data_dir: str | None
    size: int
    skip_bad_images: bool
    observer: Observer
    download: bool = True


def load_dataset(
    name: str,
    *,
    data_dir: str | None,
    size: int,
    skip_bad_images: bool,
    observer: Observer = SILENT,
    download: bool = True,
) -> Dataset:
    """Read the data set ``name`` of ``DATASETS``.

    Args:
        name: a name of the table.
        data_dir: where it lies, if not in the usual places.
        size: side in pixels, for data sets whose images have any size.
        skip_bad_images: leave out images that cannot be read, and list them in :attr:`Dataset.skipped`.
        observer: is notified of downloads and decoding, in this thread.
        download: download what is not here; else it is missing.

    Raises:
        RequestError: no such data set, or it is missing, damaged or not laid out as it must be.
        RunFailed: the disk filled up while data were downloaded or images decoded.
    """
    load = lookup(DATASETS, name, "--dataset").load()
    dataset: Dataset = load(
        LoadOptions(
            data_dir=data_dir or None,
            size=size,
            skip_bad_images=skip_bad_images,
            observer=observer,
            download=download,
        )
    )
    return dataset


@dataclass(frozen=True)
class Subset:
    """Some of the images.

    Attributes:
        examples: those that it is a part of.
        index: int64 [m], ascending, which of them.
    """

    examples: Examples
    index: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What trains, what selects, what tests.

    Attributes:
        train: what is trained on.
        val: what per-epoch figures are measured on.
        test: what the final figures are measured on.
        val_split: what ``val`` is: ``holdout`` (held out of the training part), ``val`` (the data set's own),
            ``test`` (the test part), or None.
    """

    train: Subset
    val: Subset | None
    test: Subset
    val_split: Literal["holdout", "val", "test"] | None


def split(
    dataset: Dataset, *, val: str, val_fraction: float, split_seed: int, limit_train: int | None, limit_test: int | None
) -> Splits:
    """Choose the images that train, select and test.

    The choice hangs on ``split_seed`` and on nothing else, no library's random numbers included: images of a class
    are ordered by a hash of the seed and their place, and the first ones are taken.

    Args:
        dataset: the data set.
        val: ``holdout``, ``test`` or ``none``, as ``--val``. The data set's own validation part, where it has one,
            takes the place of the held-out images.
        val_fraction: share of each class to hold out; at least one image of each, and never all of them.
        split_seed: seed of the choice.
        limit_train: train on that many images only, evenly over the classes. What is held out does not change.
        limit_test: measure on that many validation and that many test images only; classes keep their shares, so
            that a figure still estimates that of the whole part.

    Raises:
        RequestError: a class is too small to hold out from.
    """
    everything = torch.arange(len(dataset.train)).numpy()
    held_out: npt.NDArray[np.int64] | None = None
    keys = None
    if val == "holdout" and dataset.val is None:
        keys = hash_keys(len(dataset.train), split_seed)
        held_out = _hold_out(dataset, keys, val_fraction)
        everything = np.setdiff1d(everything, held_out, assume_unique=True)
    train = _limit(dataset.train, everything, limit_train, split_seed, keys=keys, evenly=True)
    test = _limit(dataset.test, np.arange(len(dataset.test)), limit_test, split_seed)
    if val == "none":
        return Splits(train=train, val=None, test=test, val_split=None)
    if val == "test":
        return Splits(train=train, val=test, test=test, val_split="test")
    if val != "holdout":
        raise ValueError(f"unknown protocol {val!r}")
    if held_out is not None:
        chosen = _limit(dataset.train, held_out, limit_test, split_seed, keys=keys)
        return Splits(train=train, val=chosen, test=test, val_split="holdout")
    assert dataset.val is not None
    own = _limit(dataset.val, np.arange(len(dataset.val)), limit_test, split_seed)
    return Splits(train=train, val=own, test=test, val_split="val")


def hash_keys(count: int, seed: int | str) -> npt.NDArray[np.uint64]:
    """Return uint64 [count]: for each place a number that looks random and is the same everywhere, for ever."""
    digests = (hashlib.sha256(f"{seed}:{i}".encode()).digest()[:8] for i in range(count))
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def places_in_class(labels: npt.NDArray[Any], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return int64 [n]: the place of each image, from 0, when its class is ordered by ``keys``."""
    order = np.lexsort((keys, labels))
    counts = np.bincount(labels)
    places = np.empty(len(labels), dtype=np.int64)
    places[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places


def _hold_out(dataset: Dataset, keys: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.int64]:
    """Return int64 [m], ascending: which training images are held out."""
    labels = dataset.train.labels.numpy()
    counts = np.bincount(labels, minlength=len(dataset.classes))
    for name, count in zip(dataset.classes, counts, strict=True):
        if count < 2:
            raise RequestError(
                f"class {name!r} has {plural(count, 'training image')} in {dataset.source}, too few to "
                f"hold one out; add some, or take --val none (or --val test)"
            )
    share = np.clip(np.floor(counts * fraction + 0.5).astype(np.int64), 1, counts - 1)
    return np.flatnonzero(places_in_class(labels, keys) < share[labels])


def _limit(
    examples: Examples,
    index: npt.NDArray[np.int64],
    limit: int | None,
    seed: int,
    *,
    keys: npt.NDArray[np.uint64] | None = None,
    evenly: bool = False,
) -> Subset:
    """Return at most ``limit`` of the images of ``index``: as many of each class, or in the classes' shares."""
    if limit is not None and limit < len(index):
        if keys is None:
            keys = hash_keys(len(examples), seed)
        labels = examples.labels.numpy()[index]
        places = places_in_class(labels, keys[index])
        # The first of every class come first, then the seconds; or those in the first hundredth of their class, ...
        turn = places if evenly else (places + 0.5) / np.bincount(labels)[labels]
        index = np.sort(index[np.lexsort((labels, turn))[:limit]])
    return Subset(examples, torch.from_numpy(index.astype(np.int64)))
