"""Expected errors as data: a kind, an exit code, and the fields that other code needs.

The message says what is wrong and the hint what to type instead. No code parses them; only ``vitctl.cli.main`` prints
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

Kind = Literal[
    "request", "busy", "failed", "not_finite", "out_of_memory", "no_space", "interrupted", "killed", "unexpected"
]
"""How a command or a run failed."""


class VitctlError(Exception):
    """Base of every expected error.

    Args:
        message: what is wrong, without a full stop.
        hint: what the user can do about it: a flag, a value or a command that works when followed.
        step: optimizer step in which it happened, counted from 1.
        device: device on which it happened, such as ``cuda:0``.
        batch: batch size.
        run: folder of the run.

    Attributes:
        exit_code: exit code of the process.
        kind: stable name of the error.
    """

    exit_code: int = 1
    kind: ClassVar[Kind] = "failed"

    def __init__(
        self,
        message: str = "",
        *,
        hint: str | None = None,
        step: int | None = None,
        device: str | None = None,
        batch: int | None = None,
        run: Path | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.step = step
        self.device = device
        self.batch = batch
        self.run = run

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"

    def add_context(self, context: str) -> None:
        """Begin the message with ``context`` and a colon."""
        self.message = f"{context}: {self.message}"


class RequestError(VitctlError):
    """The request is impossible, or names something missing, damaged, of the wrong kind or not writable."""

    exit_code = 2
    kind: ClassVar[Kind] = "request"


class RunBusy(RequestError):
    """Another process is training in the run's folder."""

    kind = "busy"


class RunFailed(VitctlError):
    """The work started and failed."""


class NotFinite(RunFailed):
    """A loss or gradient became infinite or NaN; ``step`` is set."""

    kind = "not_finite"

    def __init__(
        self,
        message: str,
        *,
        step: int,
        hint: str | None = None,
        device: str | None = None,
        batch: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint, step=step, device=device, batch=batch)
        self.step: int = step


class OutOfMemory(RunFailed):
    """Out of memory on ``device``."""

    kind = "out_of_memory"


class NoSpace(RunFailed):
    """A disk is full or a quota is exceeded."""

    kind = "no_space"


class Interrupted(VitctlError):
    """A signal asked the run to stop, and its state is saved.

    Args:
        message: what was saved.
        signum: the signal; the process ends with it after printing the message.
        hint: how to resume.
        step: optimizer steps taken.
    """

    kind = "interrupted"

    def __init__(self, message: str, signum: int, *, hint: str | None = None, step: int | None = None) -> None:
        super().__init__(message, hint=hint, step=step)
        self.signum = signum
        self.exit_code = 128 + signum


class VitctlWarning(UserWarning):
    """A warning for the user, printed by ``vitctl.cli.main``."""
