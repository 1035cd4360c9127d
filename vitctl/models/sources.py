"""Folders with weights: which of their files ``--pretrained`` reads."""

from __future__ import annotations

import shlex
from pathlib import Path

from vitctl.errors import RequestError

CHECKPOINTS = "checkpoints"
"""Folder of a run with its checkpoints."""

LAST = "last.pt"
"""File name of a run's newest checkpoint."""

FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights files on the Hugging Face Hub, in order of preference."""


def weights_file(path: Path, what: str) -> Path:
    """Return the weights file that ``path`` stands for: itself, a run's newest checkpoint, or a downloaded model's file.

    Args:
        path: a file, the folder of a run, or a folder with one of :data:`FILES`.
        what: the flag and its value, for error messages.

    Raises:
        RequestError: ``path`` does not exist, or is a folder without weights.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise RequestError(
            f"{what}: no such file or folder",
            hint="use the path of a weights file, --pretrained runs/NAME or --pretrained false",
        )
    checkpoints = path / CHECKPOINTS
    for file in (checkpoints / LAST, *older_checkpoints(checkpoints), *(path / name for name in FILES)):
        if file.is_file():
            return file
    if checkpoints.is_dir():
        raise RequestError(
            f"{what}: this run has no checkpoint yet", hint=f"run vitctl train --resume {shlex.quote(str(path))} first"
        )
    raise RequestError(f"{what}: this folder has no weights", hint="use --pretrained runs/NAME, or a weights file")


def older_checkpoints(checkpoints: Path) -> list[Path]:
    """Return the checkpoints that a run kept besides :data:`LAST` and the best one, newest first."""
    return sorted(checkpoints.glob("kept-*.pt"), reverse=True)
