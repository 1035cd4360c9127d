"""Base class of trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitctl.observer import Observer, Record, RunStart


class Tracker(Observer):
    """An observer that records a run's metrics in a service or in files, and is opened and closed."""

    def open(self, run: RunStart) -> None:
        """Prepare for the run; this may take seconds, which ``--max-time`` counts."""

    def close(self, exit_code: int) -> None:
        """Close the tracker, once, at the end of the run; 0 if the run is done, else the command's exit code."""


def numbers(record: Mapping[str, Any]) -> Record:
    """Return only the numeric values of a record, as text cannot be plotted."""
    return {key: value for key, value in record.items() if isinstance(value, (int, float))}
