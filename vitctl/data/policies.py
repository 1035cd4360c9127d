"""Policies of automatic augmentation: which operations there are, how strong, and how they are drawn.

An operation is a name and a value with a sign. A policy lists every operation that it may draw, and draws places in that
list for a whole batch at once; :class:`vitctl.data.augment.Augment` applies them.

Strengths are torchvision's, and every one of them fits a small image, as what is measured in pixels is a share of the
side: the translation reaches 150/331 of it, as in AutoAugment's paper. TrivialAugment alone differs from torchvision, which
moves by up to 32 pixels whatever the image, the whole of one of CIFAR's; here it is 150/331 as well. The ranges of
:func:`seed_randaug` are another matter, see there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

STRENGTHS = 31
"""Strengths from least to greatest that RandAugment and TrivialAugment know: 0 to 30."""

TRANSLATE = 150 / 331
"""Farthest translation as a share of the side: 150 of 331 pixels in AutoAugment's paper."""

PLAIN = ("identity", "autocontrast", "equalize", "invert")
"""Operations without a strength."""


class Operation(NamedTuple):
    """One thing to do to an image.

    Attributes:
        name: of the operation.
        value: how strongly, in its own units: degrees for ``rotate``, a factor for ``shear_x`` and ``shear_y``, pixels for
            ``translate_x`` and ``translate_y`` and for the side of ``cutout``, 1 for no change of ``brightness``,
            ``color``, ``contrast`` and ``sharpness``, bits kept for ``posterize``, the level from which on
            ``solarize`` inverts, the levels that ``solarize_add`` adds; 0 for the others.
    """

    name: str
    value: float = 0.0


class Policy(Protocol):
    """Draws operations.

    Attributes:
        operations: all that may be drawn, each with each of its values.
        length: how many are applied to each image, in turn.
        first: they come before crop and flip.
    """

    operations: list[Operation]
    length: int
    first: bool

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return places in :attr:`operations`, int64 ``[length, count]``, on the CPU."""


@dataclass(frozen=True)
class Range:
    """The strengths of an operation.

    Attributes:
        name: of the operation.
        values: one per strength, or a single one.
        signed: may be taken with either sign, with probability 1/2.
        middle: the value of no change, that signed strengths are counted from.
    """

    name: str
    values: Sequence[float] = (0.0,)
    signed: bool = False
    middle: float = 0.0

    def value(self, strength: int, negative: bool) -> float:
        """Return the operation's value at a strength; the only one, where there is one."""
        magnitude = self.values[strength if len(self.values) > 1 else 0]
        return self.middle + (-magnitude if self.signed and negative else magnitude)

    def at(self, strength: int) -> Range:
        """Return the operation at one strength."""
        return replace(self, values=self.values[strength : strength + 1] if len(self.values) > 1 else self.values)


class Uniform:
    """Operations drawn uniformly and with replacement, at a strength and a sign drawn uniformly.

    Args:
        ranges: the operations.
        length: how many are applied to each image.
        first: they come before crop and flip.
    """

    def __init__(self, ranges: Sequence[Range], length: int, first: bool = False) -> None:
        self.length, self.first = length, first
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
        """See :class:`Policy`."""
        chosen = torch.randint(0, len(self._table), (self.length, count), generator=generator)
        return self._table[chosen]


class SubPolicies:
    """A list of short sequences, of which each image gets one; each of its operations is applied or left out.

    Args:
        sequences: per sequence the operations, each as (range, strength, probability).
    """

    first = False

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
        """See :class:`Policy`."""
        sequence = torch.randint(0, len(self._table), (count,), generator=generator)
        chances = torch.rand(count, self.length, generator=generator)
        negative = torch.randint(0, 2, (count, self.length), generator=generator)
        drawn = self._table[sequence].gather(2, negative[..., None])[..., 0]  # [count, length]
        return torch.where(chances < self._probability[sequence], drawn, 0).T.contiguous()


