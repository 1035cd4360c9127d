"""Failure records: in a file, and from a child process to its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vitctl.errors import Interrupted, NoSpace, NotFinite, OutOfMemory, RequestError, RunBusy, RunFailed, VitctlError
from vitctl.process.child import Child, LifeLine
from vitctl.process.failure import FAILURE_FILE, ChildReport, Failure, is_run_failure

ERRORS = [
    RequestError("a"),
    RunBusy("a", run=Path("runs/r")),
    RunFailed("a"),
    NotFinite("a", step=3, device="cuda:0", batch=8),
    OutOfMemory("a", device="mps", batch=64),
    NoSpace("a"),
    Interrupted("a", signal.SIGTERM, step=5),
    ValueError("a"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_failure_survives_writing_and_reading(error: Exception, tmp_path: Path) -> None:
    failure = Failure.of(error)
    failure.write(tmp_path / "failure.json")
    assert Failure.read(tmp_path / "failure.json") == failure
    if isinstance(error, VitctlError):
        assert (failure.kind, failure.message, failure.exit_code) == (error.kind, "a", error.exit_code)
        assert (failure.step, failure.device, failure.batch) == (error.step, error.device, error.batch)
        assert failure.run == (str(error.run) if error.run else None)
    else:
        assert failure.kind == "unexpected" and failure.exit_code == 1


def test_every_error_class_has_its_own_kind() -> None:
    kinds = [Failure.of(error).kind for error in ERRORS]
    assert len(set(kinds)) == len(kinds)


def test_only_some_errors_mark_a_run_as_failed() -> None:
    assert [is_run_failure(error) for error in ERRORS] == [False, False, True, True, True, True, False, True]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "failed"}', '"x"'])
def test_files_without_a_failure_record_are_read_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text(text)
    assert Failure.read(tmp_path / "f") is None and Failure.read(tmp_path / "nowhere") is None


def test_an_unknown_kind_is_read_as_failed(tmp_path: Path) -> None:
    (tmp_path / "f").write_text(json.dumps({"kind": "melted", "message": "a", "colour": "red"}))
    assert Failure.read(tmp_path / "f") == Failure(kind="failed", message="a")


def test_a_child_writes_its_report_and_hides_it_from_its_own_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "f"))
    report = ChildReport()
    assert FAILURE_FILE not in os.environ
    report.write(RunFailed("a", step=2))
    assert Failure.read(tmp_path / "f") == Failure(kind="failed", message="a", step=2)
    ChildReport().write(RunFailed("b"))  # writes nothing without the variable


@pytest.mark.parametrize(
    ("argv", "kind", "code"),
    [
        (["train", "--nett", "x"], "request", 2),
        (["train", "--net", "vitt"], "request", 2),
        (["train", "--resume", "nowhere"], "request", 2),
    ],
)
def test_a_command_reports_why_it_failed(
    argv: list[str], kind: str, code: int, python: list[str], tmp_path: Path
) -> None:
    command = [*python, "-m", "vitctl", *argv]
    environment = {**os.environ, FAILURE_FILE: str(tmp_path / "f")}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    failure = Failure.read(tmp_path / "f")
    assert failure is not None and done.returncode == code == failure.exit_code and failure.kind == kind
    assert failure.message in done.stderr


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ("killed", -9)),
        ("raise SystemExit(3)", ("failed", 3)),
        (
            "from vitctl.process.failure import ChildReport; from vitctl.errors import NotFinite; "
            + "ChildReport().write(NotFinite('a', step=7)); raise SystemExit(1)",
            ("not_finite", 1),
        ),
    ],
)
def test_a_parent_reads_the_failure_of_its_child(code: str, expected: tuple[str, int], tmp_path: Path) -> None:
    log = tmp_path / "logs" / "0000.log"
    log.parent.mkdir()
    Failure(kind="busy", message="from an earlier attempt").write(log.with_suffix(".failure.json"))
    child = Child([sys.executable, "-c", code], log, {}, LifeLine())
    while child.wait(1.0) is None:
        pass
    failure = child.failure()
    assert (failure.kind, failure.exit_code) == expected
    assert failure.step == (7 if expected[0] == "not_finite" else None)
