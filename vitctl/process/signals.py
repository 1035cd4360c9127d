"""Stopping in good order: the first Ctrl-C or SIGTERM is a request, the second ends the process."""

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
    """A context in which SIGINT and SIGTERM only raise a flag, once.

    Attributes:
        signum: the signal that came, or None.
    """

    def __init__(self, on_request: Callable[[int], None]) -> None:
        self.signum: int | None = None
        self._on_request = on_request
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Installed explicitly: a shell's "&" starts programs with SIGINT ignored.
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
        # The second one is the system's to deal with: a handler would have to wait for torch to return to Python.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        self._on_request(signum)

    def __bool__(self) -> bool:
        return self.signum is not None


WATCH_FD = "VITCTL_WATCH_FD"
"""Environment variable: a descriptor, open for reading, of a pipe that nobody writes to; see :func:`watch_parent`."""

WATCH_SECONDS = 30.0
"""How long a process may take to save and end once the process that started it is gone."""


def watch_parent() -> None:
    """End this process when the one that started it is gone, however it went: its end of the pipe closes then.

    The end is a SIGTERM to oneself: a run saves and stops. What is not over after :data:`WATCH_SECONDS` is killed.
    Without the environment variable nothing is watched.
    """
    text = os.environ.pop(WATCH_FD, None)
    if text is None or not text.isdigit():
        return
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
