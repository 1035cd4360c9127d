"""Any folder of images: ``train/`` and ``test/`` (or ``val/``), and in each a folder of images per class."""

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
"""Formats that Pillow recognises without decoding them itself; for EPS it would run Ghostscript on the file."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what sets the image upright."""


class UnreadableImage(RequestError):
    """A file is no image, or a broken one.

    Args:
        path: the file.
        reason: what is wrong with it, in a few words.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read as an image ({reason})")
        self.reason = reason


def load(options: LoadOptions) -> Dataset:
    """Read ``--data-dir``; every image is decoded to ``options.size``, see :func:`decode_image`.

    ``val/`` is what selects where there is ``test/`` too, else it is the test set. Mean and deviation are those of
    ``train/``.

    Raises:
        RequestError: no such folder, no such layout, or images that cannot be read.
        RunFailed: the disk filled up.
    """
    if options.data_dir is None:
        raise RequestError(
            "--dataset folder needs to be told which; give --data-dir DIR, a folder with train/ and test/ in it"
        )
    root = Path(options.data_dir).expanduser()
    listing = list_images(root)
    return decode_listing("folder", root, listing, lambda path: decode_image(path, options.size), options.size, options)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a folder.

    Attributes:
        classes: names of the class folders of ``train/``, sorted.
        files: all images: of train, then val, then test; in each by class, then by path.
        labels: int64 [n], the class of each.
        counts: how many are in train, val and test; 0 for a part that is not there.
    """

    classes: tuple[str, ...]
    files: list[ImageFile]
    labels: npt.NDArray[np.int64]
    counts: dict[str, int]


def list_images(root: Path) -> Listing:
    """Find the images of ``train/``, ``val/`` and ``test/`` in ``root``, without opening them.

    Hidden files, and files whose ending is no image format's, are not looked at.

    Raises:
        RequestError: the folder is not there, or not laid out as it must be.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "is not there"
        raise RequestError(
            f"{root} {what}; name a folder that has train/ and test/ in it, and there a folder per class"
        )
    parts = [part for part in SPLITS if (root / part).is_dir()]
    if "train" not in parts or len(parts) == 1:
        raise RequestError(_no_split(root, parts))
    classes = _class_folders(root, "train")
    if len(classes) < 2:
        found = f"only the class {classes[0]!r}" if classes else "no class folders"
        raise RequestError(f"{root / 'train'} has {found}; it takes two or more, each a folder with its images")
    files: list[ImageFile] = []
    labels: list[int] = []
    counts = dict.fromkeys(SPLITS, 0)
    for part in parts:
        names = classes if part == "train" else _class_folders(root, part)
        if not names:
            raise RequestError(f"{root / part} has no class folders; it takes those of train/, each with its images")
        for name in names:
            if name not in classes:
                raise RequestError(
                    f"{root / part / name} is of a class that train/ does not have; add {root / 'train' / name}, or "
                    f"remove it"
                )
            found_files = _images_in(root, f"{part}/{name}")
            if not found_files:
                raise RequestError(f"{root / part / name} has no images; put some there, or remove the folder")
            files += found_files
            labels += [classes.index(name)] * len(found_files)
            counts[part] += len(found_files)
    return Listing(classes=tuple(classes), files=files, labels=np.array(labels, dtype=np.int64), counts=counts)


def _no_split(root: Path, parts: list[str]) -> str:
    if parts == ["train"]:
        return f"{root} has train/ but neither test/ nor val/; move some images of each class to {root / 'test'}"
    if parts:
        return f"{root} has {' and '.join(f'{part}/' for part in parts)} but no train/; put a folder per class there"
    names = [name for name in _class_folders(root, ".") if _images_in(root, name)]
    if names:
        return (
            f"{root} has class folders ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}) but no split; move "
            f"most images of each class to {root / 'train'}/CLASS and the others to {root / 'test'}/CLASS"
        )
    return f"{root} has no train/ and test/ in it; put a folder of images per class into each"


def _class_folders(root: Path, part: str) -> list[str]:
    with _scan(root / part) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def find_images(root: Path) -> list[Path]:
    """Return the images in and below a folder, by path; hidden files and other endings are not looked at.

    Raises:
        RequestError: a folder cannot be listed.
    """
    return [root / file.path for file in _images_in(root, ".")]


def _images_in(root: Path, folder: str) -> list[ImageFile]:
    """Return the images in and below ``root/folder``, sorted by path."""
    endings = _endings()
    found: list[ImageFile] = []
    seen: set[str] = set()

    def walk(inner: str) -> None:
        place = os.path.realpath(root / inner)
        if place in seen:  # a symbolic link back up
            return
        seen.add(place)
        with _scan(root / inner) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{inner}/{entry.name}"
                if entry.is_dir():
                    walk(path)
                elif entry.name.rpartition(".")[2].lower() in endings:
                    try:
                        if entry.is_file():  # not a pipe
                            info = entry.stat()
                            found.append(ImageFile(path, info.st_size, info.st_mtime_ns))
                            continue
                    except OSError:
                        pass
                    if entry.is_symlink():  # to nowhere: an image all the same, and it will not be readable
                        found.append(ImageFile(path, -1, 0))

    walk(folder)
    return sorted(found)


def _scan(folder: Path) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(folder)
    except OSError as error:
        raise RequestError(f"{folder} cannot be listed ({error.strerror}); make it readable") from error


def decode_listing(
    name: str,
    root: Path,
    listing: Listing,
    decode: Callable[[str], npt.NDArray[np.uint8]],
    size: int,
    options: LoadOptions,
) -> Dataset:
    """Return a listing's images, from the cache where they are there.

    Args:
        name: the data set's name in ``DATASETS``.
        root: where it lies.
        listing: its images.
        decode: path -> uint8 [3, size, size]; raises UnreadableImage.
        size: side of the decoded images in pixels.
        options: what the loader was told.

    Raises:
        RequestError: images that cannot be read, and no ``--skip-bad-images``, or none of a class left without them.
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
            f"{len(bad)} of {len(listing.files)} images cannot be read, the first being "
            f"{root / listing.files[bad[0]].path} ({decoded.bad[bad[0]]}); repair or remove them, or leave them out with "
            f"--skip-bad-images"
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
    """Raise RequestError where a class cannot be trained, or a part cannot be measured, without its bad images."""
    left = np.bincount(parts["train"].labels.numpy(), minlength=len(listing.classes))
    empty = [root / "train" / name for name, count in zip(listing.classes, left, strict=True) if not count]
    empty += [root / part for part in SPLITS[1:] if listing.counts[part] and not len(parts[part])]
    if empty:
        raise RequestError(f"no image of {empty[0]} can be read; put some there that can, or remove the folder")


