"""What a format is: the network with what surrounds it goes in, the bytes of a file come out, and those run again.

Shapes: B batch, C channels, H and W sides of an image, K classes.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitctl.data.batches import Normalize, normalized, scale_and_offset
from vitctl.export.metadata import Metadata
from vitctl.export.request import Form

INPUT, LOGITS, PROBS = "images", "logits", "probs"
"""What input and outputs of an exported file are called."""

EXAMPLE_BATCH = 2
"""Images that a network is traced with; from a single one, the exporters would conclude that there is always one."""

Files = Mapping[str, bytes]
"""What is written, by the ending of its name; the first one is the file that users name."""

_RESIZED_AT_ONCE = 64

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Run = Callable[[Tensor], tuple[Tensor, ...]]
"""Images in a file's own form to logits ``[B, K]``, and probabilities where it gives them."""


class Format(Protocol):
    """A format of :data:`vitctl.export.EXPORTERS`.

    ``open(export(network, record, ...))`` gives back the record, and what computes the network's function of images
    in the form that the record states, for any batch.
    """

    engine: str
    """What runs it, and its version."""

    def export(self, network: Deployed, record: Metadata, *, opset: int) -> dict[str, bytes]:
        """Return the files' bytes.

        Args:
            network: in eval mode, on the CPU.
            record: what the file says of itself.
            opset: of ONNX.

        Raises:
            RunFailed: the format cannot express the network.
        """
        ...

    def open(self, files: Files) -> tuple[Metadata, Run]:
        """Return what the bytes of an export say of themselves, and what runs them.

        It is handed nothing but what :meth:`export` gave in the same process: to load some formats is to run the code
        in them.
        """
        ...


class Deployed(nn.Module):
    """A network with what surrounds it in an exported file: layout, normalisation, probabilities.

    Maps images as ``form`` has them, ``[B, C, H, W]`` or ``[B, H, W, C]``, to logits, float ``[B, K]``, and with
    ``form.softmax`` probabilities, float ``[B, K]``.

    Args:
        model: maps normalised images, float ``[B, C, H, W]``, to logits.
        mean: what its input is normalised with, per channel, of images scaled to 0-1.
        std: likewise.
        form: what goes in and comes out.
        size: H and W.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], form: Form, size: int
    ) -> None:
        super().__init__()
        self.model, self.form, self.size, self.channels = model, form, size, len(mean)
        if form.normalize == "baked":
            scale, offset = scale_and_offset(mean, std, white=255 if form.dtype == "uint8" else 1)
            self.register_buffer("scale", scale)  # [1, C, 1, 1]
            self.register_buffer("offset", offset)  # [1, C, 1, 1]
        self.eval()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the logits ``[B, K]``, and with ``form.softmax`` the probabilities beside them."""
        x = images.permute(0, 3, 1, 2) if self.form.layout == "nhwc" else images  # [B, C, H, W]
        if self.form.normalize == "baked":
            x = normalized(x, self.scale, self.offset)
        logits: Tensor = self.model(x)
        return (logits, logits.softmax(1)) if self.form.softmax else logits

    @property
    def outputs(self) -> list[str]:
        """What the outputs are called."""
        return [LOGITS, PROBS] if self.form.softmax else [LOGITS]

    def example(self) -> Tensor:
        """Return images in the form that goes in."""
        shape = (EXAMPLE_BATCH, self.channels, self.size, self.size)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        x = pixels if self.form.dtype == "uint8" else pixels / 255
        return x.permute(0, 2, 3, 1).contiguous() if self.form.layout == "nhwc" else x  # [B, H, W, C]


def as_input(images: Tensor, record: Metadata) -> Tensor:
    """Return images as a file wants them, by what it says of itself.

    Args:
        images: uint8 ``[B, C, H, W]``, of any size.
        record: of the file.

    Returns:
        ``[B, C, size, size]`` or ``[B, size, size, C]``, of the record's type and range.
    """
    form, size = record.form, record.size
    if form.dtype == "uint8":
        x = resize(images, size)
    elif form.normalize == "baked":
        x = images.float() / 255
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    else:
        x = Normalize(record.mean, record.std, size, torch.device("cpu"))(images)
    return x.permute(0, 2, 3, 1).contiguous() if form.layout == "nhwc" else x  # [B, H, W, C]


def resize(images: Tensor, size: int) -> Tensor:
    """Return uint8 ``[B, C, size, size]`` for uint8 ``[B, C, H, W]``: bilinear, antialiased, rounded."""
    if images.shape[-2:] == (size, size):
        return images
    resized = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    for start in range(0, len(images), _RESIZED_AT_ONCE):  # in float32 they take four times the room, and several of it
        piece = images[start : start + _RESIZED_AT_ONCE]
        x = F.interpolate(piece.float(), (size, size), mode="bilinear", antialias=True)
        resized[start : start + len(piece)] = x.round_().clamp_(0, 255)
    return resized


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch, onnx and onnxruntime tell their own developers away from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def cannot_express(title: str, record: Metadata, error: Exception) -> str:
    """Return the sentence for a network that an exporter gives up on."""
    cause: BaseException = error
    while cause.__cause__ is not None:  # torch's exporter says first how to report it, and last what it was
        cause = cause.__cause__
    return f"{record.net} cannot be written as {title}: {said_of(cause)}"


def said_of(error: BaseException) -> str:
    """Return the first line of what an engine says, without the colours of terminals."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return what a network gave, one tensor or several, as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
