"""TensorBoard: a run's figures as event files in its folder, so that ``tensorboard --logdir runs`` shows every run by name."""

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
    """Writes a scalar per figure of an epoch; the step of TensorBoard is the epoch.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def open(self, run: RunStart) -> None:
        """Begin a file; that of a resumed run takes the place of those before it."""
        from torch.utils.tensorboard import SummaryWriter

        # Readers drop what earlier files say of the steps from purge_step on: there is one figure an epoch, also where a
        # killed run did not get to write it, or a resumed one began before what was written.
        purge = 0 if any(self._folder.glob("events.out.tfevents.*")) else None
        self._writer = SummaryWriter(str(self._folder), purge_step=purge)

    def started(self, run: RunStart) -> None:
        """Write the settings, and the epochs that are done."""
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
        """Write the figures of the final test."""
        self._write({key: summary[key] for key in ("test_loss", "test_acc")}, summary["epoch"])

    def _write(self, figures: Mapping[str, Any], epoch: int, wall_time: float | None = None) -> None:
        assert self._writer is not None
        for name, value in numbers(figures).items():
            if name != "epoch":
                self._writer.add_scalar(name, value, epoch, walltime=wall_time)
        self._writer.flush()

    def close(self, exit_code: int) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
