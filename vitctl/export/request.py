"""What ``vitctl export`` is asked for, checked before torch is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vitctl.errors import RequestError
from vitctl.export import EXPORTERS, OPSETS, QUANTIZERS
from vitctl.files import folder_error
from vitctl.registry import lookup, unknown

TOLERANCE = 1e-4
"""The greatest absolute difference that a logit of a float32 file may have from the network's."""

MAX_DROP = 1.0
"""Points of held-out accuracy that quantization may cost."""

VERIFY_ON = 1000
"""Test images that a file is compared on."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What an exported file takes and gives; the defaults are what most programs expect.

    Attributes:
        normalize: ``baked``: mean and deviation are inside the file; ``none``: the caller normalises.
        dtype: of the images: ``float32`` (0-1 where normalisation is baked in) or ``uint8`` (0-255).
        layout: ``nchw`` or ``nhwc``.
        softmax: there is a second output, the probabilities.
    """

    normalize: str = "baked"
    dtype: str = "float32"
    layout: str = "nchw"
    softmax: bool = False

    def __post_init__(self) -> None:
        for flag, value, choices in (
            ("--normalize", self.normalize, ("baked", "none")),
            ("--input", self.dtype, ("float32", "uint8")),
            ("--layout", self.layout, ("nchw", "nhwc")),
        ):
            if value not in choices:
                raise unknown(flag, value, choices)
        if self.normalize == "none" and self.dtype == "uint8":
            raise RequestError(
                "--input uint8 does not go with --normalize none, as normalised images are no whole numbers; take "
                "--normalize baked, or --input float32"
            )

    @property
    def values(self) -> str:
        """What the images' values are: ``0-1``, ``0-255`` or ``normalised``."""
        if self.normalize == "none":
            return "normalised"
        return "0-255" if self.dtype == "uint8" else "0-1"


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export, into which files, and how to check them.

    Attributes:
        path: a checkpoint, or a run's folder.
        weights: of a run's folder, ``last`` or ``best``.
        formats: names of :data:`vitctl.export.EXPORTERS`.
        output: a file, or a folder; None is beside the checkpoint.
        form: of what all formats but the bare ones take and give.
        opset: of the ONNX file.
        quantize: names of :data:`vitctl.export.QUANTIZERS`.
        max_drop: points of held-out accuracy that quantization may cost.
        allow_drop: write a file that lost more all the same.
        verify: compare each file with the network.
        verify_on: on that many test images; None on all.
        tolerance: how far a logit may be off, in absolute terms.
        dataset: where images come from; None is what the network was trained on.
        data_dir: where they lie; None is as in training.

    Raises:
        RequestError: an unknown name, or a combination in which something would do nothing.
    """

    path: Path
    weights: str = "last"
    formats: tuple[str, ...] = ("onnx",)
    output: Path | None = None
    form: Form = field(default_factory=Form)
    opset: int = OPSETS[0]
    quantize: tuple[str, ...] = ()
    max_drop: float = MAX_DROP
    allow_drop: bool = False
    verify: bool = True
    verify_on: int | None = VERIFY_ON
    tolerance: float = TOLERANCE
    dataset: str | None = None
    data_dir: str | None = None

    def __post_init__(self) -> None:
        if self.weights not in ("last", "best"):
            raise unknown("--weights", self.weights, ("last", "best"))
        for name in self.formats:
            lookup(EXPORTERS, name, "--format")
        for name in self.quantize:
            lookup(QUANTIZERS, name, "--quantize")
        if self.opset not in OPSETS:
            raise RequestError(
                f"--opset {self.opset} is not among those that torch's exporter writes, {OPSETS[0]} to {OPSETS[-1]}"
            )
        if not 0 <= self.max_drop <= 100:
            raise RequestError(f"--max-drop {self.max_drop:g} is no number of points from 0 to 100")
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise RequestError(f"--tolerance {self.tolerance:g} is no number above 0")
        if self.quantize and "onnx" not in self.formats:
            raise RequestError(f"--quantize {self.quantize[0]} applies to ONNX files; add --format onnx")
        if self.output is not None:
            check_output(self.output, self.formats)


def check_output(output: Path, formats: tuple[str, ...]) -> None:
    """Refuse an ``--output`` that the files of ``formats`` cannot be written to.

    Raises:
        RequestError: a folder is not there or cannot be written, or a file's name ends in what is another format's.
    """
    if len(set(formats)) > 1 and not output.is_dir():
        what = "is a file" if output.exists() else "is not there"
        raise RequestError(f"--output {output} {what}; several formats go into a folder that exists")
    if not output.is_dir():
        suffixes = EXPORTERS[formats[0]].suffixes
        if output.suffix.lower() not in suffixes:
            raise RequestError(
                f"--output {output}: the name of a file of --format {formats[0]} ends in {' or '.join(suffixes)}"
                f"{'' if output.suffix else f', or name a folder that exists; {output} is not there'}"
            )
    folder = output if output.is_dir() else output.absolute().parent
    if not folder.is_dir():
        raise RequestError(f"--output {output}: the folder {folder} is not there; make it first")
    if reason := folder_error(folder):
        raise RequestError(f"--output {output}: the folder {folder} cannot be written: {reason}")


def refuse_idle_flags(
    formats: tuple[str, ...], given: Mapping[str, object], *, verify: bool, quantize: tuple[str, ...]
) -> None:
    """Refuse flags that would do nothing.

    Args:
        formats: asked for.
        given: values by flag, None where it was not given.
        verify: files are compared with the network.
        quantize: smaller files asked for.

    Raises:
        RequestError: one of them would do nothing.
    """
    bare = all(name in EXPORTERS and EXPORTERS[name].bare for name in formats)
    idle = {
        "--opset": None if "onnx" in formats else "only ONNX files have an operator set",
        **dict.fromkeys(
            ("--normalize", "--input", "--layout", "--softmax"),
            f"{formats[0]} holds the bare weights, which have neither input nor output" if bare else None,
        ),
        **dict.fromkeys(("--verify-on", "--tolerance"), None if verify else "--no-verify compares nothing"),
        **dict.fromkeys(("--dataset", "--data-dir"), None if verify or quantize else "--no-verify looks at no images"),
        **dict.fromkeys(
            ("--max-drop", "--allow-drop"), None if quantize else "nothing is quantized without --quantize"
        ),
    }
    for flag, value in given.items():
        reason = idle.get(flag)
        if value is not None and reason is not None:
            raise RequestError(f"{flag} would do nothing, as {reason}; leave it out")


def parse_verify_on(text: str) -> int | None:
    """Return the number of images, None for ``all``.

    Raises:
        RequestError: neither a number above 0 nor ``all``.
    """
    if text.strip().lower() == "all":
        return None
    if text.strip().isascii() and text.strip().isdigit() and int(text) > 0:
        return int(text)
    raise RequestError(f"--verify-on takes a number of images or all, not {text!r}")
