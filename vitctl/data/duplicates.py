"""Images with equal pixels in two parts of a data set, or in two classes of its training set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from vitctl.data.dataset import Dataset, Examples, image_names
from vitctl.units import plural, printable

DIGEST_BYTES = 16

Digests = npt.NDArray[np.uint8]
"""Digest of each image, [n, DIGEST_BYTES]."""


def image_digests(images: npt.NDArray[np.uint8]) -> Digests:
    """Return the BLAKE2b digest of each image's pixels, uint8 [n, 16].

    Args:
        images: uint8 [n, C, H, W]. Digests are comparable among images of one shape.
    """
    digests = [hashlib.blake2b(image, digest_size=DIGEST_BYTES).digest() for image in np.ascontiguousarray(images)]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def describe_equal_images(dataset: Dataset) -> str:
    """Return a clause with the numbers of equal images and the first pair, or ``""`` if there are none.

    Images of different parts are compared, and training images of different classes. Digests that the data set lacks
    are computed.
    """
    finds = list(_finds(dataset))
    return (
        f"{' and '.join(count for count, _ in finds)}, such as {printable(' and '.join(finds[0][1]))}" if finds else ""
    )


def _finds(dataset: Dataset) -> Iterator[tuple[str, list[str]]]:
    """Yield a clause with the number of images, and the first pair, for each comparison that finds equal images."""
    parts = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    digests = {name: _digests_of(part) for name, part in parts.items() if part is not None}
    for name, other in (("test", "train"), ("val", "train"), ("val", "test")):
        part, others = parts[name], parts[other]
        if part is None or others is None:
            continue
        pairs = pairs_across(digests[name], digests[other])
        if len(pairs):
            first, second = pairs[0].tolist()
            yield (
                f"{_count(len(pairs), f'{name} image')} also in {other}",
                image_names(dataset, part, [first]) + image_names(dataset, others, [second]),
            )
    pairs = pairs_of_classes(digests["train"], dataset.train.labels.numpy())
    if len(pairs):
        yield (
            f"{_count(len(pairs), 'train image')} in two classes",
            image_names(dataset, dataset.train, pairs[0].tolist()),
        )


def _count(count: int, noun: str) -> str:
    return f"{plural(count, noun)} {'is' if count == 1 else 'are'}"


def _digests_of(examples: Examples) -> Digests:
    return image_digests(examples.images.numpy()) if examples.digests is None else examples.digests


def pairs_across(digests: Digests, others: Digests) -> npt.NDArray[np.int64]:
    """Return the index of each image that has an equal in ``others``, and that of its first equal, int64 [m, 2]."""
    if not len(digests) or not len(others):
        return np.empty((0, 2), dtype=np.int64)
    known, first = np.unique(_keys(others), return_index=True)
    keys = _keys(digests)
    place = np.searchsorted(known, keys).clip(max=len(known) - 1)
    equal = np.flatnonzero(known[place] == keys)
    return np.stack([equal, first[place[equal]]], axis=1)


def pairs_of_classes(digests: Digests, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return, for each set of equal images in several classes, its first image and the first one of another class.

    Returns:
        Indices, int64 [m, 2], ordered by the first column.
    """
    _, first, which = np.unique(_keys(digests), return_index=True, return_inverse=True)
    other = np.flatnonzero(labels != labels[first[which]])
    _, chosen = np.unique(which[other], return_index=True)
    pairs = np.stack([first[which[other[chosen]]], other[chosen]], axis=1)
    return pairs[pairs[:, 0].argsort()]


def _keys(digests: Digests) -> npt.NDArray[np.bytes_]:
    """Return the digests as values that numpy can sort, [n]."""
    return np.ascontiguousarray(digests).view(f"S{DIGEST_BYTES}").ravel()
