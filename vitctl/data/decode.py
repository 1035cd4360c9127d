"""Decoding of image files of any format to RGB of one size."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from vitctl.errors import RequestError

_REFUSED = ("EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF")
"""Formats that Pillow recognises but does not decode itself; for EPS it would run Ghostscript."""

HEIF_SUFFIXES = frozenset({"heic", "heics", "heif", "heifs", "hif"})
"""Endings of the format of iPhones, which Pillow reads if pillow-heif is installed."""

_SIGNED = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "HEIF")
"""Formats that begin with a signature, so that no other file is taken for one."""

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
        raise UnreadableImage(path, _reason(error, path)) from error


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, UnidentifiedImageError):
        if path.rpartition(".")[2].lower() in HEIF_SUFFIXES - image_suffixes():
            return "a HEIC image, which needs pillow-heif"
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


def is_image(path: str) -> bool:
    """Return whether the content of a file is of a common image format; only its head is read."""
    _formats()
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=[*filter(Image.OPEN.get, _SIGNED)]):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # noqa: BLE001 - as in decode_image
        return False


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return the supported image formats, the common ones first."""
    Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    rest = sorted(set(Image.OPEN) - {"JPEG", "PNG", *_REFUSED})
    return ("JPEG", "PNG", *rest)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the supported formats, without the dot, in lower case."""
    formats = {*_formats(), "MPO"}  # MPO: a JPEG with several frames
    return frozenset(suffix[1:] for suffix, name in Image.registered_extensions().items() if name in formats)
