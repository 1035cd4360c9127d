"""Base class of trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitctl.observer import Observer, Record, RunStart


class Tracker(Observer):
    """An observer that records a run's metrics in a service or in files; it is opened and closed once."""

    def open(self, run: RunStart) -> None:
        """Open the tracker before the run; this may take seconds, which count towards ``--max-time``."""

    def close(self, exit_code: int) -> None:
        """Close the tracker at the end of the run; ``exit_code`` is that of the command, 0 if the run completed."""


def numbers(record: Mapping[str, Any]) -> Record:
    """Return only the numeric values of a record, as text cannot be plotted."""
    return {key: value for key, value in record.items() if isinstance(value, (int, float))}
