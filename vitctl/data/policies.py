"""Policies of automatic augmentation: their operations, strengths and probabilities.

An operation is a name and a signed value. A policy lists every operation that it may draw, and draws indices into that
list for a complete batch; :class:`vitctl.data.augment.Augment` applies them.

Strengths are those of torchvision. Translation is relative to the image's side, up to 150/331 as in AutoAugment's paper,
so it suits small images too. This differs from torchvision only in TrivialAugment, which translates by up to 32 pixels
there: the full width of a CIFAR image. :func:`seed_randaug` has ranges of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

STRENGTHS = 31
"""Number of strengths of RandAugment and TrivialAugment, 0 to 30; "magnitude" in RandAugment's paper."""

TRANSLATE = 150 / 331
"""Largest translation relative to the image's side: 150 of 331 pixels in AutoAugment's paper."""

PLAIN = ("identity", "autocontrast", "equalize", "invert")
"""Operations without a strength."""


class Operation(NamedTuple):
    """An operation on an image.

    Attributes:
        name: name of the operation.
        value: degrees for ``rotate``; a factor for ``shear_x`` and ``shear_y``; pixels for ``translate_x``,
            ``translate_y`` and the side of ``cutout``; a factor for ``brightness``, ``color``, ``contrast`` and
            ``sharpness``, where 1 changes nothing; bits to keep for ``posterize``; the lowest grey level to invert for
            ``solarize``; the value to add for ``solarize_add``; 0 for the others.
    """

    name: str
    value: float = 0.0


class Policy(Protocol):
    """Draws operations.

    Attributes:
        operations: all operations that may be drawn, one per value.
        length: number of operations applied to each image, in sequence.
        before_crop: whether they are applied before crop and flip.
    """

    operations: list[Operation]
    length: int
    before_crop: bool

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return indices into :attr:`operations`, int64 ``[length, count]``, on the CPU."""


@dataclass(frozen=True)
class Range:
    """Values of an operation by strength.

    Attributes:
        name: name of the operation.
        values: magnitude for each strength, or a single one.
        signed: whether the sign is drawn, with probability 1/2.
        middle: value that changes nothing, to which signed magnitudes are added.
    """

    name: str
    values: Sequence[float] = (0.0,)
    signed: bool = False
    middle: float = 0.0

    def value(self, strength: int, negative: bool) -> float:
        """Return the operation's value at a strength."""
        magnitude = self.values[strength if len(self.values) > 1 else 0]
        return self.middle + (-magnitude if self.signed and negative else magnitude)

    def at(self, strength: int) -> Range:
        """Return the range with a single strength."""
        return replace(self, values=self.values[strength : strength + 1] if len(self.values) > 1 else self.values)


class Uniform:
    """Draws operations, strengths and signs uniformly, with replacement.

    Args:
        ranges: the operations.
        length: number of operations applied to each image.
        before_crop: whether they are applied before crop and flip.
    """

    def __init__(self, ranges: Sequence[Range], length: int, before_crop: bool = False) -> None:
        self.length, self.before_crop = length, before_crop
        strengths = max(len(each.values) for each in ranges)
        self.operations: list[Operation] = []
        place: dict[Operation, int] = {}
        table = torch.empty(len(ranges), strengths, 2, dtype=torch.int64)
        for i, each in enumerate(ranges):
            for strength in range(strengths):
                for negative in (False, True):
                    operation = Operation(each.name, each.value(strength, negative))
                    if operation not in place:
                        place[operation] = len(self.operations)
                        self.operations.append(operation)
                    table[i, strength, int(negative)] = place[operation]
        self._strengths = strengths
        self._table = table.flatten()  # [operations * strengths * 2]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(0, len(self._table), (self.length, count), generator=generator)
        return self._table[chosen]


class SubPolicies:
    """Draws one of several sequences of operations; each operation is applied with a probability of its own.

    Args:
        sequences: sequences of (range, strength, probability), all of the same length.
    """

    before_crop = False

    def __init__(self, sequences: Sequence[Sequence[tuple[Range, int, float]]]) -> None:
        self.length = len(sequences[0])
        self.operations = [Operation("identity")]
        table = torch.empty(len(sequences), self.length, 2, dtype=torch.int64)
        self._probability = torch.empty(len(sequences), self.length)
        for i, sequence in enumerate(sequences):
            for j, (each, strength, probability) in enumerate(sequence):
                self._probability[i, j] = probability
                for negative in (False, True):
                    operation = Operation(each.name, each.value(strength, negative))
                    if operation not in self.operations:
                        self.operations.append(operation)
                    table[i, j, int(negative)] = self.operations.index(operation)
        self._table = table  # [sequences, length, 2]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        sequence = torch.randint(0, len(self._table), (count,), generator=generator)
        chances = torch.rand(count, self.length, generator=generator)
        negative = torch.randint(0, 2, (count, self.length), generator=generator)
        drawn = self._table[sequence].gather(2, negative[..., None])[..., 0]  # [count, length]
        return torch.where(chances < self._probability[sequence], drawn, 0).T.contiguous()


def _ranges(
    shape: tuple[int, int], steps: int, *, shear: float, rotate: float, factor: float, bits_lost: int
) -> dict[str, Range]:
    """Return the operations of AutoAugment and its successors, with ``steps`` strengths from none to the largest.

    Args:
        shape: height and width of the images.
        steps: number of strengths.
        shear: largest factor.
        rotate: largest angle, in degrees.
        factor: largest change of brightness, color, contrast and sharpness.
        bits_lost: largest number of bits that posterize drops.
    """

    def up_to(largest: float) -> list[float]:
        return [largest * i / (steps - 1) for i in range(steps)]  # divided last, so that integers stay exact

    height, width = shape
    every = [
        *(Range(name, up_to(shear), signed=True) for name in ("shear_x", "shear_y")),
        Range("translate_x", [float(int(v)) for v in up_to(TRANSLATE * width)], signed=True),
        Range("translate_y", [float(int(v)) for v in up_to(TRANSLATE * height)], signed=True),
        Range("rotate", up_to(rotate), signed=True),
        *(Range(n, up_to(factor), signed=True, middle=1) for n in ("brightness", "color", "contrast", "sharpness")),
        Range("posterize", [8 - round(bits) for bits in up_to(bits_lost)]),
        Range("solarize", up_to(255)[::-1]),
        *map(Range, PLAIN),
    ]
    return {each.name: each for each in every}


