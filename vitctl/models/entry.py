"""Rows of the table of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vitctl.models.checks import check_common
from vitctl.registry import Entry, Value

TIMM = "timm/"
"""Prefix for names of timm's networks."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A network's result on the CIFAR-10 test set.

    Attributes:
        acc: test accuracy of the last weights, in percent.
        recipe: recipe of the training run.
        epochs: number of epochs, over all training images that the recipe does not hold out.
    """

    acc: float
    recipe: str
    epochs: int


@dataclass(frozen=True, kw_only=True)
class ModelEntry(Entry):
    """A network of the table.

    Attributes:
        fixed: fixed arguments of the target, for rows that share one.
        family: group of related networks, for listings.
        params: number of parameters for 10 classes at :attr:`img_size`.
        mflop: cost of a forward pass of one image at that size, in 10^6 floating-point operations; a multiply-add
            counts as two, and attention products are included.
        tokens: sequence length at that size; 0 for networks without tokens.
        img_size: default image size.
        batchnorm: whether the network has BatchNorm; if so, gradient accumulation would change its statistics.
        channels_last: device types on which channels-last images are faster.
        data_init: ``package.module:attribute`` of a function ``init(model, images)`` that initialises a new network from
            normalised training images, float32 ``[n, C, img_size, img_size]`` on the CPU; empty if there is none. It
            must not use torch's random state.
        bf16: device types on which it trains faster in bf16, as ``python -m tests.measurements.bf16`` finds; there,
            ``--precision auto`` is bf16 if the device has instructions for it.
        weights: timm's name of pretrained weights for the network, or empty.
        pretrained: whether it starts from these weights by default.
        check: checks sizes and options, in addition to :func:`vitctl.models.checks.check_common`.
        paper: publication that describes the network.
        published_acc: CIFAR-10 test accuracy published by the original scripts, in percent.
        measured: vitctl's result; None if there is none, or only a recipe's card has it.
        note: how its figures differ from those of the original scripts, and why.
    """

    fixed: Mapping[str, Value] = field(default_factory=dict)
    family: str
    params: int
    mflop: float
    tokens: int = 0
    img_size: int = 32
    batchnorm: bool = False
    channels_last: tuple[str, ...] = ()
    data_init: str = ""
    bf16: tuple[str, ...] = ()
    weights: str = ""
    pretrained: bool = False
    check: Callable[[str, Mapping[str, Value], int], None] | None = None
    paper: str = ""
    published_acc: float | None = None
    measured: Measured | None = None
    note: str = ""

    def check_size(self, name: str, options: Mapping[str, Value], img_size: int) -> None:
        """Check that the network can be built with these options at this image size.

        Args:
            name: name of the network in messages.
            options: value of every option of the row.
            img_size: height and width of the images, in pixels.

        Raises:
            RequestError: it cannot; the hint names values that work.
        """
        check_common(name, options, img_size)
        if self.check is not None:
            self.check(name, options, img_size)
