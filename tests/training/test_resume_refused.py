"""Error messages when a run cannot be resumed as requested."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY, TINY_NET, Cli
from vitctl.config import resolve_config
from vitctl.errors import Interrupted
from vitctl.training import loop
from vitctl.training.session import Session
from vitctl.training.start import start_run

SETTINGS = {
    "dataset": "digits",
    "net": TINY_NET,
    "size": 8,
    "limit_train": 200,
    "limit_test": 100,
    "bs": 64,
    "epochs": 1,
}


def test_the_error_names_the_settings_that_differ(cli: Cli, refused: Callable[..., str]) -> None:
    cli("train", *TINY, "--epochs", 1, "--name", "r")
    sentence = refused("train", "--resume", "runs/r", "--lr", 0.5, "--net", "vit", "--epochs", 2)
    assert "--lr 0.5 (the run has 0.002)" in sentence and "--net vit" in sentence


def test_a_run_cannot_be_shortened(cli: Cli, refused: Callable[..., str]) -> None:
    cli("train", *TINY, "--epochs", 2, "--name", "r")
    sentence = refused("train", "--resume", "runs/r", "--epochs", 1)
    assert "--epochs 1 is less than the run has done" in sentence and "use --epochs 2 or more" in sentence


def test_an_interrupted_run_prints_how_to_resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    step = loop.train_step

    def stopping(session: Session) -> None:
        step(session)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "train_step", stopping)
    with pytest.raises(Interrupted) as stopped:
        start_run(resolve_config({**SETTINGS}), tmp_path, "r")
    assert stopped.value.message == "stopped after step 1; checkpoint saved"
    assert stopped.value.hint == f"resume it: vitctl train --resume {tmp_path / 'r'}"
    assert (stopped.value.signum, stopped.value.step) == (signal.SIGTERM, 1)


def test_the_warning_names_the_damaged_checkpoint(cli: Cli) -> None:
    cli("train", *TINY, "--epochs", 2, "--keep", 1, "--name", "r")
    os.truncate("runs/r/checkpoints/last.pt", 1000)
    resumed = cli("train", "--resume", "runs/r", "--epochs", 3)
    assert resumed.code == 0 and "last.pt is not a vitctl checkpoint" in resumed.err


def test_the_checkpoint_of_another_network_is_refused(cli: Cli, refused: Callable[..., str], tmp_path: Path) -> None:
    cli("train", *TINY, "--epochs", 1, "--name", "a")
    cli("train", *TINY, "--net", "vit_tiny:embed_dim=16,depth=1", "--epochs", 1, "--name", "b")
    theirs = tmp_path / "runs" / "b" / "checkpoints" / "last.pt"
    (tmp_path / "runs" / "a" / "checkpoints" / "last.pt").write_bytes(theirs.read_bytes())
    sentence = refused("train", "--resume", "runs/a", "--epochs", 2)
    assert (
        f"{Path('runs/a/checkpoints/last.pt')}: the checkpoint holds vit_tiny:embed_dim=16,depth=1 for 8-px" in sentence
    )
    assert "this run trains cct_2" in sentence


def test_the_hint_names_the_run_folder(cli: Cli, refused: Callable[..., str], tmp_path: Path) -> None:
    cli("train", *TINY, "--epochs", 1, "--name", "r")
    assert "use the run's folder: runs/r" in refused("train", "--resume", "runs/r/checkpoints/best.pt")
    assert "hint: use runs/r" in refused("train", "--resume", "runs/x")
    assert "run folder x not found\nhint: use runs/r" in refused("train", "--resume", "x")
