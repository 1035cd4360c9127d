"""Who else is told of a run: W&B and TensorBoard, loaded when they are asked for, and never able to stop it."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from vitctl.config import TrainConfig
from vitctl.errors import RequestError

if TYPE_CHECKING:
    from vitctl.training.loop import Observer
    from vitctl.training.run_folder import RunFolder
    from vitctl.training.session import Session

Record = dict[str, Any]


class Tracker(Protocol):
    """Keeps a run's figures somewhere."""

    def open(self, session: Session) -> None:
        """Get ready, which may take seconds; the run's length is set after that, so that ``--max-time`` counts them."""

    def started(self, session: Session) -> None:
        """The run begins, or goes on; ``session.history`` has the records of the epochs done."""

    def epoch_done(self, record: Record) -> None:
        """The record of an epoch."""

    def finished(self, summary: Record) -> None:
        """The final figures."""

    def close(self, exit_code: int) -> None:
        """Called once, at the end, whatever happened: 0 when the run is done, else the exit code of the command."""


class Tracked:
    """An observer and the trackers beside it.

    What a tracker raises costs a warning and the tracker, not the run.

    Args:
        observer: told of everything.
        trackers: by name; told of what they keep.
    """

    def __init__(self, observer: Observer, trackers: dict[str, Tracker]) -> None:
        self._observer = observer
        self._trackers = trackers

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                what(tracker)
            except Exception as error:  # noqa: BLE001 - no trouble of theirs is the run's
                del self._trackers[name]
                with contextlib.suppress(Exception):
                    tracker.close(1)
                text = str(error).strip().splitlines()
                reason = f"{type(error).__name__}{f': {text[0]}' if text else ''}"
                self._observer.message(f"warning: {name}: {reason}; the run goes on without it")

    def open(self, session: Session) -> None:
        """Open the trackers."""
        self._tell(lambda tracker: tracker.open(session))

    def started(self, session: Session, folder: RunFolder) -> None:
        """Tell all."""
        self._observer.started(session, folder)
        self._tell(lambda tracker: tracker.started(session))

    def stepped(self, record: Record) -> None:
        """Tell the observer."""
        self._observer.stepped(record)

    def evaluating(self, what: str, done: int, count: int) -> None:
        """Tell the observer."""
        self._observer.evaluating(what, done, count)

    def epoch_done(self, record: Record) -> None:
        """Tell all."""
        self._observer.epoch_done(record)
        self._tell(lambda tracker: tracker.epoch_done(dict(record)))

    def message(self, text: str) -> None:
        """Tell the observer."""
        self._observer.message(text)

    def finished(self, summary: Record) -> None:
        """Tell all."""
        self._observer.finished(summary)
        self._tell(lambda tracker: tracker.finished(dict(summary)))

    def close(self, exit_code: int) -> None:
        """Close the trackers."""
        self._tell(lambda tracker: tracker.close(exit_code))


def numbers(record: Mapping[str, Any]) -> Record:
    """Return the figures of a record; a curve of words says nothing."""
    return {key: value for key, value in record.items() if isinstance(value, (int, float))}


@contextlib.contextmanager
def tracked(session: Session, folder: RunFolder, observer: Observer) -> Iterator[Observer]:
    """Give ``observer`` the trackers that the settings ask for, opened, and close these at the end, however it comes."""
    config = session.config
    trackers: dict[str, Tracker] = {}
    if config.wandb != "disabled":
        from vitctl.tracking.wandb import WandbRun

        trackers["W&B"] = WandbRun(folder, observer.message)
    if config.tensorboard:
        from vitctl.tracking.tensorboard import TensorBoardLog

        trackers["TensorBoard"] = TensorBoardLog(folder.path)
    if not trackers:
        yield observer
        return
    both = Tracked(observer, trackers)
    try:
        both.open(session)
        yield both
    except BaseException as error:
        both.close(getattr(error, "exit_code", 1))
        raise
    both.close(0)


def check_trackers(config: TrainConfig) -> None:
    """Refuse what is not installed.

    Raises:
        RequestError: ``--tensorboard`` without its package.
    """
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise RequestError(
            "--tensorboard needs the tensorboard package: pip install 'vitctl[tensorboard]', or leave --tensorboard out"
        )
