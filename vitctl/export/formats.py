"""The interface of export formats, and the model that they serialise.

Shapes: B images in a batch, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitctl.data.batches import Normalize, normalized, scale_and_offset
from vitctl.errors import RunFailed
from vitctl.export.metadata import Metadata
from vitctl.export.request import Form

INPUT, LOGITS, PROBS = "images", "logits", "probs"
"""Names of the input and outputs of an exported file."""

EXAMPLE_BATCH = 2
"""Batch size for tracing; exporters treat a batch size of 1 as a constant."""

Files = Mapping[str, bytes]
"""Contents of the files of an export by suffix, the main file first."""

_RESIZE_BATCH = 64

_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Run = Callable[[Tensor], tuple[Tensor, ...]]
"""Runs a file: maps images, as :func:`as_input` returns them, to logits ``[B, K]`` and, if exported, probabilities."""


class Format(Protocol):
    """A format of :data:`vitctl.export.EXPORTERS`.

    ``open(export(network, record, ...))`` returns an equal record, and a function that computes what the network does,
    for any batch size.
    """

    engine: str
    """Name and version of the software that runs the file."""

    def export(self, network: Deployed, record: Metadata, *, opset: int) -> dict[str, bytes]:
        """Serialise a network; see :data:`Files`.

        Args:
            network: the network, in eval mode and on the CPU.
            record: metadata to store in the file.
            opset: ONNX opset.

        Raises:
            RunFailed: the format cannot express the network.
        """
        ...

    def open(self, files: Files) -> tuple[Metadata, Run]:
        """Return the metadata of an export, and a function that runs it.

        Pass only the result of :meth:`export` in this process: loading some formats runs code in the file.
        """
        ...


class Deployed(nn.Module):
    """A model with the layout conversion, normalisation and softmax of an exported file.

    Maps images, ``[B, C, H, W]`` or ``[B, H, W, C]`` as in ``form``, to logits, float ``[B, K]``, and with
    ``form.softmax`` also to probabilities, float ``[B, K]``.

    Args:
        model: maps normalised images, float ``[B, C, H, W]``, to logits.
        mean: mean per channel of images scaled to 0-1.
        std: standard deviation per channel.
        form: input and output.
        size: height and width of the images.
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
        """Return the logits ``[B, K]``, or with ``form.softmax`` the logits and probabilities."""
        x = images.permute(0, 3, 1, 2) if self.form.layout == "nhwc" else images  # [B, C, H, W]
        if self.form.normalize == "baked":
            x = normalized(x, self.scale, self.offset)
        logits: Tensor = self.model(x)
        return (logits, logits.softmax(1)) if self.form.softmax else logits

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return [LOGITS, PROBS] if self.form.softmax else [LOGITS]

    def example(self) -> Tensor:
        """Return random images to trace the network with."""
        shape = (EXAMPLE_BATCH, self.channels, self.size, self.size)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        x = pixels if self.form.dtype == "uint8" else pixels / 255
        return x.permute(0, 2, 3, 1).contiguous() if self.form.layout == "nhwc" else x  # [B, H, W, C]


def as_input(images: Tensor, record: Metadata) -> Tensor:
    """Convert images to the input of an exported file.

    Args:
        images: uint8 ``[B, C, H, W]``, of any size.
        record: metadata of the file.

    Returns:
        ``[B, C, size, size]`` or ``[B, size, size, C]``, of the type and range that ``record`` specifies.
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
    """Resize uint8 ``[B, C, H, W]`` to uint8 ``[B, C, size, size]``: bilinear, antialiased, rounded."""
    if images.shape[-2:] == (size, size):
        return images
    resized = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8)
    for start in range(0, len(images), _RESIZE_BATCH):  # float32 needs four times the memory of uint8
        piece = images[start : start + _RESIZE_BATCH]
        x = F.interpolate(piece.float(), (size, size), mode="bilinear", antialias=True)
        resized[start : start + len(piece)] = x.round_().clamp_(0, 255)
    return resized


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and log messages of torch, onnx and onnxruntime, and what onnxscript prints before 0.7."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def cannot_express(title: str, record: Metadata, error: Exception) -> RunFailed:
    """Return the error for a network that an exporter does not support."""
    cause: BaseException = error
    while cause.__cause__ is not None:  # torch's exporter wraps the cause in instructions for reporting it
        cause = cause.__cause__
    return RunFailed(
        f"cannot export {record.net} to {title}: {first_line(cause)}",
        hint="use another --format, such as safetensors",
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without terminal colours."""
    lines = [line.strip() for line in _ANSI_COLOUR.sub("", str(error)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return one or more output tensors as a tuple."""
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
