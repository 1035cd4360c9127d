"""What the library reports while it works: one observer for runs, data, comparisons, exports and sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """What a training run is, as it begins or resumes.

    Attributes:
        folder: of the run.
        settings: of the run, by name, see :class:`vitctl.config.TrainConfig`.
        network: name, image size and classes, in words.
        params: parameters of the network.
        trainable: those that are trained.
        tokens: that attention sees, or None.
        mflop: of a forward pass of one image, in 10^6 floating-point operations.
        device: such as ``cuda:0``.
        device_name: its maker's name.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        micro_batch: images run at once.
        train_images: images of an epoch.
        val_images: images that epochs are evaluated on.
        test_images: images of the test set.
        val_split: where ``val_images`` come from: ``holdout``, ``val``, ``test``, or None.
        skipped: files that could not be read and are left out.
        total_steps: optimizer steps of the run.
        epochs: epochs of the run.
        step: optimizer steps taken so far.
        seconds: wall time so far.
        history: the record of each epoch so far.
        environment: versions, device and threads.
        git_commit: of the source tree that runs, or None.
    """

    folder: Path
    settings: Mapping[str, Any]
    network: str
    params: int
    trainable: int
    tokens: int | None
    mflop: float
    device: str
    device_name: str
    precision: str
    micro_batch: int
    train_images: int
    val_images: int
    test_images: int
    val_split: str | None
    skipped: Sequence[str]
    total_steps: int
    epochs: int
    step: int
    seconds: float
    history: Sequence[Record]
    environment: Mapping[str, Any]
    git_commit: str | None


class Observer:
    """Hears what the library does, and shows or keeps what it likes; nothing that it does changes the work.

    Every method does nothing here. A context manager, so that a display can be opened and closed.
    """

    wants_snapshots = False
    """Whether :meth:`sweep_changed` should be called, which costs a query of the storage every few seconds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    # -- anything --------------------------------------------------------------------------------------------------

    def message(self, text: str) -> None:
        """Something that the user should know."""

    def working(self, text: str) -> None:
        """Work called ``text`` begins."""

    def loading(self, done: int, total: int, *, download: str = "") -> None:
        """``done`` of ``total`` images are decoded; or bytes, of what ``download`` names."""

    def evaluating(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` images of the part ``what`` are evaluated."""

    # -- a training run --------------------------------------------------------------------------------------------

    def started(self, run: RunStart) -> None:
        """A run begins or resumes."""

    def stepped(self, record: Record) -> None:
        """Figures so far of the current epoch; on an accelerator the loss is at most some steps old."""

    def epoch_done(self, record: Record) -> None:
        """The record of an epoch, as in ``metrics.jsonl``."""

    def finished(self, summary: Record) -> None:
        """The final figures, as in ``summary.json``."""

    # -- several runs ----------------------------------------------------------------------------------------------

    def running(self, what: str, done: int, total: int, seconds_left: float | None) -> None:
        """The run ``what`` begins, or one has ended where it is empty; ``done`` of ``total`` runs are over."""

    # -- a sweep ---------------------------------------------------------------------------------------------------

    def sweep_opened(self, sweep: Any, snapshot: Any, *, created: bool) -> None:
        """An agent begins to work on a :class:`vitctl.sweep.sweep.Sweep`, or finds nothing left to do."""

    def sweep_closed(self, why: str | None) -> None:
        """The agent ended: ``finished``, ``stopped``, ``count`` or ``time``; None: there was nothing to do."""

    def trial_started(self, trial: int, params: Mapping[str, Any], run: Path, resumed: bool) -> None:
        """Training of a trial begins or resumes."""

    def trial_reported(self, trial: int, epoch: int, value: float) -> None:
        """A trial reported the sweep's metric."""

    def trial_ended(self, trial: int, state: str, value: float | None, why: str) -> None:
        """A trial is complete, pruned, failed, or ``released`` to be tried again."""

    def sweep_changed(self, snapshot: Any) -> None:
        """How the whole sweep stands: a :class:`vitctl.sweep.agent.Snapshot`."""


SILENT = Observer()
"""Shows nothing."""
