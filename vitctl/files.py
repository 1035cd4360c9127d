"""Writing files: whole or not at all, under a lock, and refused before any work where it would fail.

A file of vitctl's own (:func:`write_bytes`, :func:`replacing`) and a file that the user named take the same way: the
content goes to a temporary name beside the target, is flushed to the disk, and the file is then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from vitctl.errors import NoSpace, RequestError, RunFailed
from vitctl.units import format_bytes

TEMPORARY = ".tmp-"
"""Part of the name of every unfinished file; the process id follows."""

TABLES = (".csv", ".tsv", ".txt")
"""Suffixes of existing files that a table may replace."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: BaseException) -> bool:
    """Return whether ``error`` says that a disk or a quota is used up."""
    return isinstance(error, OSError) and error.errno in _FULL


def write_failed(
    error: OSError,
    path: Path,
    *,
    size: int | None = None,
    outcome: str = "",
    remedy: str = "what was saved before is untouched: make room and resume",
) -> RunFailed:
    """Return the error to raise for a file that could not be written.

    Args:
        error: raised by the system.
        path: the file.
        size: bytes that it takes, where that is known.
        outcome: clause that says what was not done.
        remedy: clause for a full disk.
    """
    if is_full(error):
        takes = f": it takes {format_bytes(size)}" if size is not None else ""
        try:
            free = f", {format_bytes(shutil.disk_usage(path.parent).free)} free"
        except OSError:
            free = ""
        return NoSpace(f"no room to write {path}{takes} ({os.strerror(error.errno or 0)}{free}); {remedy}")
    reason = os.strerror(error.errno) if error.errno else error
    return RunFailed(f"cannot write {path}: {reason}{f'; {outcome}' if outcome else ''}")


# -- writing -----------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all; see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all; a device or a FIFO gets the content as it is.

    Raises:
        RunFailed: the disk is full, or the folder is not writable.
    """
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new version of ``path``, which takes its place when the block ends without an error.

    A symbolic link is followed: the file that it names is replaced, and the link stays. What is no regular file, such as
    a FIFO or ``/dev/stdout``, is written to directly.

    Raises:
        RunFailed: the disk is full, or the folder is not writable. Other errors of the block pass through.
    """
    if is_stream(path):
        try:
            with open(path, "wb") as file:
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
    """Return the name beside ``path`` under which this process prepares it."""
    return path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, which takes that name when the block ends without an error.

    Raises:
        OSError: it cannot be made, or there is something at ``path`` other than an empty folder.
    """
    staging = path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        if os.name == "nt" and path.is_dir():
            path.rmdir()  # renaming replaces an empty folder, but not on Windows
        os.rename(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def flush(file: BinaryIO) -> None:
    """Flush what was written to ``file`` to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a rename to the disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError:  # nor do some network file systems flush them
        pass
    finally:
        os.close(descriptor)


def is_stream(path: Path) -> bool:
    """Return whether ``path`` is written to as it is: a FIFO, a device, or a name of an open descriptor."""
    # /dev/stdout may lead to a regular file, which the shell has open: renaming another over it would lose the output.
    if os.path.abspath(path).startswith(("/dev/", "/proc/")):
        return os.path.exists(path)
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def remove_temporaries(
    folder: Path, prefix: str = "", *, of_dead_only: bool = True, suffixes: Collection[str] | None = None
) -> None:
    """Remove the unfinished files and folders that a crash left in ``folder``.

    Args:
        folder: searched, without what lies below it.
        prefix: of their names; a dot for those of :func:`new_folder` alone.
        of_dead_only: keep those of processes that run.
        suffixes: of the finished files; None is any.
    """
    for orphan in list(folder.glob(f"{prefix}*{TEMPORARY}*")):
        name, _, pid = orphan.name.rpartition(TEMPORARY)
        if (suffixes is not None and Path(name).suffix not in suffixes) or (of_dead_only and process_runs(pid)):
            continue
        with contextlib.suppress(OSError):
            if orphan.is_dir():
                shutil.rmtree(orphan)
            else:
                orphan.unlink()


def process_runs(pid: str) -> bool:
    """Return whether a process of this number runs on this machine."""
    if not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


# -- can this be written? ----------------------------------------------------------------------------------------------


def folder_error(folder: Path) -> str | None:
    """Return why no file can be made in ``folder``, or None; it is tried, as permissions alone say little to root."""
    if not folder.is_dir():
        return "no such folder"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def check_writable(path: Path, flag: str) -> None:
    """Refuse a file that could not be written, before any work.

    Args:
        path: the file; links are followed.
        flag: the flag that named it.

    Raises:
        RequestError: it is a folder, or its folder is missing or not writable.
    """
    if path.is_dir():
        raise RequestError(f"{flag} {path} is a folder; name a file")
    if is_stream(path):
        if not os.access(path, os.W_OK):
            raise RequestError(f"{flag} {path} cannot be written; choose another place")
        return
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise RequestError(f"{flag} {path}: the folder {folder} is not there; make it first, or choose another place")
    if reason := folder_error(folder):
        raise RequestError(f"{flag} {path} cannot be written: {reason}; choose another place")
    if path.exists() and not os.access(path, os.W_OK):
        raise RequestError(f"{flag} {path} cannot be written: it is read-only; choose another place")


def check_table(path: Path, flag: str) -> None:
    """Refuse a place for a table that could not be written, or where something other than a table would be lost.

    Raises:
        RequestError: see :func:`check_writable`; or a file is there that is no table.
    """
    check_writable(path, flag)
    if not is_stream(path) and path.exists() and path.stat().st_size and not _is_table(path):
        raise RequestError(
            f"{flag} {path} exists and is not a table, so it is not replaced; name a new file, or one that ends in .csv"
        )


def _is_table(path: Path) -> bool:
    """Return whether an existing file may be replaced by a table: named like one, and text."""
    if Path(os.path.realpath(path)).suffix.lower() not in TABLES:
        return False
    try:
        with open(path, "rb") as file:
            return b"\0" not in file.read(1 << 16)
    except OSError:
        return False


# -- locks -------------------------------------------------------------------------------------------------------------


class Locked(Exception):
    """Another process, or another part of this one, holds the lock."""


@contextlib.contextmanager
def locked(path: Path, *, wait: float = 0) -> Iterator[None]:
    """Hold the lock file ``path``; the system frees it when this process ends, however it ends.

    On a file system without locks nothing is held.

    Args:
        path: of the lock file, which is made and stays.
        wait: seconds to wait for another holder; -1 waits for ever.

    Raises:
        Locked: it is held elsewhere.
        OSError: the file cannot be opened.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        raise Locked(str(path)) from None
    except (OSError, NotImplementedError) as error:  # the latter: filelock's word for a file system without locks
        if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
    try:
        yield
    finally:
        lock.release()
