"""Rows of the table of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vitctl.models.checks import check_common
from vitctl.registry import Entry, Value

TIMM = "timm/"
"""Prefix of the names of timm's networks."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What vitctl reached with a network on the CIFAR-10 test set.

    Attributes:
        acc: test accuracy of the last weights, in percent.
        recipe: what it was trained with.
        epochs: for how long, over all training images that the recipe does not hold out.
    """

    acc: float
    recipe: str
    epochs: int


@dataclass(frozen=True, kw_only=True)
class ModelEntry(Entry):
    """A network of the table.

    Attributes:
        fixed: arguments of the function that tell this row from others of the same function; no options.
        family: what it is kin to, for listings.
        params: parameters at 10 classes and :attr:`img_size`, in all.
        mflop: one forward pass of one image of that size; a multiply-add counts as two, attention products included.
        tokens: length of the sequence at that size, 0 for networks without one.
        img_size: the image size to use when nobody asks for another.
        batchnorm: a batch must not be cut into pieces, as the statistics would change.
        channels_last: types of devices on which it is faster when images come with their channels innermost.
        weights: timm's name of pretrained weights for it, or empty where there are none.
        pretrained: it starts from them unless ``--pretrained`` says otherwise.
        check: refuses sizes and options that it cannot take, beyond what holds for every network.
        paper: where it was described.
        published_acc: what the predecessor published for CIFAR-10, in percent.
        measured: what vitctl reached; None where nobody measured, or recipes have a card of it.
        note: how its figures differ from those of the predecessor, and why.
    """

    fixed: Mapping[str, Value] = field(default_factory=dict)
    family: str
    params: int
    mflop: float
    tokens: int = 0
    img_size: int = 32
    batchnorm: bool = False
    channels_last: tuple[str, ...] = ()
    weights: str = ""
    pretrained: bool = False
    check: Callable[[str, Mapping[str, Value], int], None] | None = None
    paper: str = ""
    published_acc: float | None = None
    measured: Measured | None = None
    note: str = ""

    def check_size(self, name: str, options: Mapping[str, Value], img_size: int) -> None:
        """Refuse an image size that the network cannot take, and options that do not go together.

        Args:
            name: what the network is called.
            options: every option of its row, resolved.
            img_size: side of the square images, in pixels.

        Raises:
            RequestError: the message names what would do.
        """
        check_common(name, options, img_size)
        if self.check is not None:
            self.check(name, options, img_size)
