"""The errors that vitctl raises on purpose, and the exit code that each one stands for.

Every message is one sentence for the person at the keyboard: what was asked, why it cannot be, and what to do
instead. ``vitctl.cli.main`` is the one place that prints them.
"""

from __future__ import annotations

import re


class VitctlError(Exception):
    """Base of every expected error.

    Attributes:
        exit_code: what the process exits with.
    """

    exit_code = 1


class RequestError(VitctlError):
    """The request cannot be met: what was named is missing, foreign, damaged, unwritable or impossible."""

    exit_code = 2


class RunBusy(RequestError):
    """Another process trains in the run's folder.

    Args:
        folder: that folder.
    """

    OPENING = "another process is training in"
    """By which an agent knows the message in a trial's log."""

    def __init__(self, folder: object) -> None:
        super().__init__(f"{self.OPENING} {folder}; wait for it, or stop it first")


class RunFailed(VitctlError):
    """The work began and failed: a loss that is not finite, no memory or disk left, a failed verification."""

    exit_code = 1


class NotFinite(RunFailed):
    """A loss or a gradient became infinite or not a number; the sentence names the step."""


_NOT_FINITE = re.compile(r"(?:not finite at|overflow fp16 at every step \()\s*step (\d+)")


def diverged_at(sentence: str) -> int | None:
    """Return the step that the sentence of a :class:`NotFinite` names, also where another process printed it; else None."""
    match = _NOT_FINITE.search(sentence)
    return int(match[1]) if match else None


class VitctlWarning(UserWarning):
    """Something that the person at the keyboard should know, and that stops nothing; ``vitctl.cli.main`` prints it."""


class Interrupted(VitctlError):
    """A signal asked the run to stop and the run has saved what it had.

    Args:
        message: what was saved and how to go on.
        signum: the signal; the process dies by it once the message is out.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        self.exit_code = 128 + signum
