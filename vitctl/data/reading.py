"""How image files of any shape and depth become square 8-bit images, and statistics of the files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vitctl.errors import RequestError

FITS = {
    "crop": "resize the shorter side to size, bilinear with antialiasing, then crop the centre",
    "pad": "resize the longer side to size, bilinear with antialiasing, then pad both ends with black",
    "squeeze": "resize both sides to size, bilinear with antialiasing",
}
"""Values of ``--fit``, and how to make an image of another size ``size`` by ``size`` pixels."""

AUTO, FULL = "auto", "full"
"""Values of ``--value-range`` besides ``LOW,HIGH``: measured on the training images, or the range of the format."""

Range = tuple[float, float]
"""Smallest and largest value."""

DEPTHS = (8, 10, 12, 14, 16)
"""Bits per grey value that cameras and microscopes store in 16."""

FAR_FROM_SQUARE = 1.75
"""Ratio of the sides from which ``--fit crop`` cuts off more than 40 % of an image."""


@dataclass(frozen=True)
class Reading:
    """How image files become square 8-bit images.

    Attributes:
        fit: a key of :data:`FITS`.
        value_range: ``LOW,HIGH`` maps the grey values of 16-bit and float images so that LOW becomes black and HIGH
            white, and clips values beyond. :data:`FULL` maps 0-65535 of integers and 0-1 of floats, and refuses images
            with values beyond.
    """

    fit: str = "crop"
    value_range: str = FULL

    def __str__(self) -> str:
        return f"{self.fit} {self.value_range}"

    @property
    def limits(self) -> Range | None:
        """The value range as numbers, or None for :data:`FULL`."""
        return None if self.value_range == FULL else parse_range(self.value_range)


DEFAULT = Reading()


def parse_range(text: str) -> Range:
    """Return the two numbers of ``LOW,HIGH``.

    Raises:
        RequestError: not two finite numbers in ascending order.
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high or math.isinf(high - low):
        raise RequestError(
            f"--value-range takes {AUTO}, {FULL} or LOW,HIGH, not {text!r}",
            hint="use the grey values of black and white, such as --value-range 0,4095",
        )
    return low, high


def range_text(low: float, high: float) -> str:
    """Return ``LOW,HIGH``, from which :func:`parse_range` returns the same numbers."""
    return ",".join(repr(float(each)).removesuffix(".0") for each in (low, high))


@dataclass
class Traits:
    """Statistics of image files, from before they were made square and 8-bit.

    Attributes:
        images: number of images.
        elongated: number of images with sides of a ratio of at least :data:`FAR_FROM_SQUARE`.
        deep: number of grey images with more than 8 bits.
        integers: smallest and largest value of those with integer values, or None if there are none.
        floats: the same for floating-point values.
    """

    images: int = 0
    elongated: int = 0
    deep: int = 0
    integers: Range | None = None
    floats: Range | None = None

    def note_image(self, width: int, height: int, *, deep: bool) -> None:
        """Count an image.

        Args:
            width: width in pixels.
            height: height in pixels.
            deep: whether it is grey with more than 8 bits.
        """
        self.images += 1
        self.elongated += max(width, height) >= FAR_FROM_SQUARE * min(width, height)
        self.deep += deep

    def note_values(self, low: float, high: float, *, floating: bool) -> None:
        """Widen the range of the floating-point or integer values."""
        if floating:
            self.floats = _joined(self.floats, (low, high))
        else:
            self.integers = _joined(self.integers, (low, high))

    def add(self, other: Traits) -> None:
        """Add the images of ``other``."""
        self.images += other.images
        self.elongated += other.elongated
        self.deep += other.deep
        self.integers = _joined(self.integers, other.integers)
        self.floats = _joined(self.floats, other.floats)

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Traits:
        """Return the traits from the output of :meth:`to_dict`, also after a round trip through JSON.

        Raises:
            TypeError, ValueError: other keys or values.
        """
        ranges = {key: None if values[key] is None else _pair(values[key]) for key in ("integers", "floats")}
        return cls(**{**values, **ranges})

    def value_range(self) -> str:
        """Return the value of ``--value-range`` that suits these images.

        The first of these that applies:

        - :data:`FULL` for images that are mostly 8-bit, or both integers and floats, if it holds all values;
        - the range of 8, 10, 12, 14 or 16 bits for integers, and 0-1 for floats, if it holds all values and these span
          at least an eighth of it; it rarely changes when images are added;
        - the smallest and largest value.
        """
        joined = _joined(self.integers, self.floats)
        if joined is None:  # only 8-bit images, or none could be decoded
            return FULL
        within = _lies_in(self.integers, (0, 65535)) and _lies_in(self.floats, (0, 1))
        if within and (2 * self.deep < self.images or (self.integers and self.floats)):
            return FULL
        low, high = joined
        if within:
            top = 1 if self.floats else next(2**bits - 1 for bits in DEPTHS if high < 2**bits)
            if 8 * (high - low) >= top:
                return FULL if top == 65535 else range_text(0, top)
        return range_text(low, high if high > low else low + 1)


def _joined(one: Range | None, other: Range | None) -> Range | None:
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), max(one[1], other[1])


def _lies_in(values: Range | None, limits: Range) -> bool:
    return values is None or (limits[0] <= values[0] and values[1] <= limits[1])


def _pair(values: Any) -> Range:
    low, high = map(float, values)
    return low, high
