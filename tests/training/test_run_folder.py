"""A run's folder: names, locking, and which checkpoints are kept and found."""

import multiprocessing
import os
from pathlib import Path

import pytest

from tests.training.test_checkpoint import sample
from vitctl.config import resolve_config
from vitctl.errors import RequestError
from vitctl.training.checkpoint import load_checkpoint
from vitctl.training.run_folder import RunFolder


def make(tmp_path: Path, name: str | None = "r") -> RunFolder:
    return RunFolder.create(tmp_path / "runs", name, resolve_config({"dataset": "digits"}))


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


def steps(folder: RunFolder) -> list[int]:
    return [load_checkpoint(folder.checkpoints / name)["step"] for name in names(folder)]


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_keep_sets_the_number_of_older_checkpoints(tmp_path: Path, keep: int) -> None:
    folder = make(tmp_path)
    for step in range(1, 7):
        folder.save(sample(step), keep=keep, best=step == 2)
    assert steps(folder) == [2, *range(6 - keep, 6), 6]
    assert [name.split("-")[0] for name in names(folder)] == ["best.pt", *["kept"] * keep, "last.pt"]


def test_the_newest_undamaged_checkpoint_is_used(tmp_path: Path) -> None:
    folder = make(tmp_path)
    for step in range(1, 5):
        folder.save(sample(step), keep=2, best=step == 1)
    said: list[str] = []
    assert folder.newest(said.append)[1]["step"] == 4 and not said  # type: ignore[index]
    (folder.checkpoints / "last.pt").write_bytes(b"")
    assert folder.newest(said.append)[1]["step"] == 3  # type: ignore[index]
    assert "last.pt is not a vitctl checkpoint" in said[0] and "using kept-000003.pt of step 3" in said[1]
    for path in folder.checkpoints.glob("kept-*"):
        os.truncate(path, 100)
    assert folder.newest(said.append, set_aside=True)[1]["step"] == 1  # type: ignore[index]
    assert [name for name in names(folder) if "damaged" not in name] == ["best.pt"]
    os.truncate(folder.checkpoints / "best.pt", 10)
    with pytest.raises(RequestError, match=r"all checkpoints in .* are damaged"):
        folder.newest(said.append)


def test_damage_to_one_checkpoint_does_not_affect_the_others(tmp_path: Path) -> None:
    folder = make(tmp_path)
    for step in (1, 2):
        folder.save(sample(step), keep=1, best=True)
    os.truncate(folder.checkpoints / "last.pt", 50)  # in place, which would damage hard links too
    assert load_checkpoint(folder.checkpoints / "best.pt")["step"] == 2
    assert load_checkpoint(folder.checkpoints / "kept-000001.pt")["step"] == 1


def test_a_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert make(tmp_path).newest(print) is None


def test_a_name_can_be_used_once(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(RequestError, match="already exists"):
        make(tmp_path)
    first, second = make(tmp_path, None), make(tmp_path, None)
    assert first.path != second.path
    (tmp_path / "runs" / "empty").mkdir()
    assert make(tmp_path, "empty").path.name == "empty"
    (tmp_path / "runs" / "file").touch()
    with pytest.raises(RequestError):
        make(tmp_path, "file")


def test_temporary_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    folder = make(tmp_path)
    dead = multiprocessing.get_context("spawn").Process(target=int)
    dead.start()
    dead.join()
    staging = tmp_path / "runs" / f".x.tmp-{dead.pid}"
    (staging / "checkpoints").mkdir(parents=True)
    orphan = folder.checkpoints / f"last.pt.tmp-{dead.pid}"
    orphan.write_bytes(b"half")
    folder.remove_orphans()
    make(tmp_path, "other")
    assert not orphan.exists() and not staging.exists()


def test_only_one_process_can_train_in_a_folder(tmp_path: Path) -> None:
    folder = make(tmp_path)
    with folder.locked(), pytest.raises(RequestError, match="another process"), folder.locked():
        pass
    with folder.locked():
        pass


def test_a_damaged_config_is_reported(tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder.path / "config.json").write_text("{")
    with pytest.raises(RequestError, match=r"config\.json is damaged"):
        folder.read_document()
