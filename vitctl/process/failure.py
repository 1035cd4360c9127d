"""Failures as data: a run's ``failure.json``, and reports from a child process to its parent."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from vitctl.errors import Interrupted, Kind, RequestError, VitctlError
from vitctl.files import read_json, write_text

FAILURE_FILE = "VITCTL_FAILURE_FILE"
"""Environment variable with the path of a child's failure report; a child may fail before it has a run folder."""


_NUMBERS = ("exit_code", "step", "batch")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a command or a run ended without a result.

    Attributes:
        kind: kind of the error; ``killed`` for a process killed by a signal, ``unexpected`` for a bug.
        message: what is wrong.
        hint: what the user can do about it.
        exit_code: exit code of the process; -N if killed by signal N.
        step: optimizer step in which it happened, counted from 1.
        device: device on which it happened, such as ``cuda:0``.
        batch: batch size.
        run: folder of the run.
    """

    kind: Kind
    message: str
    hint: str | None = None
    exit_code: int = 1
    step: int | None = None
    device: str | None = None
    batch: int | None = None
    run: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Convert an exception."""
        if not isinstance(error, VitctlError):
            return cls(kind="unexpected", message=f"{type(error).__name__}: {error}")
        return cls(
            kind=error.kind,
            message=error.message,
            hint=error.hint,
            exit_code=error.exit_code,
            step=error.step,
            device=error.device,
            batch=error.batch,
            run=None if error.run is None else str(error.run),
        )

    @classmethod
    def read(cls, path: Path) -> Failure | None:
        """Read a failure from ``path``; return None if the file is missing or not a failure record."""
        try:
            document = read_json(path)
            known = {
                field.name: document[field.name]
                for field in dataclasses.fields(cls)
                if isinstance(document.get(field.name), int if field.name in _NUMBERS else str)
            }
            failure = cls(**known)
        except (OSError, ValueError, TypeError):
            return None
        return failure if failure.kind in get_args(Kind) else dataclasses.replace(failure, kind="failed")

    def write(self, path: Path) -> None:
        """Write the failure to ``path`` as JSON, without fields that are None.

        Raises:
            RunFailed: the file cannot be written.
        """
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not None, as JSON values."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def is_run_failure(error: BaseException) -> bool:
    """Return whether ``error`` marks a run as failed; a refused request or a signal does not."""
    return isinstance(error, Exception) and not isinstance(error, (RequestError, Interrupted))


class ChildReport:
    """The failure report of this process to its parent, if :data:`FAILURE_FILE` names a file for it.

    The variable is removed from the environment, so that this process's own children do not write to that file.
    """

    def __init__(self) -> None:
        name = os.environ.pop(FAILURE_FILE, None)
        self._path = Path(name) if name else None

    def write(self, error: BaseException) -> None:
        """Write the failure; errors in writing are ignored, as the exit code still reaches the parent."""
        if self._path is not None:
            with contextlib.suppress(VitctlError):
                Failure.of(error).write(self._path)