def decode_image(source: str | os.PathLike[str] | BinaryIO, size: int | None) -> npt.NDArray[np.uint8]:
    """Return an image as the networks see it: uint8 [3, size, size], RGB; with ``size=None`` as big as it is.

    It is set upright (EXIF); grey, palette, CMYK and 16-bit images become 8-bit RGB, what is transparent becomes
    white, and of several frames the first is taken. Then its shorter side is resized to ``size``, bilinear with
    antialiasing, and the middle of the longer one is cut out: the arithmetic of torchvision's ``Resize(size)`` and
    ``CenterCrop(size)``.

    Args:
        source: a path, or a file opened in binary mode.
        size: side in pixels.

    Raises:
        UnreadableImage: no image, a broken one, or one of more pixels than Pillow deems safe.
    """
    try:
        with Image.open(source, formats=_formats()) as image:
            return _to_array(image, size)
    except MemoryError:
        raise
    # Pillow's plug-ins let out whatever a broken file makes them stumble over: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        path = str(source) if isinstance(source, (str, os.PathLike)) else str(getattr(source, "name", "the image"))
        raise UnreadableImage(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"  # Pillow's own sentence repeats the path
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _to_array(image: Image.Image, size: int | None) -> npt.NDArray[np.uint8]:
    if size is not None:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves twice the side needed: several times faster.
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
    """Return grey values of 0..65535, or of 0..1 where they are floating-point, as 0..255."""
    values = grey.astype(np.float64)
    scale = 255.0 if np.issubdtype(grey.dtype, np.floating) else 255 / 65535
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() * scale <= 255):
        raise ValueError(f"grey values beyond {'0..1' if scale == 255.0 else '16 bits'}")
    return np.rint(values * scale).astype(np.uint8)


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if long > 16 * short:
        # A thread-like image, enlarged whole, could take gigabytes for a middle that is all that is kept.
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
    """Return the image formats that are read, the common ones first."""
    Image.init()
    rest = sorted(set(Image.OPEN) - {"JPEG", "PNG", *_REFUSED})
    return ("JPEG", "PNG", *rest)


@functools.cache
def _endings() -> frozenset[str]:
    """Return the file name endings of those formats, without the dot, in lower case."""
    formats = {*_formats(), "MPO"}  # MPO: a JPEG of several frames
    return frozenset(ending[1:] for ending, name in Image.registered_extensions().items() if name in formats)
