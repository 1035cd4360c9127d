"""Opening of checkpoints, run folders and exported files as classifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vitctl import devices
from vitctl.errors import RequestError
from vitctl.export.safetensors import open_safetensors
from vitctl.inference.classifier import Classifier, classifier_of
from vitctl.inference.trained import load_trained

EXPORTED = (".onnx", ".safetensors")
"""Suffixes of exported files that ``eval`` and ``predict`` open; all other files are read as checkpoints."""

_UNSAFE = {".pt2": "torch-export", ".torchscript": "torchscript", ".ts": "torchscript"}


def open_classifier(path: Path, *, weights: str, device_name: str, warn: Callable[[str], None]) -> Classifier:
    """Open a checkpoint, a run's folder or an exported file.

    Args:
        path: the file or folder.
        weights: which checkpoint of a run's folder: ``last`` or ``best``.
        device_name: as for ``--device``; ONNX files run on the CPU.
        warn: called with a message if a damaged checkpoint is skipped.

    Raises:
        RequestError: the path cannot be opened, or does not support this device.
    """
    ending = path.suffix.lower()
    if ending in _UNSAFE and path.is_file():
        raise RequestError(
            f"cannot open {path}: loading a {_UNSAFE[ending]} file would run code in it",
            hint="use the checkpoint, or a file written with --format onnx or safetensors",
        )
    if ending in EXPORTED and weights == "best":
        raise RequestError(f"--weights best needs a run's folder, and {path} is a file", hint="remove --weights best")
    if ending == ".onnx":
        if device_name not in ("auto", "cpu"):
            raise RequestError(f"--device {device_name}: ONNX files run only on the CPU", hint="use --device cpu")
        from vitctl.export.runtime import open_onnx  # onnxruntime is imported here

        return open_onnx(path)
    device = devices.resolve_device(device_name)
    devices.prepare(device, None)
    if ending == ".safetensors":
        return open_safetensors(path, device)
    return classifier_of(load_trained(path, weights=weights, device=device, warn=warn), device)
