"""Reproducible choice of images by hash, by position in the data set or by identity."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
"""Pseudorandom number of each image, uint64 [n]."""


def hash_keys(count: int, seed: int | str) -> Keys:
    """Return a pseudorandom number for each index, uint64 [count], the same on every platform and in every version."""
    return _hashed(f"{seed}:{i}" for i in range(count))


def identity_keys(identities: Sequence[str], salt: int | str) -> Keys:
    """Return a pseudorandom number for each identity, uint64 [n], the same on every platform and in every version.

    Unicode is normalised to NFC first, as macOS may store names in NFD.
    """
    return _hashed(f"{salt}:{unicodedata.normalize('NFC', identity)}" for identity in identities)


def _hashed(texts: Iterable[str]) -> Keys:
    # surrogatepass: names that are not valid UTF-8 contain surrogates
    digests = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8] for text in texts)
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def places_in_class(labels: npt.NDArray[Any], keys: Keys) -> npt.NDArray[np.int64]:
    """Return the rank of each image, from 0, among those of its class ordered by ``keys``, int64 [n].

    Args:
        labels: class of each image, int [n].
        keys: key of each image.
    """
    order = np.lexsort((keys, labels))
    counts = np.bincount(labels)
    places = np.empty(len(labels), dtype=np.int64)
    places[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places


def keys_below(fraction: float, labels: npt.NDArray[Any], keys: Keys) -> npt.NDArray[np.bool_]:
    """Return which images have a key below ``fraction`` of the largest possible one, bool [n].

    An image is chosen by its own key, so that adding or removing others does not move it. Two images of each class are
    exceptions: that with the smallest key is always chosen, and that with the largest never, so that a class of two or
    more images has some on both sides.

    Args:
        fraction: share of the images to choose, from 0 to less than 1.
        labels: class of each image, int [n].
        keys: key of each image.
    """
    places = places_in_class(labels, keys)
    last = np.bincount(labels)[labels] - 1
    below: npt.NDArray[np.bool_] = keys < np.uint64(int(fraction * 2**64))
    below |= places == 0
    below &= places < last
    return below
