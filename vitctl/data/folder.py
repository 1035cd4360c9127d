"""Image folders: ``train/`` and ``test/`` or ``val/``, each with one folder of images per class."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, UnidentifiedImageError

from vitctl.data.cache import ImageFile, decode_all
from vitctl.data.dataset import Dataset, Examples, LoadOptions
from vitctl.errors import RequestError

SPLITS = ("train", "val", "test")

_REFUSED = ("EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF")
"""Formats that Pillow recognises but does not decode itself; for EPS it would run Ghostscript."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that sets an image upright, by EXIF orientation."""


class UnreadableImage(RequestError):
    """A file is not an image, or is damaged.

    Args:
        path: the file.
        reason: the reason, as a clause.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"cannot read the image {path}: {reason}", hint="use another file, such as a JPEG or PNG image"
        )
        self.reason = reason


def cannot_read(path: Path, error: OSError) -> RequestError:
    """Return the error for a file or folder that cannot be read."""
    return RequestError(f"cannot read {path}: {error.strerror}", hint=f"make it readable: chmod -R u+rX {path}")


def load(options: LoadOptions) -> Dataset:
    """Read the images of ``--data-dir``, decoded to ``options.size``; see :func:`decode_image`.

    ``val/`` is the validation set if ``test/`` exists, and otherwise the test set. Mean and standard deviation are those
    of ``train/``.

    Raises:
        RequestError: the folder is missing or has the wrong layout, or an image cannot be read.
        RunFailed: the disk filled up.
    """
    if options.data_dir is None:
        raise RequestError(
            "--dataset folder needs --data-dir", hint="add --data-dir DIR, a folder with train/CLASS/ and test/CLASS/"
        )
    root = Path(options.data_dir).expanduser()
    listing = list_images(root)
    return decode_listing("folder", root, listing, lambda path: decode_image(path, options.size), options.size, options)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a folder.

    Attributes:
        classes: names of the class folders in ``train/``, sorted.
        files: all images, ordered by split (train, val, test), class and path.
        labels: int64 [n], the class of each image.
        counts: number of images per split; 0 for a missing one.
    """

    classes: tuple[str, ...]
    files: list[ImageFile]
    labels: npt.NDArray[np.int64]
    counts: dict[str, int]


def list_images(root: Path) -> Listing:
    """Find the images of ``train/``, ``val/`` and ``test/`` in ``root``, without opening them.

    Hidden files and files without the suffix of an image format are ignored.

    Raises:
        RequestError: the folder is missing or has the wrong layout.
    """
    if not root.is_dir():
        raise RequestError(
            f"--data-dir {root} {'is a file, not a folder' if root.exists() else 'not found'}",
            hint="use --data-dir with a folder that has train/CLASS/ and test/CLASS/",
        )
    parts = [part for part in SPLITS if (root / part).is_dir()]
    if "train" not in parts or len(parts) == 1:
        raise _no_split(root, parts)
    classes = _class_folders(root, "train")
    if len(classes) < 2:
        found = f"only one class folder, {classes[0]!r}" if classes else "no class folders"
        raise RequestError(
            f"{root / 'train'} has {found}",
            hint=f"move the images of each class to {root / 'train'}/CLASS, for two or more classes",
        )
    files: list[ImageFile] = []
    labels: list[int] = []
    counts = dict.fromkeys(SPLITS, 0)
    for part in parts:
        names = classes if part == "train" else _class_folders(root, part)
        if not names:
            raise RequestError(
                f"{root / part} has no class folders",
                hint=f"move some images of each class in train/ to {root / part}/CLASS",
            )
        for name in names:
            if name not in classes:
                raise RequestError(
                    f"{root / part / name} is not a class of train/",
                    hint=f"add training images in {root / 'train' / name}, or remove {root / part / name}",
                )
            found_files = _images_in(root, f"{part}/{name}")
            if not found_files:
                raise RequestError(
                    f"{root / part / name} has no images", hint=f"add images to {root / part / name}, or remove it"
                )
            files += found_files
            labels += [classes.index(name)] * len(found_files)
            counts[part] += len(found_files)
    return Listing(classes=tuple(classes), files=files, labels=np.array(labels, dtype=np.int64), counts=counts)


