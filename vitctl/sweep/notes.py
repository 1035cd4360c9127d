"""Notes on a new sweep: surprising rules of W&B, and settings that its trials do not get."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitctl.config import FLAGS, LENGTHS, OPTION_TABLES, normalise_keys, resolve_config, setting_of
from vitctl.errors import RequestError
from vitctl.sweep.file import SweepFile, extremes
from vitctl.sweep.space import show

_WRONG_GOALS = {"acc": ("minimize", "maximize"), "loss": ("maximize", "minimize")}
"""Goal that finds the worst trial, and the opposite goal, by kind of metric."""

_ASSIGNMENT = re.compile(r"(?:--|\+*)([A-Za-z_][\w.-]*)=(.*)")


def notes_of(file: SweepFile, fixed: Mapping[str, Any], run_cap: int | None) -> list[str]:
    """Return the notes on a new sweep with any engine.

    Args:
        file: a sweep file that passed :func:`~vitctl.sweep.file.check_trains`.
        fixed: settings of ``--fixed``.
        run_cap: maximum number of trials, or None.
    """
    return [
        *file.notes,
        *goal_notes(file),
        *grid_notes(file),
        *random_notes(file, run_cap),
        *command_notes(file, fixed),
        *length_notes(file, fixed),
    ]


def goal_notes(file: SweepFile) -> list[str]:
    """Return a note if the goal is to minimize an accuracy or to maximize a loss."""
    metric = file.metric
    wrong, other = _WRONG_GOALS.get(metric.name.rpartition("_")[2], ("", ""))
    if metric.goal != wrong:
        return []
    return [f"{metric.name} is {wrong}d, so the best trial is the worst network; use goal: {other}"]


def grid_notes(file: SweepFile) -> list[str]:
    """Return a note for each parameter of a grid that leaves out its ``max``."""
    notes = []
    for name, parameter in file.space.varying.items() if file.method == "grid" else ():
        if parameter.distribution == "q_uniform" and (last := parameter.grid()[-1]) != parameter.settings["max"]:
            low, high, q = (parameter.settings[key] for key in ("min", "max", "q"))
            steps = (high - low) / q
            more = f"; to include it use max: {show(high + q / 2)}" if math.isclose(steps, round(steps)) else ""
            notes.append(f"{name}: the grid ends at {show(last)}, before max {show(high)}, as in W&B{more}")
    return notes


def random_notes(file: SweepFile, run_cap: int | None) -> list[str]:
    """Return a note if parameter sets are drawn without end although their number is finite."""
    size = file.space.size
    if file.method != "random" or run_cap is not None or size is None:
        return []
    return [f"random draws with replacement and does not end after {size:,} parameter sets; add --run-cap {size}"]


def command_notes(file: SweepFile, fixed: Mapping[str, Any]) -> list[str]:
    """Return notes on the settings in the file's ``command``, which trials do not get."""
    given = {setting_of(name) for name in (*file.space.parameters, *fixed)}
    ours, others = [], []
    for flag, value in _flags_of(file.document.get("command", ())):
        name = setting_of(flag)
        if name in given:
            continue
        if _is_accepted(name, value):
            ours.append(f"--fixed {shlex.quote(f'{name}={value}')}")
        elif flag.startswith("-"):
            others.append(flag if value == "true" else f"{flag} {value}")
    notes = []
    if ours:
        notes.append(f"command is ignored; for its settings add {' '.join(ours)}")
    if others:
        notes.append(f"command is ignored, and train does not accept its {', '.join(others)}")
    return notes


def _flags_of(command: Sequence[object]) -> Iterator[tuple[str, str]]:
    """Yield the flags of a command with their values: ``true`` without a value, several joined by spaces."""
    words = [str(word) for word in command]
    while words:
        word = words.pop(0)
        if assignment := _ASSIGNMENT.fullmatch(word):
            yield word.partition("=")[0], assignment[2]
        elif word.startswith("--"):
            values = []
            while words and not words[0].startswith(("--", "${")):
                values.append(words.pop(0))
            yield word, " ".join(values) or "true"


def _is_accepted(name: str, value: str) -> bool:
    """Return whether ``train`` accepts a setting by itself."""
    if name not in FLAGS:
        return False
    try:
        resolve_config({}, normalise_keys({name: value}, "command"))
    except RequestError:
        return False
    return True


def length_notes(file: SweepFile, fixed: Mapping[str, Any]) -> list[str]:
    """Return a note for each varied length (such as ``epochs``) on which other settings of the recipe depend.

    Args:
        file: a sweep file that passed :func:`check_trains`.
        fixed: settings of ``--fixed``.
    """
    ends = extremes(file.space)
    first = {name: values[0] for name, values in ends.items()}
    notes = []
    for name, lengths in ends.items():
        if setting_of(name) not in LENGTHS:
            continue
        settings = [file.settings(first | {name: length}, fixed) for length in lengths]
        configs = [resolve_config({}, normalise_keys(each, file.name)).to_dict() for each in settings]
        changing = {key for config in configs for key in config if config[key] != configs[0][key]} - set(LENGTHS)
        differing = sorted(changing - set(OPTION_TABLES))
        if differing:
            notes.append(
                f"{name}: the recipe chooses {', '.join(differing)} by length; set {'it' if len(differing) == 1 else 'them'} "
                f"in {file.name} to vary {name} only"
            )
    return notes
