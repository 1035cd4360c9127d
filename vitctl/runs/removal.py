"""Deleting runs: only those in the folder of runs, and none that is under way."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from vitctl.errors import RequestError, RunBusy, RunFailed
from vitctl.files import PROBE, TEMPORARY, Locked, is_locked, locked
from vitctl.runs.stored import LOCK, StoredRun, find_folders
from vitctl.units import quoted


def check_removable(run: StoredRun, runs_dir: Path) -> None:
    """Refuse a run that must not be deleted.

    Raises:
        RunBusy: a process is training in the run, or runs the comparison that it is part of.
        RequestError: the run is outside ``runs_dir``, a symbolic link, or contains other runs.
    """
    path, root = run.path, Path(os.path.realpath(runs_dir))
    shown = quoted(path)
    if path.is_symlink():
        raise RequestError(f"{path} is a symbolic link", hint=f"use its target, or delete the link: rm {shown}")
    real = Path(os.path.realpath(path))
    if root not in real.parents:
        raise RequestError(
            f"{path} is outside {runs_dir}, the folder of runs",
            hint=f"use --runs-dir {quoted(real.parent)}, if it is a folder of runs",
        )
    if inner := [str(each.relative_to(path)) for each in find_folders(path)]:
        raise RequestError(
            f"{path} contains other runs, such as {inner[0]}",
            hint=f"delete them first: vitctl runs rm --runs-dir {shown} {quoted(inner[0])}",
        )
    for folder in (real, *real.parents[: real.parents.index(root)]):
        if is_locked(folder / LOCK):
            raise _busy(folder)


def remove_run(run: StoredRun, runs_dir: Path) -> None:
    """Delete the folder of a run.

    It is renamed first, so that a crash leaves no incomplete run: the next new run deletes the rest.

    Raises:
        RunBusy, RequestError: see :func:`check_removable`.
        RunFailed: the system does not allow it.
    """
    check_removable(run, runs_dir)
    path = Path(os.path.realpath(run.path))  # it may be given as ..
    staging = path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")
    try:
        with locked(path / LOCK, wait=PROBE):
            os.rename(path, staging)
        shutil.rmtree(staging)
    except Locked:
        raise _busy(path) from None
    except OSError as error:
        raise RunFailed(
            f"cannot delete {error.filename or path}: {error.strerror}",
            hint=f"check its permissions: ls -ld {quoted(path.parent)}",
        ) from error


def size_of(run: StoredRun) -> int:
    """Return the size of a run's files in bytes; those behind symbolic links do not count."""
    total = 0
    for folder, _, names in os.walk(run.path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _busy(folder: Path) -> RunBusy:
    return RunBusy(f"a process is training in {folder}", hint="wait until it ends, or stop it with Ctrl-C", run=folder)
