"""The requested trackers, W&B and TensorBoard, whose errors never stop a run."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator

from vitctl.config import TrainConfig
from vitctl.errors import RequestError
from vitctl.observer import Observer, Record, RunStart
from vitctl.tracking.tracker import Tracker


class Tracked(Observer):
    """Forwards events to an observer and to trackers.

    A tracker that raises an exception is dropped with a warning; the run continues.

    Args:
        observer: receives all events.
        trackers: trackers by name; they receive the start of the run, its epochs and its end.
    """

    def __init__(self, observer: Observer, trackers: dict[str, Tracker]) -> None:
        self._observer = observer
        self._trackers = trackers

    def _forward(self, event: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                event(tracker)
            except Exception as error:  # noqa: BLE001 - no error of a tracker may stop the run
                del self._trackers[name]
                with contextlib.suppress(Exception):
                    tracker.close(1)
                text = str(error).strip().splitlines()
                reason = f"{type(error).__name__}{f': {text[0]}' if text else ''}"
                self._observer.message(f"warning: {name}: {reason}\nthe run continues without {name}")

    def message(self, text: str) -> None:
        self._observer.message(text)

    def working(self, text: str) -> None:
        self._observer.working(text)

    def loading(self, done: int, total: int, *, download: str = "") -> None:
        self._observer.loading(done, total, download=download)

    def stepped(self, record: Record) -> None:
        self._observer.stepped(record)

    def evaluating(self, what: str, done: int, total: int) -> None:
        self._observer.evaluating(what, done, total)

    def open(self, run: RunStart) -> None:
        """Open the trackers."""
        self._forward(lambda tracker: tracker.open(run))

    def started(self, run: RunStart) -> None:
        self._observer.started(run)
        self._forward(lambda tracker: tracker.started(run))

    def epoch_done(self, record: Record) -> None:
        self._observer.epoch_done(record)
        self._forward(lambda tracker: tracker.epoch_done(dict(record)))

    def finished(self, summary: Record) -> None:
        self._observer.finished(summary)
        self._forward(lambda tracker: tracker.finished(dict(summary)))

    def close(self, exit_code: int) -> None:
        """Close the trackers."""
        self._forward(lambda tracker: tracker.close(exit_code))


@contextlib.contextmanager
def tracked(run: RunStart, config: TrainConfig, observer: Observer) -> Iterator[Observer]:
    """Open the requested trackers, yield an observer that forwards to them and to ``observer``, and close them."""
    trackers: dict[str, Tracker] = {}
    if config.wandb != "disabled":
        from vitctl.tracking.wandb import WandbRun

        trackers["W&B"] = WandbRun(run.folder, observer.message)
    if config.tensorboard:
        from vitctl.tracking.tensorboard import TensorBoardLog

        trackers["TensorBoard"] = TensorBoardLog(run.folder)
    if not trackers:
        yield observer
        return
    both = Tracked(observer, trackers)
    try:
        both.open(run)
        yield both
    except BaseException as error:
        both.close(getattr(error, "exit_code", 1))
        raise
    both.close(0)


def check_trackers(config: TrainConfig) -> None:
    """Check that the packages of the requested trackers are installed.

    Raises:
        RequestError: ``--tensorboard`` without the package tensorboard.
    """
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise RequestError(
            "--tensorboard needs the package tensorboard", hint="install it: pip install 'vitctl[tensorboard]'"
        )
