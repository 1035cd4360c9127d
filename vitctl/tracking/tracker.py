"""What a tracker is: an observer that keeps a run's figures in a service or a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitctl.observer import Observer, Record, RunStart


class Tracker(Observer):
    """An observer that keeps a run's figures somewhere else, and is opened and closed."""

    def open(self, run: RunStart) -> None:
        """Get ready, which may take seconds; the run's length is set after that, so that ``--max-time`` counts them."""

    def close(self, exit_code: int) -> None:
        """Called once, at the end, whatever happened: 0 when the run is done, else the exit code of the command."""


def numbers(record: Mapping[str, Any]) -> Record:
    """Return the figures of a record; a curve of words says nothing."""
    return {key: value for key, value in record.items() if isinstance(value, (int, float))}
