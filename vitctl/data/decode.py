"""Decoding of image files of any format to RGB of one size."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import threading
import warnings
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from vitctl.data.reading import DEFAULT, Reading, Traits
from vitctl.errors import RequestError

MAX_PIXELS = 500_000_000
"""Most pixels of an image, in formats that Pillow decodes line by line. One takes up to 4 GB of memory."""

LARGE = 178_956_970
"""Pixels above which images are decoded one at a time and shrunk in bands: Pillow's own limit."""

_BY_LINES = ("BMP", "JPEG", "MPO", "PNG", "PPM", "TIFF")

_BAND_PIXELS = 1 << 22

_one_large_image = threading.Lock()

Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses images of more than twice as many, also within other images
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # long metadata do not make an image unreadable

_REFUSED = ("EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF")
"""Formats that Pillow recognises but does not decode itself; for EPS it would run Ghostscript."""

HEIF_SUFFIXES = frozenset({"heic", "heics", "heif", "heifs", "hif"})
"""Endings of the format of iPhones, which Pillow reads if pillow-heif is installed."""

_SIGNED = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "HEIF")
"""Formats that begin with a signature, by which files without an ending are recognised."""

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


def decode_image(
    source: str | os.PathLike[str] | BinaryIO | Image.Image,
    size: int | None,
    reading: Reading = DEFAULT,
    traits: Traits | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode an image to RGB, uint8 [3, size, size], or [3, H, W] if ``size`` is None.

    The image is set upright by its EXIF orientation, greyscale, palette, CMYK and 16-bit images are converted to 8-bit
    RGB, transparent areas become white, and the first of several frames is used. Then it is resized (bilinear,
    antialiased) by the rule of :data:`~vitctl.data.reading.FITS`; ``crop`` is that of torchvision's ``Resize(size)``
    and ``CenterCrop(size)``.

    Images of more than :data:`LARGE` pixels are first shrunk by a whole factor of at least 2, and otherwise to no less
    than twice the needed size.

    Args:
        source: path, a file opened in binary mode, or an image of Pillow, which is not changed.
        size: side in pixels.
        reading: how the image becomes square and 8-bit.
        traits: counts the image, also if its grey values are outside of ``reading``'s range.

    Raises:
        UnreadableImage: the file is not an image, is damaged, or has more pixels than :data:`MAX_PIXELS`, or than
            :data:`LARGE` if its format is decoded as a whole or ``size`` is None.
    """
    try:
        with _opened(source) as image:
            return _to_array(image, size, reading, traits or Traits())
    except MemoryError:
        raise
    # For damaged files, Pillow's plug-ins raise nearly any exception: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        named = isinstance(source, (str, os.PathLike))
        path = str(source if named else getattr(source, "name", "") or getattr(source, "filename", "") or "in memory")
        raise UnreadableImage(path, _reason(error, path)) from error


def _opened(source: str | os.PathLike[str] | BinaryIO | Image.Image) -> contextlib.AbstractContextManager[Image.Image]:
    if isinstance(source, Image.Image):
        source.load()  # before draft, which would shrink the caller's image
        return contextlib.nullcontext(source)
    return Image.open(source, formats=_formats())


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, UnidentifiedImageError):
        if path.rpartition(".")[2].lower() in HEIF_SUFFIXES - image_suffixes():
            return "a HEIC image, which needs pillow-heif"
        return "not an image"  # Pillow's message repeats the path
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(MAX_PIXELS)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _too_large(pixels: int) -> str:
    return f"too large, with more than {pixels // 1_000_000} megapixels"


def _to_array(image: Image.Image, size: int | None, reading: Reading, traits: Traits) -> npt.NDArray[np.uint8]:
    width, height = image.size
    large = width * height > LARGE
    if large and (size is None or image.format not in _BY_LINES):
        raise ValueError(_too_large(LARGE))
    traits.note_image(width, height, deep=_is_deep(image))
    if size is not None:
        # Decoding a JPEG at 1/2, 1/4 or 1/8 scale, to at least twice the needed size, is several times faster.
        side = max(width, height) if reading.fit == "pad" else min(width, height)
        image.draft(None, (max(1, 2 * size * width // side), max(1, 2 * size * height // side)))
    if large and size is not None:
        with _one_large_image:
            image.load()
            turn = _turn(image)
            still_large = image.width * image.height > LARGE  # a JPEG may have been decoded at a smaller scale
            image = _shrink(image, size, reading, traits) if still_large else _to_rgb(image, reading, traits)
    else:
        image.load()
        turn = _turn(image)
        image = _to_rgb(image, reading, traits)
    if turn is not None:
        image = image.transpose(turn)
    if size is not None:
        image = _FITTING[reading.fit](image, size)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))  # [H, W, 3] -> [3, H, W]


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  (as in decode_image)
        return None  # broken EXIF data do not spoil the image


def _shrink(image: Image.Image, size: int, reading: Reading, traits: Traits) -> Image.Image:
    """Return an image as RGB, with sides divided by a whole number and rounded; its bands take little memory each."""
    side = max(image.size) if reading.fit == "pad" else min(image.size)
    factor = max(2, side // (2 * size))
    width, height = image.width / factor, image.height / factor
    small = Image.new("RGB", (math.ceil(width), math.ceil(height)))
    lines = factor * max(1, _BAND_PIXELS // (factor * image.width))
    for top in range(0, image.height, lines):
        band = image.crop((0, top, image.width, min(top + lines, image.height)))
        small.paste(_to_rgb(band, reading, traits).reduce(factor), (0, top // factor))
    rounded = max(1, round(width)), max(1, round(height))
    return small.resize(rounded, Image.Resampling.BILINEAR, box=(0, 0, width, height))


def _is_deep(image: Image.Image) -> bool:
    """Return whether an image has grey values of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _to_rgb(image: Image.Image, reading: Reading, traits: Traits) -> Image.Image:
    if _is_deep(image):
        return Image.fromarray(_to_8_bit(np.asarray(image), reading, traits)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(grey: npt.NDArray[np.generic], reading: Reading, traits: Traits) -> npt.NDArray[np.uint8]:
    """Scale grey values from the range of ``reading`` to 0-255."""
    values = grey.astype(np.float64)
    floating = np.issubdtype(grey.dtype, np.floating)
    least, most = float(values.min()), float(values.max())
    if not np.isfinite([least, most]).all():  # NaN is the least and the most of all values
        raise ValueError("grey values that are not finite")
    traits.note_values(least, most, floating=floating)
    if reading.limits is not None:
        low, high = reading.limits
        values = values.clip(low, high) - low
    else:
        low, high = 0.0, 1.0 if floating else 65535.0
        if least < low or most > high:
            raise ValueError(f"grey values outside 0-{high:g}: {least:g} to {most:g}")
    return np.rint(values * (255 / (high - low))).astype(np.uint8)


def _crop(image: Image.Image, size: int) -> Image.Image:
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


def _pad(image: Image.Image, size: int) -> Image.Image:
    long = max(image.size)
    width, height = (max(1, round(size * side / long)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    square = Image.new("RGB", (size, size))
    square.paste(image, ((size - width) // 2, (size - height) // 2))
    return square


def _squeeze(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BILINEAR)


_FITTING = {"crop": _crop, "pad": _pad, "squeeze": _squeeze}
"""Functions that make an RGB image square, by the keys of :data:`vitctl.data.reading.FITS`."""


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
