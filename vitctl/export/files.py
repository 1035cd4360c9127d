"""Where exported files go, and writing them whole or not at all."""

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


def plan(request: ExportRequest, checkpoint: Path) -> dict[tuple[str, str], list[Path]]:
    """Return where the files of each format, and of each way to make it smaller, will go.

    Args:
        request: says where to.
        checkpoint: the checkpoint's file; without ``--output`` the files go beside it, and it lends them its name.

    Returns:
        Paths by (format, quantization), the first being the one that users name.

    Raises:
        RequestError: the folder cannot be written, or what is there must not be overwritten.
    """
    if request.output is None and folder_error(checkpoint.absolute().parent):
        raise RequestError(f"the folder of {checkpoint} cannot be written; name another place with --output")
    kinds = [(name, "none") for name in dict.fromkeys(request.formats)]
    kinds += [("onnx", quantized) for quantized in dict.fromkeys(request.quantize)]
    planned = {kind: _paths(request, checkpoint, *kind) for kind in kinds}
    targets = [os.path.realpath(path) for paths in planned.values() for path in paths]
    if len(set(targets)) < len(targets):
        raise RequestError(f"links in {Path(targets[0]).parent} lead several files to one; choose another --output")
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
    paths = [path, config_path(path)] if entry.bare else [path]
    for each in paths:
        if each.is_dir():
            raise RequestError(f"{each} is a folder, so no file of that name can be written; choose another --output")
        if is_stream(each):
            raise RequestError(f"--output {each} is not a regular file; choose another --output")
    for beside in paths[1:]:
        if beside.exists() and not _is_ours(beside):
            raise RequestError(f"{beside} is there and was not written by vitctl export; choose another --output")
    return paths


def _is_ours(path: Path) -> bool:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    # Reports and summaries say vitctl too, and mean its version.
    record = document.get(RECORD) if isinstance(document, dict) else None
    return isinstance(record, dict) and "format" in record


def write_all(files: Mapping[Path, bytes]) -> None:
    """Write each file to a temporary name, and when all are on the disk and read back the same, rename them.

    What an earlier attempt that was killed left half-written beside them is removed.

    Raises:
        RunFailed: the disk is full, a folder cannot be written, or it does not give back what was written.
    """
    files = {Path(os.path.realpath(path)): data for path, data in files.items()}  # replace the targets of links
    remove_orphans({path.parent for path in files})
    temporary = {path: temporary_name(path) for path in files}
    path = next(iter(files))
    try:
        for path, data in files.items():
            with open(temporary[path], "wb") as file:
                file.write(data)
                flush(file)
            if temporary[path].read_bytes() != data:
                raise RunFailed(f"{path.parent} does not give back what was written to it; nothing was exported")
        with _uninterrupted():
            _rename_all(temporary)
            for folder in {path.parent for path in files}:
                sync_folder(folder)
    except OSError as error:
        raise write_failed(
            error,
            path,
            size=len(files[path]),
            outcome="nothing was exported",
            remedy="nothing was exported: make room, or name another place with --output",
        ) from error
    finally:
        for leftover in temporary.values():
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)


def _rename_all(temporary: Mapping[Path, Path]) -> None:
    """Rename each file to the key that it stands under; where one cannot be, none is.

    Raises:
        OSError: one cannot be renamed. What was there before is there again.
    """
    kept = {path: temporary_name(path.with_stem(f"{path.stem}-old")) for path in temporary}
    renamed: list[Path] = []
    try:
        for path, name in temporary.items():
            if len(temporary) > 1:
                with contextlib.suppress(OSError):  # it was not there, or the file system has no links
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
def _uninterrupted() -> Iterator[None]:
    """Let signals wait, so that all of several files appear or none does.

    Raises:
        Interrupted: one came; the files are there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A mask would be the main thread's alone; others would take the signal, and Python run its handler here nevertheless.
    came: list[int] = []
    before = {each: signal.signal(each, lambda signum, _: came.append(signum)) for each in stopping()}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if came:
        raise Interrupted("stopped; the files were written already", came[0])


def stopping() -> list[signal.Signals]:
    """Return the signals that end an export in good order: those of the system that nobody, such as nohup, ignores."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    there = [signal.Signals[name] for name in names if hasattr(signal, name)]
    return [each for each in there if each == signal.SIGINT or signal.getsignal(each) is not signal.SIG_IGN]


def remove_orphans(folders: set[Path]) -> None:
    """Remove the temporary files of exports that were killed."""
    suffixes = {suffix for entry in EXPORTERS.values() for suffix in entry.suffixes} | {".json"}
    for folder in folders:
        remove_temporaries(folder, suffixes=suffixes)
