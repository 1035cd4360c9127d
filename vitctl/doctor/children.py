"""Functions in child processes, which may abort or hang without ending the caller."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from vitctl.errors import VitctlError
from vitctl.process.child import signal_name

T = TypeVar("T")

JOIN = 10.0
"""Seconds in which a process must end after it has sent its result or crashed."""

State = Literal["returned", "raised", "aborted", "timed out"]
"""How a function in a child process may end."""

PRELOADED = ("vitctl.doctor.checks", "vitctl.doctor.round_trip", "vitctl.doctor.system")
"""Modules that the server imports, so that its children start in milliseconds."""


@dataclass(frozen=True)
class Ended(Generic[T]):
    """How a function in a child process ended.

    Attributes:
        value: what it returned, or None.
        reason: why it did not return, or empty.
        state: whether it returned, raised, was ended by a signal, or ran out of time.
        seconds: wall time.
    """

    value: T | None
    reason: str
    state: State
    seconds: float


class Children:
    """Starts child processes by forking a server that has imported torch and used no device, or else by new interpreters.

    A device that was used before a fork is unusable after it, and the caller's threads would be missing in the child.

    Args:
        method: start method of :mod:`multiprocessing`; None for the best one of this system.
    """

    def __init__(self, method: str | None = None) -> None:
        available = multiprocessing.get_all_start_methods()
        self.method = method or ("forkserver" if "forkserver" in available else "spawn")
        if self.method == "forkserver":
            from multiprocessing import forkserver

            multiprocessing.set_forkserver_preload(list(PRELOADED))
            forkserver.ensure_running()  # it imports torch while the caller does other work

    def run(self, function: Callable[..., T], *args: Any, limit: float) -> Ended[T]:
        """Run ``function(*args)`` in a child process; what it prints is dropped, apart from the reason of a failure.

        Args:
            function: a function of a module.
            *args: arguments that can be pickled.
            limit: seconds after which the process is killed.

        Raises:
            VitctlError: the one that the function raised.
        """
        # Any: the classes of processes and connections differ between the start methods.
        context: Any = multiprocessing.get_context(self.method)
        receiving, sending = context.Pipe(duplex=False)
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "output"
            process = context.Process(target=_child, args=(sending, str(output), function, args), daemon=True)
            process.start()
            sending.close()
            state: State = "timed out"
            value, reason = None, f"no result after {limit:g} s"
            with suppress(EOFError):
                if receiving.poll(limit):
                    state, reason = "aborted", ""
                    state, value, reason = receiving.recv()
            process.join(JOIN if state != "timed out" else 0.0)
            if process.is_alive():
                process.kill()
                process.join()
            if state == "aborted":
                code = process.exitcode
                ended = f"ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
                reason = ": ".join(filter(None, (ended, _last_line(output))))
        if isinstance(value, VitctlError):
            raise value
        return Ended(value, reason, state, time.monotonic() - start)


def _child(sending: Connection, output: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Send the function's result, or the reason why it has none, to the parent."""
    faulthandler.disable()  # its traceback would follow the assertion that failed
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        sending.send(("returned", function(*args), ""))
    except VitctlError as error:
        sending.send(("raised", error, ""))
    except Exception as error:  # noqa: BLE001  (any of torch's errors is a result)
        sending.send(("raised", None, f"{type(error).__name__}: {_first_line(error)}"))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _last_line(output: Path) -> str:
    """Return the last line that a process printed, such as the assertion that failed in it."""
    text = ""
    with suppress(OSError):
        text = output.read_text(encoding="utf-8", errors="replace")
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
