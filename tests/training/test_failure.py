"""``failure.json``: written only by a failed run, and removed when the run is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import TINY, Cli
from vitctl.errors import NoSpace, RequestError, RunBusy
from vitctl.process.failure import Failure
from vitctl.training import loop
from vitctl.training.run_folder import RunFolder

DIVERGING = ["train", *TINY, "--epochs", 2, "--lr", 1e30, "--clip-grad", 0, "--opt", "sgd:momentum=0,nesterov=false"]


def test_a_diverged_run_records_kind_and_step(cli: Cli, tmp_path: Path) -> None:
    failed = cli(*DIVERGING, "--name", "r")
    folder = RunFolder(tmp_path / "runs" / "r")
    failure = folder.read_failure()
    assert failed.code == 1 and failure is not None and failure.message in failed.err
    assert (failure.kind, failure.device, failure.batch) == ("not_finite", "cpu", 64)
    assert failure.step is not None and 1 <= failure.step <= 8
    assert failure.run == str(Path("runs") / "r")


def test_resume_removes_the_record(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = NoSpace("full", step=4)

    def broken(*_: object, **__: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", broken)
        assert cli("train", *TINY, "--epochs", 1, "--name", "r").code == 1
    folder = RunFolder(tmp_path / "runs" / "r")
    assert folder.read_failure() == Failure.of(full)
    refused = cli("train", "--resume", "runs/r", "--lr", 0.7)
    assert refused.code == 2 and folder.read_failure() is not None  # nothing was resumed
    assert cli("train", "--resume", "runs/r").code == 0
    assert folder.read_failure() is None


def test_an_unexpected_exception_is_recorded_too(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(loop, "train_step", broken)
    assert cli("train", *TINY, "--epochs", 1, "--name", "r").code == 1
    failure = RunFolder(tmp_path / "runs" / "r").read_failure()
    assert failure is not None and failure.kind == "unexpected"


def test_a_refused_run_records_no_failure(cli: Cli, tmp_path: Path) -> None:
    assert cli("train", *TINY, "--epochs", 1, "--name", "r").code == 0
    folder = RunFolder(tmp_path / "runs" / "r")
    with folder.locked():
        with pytest.raises(RunBusy) as busy, folder.training():
            pass
        assert busy.value.run == folder.path
    with pytest.raises(RequestError) as refused, folder.training():
        raise RequestError("no")
    assert refused.value.run == folder.path and folder.read_failure() is None
