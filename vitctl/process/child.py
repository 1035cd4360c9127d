"""Training in a child process that ends with its parent, and reading its metrics as they are written."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitctl.cpus import available_cpus
from vitctl.errors import RunFailed
from vitctl.files import Locked, locked, parse_json, read_regular
from vitctl.process.failure import FAILURE_FILE, Failure
from vitctl.process.signals import WATCH_FD

VITCTL = (sys.executable, "-m", "vitctl")
"""Command line prefix that runs ``vitctl`` with this interpreter."""

STOP_SECONDS = 60.0
"""Seconds in which training must save and end after SIGTERM."""


@dataclass(frozen=True)
class TrialRun:
    """Settings and folder of a trial's run.

    Attributes:
        config: YAML file for ``vitctl train --config``.
        run: the run's folder; it exists if an earlier attempt has started.
    """

    config: Path
    run: Path


Trainer = Callable[[TrialRun], list[str]]
"""Returns the command that trains a trial and appends a line of JSON per epoch to the run's ``metrics.jsonl``."""


def train_command(trial: TrialRun) -> list[str]:
    """Return the ``vitctl train`` command that starts or resumes a trial's run."""
    command = [*VITCTL, "train", "--json"]
    if (trial.run / "config.json").is_file():
        return [*command, "--resume", str(trial.run)]
    return [*command, "--config", str(trial.config), "--name", trial.run.name, "--runs-dir", str(trial.run.parent)]


class LifeLine:
    """A pipe that child processes watch to notice the end of this process, which closes it."""

    def __init__(self) -> None:
        self.reading, self._writing = os.pipe()

    def environment(self) -> dict[str, str]:
        """Return the environment variable for :func:`vitctl.process.signals.watch_parent`."""
        return {WATCH_FD: str(self.reading)}


class Child:
    """A training process.

    Args:
        command: the command line.
        log: file to which stdout and stderr are appended.
        environment: variables added to those of this process.
        line: ends the child if this process ends.

    Raises:
        RunFailed: the log cannot be written, or the process cannot be started.
    """

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str], line: LifeLine) -> None:
        self.log = log
        self._failure = log.with_suffix(".failure.json")
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._failure.unlink(missing_ok=True)
            with open(log, "ab") as file:
                # In its own session, so that Ctrl-C at the terminal reaches only the parent.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={
                        **os.environ,
                        **environment,
                        **line.environment(),
                        FAILURE_FILE: str(self._failure.absolute()),
                    },
                    pass_fds=(line.reading,),
                    start_new_session=True,
                )
        except OSError as error:
            raise RunFailed(f"cannot start training: {error.filename or log}: {error.strerror}") from error
        self._asked_at: float | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait(self, seconds: float) -> int | None:
        """Return the exit code, -N if killed by signal N, or None if the process still runs after ``seconds``."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        if self._asked_at is not None and time.monotonic() - self._asked_at > STOP_SECONDS:
            self.kill()
        return None

    @property
    def asked(self) -> bool:
        """Whether :meth:`ask` was called."""
        return self._asked_at is not None

    def ask(self) -> None:
        """Ask the process to save and stop; :meth:`wait` kills it after :data:`STOP_SECONDS`."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process."""
        self._asked_at = self._asked_at or time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def failure(self) -> Failure:
        """Return why the process failed, from its report or its exit code."""
        code = self._process.returncode
        if code < 0:
            return Failure(kind="killed", message=f"killed by {signal_name(-code)}", exit_code=code)
        reported = Failure.read(self._failure)
        return reported or Failure(kind="failed", message=f"exit code {code}", exit_code=code)


class Metrics:
    """Reads a run's ``metrics.jsonl`` while it grows.

    Args:
        path: the file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: tuple[int, int, int] | None = None
        self._epoch = 0

    def new(self) -> list[dict[str, Any]]:
        """Return the records that were not returned before; an incomplete line is left for the next call."""
        try:
            stat = self._path.stat()
            state = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if state == self._state:
                return []
            text = read_regular(self._path).decode("utf-8", errors="replace")
        except OSError:
            return []
        self._state = state
        rows = []
        for line in text.splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            try:
                row = parse_json(line)
                epoch = int(row["epoch"])
            except (ValueError, TypeError, KeyError, OverflowError):
                continue
            if epoch > self._epoch:
                self._epoch = epoch
                rows.append(row)
        return rows


def signal_name(number: int) -> str:
    """Return the name of a signal, such as ``SIGKILL`` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def job_environments(jobs: int, threads_set: bool) -> list[dict[str, str]]:
    """Return environments for ``jobs`` simultaneous runs that divide the CPU cores evenly, unless threads are set."""
    if jobs == 1 or threads_set or "OMP_NUM_THREADS" in os.environ:
        return [{} for _ in range(jobs)]
    threads = max(1, available_cpus() // jobs)
    return [{"OMP_NUM_THREADS": str(threads)} for _ in range(jobs)]


def wait_until_free(run: Path, seconds: float = STOP_SECONDS) -> None:
    """Wait while another process trains in a run's folder, as one whose agent died may still be saving."""
    lock = run / ".lock"
    deadline = time.monotonic() + seconds
    while lock.exists() and time.monotonic() < deadline:
        try:
            with locked(lock):
                return
        except Locked:
            time.sleep(0.1)
        except OSError:
            return
