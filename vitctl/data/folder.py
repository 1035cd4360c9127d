"""Image folders of the layouts in :mod:`vitctl.data.layout`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vitctl.data.cache import Decoded, decode_all, recall_traits
from vitctl.data.dataset import Dataset, Examples, LoadOptions
from vitctl.data.decode import UnreadableImage, decode_image
from vitctl.data.duplicates import DIGEST_BYTES
from vitctl.data.layout import SPLITS, Listing, list_images, list_test_images
from vitctl.data.manifest import ImageEntry, Manifest
from vitctl.data.reading import AUTO, FULL, Reading, Traits
from vitctl.errors import RequestError
from vitctl.units import printable

Decode = Callable[[str, Traits], npt.NDArray[np.uint8]]
"""Decodes a path to uint8 [3, size, size], or raises :class:`UnreadableImage`; counts the image in the traits."""


def load(options: LoadOptions) -> Dataset:
    """Read the images of ``--data-dir``, decoded to ``options.size``; see :func:`decode_image`.

    With ``--value-range auto``, the range is that of :meth:`Traits.value_range` for the training images.

    ``val/`` is the validation set if ``test/`` exists, and otherwise the test set. If both are missing, the share
    ``options.test_fraction`` of the images is the test set. Mean and standard deviation are those of the training
    images. With ``options.test_classes``, only the test set is read, and the training set is empty.

    Raises:
        RequestError: the folder is missing or has the wrong layout, or an image cannot be read.
        RunFailed: the disk filled up.
    """
    if options.data_dir is None:
        raise RequestError(
            "the folder of the images is not given", hint="use --dataset DIR, with train/CLASS/ and test/CLASS/ in it"
        )
    root = Path(options.data_dir).expanduser()
    if options.test_classes is None:
        listing = list_images(root, labels=options.labels, test_fraction=options.test_fraction)
    else:
        listing = list_test_images(
            root, options.test_classes, labels=options.labels, test_fraction=options.test_fraction
        )
    for line in (listing.summary, *listing.skipped):
        options.observer.message(printable(line))
    reading = Reading(options.fit, options.value_range)
    if options.value_range == AUTO:
        reading = replace(reading, value_range=_measured_range(root, listing, options))
    dataset = decode_listing(
        "folder", root, listing, _decoder(reading, options.size), options.size, options, rule=str(reading)
    )
    return replace(dataset, value_range=reading.value_range)


def _decoder(reading: Reading, size: int) -> Decode:
    return lambda path, traits: decode_image(path, size, reading, traits)


def _measured_range(root: Path, listing: Listing, options: LoadOptions) -> str:
    """Return the value range of a listing; its images are decoded to measure it if no cache has their traits."""
    shape, measured = (3, options.size, options.size), listing.counts["train"]
    traits = recall_traits("folder", root, listing.files, shape=shape, measured=measured)
    if traits is None:
        reading = Reading(options.fit)
        decode = _decoder(reading, options.size)
        traits = _decode("folder", root, listing, decode, options.size, options, str(reading)).traits
    return traits.value_range()


def decode_listing(
    name: str,
    root: Path,
    listing: Listing,
    decode: Decode,
    size: int,
    options: LoadOptions,
    *,
    rule: str = "",
) -> Dataset:
    """Return the data set of a listing, with images from the cache or decoded.

    Args:
        name: key in ``DATASETS``.
        root: folder of the data set.
        listing: its images.
        decode: decodes an image.
        size: side of the decoded images in pixels.
        options: options of the loader.
        rule: identifies ``decode`` in the cache, if images can be decoded in several ways.

    Raises:
        RequestError: images cannot be read without ``--skip-bad-images``, or all images of a class cannot be read.
        RunFailed: the disk filled up.
    """
    decoded = _decode(name, root, listing, decode, size, options, rule)
    bad = list(decoded.bad)
    if bad and not options.skip_bad_images:
        raise RequestError(
            f"cannot read {len(bad)} of {len(listing.files)} images, such as {printable(str(root / listing.files[bad[0]].path))}: "
            f"{decoded.bad[bad[0]]}",
            hint=_advice(name, decoded, options, everything=len(bad) == len(listing.files)),
        )
    images = torch.from_numpy(decoded.images)
    labels = torch.from_numpy(np.delete(listing.labels, bad))
    part_of = np.delete(np.repeat(range(len(SPLITS)), [listing.counts[part] for part in SPLITS]), bad)
    ends = np.searchsorted(part_of, range(len(SPLITS)), side="right")
    skipped = set(bad)
    kept = [i for i in range(len(listing.files)) if i not in skipped]
    paths = tuple(listing.files[i].path for i in kept)
    identities = tuple(listing.identities[i] for i in kept)
    parts = {
        part: Examples(
            images[start:end], labels[start:end], paths[start:end], identities[start:end], decoded.digests[start:end]
        )
        for part, start, end in zip(SPLITS, (0, *ends[:-1]), ends, strict=True)
    }
    _check_left(root, listing, parts)
    own_val = parts["val"] if len(parts["val"]) and len(parts["test"]) else None
    digests, digits = decoded.digests.tobytes().hex(), 2 * DIGEST_BYTES
    entries = (ImageEntry(listing.files[i].size, digests[k * digits : (k + 1) * digits]) for k, i in enumerate(kept))
    names = (f"{part}/{identity}" for part, examples in parts.items() for identity in examples.identities)
    return Dataset(
        name=name,
        classes=listing.classes,
        mean=decoded.mean,
        std=decoded.std,
        train=parts["train"],
        val=own_val,
        test=parts["test"] if len(parts["test"]) else parts["val"],
        source=str(root),
        skipped=tuple(printable(listing.files[i].path) for i in bad),
        manifest=Manifest.of(zip(names, entries, strict=True)),
        traits=decoded.traits,
    )


def _advice(name: str, decoded: Decoded, options: LoadOptions, *, everything: bool) -> str:
    """Return what to do about unreadable images; ``everything`` if no image can be read."""
    if name == "folder" and options.value_range == FULL and decoded.traits.value_range() != FULL:
        return "use --value-range auto, or LOW,HIGH with the grey values of black and white"
    return "replace them" if everything else "add --skip-bad-images to leave them out, or replace them"


def _decode(
    name: str, root: Path, listing: Listing, decode: Decode, size: int, options: LoadOptions, rule: str
) -> Decoded:
    """Return the decoded images of a listing; the arguments are those of :func:`decode_listing`."""

    def attempt(path: str, traits: Traits) -> npt.NDArray[np.uint8] | str:
        try:
            return decode(path, traits)
        except UnreadableImage as error:
            return error.reason

    return decode_all(
        # A cache of its own, as it would replace that of a training run on the same folder.
        name if listing.counts["train"] else f"{name}-test",
        root,
        listing.files,
        shape=(3, size, size),
        decode=attempt,
        measured=listing.counts["train"],
        rule=rule,
        observer=options.observer,
    )


def _check_left(root: Path, listing: Listing, parts: dict[str, Examples]) -> None:
    """Raise RequestError if a class of ``train/``, or all of ``val/`` or ``test/``, has no readable images."""
    empty: list[Path | str] = []
    if "train" in listing.folders:
        left = np.bincount(parts["train"].labels.numpy(), minlength=len(listing.classes))
        folder = root / listing.folders["train"]
        lost = [name for name, count in zip(listing.classes, left, strict=True) if not count]
        empty += [folder / name if (folder / name).is_dir() else f"class {name!r}" for name in lost]
    empty += [root / folder for part, folder in listing.folders.items() if not len(parts[part])]
    if empty:
        raise RequestError(
            f"none of the images in {empty[0]} can be read", hint=f"add readable images to {empty[0]}, or remove it"
        )
