"""The errors that vitctl raises on purpose, as data: a kind, an exit code and the fields that other code needs.

The message is for the person at the keyboard: what was asked, why it cannot be, and what to do instead. No code reads
it; ``vitctl.cli.main`` is the one place that prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

Kind = Literal[
    "request", "busy", "failed", "not_finite", "out_of_memory", "no_space", "interrupted", "killed", "unexpected"
]
"""What became of a command or a run: the kind of an error, or of a process's end."""


class VitctlError(Exception):
    """Base of every expected error.

    Args:
        message: for the user.
        step: optimizer step that it happened in, counted from 1.
        device: where, such as ``cuda:0``.
        batch: batch size.
        run: folder of the run.

    Attributes:
        exit_code: what the process exits with.
        kind: stable name of the error.
    """

    exit_code: int = 1
    kind: ClassVar[Kind] = "failed"

    def __init__(
        self,
        message: str = "",
        *,
        step: int | None = None,
        device: str | None = None,
        batch: int | None = None,
        run: Path | None = None,
    ) -> None:
        super().__init__(message)
        self.step = step
        self.device = device
        self.batch = batch
        self.run = run


class RequestError(VitctlError):
    """The request cannot be met: what was named is missing, foreign, damaged, not writable or impossible."""

    exit_code = 2
    kind: ClassVar[Kind] = "request"


class RunBusy(RequestError):
    """Another process trains in the run's folder."""

    kind = "busy"


class RunFailed(VitctlError):
    """The work began and failed."""


class NotFinite(RunFailed):
    """A loss or a gradient became infinite or not a number; ``step`` is set."""

    kind = "not_finite"

    def __init__(self, message: str, *, step: int, device: str | None = None, batch: int | None = None) -> None:
        super().__init__(message, step=step, device=device, batch=batch)
        self.step: int = step


class OutOfMemory(RunFailed):
    """The memory of ``device`` is used up."""

    kind = "out_of_memory"


class NoSpace(RunFailed):
    """A disk or a quota is used up."""

    kind = "no_space"


class Interrupted(VitctlError):
    """A signal asked the run to stop and the run has saved what it had.

    Args:
        message: what was saved and how to resume.
        signum: the signal; the process dies by it once the message is printed.
        step: optimizer steps taken.
    """

    kind = "interrupted"

    def __init__(self, message: str, signum: int, *, step: int | None = None) -> None:
        super().__init__(message, step=step)
        self.signum = signum
        self.exit_code = 128 + signum


class VitctlWarning(UserWarning):
    """Something that the user should know and that stops nothing; ``vitctl.cli.main`` prints it."""
