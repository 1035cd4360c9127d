"""``--max-time``: the number of steps that fit, set at the start so that the learning-rate schedule ends in time."""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
import time
from pathlib import Path

from vitctl import devices
from vitctl.data.dataset import Subset
from vitctl.errors import RequestError
from vitctl.training.checkpoint import save_checkpoint
from vitctl.training.evaluate import evaluate
from vitctl.training.loop import train_step
from vitctl.training.pace import Pace, Speed, fitting_steps, run_seconds
from vitctl.training.preflight import check_length
from vitctl.training.session import Session, given_length
from vitctl.units import format_duration, parse_duration, plural

MEASURED_SHARE = 0.01
"""Share of the time limit spent on timing steps; the length is corrected during the run."""
MEASURED_SECONDS = (0.5, 5.0)
"""Minimum and maximum seconds spent on timing steps."""
PLANNED_SHARE = 0.97
"""Share of the time limit to plan for, as a machine's speed varies by a few percent from minute to minute."""
HINT_MARGIN = 1.1
"""Factor on the measured time in the hint for a limit that is too short, so that following the hint works."""
CLOSING_SECONDS = 0.5
"""Seconds from the final figures to the end of the process."""
TRACKER_SECONDS = (2.0, 1.5)
"""Seconds that W&B is assumed to take to open and to close."""
clock = time.monotonic
"""Clock for measuring and planning, in seconds; replaced in tests."""


class TimePlan:
    """Fits the length of a run to ``--max-time``.

    The speed is measured on real steps and evaluations, and the session is then restored. The number of steps is stored
    in the settings as ``max_steps``, and its changes during the run (:meth:`pace`) as ``refits``: a run with both
    settings is bit-identical.

    Args:
        session: a new session whose settings have ``max_time``.
        started: start of the time limit, as :func:`time.monotonic` counts.
        runs_dir: folder for timing checkpoints, on the disk of the run; None uses the system's temporary folder.

    Raises:
        RunFailed: the loss is not finite, or memory ran out.
    """

    def __init__(self, session: Session, started: float, runs_dir: Path | None = None) -> None:
        config = session.config
        assert config.max_time is not None
        self._session, self._started, self._text = session, started, config.max_time
        self._budget = parse_duration(config.max_time, "--max-time")
        self._limit = given_length(config, session.steps_per_epoch)
        self._trackers = TRACKER_SECONDS if config.wandb != "disabled" else (0.0, 0.0)
        self._speed = measure_speed(session, self._budget, runs_dir)

    def fit(self) -> str:
        """Set the run's length to the number of steps that fit, and return a message about it.

        Raises:
            RequestError: the time is too short for one step and the final test, or for the warm-down.
        """
        left = self._left(sum(self._trackers))
        steps = fitting_steps(self._session, self._speed, left, self._limit)
        if steps < 1:
            needed = (self._seconds(1) - left + PLANNED_SHARE * self._budget) / PLANNED_SHARE
            raise RequestError(
                f"--max-time {self._text} is too short for one step and the final test",
                hint=f"use --max-time {math.ceil(HINT_MARGIN * needed)}s or more with these settings",
            )
        message = self._set_length(steps, left)
        check_length(self._session)
        return message

    def fit_again(self) -> str:
        """Fit the length again once W&B is open, however long that took; the run takes at least one step."""
        left = self._left(self._trackers[1])
        return self._set_length(max(1, fitting_steps(self._session, self._speed, left, self._limit)), left)

    def pace(self) -> Pace:
        """Return the pace that keeps the run within its time; call it when training begins."""
        end = clock() + self._left(self._trackers[1])
        return Pace(self._session, self._speed, self._limit, self._budget, end, clock)

    def _left(self, trackers: float) -> float:
        return PLANNED_SHARE * self._budget - CLOSING_SECONDS - trackers - (clock() - self._started)

    def _seconds(self, steps: int) -> float:
        return run_seconds(self._session, self._speed, steps)

    def _set_length(self, steps: int, left: float) -> str:
        session = self._session
        session.set_length(steps)
        session.config = dataclasses.replace(session.config, max_steps=steps, refits=[])
        images = min(session.batches.batch_size, session.batches.count) / self._speed.step
        epochs = steps / session.steps_per_epoch
        spare = self._budget * (1 - PLANNED_SHARE) + left - self._seconds(steps)
        rest = f" with {format_duration(spare)} to spare" if steps == self._limit else ""
        length = f"{plural(steps, 'step')} ({epochs:.2f} epochs)"
        return f"{images:,.0f} images/s: {length} fit into --max-time {self._text}{rest}"


def measure_speed(session: Session, budget: float, runs_dir: Path | None = None) -> Speed:
    """Time real steps, evaluations and checkpoints, and restore the session.

    If epochs have few steps, checkpoints and the fixed cost of evaluations take most of a run's time.

    Args:
        session: a new session.
        budget: time limit of the run in seconds; measuring takes a small share of it.
        runs_dir: where a temporary folder for the checkpoints is created; None uses the system's temporary folder.
    """
    before = copy.deepcopy(session.checkpoint())
    low, high = MEASURED_SECONDS
    step = step_seconds(session, min(high, max(low, MEASURED_SHARE * budget)))

    index = session.splits.test.index[: 2 * session.eval_batch]
    many, single = (Subset(session.splits.test.examples, part) for part in (index, index[:1]))
    call = min(_evaluation_seconds(session, single) for _ in range(2))
    image = max(0.0, min(_evaluation_seconds(session, many) for _ in range(2)) - call) / max(1, len(index) - 1)
    save = _save_seconds(session, runs_dir)
    session.restore(before)
    return Speed(step, image, save, call)


def step_seconds(session: Session, seconds: float) -> float:
    """Take steps for about ``seconds``, at least two, and return the seconds that each takes."""
    session.train_mode()
    _step(session)  # the first step allocates memory
    steps, start = 0, clock()
    while not steps or clock() - start < seconds:
        _step(session)
        steps += 1
    return (clock() - start) / steps


def _step(session: Session) -> None:
    if session.progress.step_in_epoch == session.steps_per_epoch:
        session.progress.begin_epoch()
    train_step(session)
    devices.synchronize(session.device)


def _evaluation_seconds(session: Session, subset: Subset) -> float:
    start = clock()
    evaluate(
        session.evaluated_model,
        subset,
        session.normalize,
        session.device,
        session.eval_batch,
        precision=session.precision,
    )
    return clock() - start


def _save_seconds(session: Session, runs_dir: Path | None) -> float:
    """Return the seconds that writing a checkpoint takes, averaged over two."""
    place = next((each for each in (runs_dir, *(runs_dir.parents)) if each.is_dir()), None) if runs_dir else None
    try:
        folder = tempfile.TemporaryDirectory(dir=place, prefix=".speed-")
    except OSError:  # reported later, when the run folder is created
        folder = tempfile.TemporaryDirectory(prefix=".speed-")
    with folder as path:
        start = clock()
        for _ in range(2):
            save_checkpoint(session.checkpoint(), Path(path) / "measured.pt")
        return (clock() - start) / 2
