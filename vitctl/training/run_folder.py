"""The folder of a run: settings, metrics, checkpoints, summary.

``config.json``          everything needed to repeat the run, and each session that worked on it
``metrics.jsonl``        a line an epoch
``checkpoints/last.pt``  the newest state; ``best.pt`` the best by held-out accuracy; ``kept-N.pt`` older ones
``summary.json``         the final figures
``failure.json``         why the run failed: kind, step, message; removed on ``--resume``
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

from vitctl.config import TrainConfig
from vitctl.errors import RequestError, RunBusy, VitctlError
from vitctl.files import Locked, locked, new_folder, remove_temporaries, write_failed, write_text
from vitctl.process.failure import Failure, is_run_failure
from vitctl.training import checkpoint as ckpt
from vitctl.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from vitctl.units import mask_passwords

LAST, BEST = "last.pt", "best.pt"
FAILURE, LOCK = "failure.json", ".lock"
_NAME = re.compile(r"[^/\\\0]+")


class RunFolder:
    """A run's folder on disk; see the module's text for what lies in it.

    Args:
        path: the folder, which exists and holds ``config.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    # -- making and opening ------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, runs_dir: Path, name: str | None, config: TrainConfig) -> RunFolder:
        """Make the folder of a new run; it appears with its ``config.json`` in it, or not at all.

        Args:
            runs_dir: made if it is not there.
            name: of the folder; None makes one up from network, optimizer, data set and time.
            config: what the run will do.

        Raises:
            RequestError: the name is taken or no name for a folder, or ``runs_dir`` cannot be written.
        """
        if name is not None and (not _NAME.fullmatch(name) or name in (".", "..")):
            raise RequestError(f"--name {name!r} is no name for a folder")
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
                    (staging / "checkpoints").mkdir()
                    (staging / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
                return cls(path)
            except FileExistsError:
                if name is not None:
                    raise RequestError(
                        f"the run {path} exists already and is never overwritten; choose another --name, or go on with "
                        f"it: vitctl train --resume {shlex.quote(str(path))}"
                    ) from None
                attempt += 1
                chosen = f"{base}-{attempt}"
            except OSError as error:
                if path.is_dir() and any(path.iterdir()):  # another run took the name meanwhile
                    continue
                raise RequestError(
                    f"cannot make the run folder {path}: {error.strerror}; choose another --runs-dir or --name"
                ) from error

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of an earlier run.

        Raises:
            RequestError: not a run's folder.
        """
        if not path.exists():
            raise RequestError(f"the run folder {path} is not there{_near_runs(path)}")
        if path.is_file():
            inside = path.parent.parent if path.parent.name == "checkpoints" else path.parent
            if (inside / "config.json").is_file():
                raise RequestError(f"{path} is a file; name the run's folder: {inside}")
            raise RequestError(
                f"{path} is a file, and in no run's folder; --pretrained {path} starts a run from the weights of a checkpoint"
            )
        if not (path / "config.json").is_file():
            raise RequestError(f"{path} is no run folder: it has no config.json{_near_runs(path / 'x')}")
        return cls(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock this folder against other processes; the system releases the lock when this process ends.

        Raises:
            RunBusy: another process is training in it.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / LOCK))
            except Locked:
                raise RunBusy(
                    f"another process is training in {self.path}; wait for it, or stop it first", run=self.path
                ) from None
            except OSError as error:
                raise RequestError(f"the run folder {self.path} cannot be written: {error.strerror}") from error
            yield

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Lock this folder, and record in ``failure.json`` why the run in it fails.

        Raises:
            RunBusy: another process is training in it.
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
        """Remove the temporary files that a crash left half-written."""
        for folder in (self.path, self.checkpoints):
            remove_temporaries(folder, of_dead_only=False)

    # -- config.json -------------------------------------------------------------------------------------------------

    def read_document(self) -> dict[str, Any]:
        """Return ``config.json``.

        Raises:
            RequestError: it is damaged.
        """
        path = self.path / "config.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(document["config"], dict) or not isinstance(document["sessions"], list):
                raise TypeError("not a run's")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path} is damaged ({error}); nothing can be resumed from it") from error
        return dict(document)

    def add_session(self, config: TrainConfig, environment: dict[str, Any], step: int, **more: Any) -> None:
        """Record that a session begins at ``step``: its command, versions, device and what else decides the bits."""
        document = self.read_document()
        document["config"] = config.to_dict()
        session = {
            "command": shlex.join(map(mask_passwords, sys.argv)),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "step": step,
            "git_commit": git_commit(),
            **environment,
            **more,
        }
        document["sessions"].append(session)
        self._write("config.json", json.dumps(document, indent=2) + "\n")

    # -- metrics.jsonl and summary.json ------------------------------------------------------------------------------

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Replace ``metrics.jsonl`` by ``history``: what a resumed run knows to be done."""
        self._write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Append one line."""
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
        """Return ``summary.json``, or None when the run has not finished."""
        try:
            return dict(json.loads((self.path / "summary.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _write_failure(self, failure: Failure) -> None:
        with contextlib.suppress(VitctlError):  # such as a full disk: the failure itself matters more
            failure.write(self.path / FAILURE)

    def read_failure(self) -> Failure | None:
        """Return why the run failed, or None if it did not."""
        return Failure.read(self.path / FAILURE)

    def resumed(self) -> None:
        """Remove the records of how the run ended, as it is being resumed."""
        (self.path / "summary.json").unlink(missing_ok=True)
        (self.path / FAILURE).unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        write_text(self.path / name, text)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, checkpoint: Checkpoint, *, keep: int, best: bool) -> Path:
        """Save a checkpoint as ``last.pt``; the one before becomes ``kept-N.pt``, N counting up.

        Args:
            checkpoint: see :mod:`vitctl.training.checkpoint`.
            keep: how many of the older ones stay.
            best: it is the best so far by held-out accuracy, and becomes ``best.pt`` too.

        Raises:
            RunFailed: the disk is full or the folder cannot be written; what was there is untouched.
        """
        last = self.checkpoints / LAST
        try:
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise write_failed(error, self.checkpoints) from error
        if best:
            # Before last.pt: a run killed in between goes on from the last.pt before, and writes best.pt again.
            save_checkpoint(checkpoint, self.checkpoints / BEST)
        if keep and last.exists():
            self._keep_last()
        if best:
            ckpt.copy_checkpoint(self.checkpoints / BEST, last)
        else:
            save_checkpoint(checkpoint, last)
        for old in self._older()[keep:]:
            old.unlink(missing_ok=True)
        return last

    def _keep_last(self) -> None:
        """Give the present ``last.pt`` a second name; it is about to lose the first."""
        last = self.checkpoints / LAST
        newest = self._older()[:1]
        number = int(newest[0].stem.removeprefix("kept-")) + 1 if newest else 1
        target = self.checkpoints / f"kept-{number:06d}.pt"
        try:
            os.link(last, target)
        except OSError:  # a file system without hard links
            try:
                os.replace(last, target)
            except OSError as error:
                raise write_failed(error, target) from error

    def _older(self) -> list[Path]:
        return sorted(self.checkpoints.glob("kept-*.pt"), reverse=True)

    def newest(self, warn: Callable[[str], None], *, set_aside: bool = False) -> tuple[Path, Checkpoint] | None:
        """Return the newest good checkpoint, or None when none was ever saved.

        Args:
            warn: told of each damaged one that was passed over.
            set_aside: rename damaged ones to ``*.damaged``, lest they take the place of good ones later.

        Raises:
            RequestError: there are checkpoints and all are damaged.
        """
        damaged: list[str] = []
        passed_over: list[Path] = []
        good: list[tuple[Path, Checkpoint]] = []
        candidates = [self.checkpoints / LAST, *self._older(), self.checkpoints / BEST]
        for path in [candidate for candidate in candidates if candidate.exists()]:
            if good and path.name != BEST:
                break  # the kept ones come newest first; only best.pt may be newer than a kept one
            try:
                good.append((path, load_checkpoint(path)))
            except ckpt.DamagedCheckpoint as error:
                damaged.append(str(error))
                passed_over.append(path)
                continue
            if path.name == LAST:
                break
        for message in damaged:
            warn(message)
        if good:
            path, checkpoint = max(good, key=lambda pair: pair[1]["step"])
            if damaged:
                warn(f"taking {path.name}, step {checkpoint['step']}, the newest that is whole")
            for bad in passed_over if set_aside else []:
                os.replace(bad, bad.with_name(f"{bad.name}.damaged"))
            return path, checkpoint
        if damaged:
            raise RequestError(f"no whole checkpoint is left in {self.checkpoints}: {damaged[0]}")
        return None


def _near_runs(path: Path) -> str:
    """Return the tail of a sentence that names the runs beside ``path``, newest first."""
    try:
        runs = [run for run in path.parent.iterdir() if (run / "config.json").is_file()]
    except OSError:
        return ""
    runs.sort(key=lambda run: (run / "config.json").stat().st_mtime, reverse=True)
    return f"; newest runs beside it: {', '.join(str(run) for run in runs[:3])}" if runs else ""


@functools.cache
def git_commit() -> str | None:
    """Return the commit of the source tree that vitctl runs from, with ``+`` when it was changed since."""
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