def _ranges(
    shape: tuple[int, int], steps: int, *, shear: float, rotate: float, factor: float, bits_lost: int
) -> dict[str, Range]:
    """Return the operations of AutoAugment and its successors, at ``steps`` strengths from nothing to the greatest.

    Args:
        shape: height and width of the images.
        steps: how many strengths.
        shear: greatest factor.
        rotate: greatest angle, in degrees.
        factor: greatest change of brightness, color, contrast and sharpness.
        bits_lost: most bits that posterize drops.
    """

    def up_to(greatest: float) -> list[float]:
        return [greatest * i / (steps - 1) for i in range(steps)]  # divided last, so that what is whole stays so

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
    """RandAugment (Cubuk et al. 2020, arXiv 1909.13719) as torchvision has it: 14 operations, ``n`` an image.

    At strength 30: shear 0.3, translation 150/331 of the side, rotation 30 degrees, brightness, color, contrast and
    sharpness changed by 0.9, posterize to 4 bits, solarize from 0. Strength ``m`` is that share of the way.

    Args:
        shape: height and width of the images.
        n: operations per image.
        m: strength of all, 0-30.
    """
    ranges = _ranges(shape, STRENGTHS, shear=0.3, rotate=30, factor=0.9, bits_lost=4)
    return Uniform([ranges[name].at(m) for name in _COMMON], n)


def trivialaug(shape: tuple[int, int]) -> Policy:
    """TrivialAugment "wide" (Müller and Hutter 2021, arXiv 2103.10158): one of 14 operations, at one of 31 strengths.

    The greatest: shear 0.99, translation 150/331 of the side (see above), rotation 135 degrees, brightness, color, contrast
    and sharpness changed by 0.99, posterize to 2 bits, solarize from 0.
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
"""The 25 sub-policies that AutoAugment found on CIFAR-10: operation, probability, strength 0-9."""


def autoaug(shape: tuple[int, int]) -> Policy:
    """AutoAugment's policy for CIFAR-10 (Cubuk et al. 2019, arXiv 1805.09501), with the ranges of :func:`randaug`."""
    ranges = _ranges(shape, 10, shear=0.3, rotate=30, factor=0.9, bits_lost=4)
    sequences = []
    for sequence in _CIFAR.split(";"):
        words = [operation.split() for operation in sequence.split(",")]
        sequences.append([(ranges[name], int(strength), float(chance)) for name, chance, strength in words])
    return SubPolicies(sequences)


def seed_randaug(shape: tuple[int, int], *, n: int, m: int) -> Policy:
    """RandAugment as in the predecessor's scripts, before crop and flip: 16 operations, ``n`` an image.

    Each is as strong as ``m`` thirtieths of the way through its range; see ``_SEED_RANGES``. Translation reaches 100 pixels and
    cutout 40, as the ranges were made for images of 224 pixels: at ``m`` = 14 a translation moves a 32-px image by 46.7 px,
    and leaves nothing of it but black.

    Args:
        shape: height and width of the images; the ranges do not depend on it.
        n: operations per image.
        m: strength of all, 0-30.
    """
    ranges = []
    for name, low, high in _SEED_RANGES:
        value = m / 30 * (high - low) + low
        if name == "posterize":
            value = max(1, int(value))
        signed = name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
        ranges.append(Range(name, [0.0 if name in PLAIN else value], signed))
    return Uniform(ranges, n, first=True)


_SEED_RANGES: tuple[tuple[str, float, float], ...] = (
    ("autocontrast", 0, 1), ("equalize", 0, 1), ("invert", 0, 1), ("rotate", 0, 30), ("posterize", 0, 4),
    ("solarize", 0, 256), ("solarize_add", 0, 110), ("color", 0.1, 1.9), ("contrast", 0.1, 1.9),
    ("brightness", 0.1, 1.9), ("sharpness", 0.1, 1.9), ("shear_x", 0, 0.3), ("shear_y", 0, 0.3), ("cutout", 0, 40),
    ("translate_x", 0, 100), ("translate_y", 0, 100),
)  # fmt: skip
