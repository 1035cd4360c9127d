"""TensorBoard's event files, read by TensorBoard's own reader."""

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
    """Return the steps and values of every scalar, as TensorBoard shows them."""
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def assert_shown(folder: Path) -> None:
    shown, summary = curves(folder), json.loads((folder / "summary.json").read_text())
    expected = {name: [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in rows(folder)] for name in NAMES}
    assert {name: shown[name] for name in NAMES} == expected
    for name in ("test_loss", "test_acc"):
        assert shown[name] == [(summary["epoch"], pytest.approx(summary[name], rel=1e-6))]


def test_each_epoch_is_recorded_once_and_the_run_does_not_change(cli: Cli, tmp_path: Path) -> None:
    recorded = cli("train", *TINY, "--epochs", 2, "--name", "a", "--tensorboard", "--json")
    assert cli("train", *TINY, "--epochs", 2, "--name", "plain").code == recorded.code == 0
    assert recorded.json()["epoch"] == 2
    assert_same(tmp_path / "runs/a", tmp_path / "runs/plain")
    assert_shown(tmp_path / "runs/a")
    assert not list((tmp_path / "runs/plain").glob("events*"))


def test_a_resumed_run_records_no_epoch_twice(cli: Cli, tmp_path: Path) -> None:
    cli("train", *TINY, "--epochs", 2, "--name", "a", "--tensorboard")
    run = tmp_path / "runs/a"
    # As after a kill: the last epoch was recorded, but its checkpoint was lost.
    (run / "summary.json").unlink()
    (run / "checkpoints/last.pt").write_bytes(b"torn")
    (run / "checkpoints/best.pt").unlink()
    result = cli("train", "--resume", "runs/a", "--epochs", 3)
    assert result.code == 0 and len(list(run.glob("events*"))) == 2
    assert [row["epoch"] for row in rows(run)] == [1, 2, 3]
    assert_shown(run)


def test_it_can_be_enabled_on_resume(cli: Cli, tmp_path: Path) -> None:
    cli("train", *TINY, "--epochs", 1, "--name", "a")
    cli("train", "--resume", "runs/a", "--epochs", 2, "--tensorboard")
    assert_shown(tmp_path / "runs/a")


def test_a_missing_package_is_refused_before_the_run_starts(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert "\nhint: install it: pip install 'vitctl[tensorboard]'" in refused("train", *TINY, "--tensorboard")
    assert not (tmp_path / "runs").exists()


def test_it_is_refused_with_the_learning_rate_finder(refused: Callable[..., str]) -> None:
    assert "--tensorboard does nothing with" in refused("train", *TINY, "--lr-finder", "--tensorboard")
