"""Paths of exported files, and writing them: all or none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from vitctl.errors import Interrupted, RequestError, RunFailed
from vitctl.export import EXPORTERS
from vitctl.export.request import ExportRequest
from vitctl.export.safetensors import RECORD, config_path
from vitctl.files import flush, folder_error, is_stream, remove_temporaries, sync_folder, temporary_name, write_failed
from vitctl.process.signals import stop_signals


def plan(request: ExportRequest, checkpoint: Path) -> dict[tuple[str, str], list[Path]]:
    """Return the paths of the files to write.

    Args:
        request: the formats, quantizations and output path.
        checkpoint: the checkpoint; exported files get its stem, and its folder if there is no ``--output``.

    Returns:
        Paths by (format, quantization), the main file first.

    Raises:
        RequestError: a path cannot be written, or a file there must not be replaced.
    """
    if request.output is None and (reason := folder_error(checkpoint.absolute().parent)):
        raise RequestError(
            f"cannot write to the folder of {checkpoint}: {reason}", hint="add --output with a path in another folder"
        )
    kinds = [(name, "none") for name in dict.fromkeys(request.formats)]
    kinds += [("onnx", quantized) for quantized in dict.fromkeys(request.quantize)]
    planned = {kind: _paths(request, checkpoint, *kind) for kind in kinds}
    targets = [os.path.realpath(path) for paths in planned.values() for path in paths]
    if len(set(targets)) < len(targets):
        raise RequestError(
            f"symbolic links in {planned[kinds[0]][0].parent} point several exported files to the same target",
            hint="use --output with another path",
        )
    return planned


def _paths(request: ExportRequest, checkpoint: Path, format_name: str, quantized: str) -> list[Path]:
    entry = EXPORTERS[format_name]
    suffix = entry.suffixes[0]
    if request.output is None:
        path = checkpoint.with_suffix(suffix)
    elif request.output.is_dir():
        path = request.output / f"{checkpoint.stem}{suffix}"
    else:
        path = request.output
    if quantized != "none":
        path = path.with_name(f"{path.stem}.{quantized}{path.suffix}")
    paths = [path, config_path(path)] if entry.weights_only else [path]
    for each in paths:
        if each.is_dir():
            raise RequestError(f"{each} is a folder", hint="use --output with another path")
        if is_stream(each):
            raise RequestError(f"--output {each} is not a regular file", hint="use --output with another path")
    for extra in paths[1:]:
        if extra.exists() and not _is_export(extra):
            raise RequestError(
                f"{extra} exists and was not written by vitctl export", hint="use --output with another path"
            )
    return paths


def _is_export(path: Path) -> bool:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    # In reports and run summaries the key is vitctl's version, a string.
    record = document.get(RECORD) if isinstance(document, dict) else None
    return isinstance(record, dict) and "format" in record


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write all files or none: write temporary files, read them back, then rename them.

    Temporary files of killed exports in the same folders are removed. Symbolic links are followed.

    Raises:
        RunFailed: the disk is full, a folder is not writable, or a file reads back differently.
    """
    files = {Path(os.path.realpath(path)): data for path, data in files.items()}
    remove_orphans({path.parent for path in files})
    temporary = {path: temporary_name(path) for path in files}
    path = next(iter(files))
    try:
        for path, data in files.items():
            with open(temporary[path], "wb") as file:
                file.write(data)
                flush(file)
            if temporary[path].read_bytes() != data:
                raise RunFailed(
                    f"cannot write {path}: reading it back returned other data; nothing was exported",
                    hint="use --output with a path on another disk",
                )
        with _signals_deferred():
            _rename_all(temporary)
            for folder in {path.parent for path in files}:
                sync_folder(folder)
    except OSError as error:
        raise write_failed(
            error,
            path,
            size=len(files[path]),
            outcome="nothing was exported",
            remedy="free some space, or use --output with a path on another disk; nothing was exported",
        ) from error
    finally:
        for leftover in temporary.values():
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)


def _rename_all(temporary: Mapping[Path, Path]) -> None:
    """Rename the temporary files (values) to their final names (keys).

    Raises:
        OSError: a file cannot be renamed; all previous files are restored.
    """
    kept = {path: temporary_name(path.with_stem(f"{path.stem}-old")) for path in temporary}
    renamed: list[Path] = []
    try:
        for path, name in temporary.items():
            if len(temporary) > 1:
                with contextlib.suppress(OSError):  # no previous file, or no hard links on this file system
                    os.link(path, kept[path])
            os.replace(name, path)
            renamed.append(path)
    except OSError:
        for path in renamed:
            if kept[path].exists():
                os.replace(kept[path], path)
            else:
                path.unlink()
        raise
    finally:
        for old in kept.values():
            with contextlib.suppress(OSError):
                old.unlink(missing_ok=True)


@contextlib.contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defer signals to the end of the block.

    Raises:
        Interrupted: a signal arrived.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Masking would block signals only in this thread: another would take them, and Python would run the handler here.
    received: list[int] = []
    before = {each: signal.signal(each, lambda signum, _: received.append(signum)) for each in stop_signals()}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if received:
        raise Interrupted("stopped; all files were already written", received[0])


def remove_orphans(folders: set[Path]) -> None:
    """Remove temporary files of killed exports from ``folders``."""
    suffixes = {suffix for entry in EXPORTERS.values() for suffix in entry.suffixes} | {".json"}
    for folder in folders:
        remove_temporaries(folder, suffixes=suffixes)
