"""Checkpoints: one file that describes itself, written so that the last good one is never lost.

A checkpoint is a dictionary of plain values and tensors under the keys :data:`KEYS`. It is read with
``weights_only=True`` alone, so a stranger's file runs no code, and it carries a digest of its content, as torch.load
does not notice a flipped bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from vitctl.errors import RequestError
from vitctl.files import replacing, write_failed

FORMAT = 1
"""The version of the layout; a later vitctl reads this one for ever."""

KEYS = (
    "format",
    "config",
    "model",
    "ema",
    "optimizer",
    "scheduler",
    "scaler",
    "rng",
    "epoch",
    "step",
    "progress",
    "history",
    "classes",
    "mean",
    "std",
    "digest",
)

FILE_SHA256 = "file_sha256"
"""What :func:`load_checkpoint` adds to a checkpoint: the SHA-256 of the file that it was read from."""

_OF_THE_FILE = ("digest", FILE_SHA256)

Checkpoint = dict[str, Any]


class DamagedCheckpoint(RequestError):
    """The file is no whole checkpoint of ours: truncated, altered, or something else altogether."""


def content_digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of the tensors, and canonical JSON of the rest."""
    digest = hashlib.sha256()
    for path, value in _leaves({key: value for key, value in checkpoint.items() if key not in _OF_THE_FILE}, ()):
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_meta or value.is_quantized:
                raise TypeError(f"a checkpoint holds dense tensors, not {value.layout} on {value.device}")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # a few bytes seen as many
                raise TypeError("a checkpoint holds tensors in full")
            tensor = value.detach().cpu().contiguous()
            head = [*path, "tensor", str(tensor.dtype), list(tensor.shape)]
            digest.update(json.dumps(head).encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(json.dumps([*path, type(value).__name__, _plain(value)]).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _leaves(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every tensor and scalar with its path; containers yield their type and length, so that shape counts."""
    if isinstance(value, dict):
        yield (*path, "dict"), len(value)
        for key in sorted(value, key=lambda key: (type(key).__name__, key)):
            yield from _leaves(value[key], (*path, key))
    elif isinstance(value, (list, tuple)):
        yield (*path, type(value).__name__), len(value)
        for i, item in enumerate(value):
            yield from _leaves(item, (*path, i))
    else:
        yield path, value


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return struct.pack("<d", value).hex()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, torch.dtype):  # some of timm's optimizers keep one in their groups
        return str(value)
    raise TypeError(f"a checkpoint holds plain values and tensors, not {type(value).__name__}")


class _Sink:
    """A file for torch.save that keeps the operating system's own error, which torch turns into a riddle."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None

    error: OSError | None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write ``checkpoint`` to ``path``, whole or not at all.

    The bytes go to a temporary file beside it, are flushed to the disk, and the file is then renamed; until then,
    what was at ``path`` stays untouched.

    Args:
        checkpoint: all of :data:`KEYS` but ``digest``, which is added.
        path: where to; its folder exists.

    Raises:
        RunFailed: the disk is full, or the folder cannot be written.
    """
    checkpoint = {**checkpoint, "digest": content_digest(checkpoint)}
    with replacing(path) as file:
        sink = _Sink(file)
        try:
            torch.save(checkpoint, cast(BinaryIO, sink))  # write and flush are all it needs
        except RuntimeError as error:  # torch hides the OSError of a failed write
            if sink.error is None:
                raise
            raise sink.error from error


def copy_checkpoint(source: Path, path: Path) -> None:
    """Copy a checkpoint as :func:`save_checkpoint` writes one: whole or not at all.

    A copy and not a hard link, so that damage to one file leaves the other good.

    Raises:
        RunFailed: the disk is full, or the folder cannot be written.
    """
    try:
        with open(source, "rb") as reader, replacing(path) as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
    except OSError as error:
        raise write_failed(error, path) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint, onto the CPU.

    Nothing in the file is executed: only plain values and tensors are read. The SHA-256 of the file is added, as
    :data:`FILE_SHA256`.

    Raises:
        DamagedCheckpoint: the file is truncated, altered, not a checkpoint, or of a later format.
        RequestError: it is not there or cannot be read.
    """
    try:
        if path.is_dir():
            raise RequestError(f"{path} is a folder, not a checkpoint")
        with open(path, "rb") as file:  # once, as a run may replace it meanwhile
            _check_container(path, file)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            file.seek(0)
            file_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise RequestError(f"{path} is not there") from error
    except RequestError:
        raise
    except PermissionError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch.load raises almost anything on a damaged or foreign file
        detail = "it is damaged" if zipfile.is_zipfile(path) else "it is truncated or something else"
        if "weights_only" in str(error) or "Unsupported" in str(error):
            detail = "it holds objects that only running its code would rebuild, which vitctl never does"
        raise DamagedCheckpoint(f"{path} is not a vitctl checkpoint: {detail}") from error
    if not isinstance(checkpoint, dict) or not {"format", "config", "model"} <= checkpoint.keys():
        raise DamagedCheckpoint(f"{path} is not a vitctl checkpoint: it holds something else{_hint(checkpoint)}")
    if checkpoint["format"] != FORMAT:
        raise DamagedCheckpoint(
            f"{path} has checkpoint format {checkpoint['format']}; this vitctl reads {FORMAT}: upgrade vitctl"
        )
    missing = [key for key in KEYS if key not in checkpoint]
    if missing:
        raise DamagedCheckpoint(f"{path} is damaged: it lacks {', '.join(missing)}")
    try:
        whole = checkpoint["digest"] == content_digest(checkpoint)
    except (TypeError, RuntimeError, RecursionError):  # of tensors and nestings that a checkpoint never has
        whole = False
    if not whole:
        raise DamagedCheckpoint(f"{path} is damaged: its content does not match its digest")
    checkpoint[FILE_SHA256] = file_sha256
    return checkpoint


def _check_container(path: Path, file: BinaryIO) -> None:
    """Refuse a file that is not as torch.save writes it before torch reads it.

    A zip archive with compressed members can unpack to thousands of times its size; torch.save compresses nothing.
    """
    if os.fstat(file.fileno()).st_size == 0:
        raise DamagedCheckpoint(f"{path} is not a vitctl checkpoint: it is empty")
    if not zipfile.is_zipfile(file):
        raise DamagedCheckpoint(f"{path} is not a vitctl checkpoint: it is truncated or something else")
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise DamagedCheckpoint(f"{path} is not a vitctl checkpoint: it is compressed")
    file.seek(0)


def _hint(content: Any) -> str:
    if isinstance(content, dict) and ("net" in content or "model" in content):
        return " (it looks like a checkpoint of the scripts that vitctl replaces)"
    return ""
