"""Failures as data, for other processes: ``failure.json`` of a run, and the file that a parent names for its child."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from vitctl.errors import Interrupted, Kind, RequestError, VitctlError
from vitctl.files import write_text

FAILURE_FILE = "VITCTL_FAILURE_FILE"
"""Environment variable: the file that a child process writes its failure to, as failures may come before a run's folder."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a command or a run ended without a result.

    Attributes:
        kind: kind of the error; ``killed`` by a signal, or ``unexpected`` for a bug.
        message: for the user.
        exit_code: of the process.
        step: optimizer step, counted from 1.
        device: such as ``cuda:0``.
        batch: batch size.
        run: folder of the run.
    """

    kind: Kind
    message: str
    exit_code: int = 1
    step: int | None = None
    device: str | None = None
    batch: int | None = None
    run: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return the failure that ``error`` stands for."""
        if not isinstance(error, VitctlError):
            return cls(kind="unexpected", message=f"{type(error).__name__}: {error}")
        return cls(
            kind=error.kind,
            message=str(error),
            exit_code=error.exit_code,
            step=error.step,
            device=error.device,
            batch=error.batch,
            run=None if error.run is None else str(error.run),
        )

    @classmethod
    def read(cls, path: Path) -> Failure | None:
        """Return the failure in ``path``, or None where there is none."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            known = {field.name for field in dataclasses.fields(cls)}
            failure = cls(**{name: value for name, value in document.items() if name in known})
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return failure if failure.kind in get_args(Kind) else dataclasses.replace(failure, kind="failed")

    def write(self, path: Path) -> None:
        """Write the failure to ``path``, as JSON without the fields that are unknown.

        Raises:
            RunFailed: the file cannot be written.
        """
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """Return the failure as JSON values."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def is_run_failure(error: BaseException) -> bool:
    """Return whether ``error`` makes a run a failed one; a refused request or a signal does not."""
    return isinstance(error, Exception) and not isinstance(error, (RequestError, Interrupted))


class ChildReport:
    """Where this process reports its failure, when a parent named a file in :data:`FAILURE_FILE`.

    The variable is removed, so that processes started from here do not report to it.
    """

    def __init__(self) -> None:
        name = os.environ.pop(FAILURE_FILE, None)
        self._path = Path(name) if name else None

    def write(self, error: BaseException) -> None:
        """Write the failure; a file that cannot be written costs the parent the reason, and this process nothing."""
        if self._path is not None:
            with contextlib.suppress(VitctlError):
                Failure.of(error).write(self._path)
