"""``--max-time``: how many steps fit into a time, set once, so that the schedule ends when the time does."""

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
from vitctl.training.preflight import check_length
from vitctl.training.session import Session, given_length
from vitctl.units import format_duration, parse_duration, parse_save_every, plural

MEASURED_SHARE = 0.04
"""Share of the time that is spent on measuring the speed."""
MEASURED_SECONDS = (1.0, 30.0)
"""Its least and most; and at least :data:`MEASURED_STEPS` steps are measured, as a step may take long."""
MEASURED_STEPS = 3
AIM = 0.97
"""Share of the time that is planned for: machines vary by some percent from minute to minute."""
HINT_MARGIN = 1.1
"""What a too short time is told to be at least, over what was measured: a hint that is refused too is none."""
CLOSING_SECONDS = 0.5
"""From the last figure to the end of the process."""
TRACKER_SECONDS = (2.0, 1.5)
"""For W&B, where it is used: to open, before its opening has been seen, and to close."""
SAVES = 2
"""Checkpoints that an epoch writes at most: where the best is kept too, one that is the best so far writes it and a copy."""

clock = time.monotonic
"""Clock for measuring and planning, in seconds; tests replace it."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """What the parts of a run take, in seconds.

    Attributes:
        step: one optimizer step.
        image: evaluating one image.
        save: writing one checkpoint.
        call: evaluating no image at all.
    """

    step: float
    image: float
    save: float
    call: float = 0.0


class TimePlan:
    """A run's length by ``--max-time``.

    The speed is measured once, on real steps and evaluations, whose traces are then removed: a run of as many ``--max-steps``
    has the same bits. The number of steps goes into the settings, as ``max_steps``, and stays.

    Args:
        session: new, with ``max_time`` in its settings.
        started: when the time began to run, by :func:`time.monotonic`.
        runs_dir: where checkpoints will be written, whose disk is measured; None is the system's folder of temporary files.

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
        """Set the run's length to what the time leaves room for, and return that in words.

        Raises:
            RequestError: the time is too short for a single step and the test, or for the settings.
        """
        left = self._left(sum(self._trackers))
        steps = fitting_steps(self._session, self._speed, left, self._limit)
        if steps < 1:
            needed = (self._seconds(1) - left + AIM * self._budget) / AIM
            raise RequestError(
                f"--max-time {self._text} is over before the first step and the final test are done; with these settings "
                f"give at least {math.ceil(HINT_MARGIN * needed)}s"
            )
        words = self._set(steps, left)
        check_length(self._session)
        return words

    def fit_again(self) -> str:
        """Do as :meth:`fit`, now that W&B is open, however long that took; at least one step is taken."""
        left = self._left(self._trackers[1])
        return self._set(max(1, fitting_steps(self._session, self._speed, left, self._limit)), left)

    def _left(self, trackers: float) -> float:
        return AIM * self._budget - CLOSING_SECONDS - trackers - (clock() - self._started)

    def _seconds(self, steps: int) -> float:
        return run_seconds(self._session, self._speed, steps)

    def _set(self, steps: int, left: float) -> str:
        session = self._session
        session.set_length(steps)
        session.config = dataclasses.replace(session.config, max_steps=steps)
        images = min(session.batches.batch_size, session.batches.count) / self._speed.step
        epochs = steps / session.steps_per_epoch
        spare = self._budget * (1 - AIM) + left - self._seconds(steps)
        before = f", {format_duration(spare)} before --max-time {self._text} is over" if steps == self._limit else ""
        return (
            f"{images:.0f} images/s: {plural(steps, 'step')}, {epochs:.2f} epochs, fit into --max-time "
            f"{self._text}{before}"
        )


def measure_speed(session: Session, budget: float, runs_dir: Path | None = None) -> Speed:
    """Take real steps and evaluations for a small share of ``budget`` seconds, and bring the session back to where it was.

    Checkpoints are written too, to a folder in ``runs_dir`` that is removed. With epochs of few steps they and the fixed cost of
    an evaluation are most of the time.
    """
    before = copy.deepcopy(session.checkpoint())
    low, high = MEASURED_SECONDS
    wanted = min(high, max(low, MEASURED_SHARE * budget))
    session.train_mode()
    _step(session)  # the first one allocates
    steps, start = 0, clock()
    while steps < MEASURED_STEPS or clock() - start < wanted:
        _step(session)
        steps += 1
    step = (clock() - start) / steps

    index = session.splits.test.index[: 2 * session.eval_batch]
    whole, single = (Subset(session.splits.test.examples, part) for part in (index, index[:1]))
    call = min(_evaluation_seconds(session, single) for _ in range(2))
    image = max(0.0, min(_evaluation_seconds(session, whole) for _ in range(2)) - call) / max(1, len(index) - 1)
    save = _save_seconds(session, runs_dir)
    session.restore(before)
    return Speed(step, image, save, call)


def fitting_steps(session: Session, speed: Speed, seconds: float, limit: int | None) -> int:
    """Return the greatest number of steps, up to ``limit``, that take at most ``seconds``; 0 if none does."""
    low, high = 0, max(1, int(seconds / speed.step))
    if limit is not None:
        high = min(high, limit)
    while low < high:
        middle = (low + high + 1) // 2
        if run_seconds(session, speed, middle) <= seconds:
            low = middle
        else:
            high = middle - 1
    return low


def run_seconds(session: Session, speed: Speed, steps: int) -> float:
    """Return what a run of ``steps`` takes: steps, evaluations and checkpoints after each epoch, final test."""
    epochs = -(-steps // session.steps_per_epoch)
    splits = session.splits
    val = len(splits.val.index) if splits.val is not None else 0
    mirrored = session.config.tta == "flip"
    # Under --val test the last evaluation is the test, but for the plain figures that stand beside mirrored ones.
    test = len(splits.test.index) * (2 if mirrored else 0 if splits.val_split == "test" else 1)
    saves = SAVES if splits.val_split in ("holdout", "val") else 1
    epoch = (speed.call + val * speed.image if val else 0.0) + saves * speed.save
    training = steps * speed.step
    if session.config.save_every:
        every, seconds = parse_save_every(session.config.save_every, "--save-every")
        training += speed.save * (steps // every if every else training / seconds if seconds else 0)
    return training + epochs * epoch + (speed.call + test * speed.image if test else 0.0)


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
    """Return what writing a checkpoint takes, the mean of two."""
    place = next((each for each in (runs_dir, *(runs_dir.parents)) if each.is_dir()), None) if runs_dir else None
    try:
        folder = tempfile.TemporaryDirectory(dir=place, prefix=".speed-")
    except OSError:  # the run itself will say that it cannot write there
        folder = tempfile.TemporaryDirectory(prefix=".speed-")
    with folder as path:
        start = clock()
        for _ in range(2):
            save_checkpoint(session.checkpoint(), Path(path) / "measured.pt")
        return (clock() - start) / 2
