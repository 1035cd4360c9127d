"""The command that is useful next, below the result of another."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.conftest import Cli
from vitctl.cli.printing import print_next
from vitctl.cli.progress import ProgressBars


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    """Return a finished run in a folder whose name the shell would split."""
    return Path(shutil.copytree(digits_run, tmp_path / "runs" / "a run"))


def last_line(text: str) -> list[str]:
    """Return the words of the last line as the shell reads them."""
    return shlex.split(text.splitlines()[-1])


@pytest.mark.parametrize("target", ["", "checkpoints/last.pt"])
def test_a_finished_run_is_reported_next(target: str, run: Path, cli: Cli) -> None:
    result = cli("train", "--resume", run / target)
    assert last_line(result.out) == ["next:", "vitctl", "report", str(run)]


def test_an_evaluated_run_is_reported_next(run: Path, cli: Cli) -> None:
    assert last_line(cli("eval", "a run").out) == ["next:", "vitctl", "report", "runs/a run"]
    (run / "predictions.npz").unlink()
    assert last_line(cli("eval", "a run").out)[-1] == "--evaluate"


def test_an_exported_file_is_evaluated_next_and_then_used(run: Path, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "a file.safetensors"
    command = last_line(cli("export", run, "--format", "safetensors", "-o", file).out)
    assert command == ["next:", "vitctl", "eval", str(file)]
    assert last_line(cli(*command[2:]).out) == ["next:", "vitctl", "predict", str(file), "IMAGE..."]


@pytest.mark.parametrize("words", [["train", "--resume"], ["eval"]])
def test_json_has_no_next_command(words: list[str], run: Path, cli: Cli) -> None:
    result = cli(*words, run, "--json")
    json.loads(result.out)
    assert "next:" not in result.out + result.err


def test_words_are_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    print_next("vitctl", "predict", "a 'b'", more="IMAGE...")
    assert capsys.readouterr().out == "next: vitctl predict 'a '\"'\"'b'\"'\"'' IMAGE...\n"


def test_the_bar_of_epochs_moves_with_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    bars, seen = ProgressBars(), []
    monkeypatch.setattr(bars, "_show", lambda name, done, *rest: seen.append((name, done)))
    record = {"epoch": 2, "epochs": 4, "step_in_epoch": 5, "steps": 10, "eta": 3.0, "train_loss": None, "lr": 0.1}
    bars.stepped({**record, "images_per_second": 9.0, "data_wait": 0.0})
    assert seen == [("epoch", 1.5), ("step", 5)]
