"""Settings of ``vitctl export``, checked before torch is imported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from vitctl.errors import RequestError
from vitctl.export import EXPORTERS, OPSETS, QUANTIZERS
from vitctl.files import folder_error
from vitctl.registry import check_range, lookup, or_list, unknown

TOLERANCE = 1e-4
"""Largest absolute difference allowed between a logit of a float32 file and the model's."""

MAX_DROP = 1.0
"""Largest loss of held-out accuracy allowed in quantization, in percentage points."""

VERIFY_ON = 1000
"""Number of test images on which a file is compared with the model."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """Input and output of an exported file.

    Attributes:
        normalize: ``baked`` if the file normalises its input, ``none`` if the caller does.
        dtype: input type: ``float32`` (0-1 if normalisation is baked in) or ``uint8`` (0-255).
        layout: ``nchw`` or ``nhwc``.
        softmax: whether probabilities are a second output.
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
                "--input uint8 conflicts with --normalize none: normalised images are not integers",
                hint="use --normalize baked or --input float32",
            )

    @property
    def values(self) -> str:
        """Range of the input: ``0-1``, ``0-255`` or ``normalised``."""
        if self.normalize == "none":
            return "normalised"
        return "0-255" if self.dtype == "uint8" else "0-1"


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """Settings of an export.

    Attributes:
        path: a checkpoint or a run's folder.
        weights: which checkpoint of a run's folder: ``last`` or ``best``.
        formats: names of :data:`vitctl.export.EXPORTERS`.
        output: file or folder to write to; None for the checkpoint's folder.
        form: input and output, for all formats that store more than weights.
        opset: ONNX opset.
        quantize: names of :data:`vitctl.export.QUANTIZERS`.
        max_drop: largest loss of held-out accuracy allowed in quantization, in percentage points.
        allow_drop: write quantized files that lose more, too.
        verify: compare each file with the model.
        verify_on: number of test images to compare on; None for all.
        tolerance: largest absolute difference allowed between logits.
        dataset: data set to verify and quantize on; None for that of training.
        data_dir: folder of the data; None for that of training.

    Raises:
        RequestError: unknown name, value out of range, conflicting settings, or an output path that cannot be written.
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
        check_range(self.opset, "--opset", low=OPSETS[0], high=OPSETS[-1])
        if not 0 <= self.max_drop <= 100:
            raise RequestError(
                f"--max-drop {self.max_drop:g} is out of range", hint="use --max-drop with a number from 0 to 100"
            )
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise RequestError(
                f"--tolerance {self.tolerance:g} is not a positive number", hint=f"use --tolerance {TOLERANCE:g}"
            )
        if self.quantize and "onnx" not in self.formats:
            raise RequestError(
                f"--quantize {self.quantize[0]} applies only to ONNX files",
                hint="add --format onnx, or remove --quantize",
            )
        if self.output is not None:
            check_output(self.output, self.formats)


def check_output(output: Path, formats: tuple[str, ...]) -> None:
    """Refuse an ``--output`` to which ``formats`` cannot be written.

    Raises:
        RequestError: a missing or read-only folder, a file for several formats, or the suffix of another format.
    """
    if len(set(formats)) > 1 and not output.is_dir():
        what = "is a file" if output.exists() else "does not exist"
        folder = output.with_suffix("") if output.suffix else output
        hint = (
            f"create a folder, mkdir -p {quote(str(folder))}, and use --output {quote(str(folder))}"
            if output.suffix
            else f"create it: mkdir -p {quote(str(output))}"
        )
        hint = "use --output with a folder" if folder.is_file() else hint
        raise RequestError(f"several formats need a folder, and --output {output} {what}", hint=hint)
    if not output.is_dir():
        suffixes = EXPORTERS[formats[0]].suffixes
        if output.suffix.lower() not in suffixes:
            hint = f"use --output {output.with_suffix(suffixes[0])}"
            if not output.suffix and not output.exists():
                hint += f", or create the folder: mkdir -p {output}"
            raise RequestError(
                f"--output {output} must end in {or_list(suffixes)} for --format {formats[0]}", hint=hint
            )
    folder = output if output.is_dir() else output.absolute().parent
    if not folder.is_dir():
        raise RequestError(f"--output {output}: no such folder: {folder}", hint=f"create it: mkdir -p {folder}")
    if reason := folder_error(folder):
        raise RequestError(
            f"cannot write --output {output}: {reason}", hint="use --output with a path in another folder"
        )


def refuse_unused_flags(
    formats: tuple[str, ...], given: Mapping[str, object], *, verify: bool, quantize: tuple[str, ...]
) -> None:
    """Refuse flags that have no effect.

    Args:
        formats: values of ``--format``.
        given: values by flag; None for flags that were not given.
        verify: False for ``--no-verify``.
        quantize: values of ``--quantize``.

    Raises:
        RequestError: a flag has no effect.
    """
    weights_only = all(name in EXPORTERS and EXPORTERS[name].weights_only for name in formats)
    idle = {
        "--opset": None if "onnx" in formats else "without --format onnx",
        **dict.fromkeys(
            ("--normalize", "--input", "--layout", "--softmax"),
            f"with --format {formats[0]}, which stores only weights" if weights_only else None,
        ),
        **dict.fromkeys(("--verify-on", "--tolerance"), None if verify else "with --no-verify"),
        **dict.fromkeys(("--dataset", "--data-dir"), None if verify or quantize else "with --no-verify"),
        **dict.fromkeys(("--max-drop", "--allow-drop"), None if quantize else "without --quantize"),
    }
    for flag, value in given.items():
        reason = idle.get(flag)
        if value is not None and reason is not None:
            typed = flag if value is True else f"{flag} {value}"
            raise RequestError(f"{typed} does nothing {reason}", hint=f"remove {flag}")


def parse_verify_on(text: str) -> int | None:
    """Return the number of images; None for ``all``.

    Raises:
        RequestError: not a positive integer or ``all``.
    """
    if text.strip().lower() == "all":
        return None
    if text.strip().isascii() and text.strip().isdigit() and int(text) > 0:
        return int(text)
    raise RequestError(
        f"--verify-on takes a number of images or all, not {text!r}",
        hint=f"use --verify-on {VERIFY_ON} or --verify-on all",
    )
