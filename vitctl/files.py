"""Atomic writes, bounded reads, file locks, and checks that a path can be written before any work starts.

Every file, whether vitctl's own or named by the user, is written to a temporary name in the target's folder, flushed to
disk, and then renamed (:func:`write_bytes`, :func:`replacing`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import stat
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from vitctl.errors import NoSpace, RequestError, RunFailed
from vitctl.units import escaped, format_bytes

TEMPORARY = ".tmp-"
"""Infix of the name of every unfinished file, followed by the process id."""

TABLES = (".csv", ".tsv", ".txt")
"""Suffixes of existing files that a table may replace."""

RUN_FILES = (
    "config.json", "data.json.gz", "summary.json", "predictions.npz", "metrics.jsonl", "failure.json", "wandb.json",
)  # fmt: skip
"""Files of a run's folder, which no output may replace."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: BaseException) -> bool:
    """Return whether ``error`` means that a disk is full or a quota is exceeded."""
    return isinstance(error, OSError) and error.errno in _FULL


def write_failed(
    error: OSError,
    path: Path,
    *,
    size: int | None = None,
    outcome: str = "",
    remedy: str = "free some space and try again; the previous file is unchanged",
) -> RunFailed:
    """Return the error to raise for a file that could not be written.

    Args:
        error: the operating system's error.
        path: the file.
        size: size of the file in bytes, if known.
        outcome: clause for the message: what was not done.
        remedy: hint when the disk is full.
    """
    if is_full(error):
        needs = f" needs {format_bytes(size)}" if size is not None else ""
        try:
            free = f", {format_bytes(shutil.disk_usage(path.parent).free)} free"
        except OSError:
            free = ""
        return NoSpace(
            f"cannot write {path}:{needs and f'{needs},'} {os.strerror(error.errno or 0)}{free}", hint=remedy
        )
    reason = os.strerror(error.errno) if error.errno else error
    if error.errno == errno.EISDIR:
        hint = f"move or delete the folder {path}"
    else:
        hint = f"check that {path.parent} exists and is writable: ls -ld {shlex.quote(str(path.parent))}"
    return RunFailed(f"cannot write {path}: {reason}{f'; {outcome}' if outcome else ''}", hint=hint)


# -- reading -----------------------------------------------------------------------------------------------------------

LARGEST_RECORD = 64 << 20
"""Bytes of the largest file of a run's records that is read."""


@contextlib.contextmanager
def regular_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading, without waiting for the writer of a FIFO or reading an endless device.

    Raises:
        OSError: the file is missing or not readable, or is not a regular file.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_regular(path: str | Path, limit: int = LARGEST_RECORD) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: see :func:`regular_file`; or the file is larger.
    """
    with regular_file(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {format_bytes(limit)}", str(path))
    return content


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the JSON object in a regular file.

    Raises:
        OSError: see :func:`read_regular`.
        ValueError: the file does not hold a JSON object.
    """
    document = parse_json(read_regular(path))
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004, as any other damage
    return document


