"""Checkpoints: self-describing files, written atomically and verified on loading.

A checkpoint is a dictionary of plain values and tensors with the keys :data:`KEYS`. It is loaded only with
``weights_only=True``, so that an untrusted file runs no code, and it contains a digest of its content, as torch.load
does not detect flipped bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
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
from vitctl.models.foreign import recognise
from vitctl.models.legacy import original_network
from vitctl.models.state_files import read_state
from vitctl.registry import or_list

FORMAT = 1
"""Version of the layout. Later versions of vitctl must read it too."""

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
"""Key that :func:`load_checkpoint` adds: the SHA-256 of the file."""

_NOT_DIGESTED = ("digest", FILE_SHA256)
_NO_ARCHIVE = "it is truncated, or a file of another kind"

_EXPORTED = (".onnx", ".pt2", ".safetensors")

Checkpoint = dict[str, Any]


class DamagedCheckpoint(RequestError):
    """The file is truncated, altered, or not a vitctl checkpoint."""


def content_digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of each tensor's path, dtype, shape and bytes, and of all other values as JSON.

    Raises:
        TypeError: a value is not plain, or a tensor is not dense or not stored in full.
    """
    digest = hashlib.sha256()
    for path, value in _leaves({key: value for key, value in checkpoint.items() if key not in _NOT_DIGESTED}, ()):
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_meta or value.is_quantized:
                raise TypeError(f"a checkpoint must contain dense tensors, not {value.layout} on {value.device}")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise TypeError("a checkpoint must not contain expanded tensors")
            tensor = value.detach().cpu().contiguous()
            head = [*path, "tensor", str(tensor.dtype), list(tensor.shape)]
            digest.update(json.dumps(head).encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(json.dumps([*path, type(value).__name__, _plain(value)]).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _leaves(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield each tensor and scalar with its path, and each container's type and length."""
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
    if isinstance(value, torch.dtype):  # in the parameter groups of some of timm's optimizers
        return str(value)
    raise TypeError(f"a checkpoint must contain plain values and tensors, not {type(value).__name__}")


class _Sink:
    """A file for torch.save that keeps the OSError of a failed write, which torch hides."""

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
    """Write ``checkpoint`` to ``path`` atomically, with its digest; see :func:`vitctl.files.replacing`.

    Args:
        checkpoint: all of :data:`KEYS` except ``digest``.
        path: the file; its folder must exist.

    Raises:
        RunFailed: the disk is full, or the folder is not writable.
    """
    checkpoint = {**checkpoint, "digest": content_digest(checkpoint)}
    with replacing(path) as file:
        sink = _Sink(file)
        try:
            torch.save(checkpoint, cast(BinaryIO, sink))  # torch needs only write and flush
        except RuntimeError as error:
            if sink.error is None:
                raise
            raise sink.error from error


def copy_checkpoint(source: Path, path: Path) -> None:
    """Copy a checkpoint atomically.

    A hard link would be cheaper, but damage to one file would damage the other.

    Raises:
        RunFailed: the disk is full, or the folder is not writable.
    """
    try:
        with open(source, "rb") as reader, replacing(path) as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
    except OSError as error:
        raise write_failed(error, path) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint onto the CPU and verify it.

    Only plain values and tensors are loaded; no code in the file is run. The SHA-256 of the file is added as
    :data:`FILE_SHA256`.

    Raises:
        DamagedCheckpoint: the file is truncated, altered, not a checkpoint, or of an unknown format.
        RequestError: the file is missing or cannot be read.
    """
    try:
        if path.is_dir():
            raise RequestError(f"{path} is a folder, not a checkpoint", hint=_use_another(path))
        with open(path, "rb") as file:  # only once, as a run may replace the file
            _check_container(path, file)
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            file.seek(0)
            file_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise RequestError(f"{path} not found", hint=_use_another(path)) from error
    except RequestError:
        raise
    except PermissionError as error:
        raise RequestError(
            f"cannot read {path}: {error.strerror}", hint=f"make it readable: chmod u+r {shlex.quote(str(path))}"
        ) from error
    except Exception as error:  # torch.load raises almost anything on a damaged or foreign file
        reason = "it is damaged" if zipfile.is_zipfile(path) else _NO_ARCHIVE
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise _of_another_program(path, "loading it would run code that it contains") from error
        raise _not_a_checkpoint(path, reason) from error
    if not isinstance(checkpoint, dict) or not {"format", "config", "model"} <= checkpoint.keys():
        raise _of_another_program(path, "it contains something else")
    if checkpoint["format"] != FORMAT:
        raise DamagedCheckpoint(
            f"{path} has checkpoint format {checkpoint['format']}, "
            f"but this version of vitctl reads only format {FORMAT}",
            hint="upgrade vitctl: pip install --upgrade vitctl",
        )
    missing = [key for key in KEYS if key not in checkpoint]
    if missing:
        raise DamagedCheckpoint(f"{path} is damaged: it has no {or_list(missing)}", hint=_use_another(path))
    try:
        intact = checkpoint["digest"] == content_digest(checkpoint)
    except (TypeError, RuntimeError, RecursionError):  # tensors or nesting that no checkpoint has
        intact = False
    if not intact:
        raise DamagedCheckpoint(f"{path} is damaged: its content does not match its digest", hint=_use_another(path))
    checkpoint[FILE_SHA256] = file_sha256
    return checkpoint


def _check_container(path: Path, file: BinaryIO) -> None:
    """Refuse a file that is not an uncompressed zip archive, before torch reads it.

    A compressed member can unpack to thousands of times its size; torch.save does not compress.
    """
    if os.fstat(file.fileno()).st_size == 0:
        raise _not_a_checkpoint(path, "it is empty")
    if not zipfile.is_zipfile(file):
        raise _not_a_checkpoint(path, _NO_ARCHIVE)
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise _not_a_checkpoint(path, "it is compressed")
    file.seek(0)


def _of_another_program(path: Path, otherwise: str) -> DamagedCheckpoint:
    """Return the error for a file that is no checkpoint, perhaps weights of another program; else the reason given."""
    try:
        tensors, _ = read_state(path, str(path))
    except RequestError:
        return _not_a_checkpoint(path, otherwise)
    original = original_network(tensors)
    if original is not None:
        net, flags = original
        command = f"vitctl convert {shlex.quote(str(path))} {flags or f'--net {net} --patch N --size N'} -o FILE.pt"
        return DamagedCheckpoint(
            f"{path} is not a vitctl checkpoint: the original scripts wrote it", hint=f"convert it: {command}"
        )
    kind, flags = recognise(tensors)
    return DamagedCheckpoint(
        f"{path} is not a vitctl checkpoint: it has {kind or 'only weights'}",
        hint=f"use it to start a run: vitctl train {flags or '--net NAME'} --pretrained {shlex.quote(str(path))}",
    )


def _not_a_checkpoint(path: Path, reason: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{path} is not a vitctl checkpoint: {reason}", hint=_use_another(path))


def _use_another(path: Path) -> str:
    """Return a hint that names another checkpoint of the same run, if ``path`` belongs to one."""
    for name in ("last.pt", "best.pt"):
        if path.name != name and (other := path.with_name(name)).is_file():
            return f"use another checkpoint, such as {other}"
    checkpoint = "the checkpoint that it was exported from" if path.suffix in _EXPORTED else "a checkpoint of a run"
    return f"use {checkpoint}, such as runs/NAME/checkpoints/best.pt"
