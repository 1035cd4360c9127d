"""Speed of a run, and the changes of its length with which ``--max-time`` follows changes of the machine's speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from vitctl import devices
from vitctl.training.evaluate import tta_views
from vitctl.training.run_folder import RunFolder
from vitctl.training.session import Session
from vitctl.units import parse_save_every, plural

SAVES_PER_EPOCH = 2
"""Maximum number of checkpoints written per epoch: ``best.pt`` and ``last.pt``."""

REFITS = (0.4, 0.8)
"""Shares of the training after which the length is fitted again.

The first corrects most of an error while the learning rate is high. The second is late, as nothing corrects later
changes of speed, but leaves enough steps for the rate to fall gradually.
"""

WINDOW = 0.1
"""Share of the training, before a refit, in which the speed is measured: recent speed predicts the rest best."""

TOLERATED = 0.01
"""Share of the time limit by which the end may be early or late before the length is changed."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds that each part of a run takes.

    Attributes:
        step: one optimizer step.
        image: evaluating one image.
        save: writing one checkpoint.
        call: fixed cost of an evaluation.
    """

    step: float
    image: float
    save: float
    call: float = 0.0

    def scaled(self, factor: float) -> Speed:
        """Return the speed of a machine on which everything takes ``factor`` times as long."""
        return Speed(*(factor * seconds for seconds in dataclasses.astuple(self)))


def training_seconds(session: Session, speed: Speed, steps: int, epochs: int) -> float:
    """Return the seconds that ``steps`` take, with the evaluations and checkpoints of ``epochs``."""
    splits = session.splits
    val = len(splits.val.index) if splits.val is not None else 0
    saves = SAVES_PER_EPOCH if splits.val_split in ("holdout", "val") else 1
    epoch = (speed.call + val * speed.image if val else 0.0) + saves * speed.save
    training = steps * speed.step
    if session.config.save_every:
        every, seconds = parse_save_every(session.config.save_every, "--save-every")
        training += speed.save * (steps // every if every else training / seconds if seconds else 0)
    return training + epochs * epoch


def final_test_seconds(session: Session, speed: Speed) -> float:
    """Return the seconds that the final test takes."""
    views = len(tta_views(session.config.tta, session.config.flips))
    # With --val test, the last evaluation is the final test, unless --tta tests several views.
    images = len(session.splits.test.index) * (views if views > 1 else 0 if session.splits.val_split == "test" else 1)
    return speed.call + images * speed.image if images else 0.0


def run_seconds(session: Session, speed: Speed, steps: int) -> float:
    """Return the seconds that a run of ``steps`` takes, with evaluations, checkpoints and the final test."""
    epochs = -(-steps // session.steps_per_epoch)
    return training_seconds(session, speed, steps, epochs) + final_test_seconds(session, speed)


def fitting_steps(session: Session, speed: Speed, seconds: float, limit: int | None) -> int:
    """Return the largest number of steps, up to ``limit``, that fits into ``seconds``; 0 if not even one does."""
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


class Moment(NamedTuple):
    """When to measure the speed of a run: after a share of its steps, or at a time if that is earlier.

    Attributes:
        share: share of the steps, 0 to 1.
        time: time in seconds, as the run's clock counts.
        refits: whether to fit the length to the speed, too.
    """

    share: float
    time: float
    refits: bool


class Pace:
    """Compares a run with the speed that it was planned for, and changes its length so that it ends in time.

    Each change is in ``config.json`` before it takes effect, and schedule and mixing depend only on the step and on these
    changes. So a run that is killed at any moment and resumed equals one that was not.

    Args:
        session: session of the run, whose length was fitted to ``speed``.
        speed: the speed that was measured.
        limit: maximum number of steps, or None.
        budget: the time limit in seconds.
        end: when the final test should end, as ``clock`` counts.
        clock: returns the time in seconds.
    """

    def __init__(
        self, session: Session, speed: Speed, limit: int | None, budget: float, end: float, clock: Callable[[], float]
    ) -> None:
        self._session, self._speed, self._limit, self._budget = session, speed, limit, budget
        self._end, self._clock = end, clock
        start, trained = clock(), end - final_test_seconds(session, speed)
        shares = [(share - before, not before) for share in REFITS for before in (WINDOW, 0.0)]
        self._moments = [Moment(share, start + share * (trained - start), refits) for share, refits in shares]
        self._since = start, 0, 0  # time, step and epoch of the last measurement

    def due(self) -> bool:
        """Return whether to measure the speed, or to fit the length again, after the current step."""
        step, total = self._session.progress.step, self._session.total_steps
        if not self._moments or step >= total:
            return False
        return step >= self._moments[0].share * total or self._clock() >= self._moments[0].time

    def refit(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        """Fit the length to the speed of the last steps, store it in ``folder``, and then apply it.

        The length does not change if the run will end in time anyway, or if the moment only begins a measurement.
        """
        session, progress = self._session, self._session.progress
        self._measure()
        if not self._moments.pop(0).refits:
            return
        now, done = self._clock(), training_seconds(session, self._speed, progress.step, progress.epoch)
        late = now + run_seconds(session, self._speed, session.total_steps) - done - self._end
        fitting = fitting_steps(session, self._speed, self._end - now + done, self._limit)
        length = max(progress.step + 1, fitting)
        if abs(late) <= TOLERATED * self._budget or length == session.total_steps:
            return
        planned, config = session.total_steps, session.config
        config = dataclasses.replace(config, refits=[*(config.refits or ()), [progress.step, length]])
        folder.write_config(config)
        session.refit(config)
        images = min(session.batches.batch_size, session.batches.count) / self._speed.step
        steps = f"{plural(length, 'step')}, not {planned:,}"
        say(f"{images:,.0f} images/s now: {steps}, fit into --max-time {config.max_time}")

    def _measure(self) -> None:
        """Update the speed to that since the last measurement.

        Whatever makes steps slower is assumed to make evaluations and checkpoints slower, too.
        """
        session, progress = self._session, self._session.progress
        devices.synchronize(session.device)
        since, steps, epochs = self._since
        self._since = self._clock(), progress.step, progress.epoch
        expected = training_seconds(session, self._speed, progress.step - steps, progress.epoch - epochs)
        self._speed = self._speed.scaled((self._since[0] - since) / expected)