def parse_json(content: bytes | str) -> Any:
    """Return a JSON value.

    Raises:
        ValueError: it is not valid, or nested too deeply.
    """
    try:
        return json.loads(content, parse_int=_parse_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _parse_integer(text: str) -> int:
    if len(text) > sys.float_info.max_10_exp:
        raise ValueError("a number is too large")
    return int(text)


def reason_of(error: Exception) -> str:
    """Return why a file cannot be read or used, without its path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


# -- writing -----------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write ``path`` atomically, with names :func:`~vitctl.units.escaped`; see :func:`write_bytes`."""
    write_bytes(path, escaped(text).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``path`` atomically, or directly if it is a device or a FIFO.

    Raises:
        RunFailed: the disk is full, or the folder is not writable.
    """
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new version of ``path`` that replaces the old one when the block ends without an error.

    Symbolic links are followed: the link stays, and its target is replaced. A path that is not a regular file, such as
    a FIFO or ``/dev/stdout``, is written to directly.

    Raises:
        RunFailed: the disk is full, or the folder is not writable. Other errors raised in the block propagate.
    """
    if is_stream(path):
        try:
            with open(path, "ab") as file:  # append, to keep what the shell's >> kept
                yield file
        except OSError as error:
            raise write_failed(error, path) from error
        return
    target = Path(os.path.realpath(path))
    temporary = temporary_name(target)
    try:
        with open(temporary, "wb") as file:
            yield file
            flush(file)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise write_failed(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Return the name, in the folder of ``path``, of the temporary file that this process writes."""
    return path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that is renamed to ``path`` when the block ends without an error.

    Raises:
        OSError: the folder cannot be created, or ``path`` exists and is not an empty folder.
    """
    staging = path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        if os.name == "nt" and path.is_dir():
            path.rmdir()  # on Windows, renaming does not replace an empty folder
        os.rename(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def flush(file: BinaryIO) -> None:
    """Flush ``file`` to disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a rename to disk, where the system supports it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot flush them
        pass
    finally:
        os.close(descriptor)


_DESCRIPTOR = re.compile(r"/dev/(stdin|stdout|stderr|fd/\d+)|/proc/(self|\d+)/fd/\d+")


def is_stream(path: Path) -> bool:
    """Return whether ``path`` must be written to directly: a FIFO, a device, or an open descriptor."""
    # /dev/stdout may be a regular file that the shell has open: replacing it would lose the output.
    if _DESCRIPTOR.fullmatch(os.path.abspath(path)):
        return os.path.exists(path)
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def remove_temporaries(
    folder: Path, prefix: str = "", *, keep_running: bool = True, suffixes: Collection[str] | None = None
) -> None:
    """Remove the unfinished files and folders that a crash left in ``folder``.

    Args:
        folder: the folder to search, without its subfolders.
        prefix: only names that start with this; a dot selects the folders of :func:`new_folder`.
        keep_running: keep those of processes that are still running.
        suffixes: only files whose final name has one of these suffixes; None for all.
    """
    for orphan in list(folder.glob(f"{prefix}*{TEMPORARY}*")):
        name, _, pid = orphan.name.rpartition(TEMPORARY)
        if (suffixes is not None and Path(name).suffix not in suffixes) or (keep_running and process_runs(pid)):
            continue
        with contextlib.suppress(OSError):
            if orphan.is_dir():
                shutil.rmtree(orphan)
            else:
                orphan.unlink()


def process_runs(pid: str) -> bool:
    """Return whether a process with this id is running on this machine; True if ``pid`` is not a number."""
    if not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


# -- checks before writing ---------------------------------------------------------------------------------------------


def folder_error(folder: Path) -> str | None:
    """Return why no file can be created in ``folder``, or None."""
    if not folder.is_dir():
        return "no such folder"
    try:  # try it: permission bits do not apply to root
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def check_writable(path: Path, flag: str) -> None:
    """Refuse a path that cannot be written.

    Args:
        path: the file; links are followed.
        flag: the flag that named it.

    Raises:
        RequestError: the path is a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise RequestError(f"{flag} {path} is a folder", hint=f"use {flag} with the path of a file")
    if is_stream(path):
        if not os.access(path, os.W_OK):
            raise _unwritable(path, flag, "permission denied")
        return
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise RequestError(f"{flag} {path}: no such folder: {folder}", hint=f"create it: mkdir -p {folder}")
    if reason := folder_error(folder):
        raise _unwritable(path, flag, reason)
    if path.exists() and not os.access(path, os.W_OK):
        raise _unwritable(path, flag, "the file is read-only")


def _unwritable(path: Path, flag: str, reason: str) -> RequestError:
    return RequestError(f"cannot write {flag} {path}: {reason}", hint=f"use {flag} with a path in another folder")


def check_replaceable(path: Path, flag: str, suffixes: Sequence[str]) -> None:
    """Refuse an output file that cannot be written, or that would replace something else.

    Args:
        path: the file; symbolic links are followed.
        flag: the flag that named it.
        suffixes: suffixes of the files that this output may replace; it may replace any empty file.

    Raises:
        RequestError: the path cannot be written, or names an existing file of another kind or of a run.
    """
    check_writable(path, flag)
    if is_stream(path) or not path.exists() or not path.stat().st_size:
        return
    real = Path(os.path.realpath(path))
    if real.suffix.lower() not in suffixes:
        raise RequestError(
            f"{flag} {path} exists and is not a {'/'.join(suffixes)} file; it was not replaced",
            hint=f"use {flag} with a new path, or one that ends in {suffixes[0]}",
        )
    if (real.parent / "config.json").is_file() and real.name in RUN_FILES:
        raise RequestError(
            f"{flag} {path} belongs to the run {real.parent}; it was not replaced", hint=f"use {flag} with a new path"
        )


def check_table(path: Path, flag: str) -> None:
    """Refuse a table that cannot be written, or that would replace a file that is not a table.

    Raises:
        RequestError: see :func:`check_replaceable`; or the path names an existing binary file.
    """
    check_replaceable(path, flag, TABLES)
    if path.is_file() and not is_stream(path) and _is_binary(path):
        raise RequestError(f"{flag} {path} is not a text file; it was not replaced", hint=f"use {flag} with a new path")


def _is_binary(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return b"\0" in file.read(1 << 16)
    except OSError:
        return True


# -- locks -------------------------------------------------------------------------------------------------------------

PROBE = 0.2
"""Seconds to wait for a lock that :func:`is_locked` may hold for a moment."""


class Locked(Exception):
    """The lock is held by another process or elsewhere in this one."""


@contextlib.contextmanager
def locked(path: Path, *, wait: float = 0) -> Iterator[bool]:
    """Hold a lock on the file ``path``; the system releases it when this process ends, even by a signal.

    Args:
        path: the lock file, which is created and not removed.
        wait: seconds to wait for another holder; -1 waits forever.

    Yields:
        Whether the lock is held: False on a file system without locks.

    Raises:
        Locked: the lock is held elsewhere.
        OSError: the file cannot be opened.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=wait, fallback_to_soft=False)  # a marker file would outlive its process
    try:
        lock.acquire()
    except Timeout:
        raise Locked(str(path)) from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
    try:
        yield lock.is_locked
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock on the file ``path``; False if this cannot be determined."""
    try:
        import fcntl

        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO would wait for its writer
    except (ImportError, OSError):  # Windows, or no such file
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that others may ask at the same time
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)
    return False
