"""Runs as their folders describe them, also those that are under way, damaged or of earlier versions."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitctl.config import FLAGS, RUNS, TrainConfig, find_run
from vitctl.data.manifest import DATA_SHA256
from vitctl.errors import RequestError
from vitctl.files import is_locked, parse_json, read_json, read_regular, reason_of, regular_file
from vitctl.models.sources import CHECKPOINTS
from vitctl.process.failure import Failure
from vitctl.registry import or_list, similar
from vitctl.units import plural, quoted

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
FAILURE, LOCK = "failure.json", ".lock"

RunState = Literal["finished", "running", "interrupted", "failed", "damaged"]
"""How a run ended. ``running``: a process holds its lock; ``damaged``: its settings cannot be read.

``interrupted`` is any other run without a summary, such as a pruned trial of a sweep.
"""

Record = dict[str, Any]

CODE = ("vitctl", "git_commit", "torch", "python")
"""Versions on which a result depends."""

MACHINE = ("device", "device_name", "precision", "micro_batch", "threads", "cpus", "compiled", "platform")
"""What a run used, where its settings may only be ``auto``."""

READING = ("size", "fit", "value_range", "skip_bad_images", "test_fraction")
"""Settings that change the digest of equal images."""

DEPTH = 3
"""Levels of folders that are searched for runs; those of a comparison are at ``comparisons/NAME/RUN``."""

_TAIL = 1 << 16
"""Bytes at the end of ``metrics.jsonl`` in which the last record is looked for."""

_LAST_EPOCH = 10**9
"""Number of an epoch from which a record is damaged."""

SETTINGS: Record = {
    field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    for field in dataclasses.fields(TrainConfig)
}
"""Every setting with its default, which is what runs of earlier versions without the setting did."""


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """A run as its folder describes it.

    Attributes:
        path: the folder.
        name: path of the folder, relative to the folder of runs.
        state: whether the run has ended, and how.
        settings: the settings by name, with defaults for those that an earlier version lacked; empty if damaged.
        sessions: command, versions and device of each session.
        summary: figures of ``summary.json``; empty if the run has not finished.
        results: the summary, or the figures of the last epoch if the run has not finished.
        failure: why the run failed, or None.
        notes: what is damaged.
    """

    path: Path
    name: str
    state: RunState
    settings: Record
    sessions: list[Record]
    summary: Record
    results: Record
    failure: Failure | None
    notes: tuple[str, ...]

    @property
    def environment(self) -> Record:
        """Versions and device of the last session; :data:`CODE` and :data:`MACHINE`."""
        known = {**self.results, **(self.sessions[-1] if self.sessions else {})}
        return {name: known[name] for name in (*CODE, *MACHINE) if known.get(name) is not None}

    @property
    def data(self) -> Record:
        """Digest and numbers of the images of the last session."""
        digest = self.sessions[-1].get(DATA_SHA256) if self.sessions else None
        counts = {name: value for name, value in self.results.items() if name.endswith("_images")}
        return {**({DATA_SHA256: digest} if digest else {}), **counts}

    @property
    def figures(self) -> Record:
        """The results without what is also a setting, or part of :attr:`environment` or :attr:`data`."""
        elsewhere = {"name", *FLAGS, *CODE, *MACHINE, *self.data}
        return flattened({name: value for name, value in self.results.items() if name not in elsewhere})

    def row(self) -> Record:
        """Return the run as one flat record; an option of the network is ``net_options.depth``.

        ``device``, ``precision``, ``micro_batch`` and ``threads`` are those that the run used.
        """
        return {
            "name": self.name,
            "run": str(self.path),
            "state": self.state,
            "started": self.sessions[-1].get("started") if self.sessions else None,
            **self.figures,
            **flattened(self.settings),
            **self.environment,
            **self.data,
            "failure": self.failure.message if self.failure else None,
        }

    def history(self) -> list[Record]:
        """Return the records of ``metrics.jsonl``, one per epoch in order, without damaged ones."""
        return self.read_history()[0]

    def read_history(self) -> tuple[list[Record], str]:
        """Return the records of ``metrics.jsonl``, one per epoch in order, and what is damaged, or an empty text.

        The last line of a run under way may be incomplete.
        """
        try:
            lines = read_regular(self.path / METRICS).split(b"\n")
        except FileNotFoundError:
            return [], ""
        except OSError as error:
            return [], f"{METRICS} cannot be read: {reason_of(error)}"
        records: dict[int, Record] = {}
        damaged = []
        for number, line in enumerate(lines, start=1):
            record = _parse_record(line)
            if record is not None:
                records[record["epoch"]] = record
            elif line.strip() and not (number == len(lines) and self.state == "running"):
                damaged.append(number)
        history = [records[epoch] for epoch in sorted(records)]
        if not damaged:
            return history, ""
        places = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        verb = "was" if len(damaged) == 1 else "were"
        return history, f"{METRICS} is damaged: {plural(len(damaged), 'line')} ({places}) {verb} skipped"


def flattened(values: Mapping[str, Any]) -> Record:
    """Return mappings within ``values`` as ``NAME.KEY``, without empty ones."""
    flat: Record = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": each for key, each in flattened(value).items()}
        else:
            flat[name] = value
    return flat


def read_runs(folder: Path) -> list[StoredRun]:
    """Return the runs in ``folder`` and its subfolders, newest first.

    Raises:
        RequestError: no such folder.
    """
    if not folder.is_dir():
        raise RequestError(
            f"folder of runs {folder} not found",
            hint="use --runs-dir with the folder of your runs, or start a run: vitctl train",
        )
    found = (read_run(path, path.relative_to(folder).as_posix()) for path in find_folders(folder))
    return sorted(filter(None, found), key=_age)


def _age(run: StoredRun) -> tuple[bool, float]:
    """Return a key that sorts runs with the newest first, by the start of their last session."""
    try:
        return False, -(run.path / CONFIG).stat().st_mtime
    except OSError:
        return True, 0.0


def find_folders(folder: Path) -> list[Path]:
    """Return the folders below ``folder`` that have a ``config.json``, in alphabetical order.

    A symbolic link to a folder counts only if its target is not found itself. Hidden folders and folders in runs are
    ignored.
    """
    links: list[Path] = []
    found = list(_walk(folder, DEPTH, links))
    if links:
        known = {os.path.realpath(path) for path in found}
        for link in links:
            if (target := os.path.realpath(link)) not in known:
                known.add(target)
                found.append(link)
    return found


def _walk(folder: Path, depth: int, links: list[Path]) -> Iterator[Path]:
    """Yield the folders with a ``config.json``, and append those that are symbolic links to ``links`` instead."""
    with os.scandir(folder) as entries:
        names = sorted((entry.name, entry.is_symlink()) for entry in entries if _is_visible_folder(entry))
    for name, is_link in names:
        path = folder / name
        if os.path.isfile(f"{path}/{CONFIG}"):
            if is_link:
                links.append(path)
            else:
                yield path
        elif depth > 1 and not is_link:
            with contextlib.suppress(OSError):  # a closed folder, or one that was just deleted
                yield from _walk(path, depth - 1, links)


def _is_visible_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:  # a loop of links
        return False


def read_run(path: Path, name: str | None = None) -> StoredRun | None:
    """Read the run in ``path``, or return None if its ``config.json`` is not that of a run.

    Args:
        path: a folder with ``config.json``.
        name: name of the run; the path by default.
    """
    notes: list[str] = []
    document = _read_json(path, CONFIG, notes)
    if document is None and not any(os.path.exists(f"{path}/{name}") for name in (METRICS, CHECKPOINTS)):
        return None
    if document is not None and not document.keys() & {"config", "sessions"}:
        return None  # such as the config.json next to the weights of an exported network
    settings, sessions = _settings_and_sessions(document or {})
    if document is not None and settings is None:
        notes.append(f"{CONFIG} is damaged: settings or sessions are missing")
    summary = _read_json(path, SUMMARY, notes) or {}
    failure = None if summary else Failure.read(path / FAILURE)
    state: RunState = "interrupted"
    if is_locked(path / LOCK):
        state = "running"
    elif settings is None:
        state = "damaged"
    elif summary:
        state = "finished"
    elif failure is not None:
        state = "failed"
    return StoredRun(
        path=path,
        name=name or str(path),
        state=state,
        settings=settings or {},
        sessions=sessions,
        summary=summary,
        results=summary or _last_epoch(path) or {},
        failure=failure,
        notes=tuple(notes),
    )


def _settings_and_sessions(document: Record) -> tuple[Record | None, list[Record]]:
    """Return settings, with defaults, and sessions of a ``config.json``; None if there are no valid settings."""
    config, sessions = document.get("config"), document.get("sessions")
    if not isinstance(config, dict) or not isinstance(sessions, list):
        return None, []
    return {**SETTINGS, **config}, [session for session in sessions if isinstance(session, dict)]


def _read_json(folder: Path, name: str, notes: list[str]) -> Record | None:
    """Return the JSON object in a file, or None if it is missing or damaged, which is noted."""
    try:
        return read_json(f"{folder}/{name}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        notes.append(f"{name} is damaged: {reason_of(error)}")
        return None


def _last_epoch(folder: Path) -> Record | None:
    """Return the last undamaged record of ``metrics.jsonl``."""
    try:
        with regular_file(f"{folder}/{METRICS}") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    return next(filter(None, map(_parse_record, reversed(lines))), None)


def _parse_record(line: bytes) -> Record | None:
    """Return the record of an epoch in a line of ``metrics.jsonl``, or None if it is not one."""
    try:
        record = parse_json(line) if line.strip() else None
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    epoch = record.get("epoch")
    return record if isinstance(epoch, int) and not isinstance(epoch, bool) and 0 <= epoch <= _LAST_EPOCH else None


_NO_RUNS = "use --runs-dir with the folder of your runs"


def open_run(target: Path, runs_dir: Path) -> StoredRun:
    """Return a run by its name in ``runs_dir``, or by its path.

    Raises:
        RequestError: no such run.
    """
    path = find_run(target, runs_dir)
    named = path.relative_to(runs_dir) if path.is_relative_to(runs_dir) else path
    run = read_run(path, named.as_posix()) if path.is_dir() else None
    if run is not None:
        return run
    names = [each.relative_to(runs_dir).as_posix() for each in find_folders(runs_dir)] if runs_dir.is_dir() else []
    near = [quoted(name) for name in similar(str(target), names)]
    listing = "vitctl runs list" + ("" if runs_dir == RUNS else f" --runs-dir {quoted(runs_dir)}")
    hint = f"use {or_list(near)}" if near else f"see the runs: {listing}" if names else _NO_RUNS
    if path.exists():
        raise RequestError(f"{target} is not a run", hint=hint)
    raise RequestError(f"run {target} not found in {runs_dir}", hint=hint)
