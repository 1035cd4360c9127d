"""TensorBoard: a run's metrics as event files in its folder; ``tensorboard --logdir runs`` shows all runs by name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vitctl.observer import Record, RunStart
from vitctl.tracking.tracker import Tracker, numbers

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLog(Tracker):
    """Writes the metrics of each epoch as scalars, whose step is the epoch.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def open(self, run: RunStart) -> None:
        """Create an event file; in a resumed run, it replaces the earlier ones."""
        from torch.utils.tensorboard import SummaryWriter

        # Readers discard the steps from purge_step on in earlier files. All epochs are written again, as a killed run may
        # have missed some, or a resumed run may repeat some.
        purge = 0 if any(self._folder.glob("events.out.tfevents.*")) else None
        self._writer = SummaryWriter(str(self._folder), purge_step=purge)

    def started(self, run: RunStart) -> None:
        """Write the settings and the completed epochs."""
        assert self._writer is not None
        self._writer.add_text("config", f"```yaml\n{yaml.safe_dump(dict(run.settings), sort_keys=False)}```", 0)
        now = time.time()
        for row in run.history:
            self._write(row, row["epoch"], wall_time=now - (run.seconds - row["seconds"]))
        self._writer.flush()

    def epoch_done(self, record: Record) -> None:
        """Write the record of an epoch."""
        self._write(record, record["epoch"])

    def finished(self, summary: Record) -> None:
        """Write the results of the final test."""
        self._write({key: summary[key] for key in ("test_loss", "test_acc")}, summary["epoch"])

    def _write(self, metrics: Mapping[str, Any], epoch: int, wall_time: float | None = None) -> None:
        assert self._writer is not None
        for name, value in numbers(metrics).items():
            if name != "epoch":
                self._writer.add_scalar(name, value, epoch, walltime=wall_time)
        self._writer.flush()

    def close(self, exit_code: int) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
