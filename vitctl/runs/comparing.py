"""What differs between runs: settings, results, code, machine and images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from vitctl.data.manifest import DATA_SHA256, MANIFEST, Manifest
from vitctl.runs.stored import CODE, MACHINE, READING, Record, StoredRun, flattened
from vitctl.units import plural

Section = Literal["settings", "results", "code", "machine", "data"]
SECTIONS: tuple[Section, ...] = get_args(Section)

Differences = dict[Section, dict[str, list[Any]]]
"""Values of each run by section and name, only where they differ; None for a run without the value."""


def _sections_of(run: StoredRun) -> dict[Section, Record]:
    """Return what can differ between runs."""
    environment = run.environment
    return {
        "settings": flattened(run.settings),
        "results": {"state": run.state, **run.figures},
        "code": {name: environment[name] for name in CODE if name in environment},
        "machine": {name: environment[name] for name in MACHINE if name in environment},
        "data": run.data,
    }


def differences(runs: Sequence[StoredRun]) -> Differences:
    """Return what differs between two or more runs."""
    every = [_sections_of(run) for run in runs]
    found: Differences = {section: differing([each[section] for each in every]) for section in SECTIONS}
    if DATA_SHA256 in found["data"] and not found["settings"].keys() & set(READING):
        found["data"] |= _changes(runs)
    return found


def remarks(runs: Sequence[StoredRun], found: Differences) -> list[str]:
    """Return what a reader of the differences must know: damaged files, and digests that are not comparable."""
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    reading = [name for name in READING if name in found["settings"]]
    if DATA_SHA256 in found["data"] and reading:
        notes.append(f"{DATA_SHA256} depends on {' and '.join(reading)}, so the images may be the same")
    return notes


def differing(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of each record, by name, where they are not all the same; None for a missing one."""
    values = {
        name: [record.get(name) for record in records] for name in dict.fromkeys(itertools.chain.from_iterable(records))
    }
    return {name: row for name, row in values.items() if not all(_same(row[0], each) for each in row[1:])}


def _same(one: Any, other: Any) -> bool:
    return one is other or bool(one == other) or (str(one) == str(other) == "nan")


def _changes(runs: Sequence[StoredRun]) -> dict[str, list[Any]]:
    """Return how the images of runs differ from those of the first one, if their manifests can be read."""
    first, *others = (Manifest.read(run.path / MANIFEST) for run in runs)
    if first is None or None in others:
        return {}
    changes = [other.changes_since(first) if other and other.digest != first.digest else None for other in others]
    return {"images": [plural(len(first.images), "image"), *changes]}