def _no_split(root: Path, parts: list[str]) -> RequestError:
    train, test = f"{root / 'train'}/CLASS", f"{root / 'test'}/CLASS"
    if parts == ["train"]:
        return RequestError(
            f"{root} has train/ but neither test/ nor val/", hint=f"move some images of each class to {test}"
        )
    if parts:
        return RequestError(
            f"{root} has {' and '.join(f'{part}/' for part in parts)} but no train/",
            hint=f"move the training images of each class to {train}",
        )
    names = [name for name in _class_folders(root, ".") if _images_in(root, name)]
    if names:
        return RequestError(
            f"{root} has class folders ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) but no train/ and test/",
            hint=f"move most images of each class to {train} and the others to {test}",
        )
    return RequestError(f"{root} has no train/ and test/", hint=f"move the images of each class to {train} and {test}")


def _class_folders(root: Path, part: str) -> list[str]:
    with _scan(root / part) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def find_images(root: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted by path, without hidden files.

    Raises:
        RequestError: a folder cannot be read.
    """
    return [root / file.path for file in _images_in(root, ".")]


def _images_in(root: Path, folder: str) -> list[ImageFile]:
    """Return the images in ``root/folder`` and its subfolders, sorted by path."""
    suffixes = _suffixes()
    found: list[ImageFile] = []
    seen: set[str] = set()

    def walk(inner: str) -> None:
        place = os.path.realpath(root / inner)
        if place in seen:  # a cycle of symbolic links
            return
        seen.add(place)
        with _scan(root / inner) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{inner}/{entry.name}"
                if entry.is_dir():
                    walk(path)
                elif entry.name.rpartition(".")[2].lower() in suffixes:
                    try:
                        if entry.is_file():  # not a FIFO
                            info = entry.stat()
                            found.append(ImageFile(path, info.st_size, info.st_mtime_ns))
                            continue
                    except OSError:
                        pass
                    if entry.is_symlink():  # a broken link counts as an unreadable image
                        found.append(ImageFile(path, -1, 0))

    walk(folder)
    return sorted(found)


def _scan(folder: Path) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(folder)
    except OSError as error:
        raise cannot_read(folder, error) from error


def decode_listing(
    name: str,
    root: Path,
    listing: Listing,
    decode: Callable[[str], npt.NDArray[np.uint8]],
    size: int,
    options: LoadOptions,
) -> Dataset:
    """Return the data set of a listing, with images from the cache or decoded.

    Args:
        name: key in ``DATASETS``.
        root: folder of the data set.
        listing: its images.
        decode: decodes a path to uint8 [3, size, size], or raises :class:`UnreadableImage`.
        size: side of the decoded images in pixels.
        options: options of the loader.

    Raises:
        RequestError: images cannot be read without ``--skip-bad-images``, or all images of a class cannot be read.
        RunFailed: the disk filled up.
    """

    def attempt(path: str) -> npt.NDArray[np.uint8] | str:
        try:
            return decode(path)
        except UnreadableImage as error:
            return error.reason

    decoded = decode_all(
        name,
        root,
        listing.files,
        shape=(3, size, size),
        decode=attempt,
        measured=listing.counts["train"],
        observer=options.observer,
    )
    bad = list(decoded.bad)
    if bad and not options.skip_bad_images:
        raise RequestError(
            f"cannot read {len(bad)} of {len(listing.files)} images, such as {root / listing.files[bad[0]].path}: "
            f"{decoded.bad[bad[0]]}",
            hint="add --skip-bad-images to leave them out, or replace them",
        )
    images = torch.from_numpy(decoded.images)
    labels = torch.from_numpy(np.delete(listing.labels, bad))
    part_of = np.delete(np.repeat(range(len(SPLITS)), [listing.counts[part] for part in SPLITS]), bad)
    ends = np.searchsorted(part_of, range(len(SPLITS)), side="right")
    parts = {
        part: Examples(images[start:end], labels[start:end])
        for part, start, end in zip(SPLITS, (0, *ends[:-1]), ends, strict=True)
    }
    _check_left(root, listing, parts)
    own_val = parts["val"] if len(parts["val"]) and len(parts["test"]) else None
    return Dataset(
        name=name,
        classes=listing.classes,
        mean=decoded.mean,
        std=decoded.std,
        train=parts["train"],
        val=own_val,
        test=parts["test"] if len(parts["test"]) else parts["val"],
        source=str(root),
        skipped=tuple(listing.files[i].path for i in bad),
    )


def _check_left(root: Path, listing: Listing, parts: dict[str, Examples]) -> None:
    """Raise RequestError if a class of ``train/``, or all of ``val/`` or ``test/``, has no readable images."""
    left = np.bincount(parts["train"].labels.numpy(), minlength=len(listing.classes))
    empty = [root / "train" / name for name, count in zip(listing.classes, left, strict=True) if not count]
    empty += [root / part for part in SPLITS[1:] if listing.counts[part] and not len(parts[part])]
    if empty:
        raise RequestError(
            f"none of the images in {empty[0]} can be read", hint=f"add readable images to {empty[0]}, or remove it"
        )


def decode_image(source: str | os.PathLike[str] | BinaryIO, size: int | None) -> npt.NDArray[np.uint8]:
    """Decode an image to RGB, uint8 [3, size, size], or [3, H, W] if ``size`` is None.

    The image is set upright by its EXIF orientation, greyscale, palette, CMYK and 16-bit images are converted to 8-bit
    RGB, transparent areas become white, and the first of several frames is used. Then the shorter side is resized to
    ``size`` (bilinear, antialiased) and the longer side is cropped to its centre, as by torchvision's ``Resize(size)``
    and ``CenterCrop(size)``.

    Args:
        source: path, or a file opened in binary mode.
        size: side in pixels.

    Raises:
        UnreadableImage: the file is not an image, is damaged, or has more pixels than Pillow's safety limit.
    """
    try:
        with Image.open(source, formats=_formats()) as image:
            return _to_array(image, size)
    except MemoryError:
        raise
    # For damaged files, Pillow's plug-ins raise nearly any exception: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        path = str(source) if isinstance(source, (str, os.PathLike)) else str(getattr(source, "name", "the image"))
        raise UnreadableImage(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"  # Pillow's message repeats the path
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _to_array(image: Image.Image, size: int | None) -> npt.NDArray[np.uint8]:
    if size is not None:
        # Decoding a JPEG at 1/2, 1/4 or 1/8 scale, to at least twice the needed size, is several times faster.
        short = min(image.size)
        image.draft(None, (max(1, 2 * size * image.width // short), max(1, 2 * size * image.height // short)))
    image.load()
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    image = _to_rgb(image)
    if turn is not None:
        image = image.transpose(turn)
    if size is not None:
        image = _resize_and_crop(image, size)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))  # [H, W, 3] -> [3, H, W]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(grey: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Scale integer grey values of 0-65535, or floating-point ones of 0-1, to 0-255."""
    values = grey.astype(np.float64)
    scale = 255.0 if np.issubdtype(grey.dtype, np.floating) else 255 / 65535
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() * scale <= 255):
        raise ValueError(f"grey values outside {'0-1' if scale == 255.0 else '0-65535'}")
    return np.rint(values * scale).astype(np.uint8)


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if long > 16 * short:
        # Cropped before resizing: a very thin image could take gigabytes otherwise.
        keep = 8 * short + (long - 8 * short) % 2
        before = (long - keep) // 2
        image = image.crop((before, 0, before + keep, height) if width > height else (0, before, width, before + keep))
        (width, height), long = image.size, keep
    scaled = int(size * long / short)
    image = image.resize((scaled, size) if width > height else (size, scaled), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the supported image formats, the common ones first."""
    Image.init()
    rest = sorted(set(Image.OPEN) - {"JPEG", "PNG", *_REFUSED})
    return ("JPEG", "PNG", *rest)


@functools.cache
def _suffixes() -> frozenset[str]:
    """Return the suffixes of the supported formats, without the dot, in lower case."""
    formats = {*_formats(), "MPO"}  # MPO: a JPEG with several frames
    return frozenset(suffix[1:] for suffix, name in Image.registered_extensions().items() if name in formats)
