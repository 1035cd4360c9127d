"""Progress reporting: one observer for runs, data, comparisons, exports and sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """A training run when it starts or resumes.

    Attributes:
        folder: the run's folder.
        settings: the run's settings by name, see :class:`vitctl.config.TrainConfig`.
        network: description of the network: name, image size and classes.
        params: number of parameters.
        trainable: number of trained parameters.
        tokens: sequence length that attention sees, or None.
        mflop: cost of a forward pass of one image, in 10^6 floating-point operations.
        device: the device, such as ``cuda:0``.
        device_name: the vendor's name for it.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        micro_batch: images per forward pass.
        train_images: training images per epoch.
        val_images: images evaluated after each epoch.
        test_images: images in the test set.
        val_split: source of ``val_images``: ``holdout``, ``val``, ``test``, or None.
        skipped: files left out because they could not be read.
        total_steps: optimizer steps of the whole run.
        epochs: epochs of the whole run.
        step: optimizer steps taken so far.
        seconds: wall time so far.
        history: the record of each epoch so far.
        environment: versions, device and threads.
        git_commit: commit of vitctl's source tree, or None.
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
    """Receives progress events, to display or record them; it cannot affect the work.

    The methods here do nothing. An observer is a context manager, so that it can open and close a display.
    """

    wants_snapshots = False
    """Whether to call :meth:`sweep_changed`, at the cost of a storage query every few seconds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    # -- anything --------------------------------------------------------------------------------------------------

    def message(self, text: str) -> None:
        """Receive a message for the user."""

    def working(self, text: str) -> None:
        """Receive the start of work described by ``text``."""

    def loading(self, done: int, total: int, *, download: str = "") -> None:
        """Receive decoding progress in images, or download progress in bytes where ``download`` describes one."""

    def evaluating(self, what: str, done: int, total: int) -> None:
        """Receive evaluation progress in images; ``what`` is the part of the data set."""

    # -- a training run --------------------------------------------------------------------------------------------

    def started(self, run: RunStart) -> None:
        """Receive the start of a run, new or resumed."""

    def stepped(self, record: Record) -> None:
        """Receive the current epoch's figures so far; on an accelerator, the loss may be a few steps old."""

    def epoch_done(self, record: Record) -> None:
        """Receive the record of an epoch, as in ``metrics.jsonl``."""

    def finished(self, summary: Record) -> None:
        """Receive the final figures, as in ``summary.json``."""

    # -- several runs ----------------------------------------------------------------------------------------------

    def running(self, what: str, done: int, total: int, seconds_left: float | None) -> None:
        """Receive the start of the run ``what``, or the end of one if ``what`` is empty; ``done`` runs have ended."""

    # -- a sweep ---------------------------------------------------------------------------------------------------

    def sweep_opened(self, sweep: Any, snapshot: Any, *, created: bool) -> None:
        """Receive the :class:`vitctl.sweep.sweep.Sweep` that an agent starts on, even if nothing is left to do."""

    def sweep_closed(self, why: str | None) -> None:
        """Receive why the agent ended, a :data:`vitctl.sweep.states.AgentEnd`, or None if it had nothing to do."""

    def trial_started(self, trial: int, params: Mapping[str, Any], run: Path, resumed: bool) -> None:
        """Receive the start of a trial's training, new or resumed."""

    def trial_reported(self, trial: int, epoch: int, value: float) -> None:
        """Receive a value of the sweep's metric that a trial reported."""

    def trial_ended(self, trial: int, state: str, value: float | None, why: str) -> None:
        """Receive the end of a trial: complete, pruned, failed, or ``released`` to be retried."""

    def sweep_changed(self, snapshot: Any) -> None:
        """Receive the state of the whole sweep, a :class:`vitctl.sweep.agent.Snapshot`."""


SILENT = Observer()
"""Ignores every event."""