_COMMON = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness",
    "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
"""The 14 operations of RandAugment and TrivialAugment."""


def randaug(shape: tuple[int, int], *, n: int, m: int) -> Policy:
    """RandAugment (Cubuk et al. 2020, arXiv 1909.13719) as in torchvision: ``n`` of 14 operations per image.

    At strength 30: shear 0.3, translation 150/331 of the side, rotation 30 degrees, brightness, color, contrast and
    sharpness changed by 0.9, posterize to 4 bits, solarize from 0. Lower strengths are proportional.

    Args:
        shape: height and width of the images.
        n: operations per image.
        m: strength of the operations, 0-30.
    """
    ranges = _ranges(shape, STRENGTHS, shear=0.3, rotate=30, factor=0.9, bits_lost=4)
    return Uniform([ranges[name].at(m) for name in _COMMON], n)


def trivialaug(shape: tuple[int, int]) -> Policy:
    """TrivialAugment "wide" (Müller and Hutter 2021, arXiv 2103.10158): one of 14 operations at one of 31 strengths.

    At the largest: shear 0.99, translation 150/331 of the side, rotation 135 degrees, brightness, color, contrast and
    sharpness changed by 0.99, posterize to 2 bits, solarize from 0.
    """
    ranges = _ranges(shape, STRENGTHS, shear=0.99, rotate=135, factor=0.99, bits_lost=6)
    return Uniform([ranges[name] for name in _COMMON], 1)


_CIFAR = """
invert 0.1 0, contrast 0.2 6; rotate 0.7 2, translate_x 0.3 9; sharpness 0.8 1, sharpness 0.9 3;
shear_y 0.5 8, translate_y 0.7 9; autocontrast 0.5 0, equalize 0.9 0; shear_y 0.2 7, posterize 0.3 7;
color 0.4 3, brightness 0.6 7; sharpness 0.3 9, brightness 0.7 9; equalize 0.6 0, equalize 0.5 0;
contrast 0.6 7, sharpness 0.6 5; color 0.7 7, translate_x 0.5 8; equalize 0.3 0, autocontrast 0.4 0;
translate_y 0.4 3, sharpness 0.2 6; brightness 0.9 6, color 0.2 8; solarize 0.5 2, invert 0 0;
equalize 0.2 0, autocontrast 0.6 0; equalize 0.2 0, equalize 0.6 0; color 0.9 9, equalize 0.6 0;
autocontrast 0.8 0, solarize 0.2 8; brightness 0.1 3, color 0.7 0; solarize 0.4 5, autocontrast 0.9 0;
translate_y 0.9 9, translate_y 0.7 9; autocontrast 0.9 0, solarize 0.8 3; equalize 0.8 0, invert 0.1 0;
translate_y 0.7 9, autocontrast 0.9 0
"""
"""The 25 sub-policies of AutoAugment for CIFAR-10: operation, probability, strength 0-9."""


def autoaug(shape: tuple[int, int]) -> Policy:
    """AutoAugment's policy for CIFAR-10 (Cubuk et al. 2019, arXiv 1805.09501), with the ranges of :func:`randaug`."""
    ranges = _ranges(shape, 10, shear=0.3, rotate=30, factor=0.9, bits_lost=4)
    sequences = []
    for sequence in _CIFAR.split(";"):
        words = [operation.split() for operation in sequence.split(",")]
        sequences.append([(ranges[name], int(strength), float(chance)) for name, chance, strength in words])
    return SubPolicies(sequences)


def seed_randaug(shape: tuple[int, int], *, n: int, m: int) -> Policy:
    """RandAugment as in the original scripts, applied before crop and flip: ``n`` of 16 operations per image.

    An operation's value is ``m`` / 30 of the way through its range in ``_SEED_RANGES``. The ranges were made for images of
    224 pixels, with translation up to 100 pixels and cutout up to 40: at ``m`` = 14, a translation moves a 32-pixel image
    by 46.7 pixels, so that only black remains.

    Args:
        shape: height and width of the images; unused, as the ranges do not depend on it.
        n: operations per image.
        m: strength of the operations, 0-30.
    """
    ranges = []
    for name, low, high in _SEED_RANGES:
        value = m / 30 * (high - low) + low
        if name == "posterize":
            value = max(1, int(value))
        signed = name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
        ranges.append(Range(name, [0.0 if name in PLAIN else value], signed))
    return Uniform(ranges, n, before_crop=True)


_SEED_RANGES: tuple[tuple[str, float, float], ...] = (
    ("autocontrast", 0, 1), ("equalize", 0, 1), ("invert", 0, 1), ("rotate", 0, 30), ("posterize", 0, 4),
    ("solarize", 0, 256), ("solarize_add", 0, 110), ("color", 0.1, 1.9), ("contrast", 0.1, 1.9),
    ("brightness", 0.1, 1.9), ("sharpness", 0.1, 1.9), ("shear_x", 0, 0.3), ("shear_y", 0, 0.3), ("cutout", 0, 40),
    ("translate_x", 0, 100), ("translate_y", 0, 100),
)  # fmt: skip
