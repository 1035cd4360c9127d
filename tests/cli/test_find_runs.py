"""Runs by name, and run folders in place of checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import TINY, TINY_NET, Cli
from vitctl.config import find_run

Refused = Callable[..., str]


@pytest.fixture
def runs(digits_runs: Path, tmp_path: Path) -> Path:
    """Return ``runs`` with the runs ``digits`` and ``resized``, which is newer."""
    runs = Path(shutil.copytree(digits_runs, tmp_path / "runs"))
    for seconds, name in enumerate(("digits", "resized"), start=1):
        os.utime(runs / name / "config.json", (seconds, seconds))
    return runs


def test_a_run_is_found_by_its_folder_name_or_checkpoints(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("runs/digits")
    for path in (run, Path("digits"), run / "checkpoints", Path("digits/")):
        assert find_run(path) == run, path
    assert find_run(runs / "digits") == runs / "digits"
    last = run / "checkpoints" / "last.pt"
    assert find_run(last) == last and find_run(Path("none")) == Path("none")
    (tmp_path / "digits").mkdir()  # not a run
    assert find_run(Path("digits")) == run
    Path("resized").write_text("a file")
    assert find_run(Path("resized")) == Path("resized")


def test_commands_take_the_name_of_a_run(cli: Cli, runs: Path) -> None:
    by_path, by_name = (cli("eval", run, "--json", "--limit", 20).json() for run in (runs / "digits", "digits"))
    assert by_name["top1"] == by_path["top1"] and by_name["loss"] == by_path["loss"]
    assert cli("predict", "digits", "none.png").err.startswith("error: none.png not found")
    exported = cli("export", "digits", "--format", "safetensors", "--no-verify", "--json")
    assert exported.code == 0 and (runs / "digits" / "checkpoints" / "last.safetensors").is_file(), exported.err
    resumed = cli("train", "--resume", "digits")
    assert resumed.code == 0 and "nothing to resume: run runs/digits finished" in resumed.err
    resumed = cli("train", "--resume", "runs/digits/checkpoints/last.pt")
    assert resumed.code == 0 and "nothing to resume: run runs/digits finished" in resumed.err


def test_a_run_is_taken_as_pretrained_weights(cli: Cli, refused: Refused, runs: Path) -> None:
    last = runs / "digits" / "checkpoints" / "last.pt"
    for name in ("digits", "runs/digits", "runs/digits/checkpoints", last):
        printed = cli("train", "--net", TINY_NET, "--pretrained", name, "--print-config")
        assert yaml.safe_load(printed.out)["pretrained"] == str(last if name == last else runs / "digits"), printed.err
    started = cli("train", *TINY, "--pretrained", "digits", "--max-steps", 1, "--name", "r")
    assert f"loaded pretrained weights, including the head, from {last}" in started.err
    again = cli("train", "--resume", "r", "--pretrained", "runs/digits")
    assert "nothing to resume" in again.err
    assert "--pretrained runs: this folder has no weights" in refused("train", "--pretrained", "runs")
    for checkpoint in last.parent.iterdir():
        checkpoint.unlink()
    assert "--pretrained digits: this run has no checkpoint yet" in refused("train", "--pretrained", "digits")


@pytest.mark.parametrize("flag", ["-r", "--resume", "--resume=true"])
@pytest.mark.parametrize(
    ("words", "run"),
    [
        ("", "resized"),
        ("--size 8", "digits"),
        ("--size 12 --dataset digits", "resized"),
        ("--n_epochs 6 --lr 0.01", "digits"),
        ("--aug=false --threads 1", "resized"),
    ],
)
def test_resume_without_a_run_takes_the_newest_with_these_settings(
    cli: Cli, runs: Path, flag: str, words: str, run: str
) -> None:
    for argv in ([flag, *words.split()], [*words.split(), flag]):
        result = cli("train", *argv)
        assert result.code == 0, result.err
        note = "the newest run with these settings" if words else "the newest run"
        assert result.err.startswith(f"resuming runs/{run}, {note}\nnothing to resume: run runs/{run} finished")


def test_resume_without_a_matching_run_names_the_runs_there_are(refused: Refused, runs: Path) -> None:
    words = "error: no run in runs has these settings\nhint: use --resume runs/resized or runs/digits"
    for argv in (["--net", "vit"], ["--epochs", 7], ["--lr", 0.3], ["--aug"], ["--max-time", "5s"]):
        assert refused("train", "--resume", *argv) == words
    assert refused("train", "--resume", "--runs-dir", "x").startswith("error: no run in x to resume\nhint: use")


def test_resume_skips_runs_that_it_cannot_read(cli: Cli, runs: Path) -> None:
    (runs / "resized" / "config.json").write_text("{")
    os.utime(runs / "resized" / "config.json", (9, 9))
    assert "resuming runs/digits" in cli("train", "--resume").err
    document = json.loads((runs / "digits" / "config.json").read_text())
    (runs / "resized" / "config.json").write_text(json.dumps({**document, "config": {"of_another_version": 1}}))
    assert "resuming runs/digits" in cli("train", "--resume").err


def test_runs_dir_is_where_resume_looks(cli: Cli, refused: Refused, runs: Path) -> None:
    runs.rename(runs.with_name("mine"))
    assert "resuming mine/resized" in cli("train", "--resume", "--runs-dir", "mine").err
    assert "run mine/digits finished" in cli("train", "--resume", "digits", "--runs-dir", "mine").err
    for path in ("mine/digits", "mine/digits/checkpoints/last.pt"):
        assert "run mine/digits finished" in cli("train", "--resume", path, "--runs-dir", "mine").err
    assert "run folder digits not found" in refused("train", "--resume", "digits")
    missing = "error: run folder mine/r not found\nhint: use mine/resized or mine/digits"
    assert missing in refused("train", "--resume", "r", "--runs-dir", "mine")


def test_a_run_is_taken_as_settings(cli: Cli, refused: Refused, runs: Path) -> None:
    stored = json.loads((runs / "digits" / "config.json").read_text())
    for name in ("digits", "runs/digits", runs / "digits" / "config.json"):
        printed = yaml.safe_load(cli("train", "--config", name, "--seed", 7, "--print-config").out)
        assert printed == {**stored["config"], "seed": 7} | {name: printed[name] for name in ("max_time", "warmup")}
    stored["config"]["bs"] = "many"
    (runs / "digits" / "config.json").write_text(json.dumps(stored, indent=2))
    line = 1 + (runs / "digits" / "config.json").read_text().splitlines().index('    "bs": "many",')
    assert f"config.json:{line}: " in refused("train", "--config", "digits")
