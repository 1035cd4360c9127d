"""A run's folder: settings, metrics, checkpoints and summary.

``config.json``
    the settings, and for each session its command, versions and device
``data.json.gz``
    the manifest: size and digest of each image, if the data set has files (:mod:`vitctl.data.manifest`)
``metrics.jsonl``
    one line per epoch
``checkpoints/last.pt``, ``best.pt``, ``kept-N.pt``
    the newest checkpoint, the one with the best held-out accuracy, and older ones
``summary.json``
    the final figures
``predictions.npz``
    what the final evaluations predicted for each image; see :mod:`vitctl.training.predictions`
``failure.json``
    why the run failed: kind, step, message and hint; removed by ``--resume``
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vitctl.config import RUNS, TrainConfig, is_run
from vitctl.errors import RequestError, RunBusy, VitctlError
from vitctl.files import (
    PROBE,
    Locked,
    locked,
    new_folder,
    read_json,
    reason_of,
    remove_temporaries,
    write_failed,
    write_text,
)
from vitctl.models.sources import CHECKPOINTS, LAST, older_checkpoints
from vitctl.process.failure import Failure, is_run_failure
from vitctl.registry import or_list
from vitctl.runs.stored import FAILURE, LOCK
from vitctl.training import checkpoint as ckpt
from vitctl.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vitctl.units import mask_passwords, quoted

BEST = "best.pt"
PREDICTIONS = "predictions.npz"
_NOT_IN_NAMES = re.compile(r"[/\\\0]+")


_LONGEST_NAME = 200
"""Bytes; file systems allow 255, and temporary names are longer."""


def check_folder_name(name: str) -> None:
    """Check a name for the folder of a run or a comparison.

    Raises:
        RequestError: the name is empty, is too long or contains slashes.
    """
    if _NOT_IN_NAMES.search(name) or name in ("", ".", ".."):
        valid = _NOT_IN_NAMES.sub("-", name).strip(".-")[:50] or "my-run"
        raise RequestError(f"--name {name!r} is not a valid folder name", hint=f"use --name {quoted(valid)}")
    if (length := len(os.fsencode(name))) > _LONGEST_NAME:
        raise RequestError(f"--name is too long: {length} bytes", hint=f"use --name with at most {_LONGEST_NAME} bytes")


class RunFolder:
    """A run's folder on disk; the module's docstring lists its files.

    Args:
        path: an existing folder with ``config.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS

    # -- creating and opening ----------------------------------------------------------------------------------------

    @classmethod
    def create(cls, runs_dir: Path, name: str | None, config: TrainConfig) -> RunFolder:
        """Create the folder of a new run atomically, with its ``config.json``.

        Args:
            runs_dir: parent folder, created if missing.
            name: name of the folder; None for one made of network, optimizer, data set and time.
            config: the run's settings.

        Raises:
            RequestError: the name is taken or not valid, or ``runs_dir`` is not writable.
        """
        if name is not None:
            check_folder_name(name)
        base = name or "-".join(
            [
                config.net.replace("/", "-"),
                config.opt.replace("/", "-"),
                config.dataset,
                f"{datetime.datetime.now():%Y%m%d-%H%M%S}",
            ]
        )
        document = {"format": 1, "config": config.to_dict(), "sessions": []}
        remove_temporaries(runs_dir, ".")
        attempt, chosen = 1, base
        while True:
            path = runs_dir / chosen
            try:
                if path.exists() and (not path.is_dir() or any(path.iterdir())):
                    raise FileExistsError
                with new_folder(path) as staging:
                    (staging / CHECKPOINTS).mkdir()
                    (staging / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
                return cls(path)
            except FileExistsError:
                if name is not None:
                    raise RequestError(
                        f"run {path} already exists",
                        hint=f"use another --name, or resume it: vitctl train --resume {quoted(path)}",
                    ) from None
                attempt += 1
                chosen = f"{base}-{attempt}"
            except OSError as error:
                if path.is_dir() and any(path.iterdir()):  # another run has just taken the name
                    continue
                raise RequestError(
                    f"cannot create run folder {path}: {error.strerror}", hint="use another --runs-dir or --name"
                ) from error

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of an existing run.

        Args:
            path: the folder, or the run's newest checkpoint.

        Raises:
            RequestError: ``path`` is not a run's folder.
        """
        if not path.exists():
            raise RequestError(f"run folder {path} not found", hint=_use_a_run_in(path.parent))
        if path.is_file():
            run = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
            if is_run(run) and path == run / CHECKPOINTS / LAST:
                return cls(run)
            if is_run(run):
                hint = f"use the run's folder: {run}"
            elif path.suffix in (".pt", ".pth", ".bin", ".safetensors"):
                hint = f"use --pretrained {quoted(path)} to start a run from its weights"
            else:
                hint = _use_a_run_in(path.parent)
            raise RequestError(f"{path} is a file, not a run folder", hint=hint)
        if not is_run(path):
            raise RequestError(f"{path} is not a run folder: it has no config.json", hint=_use_a_run_in(path))
        return cls(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock this folder against other processes; the system releases the lock when this process ends.

        Raises:
            RunBusy: another process is training in the folder.
            RequestError: the folder is not writable.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / LOCK, wait=PROBE))
            except Locked:
                raise RunBusy(
                    f"another process is training in {self.path}",
                    hint="wait until it ends, or stop it with Ctrl-C",
                    run=self.path,
                ) from None
            except OSError as error:
                raise RequestError(
                    f"cannot write {self.path / LOCK}: {error.strerror}",
                    hint=f"make the folder writable: chmod u+w {quoted(self.path)}",
                ) from error
            yield

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Lock this folder, and write ``failure.json`` if the run fails.

        Raises:
            RunBusy: another process is training in the folder.
            RequestError: the folder is not writable.
        """
        with self.locked():
            try:
                yield
            except Exception as error:
                if isinstance(error, VitctlError) and error.run is None:
                    error.run = self.path
                if is_run_failure(error):
                    self._write_failure(Failure.of(error))
                raise

    def remove_orphans(self) -> None:
        """Remove temporary files left by a crash."""
        for folder in (self.path, self.checkpoints):
            remove_temporaries(folder, keep_running=False)

    # -- config.json -------------------------------------------------------------------------------------------------

    def read_document(self) -> dict[str, Any]:
        """Return the content of ``config.json``.

        Raises:
            RequestError: the file is damaged.
        """
        path = self.path / "config.json"
        try:
            document = read_json(path)
            if not isinstance(document["config"], dict) or not isinstance(document["sessions"], list):
                raise TypeError("config or sessions has the wrong type")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f"{path} is damaged: {f'no {error}' if isinstance(error, KeyError) else reason_of(error)}",
                hint=f"use --pretrained {self.checkpoints / LAST} to start a new run from its weights",
            ) from error
        return document

    def add_session(self, config: TrainConfig, environment: dict[str, Any], step: int, **more: Any) -> None:
        """Record the start of a session at ``step``: its command, environment, and ``more``."""
        document = self.read_document() | {"config": config.to_dict()}
        session = {
            "command": shlex.join(map(mask_passwords, sys.argv)),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": step,
            "git_commit": git_commit(),
            **environment,
            **more,
        }
        document["sessions"].append(session)
        self._write_document(document)

    def write_config(self, config: TrainConfig) -> None:
        """Replace the settings in ``config.json``."""
        self._write_document(self.read_document() | {"config": config.to_dict()})

    def _write_document(self, document: dict[str, Any]) -> None:
        self._write("config.json", json.dumps(document, indent=2) + "\n")

    # -- metrics.jsonl and summary.json ------------------------------------------------------------------------------

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Replace ``metrics.jsonl`` with the records in ``history``."""
        self._write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Append a record to ``metrics.jsonl``."""
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_failed(error, path) from error

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write ``summary.json``."""
        self._write("summary.json", json.dumps(summary, indent=2) + "\n")

    def read_summary(self) -> dict[str, Any] | None:
        """Return the content of ``summary.json``, or None if the run has not finished."""
        try:
            return read_json(self.path / "summary.json")
        except (OSError, ValueError):
            return None

    def _write_failure(self, failure: Failure) -> None:
        with contextlib.suppress(VitctlError):  # such as a full disk; the first failure matters more
            failure.write(self.path / FAILURE)

    def read_failure(self) -> Failure | None:
        """Return why the run failed, or None if it did not fail."""
        return Failure.read(self.path / FAILURE)

    def resumed(self) -> None:
        """Remove ``summary.json``, ``predictions.npz`` and ``failure.json``, as the run is being resumed."""
        for name in ("summary.json", PREDICTIONS, FAILURE):
            (self.path / name).unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        write_text(self.path / name, text)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, checkpoint: Checkpoint, *, keep: int, best: bool) -> Path:
        """Save a checkpoint as ``last.pt``; the previous one becomes ``kept-N.pt``, where N counts up.

        Args:
            checkpoint: see :mod:`vitctl.training.checkpoint`.
            keep: how many older checkpoints to keep.
            best: whether to save it as ``best.pt`` too.

        Raises:
            RunFailed: the disk is full, or the folder is not writable; existing checkpoints are unchanged.
        """
        last = self.checkpoints / LAST
        try:
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise write_failed(error, self.checkpoints) from error
        if best:
            # best.pt first: a run killed before last.pt is saved resumes from the old one and saves best.pt again.
            save_checkpoint(checkpoint, self.checkpoints / BEST)
        if keep and last.exists():
            self._keep_last()
        if best:
            ckpt.copy_checkpoint(self.checkpoints / BEST, last)
        else:
            save_checkpoint(checkpoint, last)
        for old in older_checkpoints(self.checkpoints)[keep:]:
            old.unlink(missing_ok=True)
        return last

    def _keep_last(self) -> None:
        last = self.checkpoints / LAST
        newest = older_checkpoints(self.checkpoints)[:1]
        number = int(newest[0].stem.removeprefix("kept-")) + 1 if newest else 1
        target = self.checkpoints / f"kept-{number:06d}.pt"
        try:
            os.link(last, target)
        except OSError:  # a file system without hard links
            try:
                os.replace(last, target)
            except OSError as error:
                raise write_failed(error, target) from error

    def newest(self, warn: Callable[[str], None], *, set_aside: bool = False) -> tuple[Path, Checkpoint] | None:
        """Return the path and content of the newest undamaged checkpoint, or None if there are no checkpoints.

        Args:
            warn: called with a message about each damaged checkpoint.
            set_aside: whether to rename damaged checkpoints to ``*.damaged``, so that they do not displace good ones.

        Raises:
            RequestError: all checkpoints are damaged.
        """
        damaged: list[tuple[Path, str]] = []
        good: list[tuple[Path, Checkpoint]] = []
        candidates = [self.checkpoints / LAST, *older_checkpoints(self.checkpoints), self.checkpoints / BEST]
        for path in [candidate for candidate in candidates if candidate.exists()]:
            if good and path.name != BEST:
                break  # the kept ones are in order, newest first; only best.pt may be newer
            try:
                good.append((path, load_checkpoint(path)))
            except ckpt.DamagedCheckpoint as error:
                damaged.append((path, error.message))
                continue
            if path.name == LAST:
                break
        for _, message in damaged:
            warn(f"warning: {message}")
        if good:
            path, checkpoint = max(good, key=lambda pair: pair[1]["step"])
            if damaged:
                warn(f"using {path.name} of step {checkpoint['step']:,}, the newest undamaged checkpoint")
            for bad, _ in damaged if set_aside else []:
                os.replace(bad, bad.with_name(f"{bad.name}.damaged"))
            return path, checkpoint
        if damaged:
            raise RequestError(
                f"all checkpoints in {self.checkpoints} are damaged: {damaged[0][1]}",
                hint=f"delete them to train from the start with --resume: rm {quoted(self.checkpoints)}/*.pt",
            )
        return None


def runs_in(folder: Path) -> list[Path]:
    """Return the runs in ``folder``, newest first: by the start of their last session."""
    try:
        runs = [run for run in folder.iterdir() if is_run(run)]
    except OSError:
        return []
    return sorted(runs, key=lambda run: (run / "config.json").stat().st_mtime, reverse=True)


def _use_a_run_in(folder: Path) -> str:
    """Return a hint that names the newest runs in ``folder``, or else in the default folder of runs."""
    runs = runs_in(folder) or runs_in(RUNS)
    shown = [quoted(run) for run in runs[:3]]
    return f"use {or_list(shown)}" if runs else "use the folder of a run, such as runs/NAME"


@functools.cache
def git_commit() -> str | None:
    """Return the commit of vitctl's source tree, with ``+`` if files have changed, or None outside a repository."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() or None
