"""Inference with ONNX files in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from vitctl.errors import RequestError, RunFailed
from vitctl.export.formats import INPUT, LOGITS, PROBS, Run, as_input
from vitctl.export.metadata import EXPORT_AGAIN, Metadata
from vitctl.inference.classifier import Classifier

ENGINE = f"onnxruntime {onnxruntime.__version__}"

BATCH = 64
"""Batch size."""

_ERRORS_ONLY = 3


def open_session(model: bytes | str) -> onnxruntime.InferenceSession:
    """Open a serialised model, or the file of that path, on the CPU with as many threads as torch uses."""
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def runner(session: onnxruntime.InferenceSession) -> Run:
    """Return a function that runs a session."""
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(array) for array in session.run(names, {INPUT: images.numpy()}))

    return run


def open_onnx(path: Path) -> Classifier:
    """Open an ONNX file that ``vitctl export`` wrote.

    Raises:
        RequestError: the file is missing, damaged, not an ONNX file, or not written by vitctl.
    """
    if not path.is_file():
        raise RequestError(
            f"{path} {'is not a file' if path.exists() else 'not found'}",
            hint="use the path of a file that vitctl export wrote",
        )
    try:
        session = open_session(str(path))
        texts = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's exception classes have no common base
        raise RequestError(f"{path} is damaged or not an ONNX file: {_first_line(error)}", hint=EXPORT_AGAIN) from error
    record = Metadata.from_strings(texts, str(path))
    inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
    sides = [record.size, record.size]
    image = [record.channels, *sides] if record.form.layout == "nchw" else [*sides, record.channels]
    if (
        [entry.name for entry in inputs] != [INPUT]
        or list(inputs[0].shape[1:]) != image
        or inputs[0].type != {"uint8": "tensor(uint8)", "float32": "tensor(float)"}[record.form.dtype]
        or outputs != [LOGITS, *([PROBS] if record.form.softmax else [])]
    ):
        raise RequestError(f"{path} is damaged: its input and outputs do not match its metadata", hint=EXPORT_AGAIN)
    run = runner(session)

    def logits(images: Tensor) -> Tensor:
        try:
            values = run(as_input(images, record))[0].float()
        except Exception as error:
            raise RunFailed(f"{path} failed on {len(images)} images: {_first_line(error)}") from error
        if values.shape != (len(images), len(record.classes)):
            raise RequestError(
                f"{path} is damaged: its output has the shape {list(values.shape)} instead of "
                f"{[len(images), len(record.classes)]}",
                hint=EXPORT_AGAIN,
            )
        return values

    return Classifier(
        path=path,
        net=record.net,
        weights=record.weights,
        epoch=record.epoch,
        classes=record.classes,
        channels=record.channels,
        size=record.size,
        provenance=record.provenance,
        data_dir=None,
        skip_bad_images=False,
        device=torch.device("cpu"),
        engine=ENGINE,
        batch=BATCH,
        logits=logits,
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rpartition(" : ")[2] if lines else type(error).__name__
