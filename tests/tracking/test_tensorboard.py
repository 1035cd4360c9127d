"""TensorBoard's event files, read back by TensorBoard's own reader."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import TINY, Cli
from tests.training.test_resume import assert_same

NAMES = ("step", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "epoch_time", "images_per_second", "data_wait")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return every scalar over its steps, as TensorBoard shows it."""
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def assert_shown(folder: Path) -> None:
    shown, summary = curves(folder), json.loads((folder / "summary.json").read_text())
    expected = {name: [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in rows(folder)] for name in NAMES}
    assert {name: shown[name] for name in NAMES} == expected
    for name in ("test_loss", "test_acc"):
        assert shown[name] == [(summary["epoch"], pytest.approx(summary[name], rel=1e-6))]


def test_it_shows_each_epoch_once_and_changes_nothing(cli: Cli, tmp_path: Path) -> None:
    with_it = cli("train", *TINY, "--epochs", 2, "--name", "a", "--tensorboard", "--json")
    assert cli("train", *TINY, "--epochs", 2, "--name", "plain").code == with_it.code == 0
    assert with_it.json()["epoch"] == 2
    assert_same(tmp_path / "runs/a", tmp_path / "runs/plain")
    assert_shown(tmp_path / "runs/a")
    assert not list((tmp_path / "runs/plain").glob("events*"))


def test_a_resumed_run_goes_on_without_doubles(cli: Cli, tmp_path: Path) -> None:
    cli("train", *TINY, "--epochs", 2, "--name", "a", "--tensorboard")
    run = tmp_path / "runs/a"
    # As after a kill: the last epoch was written here, and its checkpoint was lost.
    (run / "summary.json").unlink()
    (run / "checkpoints/last.pt").write_bytes(b"torn")
    (run / "checkpoints/best.pt").unlink()
    result = cli("train", "--resume", "runs/a", "--epochs", 3)
    assert result.code == 0 and len(list(run.glob("events*"))) == 2
    assert [row["epoch"] for row in rows(run)] == [1, 2, 3]
    assert_shown(run)


def test_it_can_be_asked_for_later(cli: Cli, tmp_path: Path) -> None:
    cli("train", *TINY, "--epochs", 1, "--name", "a")
    cli("train", "--resume", "runs/a", "--epochs", 2, "--tensorboard")
    assert_shown(tmp_path / "runs/a")


def test_without_its_package_it_is_refused_before_any_work(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert "pip install 'vitctl[tensorboard]'" in refused("train", *TINY, "--tensorboard")
    assert not (tmp_path / "runs").exists()


def test_the_learning_rate_finder_has_nothing_to_show(refused: Callable[..., str]) -> None:
    assert "--tensorboard does not go with it" in refused("train", *TINY, "--lr-finder", "--tensorboard")
