"""Graceful stopping: the first SIGINT or SIGTERM is a request, the second ends the process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A context manager that turns the first SIGINT or SIGTERM into a request; true once one has arrived.

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
        # Installed even if SIGINT is ignored, as in programs that a shell starts with "&".
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        # A handler for the second signal would run only once torch returns to Python.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
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
