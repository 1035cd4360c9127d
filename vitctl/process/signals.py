"""Graceful stopping: the first signal is a request, and a second Ctrl-C ends the process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask the process to stop, except ignored ones, such as SIGHUP under nohup.

    SIGINT is included even if it is ignored, as in programs that a shell starts with ``&``. A closed terminal or a lost
    ssh connection sends SIGHUP; batch systems announce the end of a job with SIGUSR1 or SIGUSR2 (SLURM's ``--signal``).
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    available = [signal.Signals[name] for name in names if hasattr(signal, name)]  # Windows lacks some
    return [each for each in available if each == signal.SIGINT or signal.getsignal(each) is not signal.SIG_IGN]


class StopRequest:
    """A context manager that turns the first of :func:`stop_signals` into a request; true once one has arrived.

    A second SIGINT ends the process. Other signals are ignored after the first: a closing terminal sends several, and
    ``timeout`` sends each twice.

    Args:
        on_request: called with the signal's number.

    Attributes:
        signum: the signal that arrived, or None.
    """

    def __init__(self, on_request: Callable[[int], None]) -> None:
        self.signum: int | None = None
        self._on_request = on_request
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in stop_signals():
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            return
        self.signum = signum
        # A handler for the second Ctrl-C would run only once torch returns to Python.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._on_request(signum)

    def __bool__(self) -> bool:
        return self.signum is not None


WATCH_FD = "VITCTL_WATCH_FD"
"""Environment variable with the file descriptor of the pipe that :func:`watch_parent` reads."""

WATCH_SECONDS = 30.0
"""Seconds in which a process must save and end after its parent has ended."""


def watch_parent() -> bool:
    """End this process when its parent ends, which closes the pipe in :data:`WATCH_FD`, if that is set.

    The process sends itself SIGTERM, so that a run saves and stops, and SIGKILL after :data:`WATCH_SECONDS`.

    Returns:
        Whether there is such a parent: a sweep or a comparison.
    """
    text = os.environ.pop(WATCH_FD, None)
    if text is None or not text.isdigit():
        return False
    descriptor = int(text)

    def watch() -> None:
        try:
            os.set_inheritable(descriptor, False)
            while os.read(descriptor, 1):
                pass
        except OSError:
            return
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watch", daemon=True).start()
    return True
