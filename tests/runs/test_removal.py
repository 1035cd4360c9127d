"""Deleting runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.runs.fabricated import make_run
from vitctl.errors import RequestError, RunBusy, RunFailed
from vitctl.files import locked
from vitctl.runs.removal import remove_run, size_of
from vitctl.runs.stored import StoredRun, open_run, read_run


def run_at(path: Path) -> StoredRun:
    run = read_run(path)
    assert run is not None
    return run


def test_a_run_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    runs, scratch = tmp_path / "runs", tmp_path / "scratch"
    for name in ("a", "group/b", "group/c"):
        make_run(runs / name)
    scratch.mkdir()
    (scratch / "last.pt").touch()
    (runs / "a" / "linked").symlink_to(scratch)
    remove_run(run_at(runs / "a"), runs)
    remove_run(run_at(runs / "group" / "b"), runs)
    assert [path.name for path in runs.iterdir()] == ["group"] and (scratch / "last.pt").exists()
    assert [path.name for path in (runs / "group").iterdir()] == ["c"]


@pytest.mark.parametrize("target", ["../outside", "../runs2/b", "{}/outside", "group/../../outside", "link/b", "."])
def test_a_run_outside_the_folder_of_runs_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    runs = tmp_path / "runs"
    make_run(runs / "a")
    (runs / "group").mkdir()
    make_run(tmp_path / "outside")
    make_run(tmp_path / "runs2" / "b")
    (runs / "link").symlink_to(tmp_path / "runs2")
    if target == ".":  # the folder of runs is itself a run
        shutil.copytree(runs / "a", runs, dirs_exist_ok=True)
    monkeypatch.chdir(runs)
    run = run_at(Path(target.format(tmp_path)))
    with pytest.raises(RequestError, match=r"is outside .*\nhint: use --runs-dir "):
        remove_run(run, runs)
    assert (tmp_path / "outside" / "config.json").exists() and (tmp_path / "runs2" / "b" / "config.json").exists()
    assert (runs / "a" / "config.json").exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    make_run(runs / "a")
    (runs / "best").symlink_to("a")
    with pytest.raises(RequestError, match=r"is a symbolic link\nhint: .*rm "):
        remove_run(open_run(Path("best"), runs), runs)
    assert (runs / "a" / "config.json").exists()


def test_a_run_is_deleted_from_a_folder_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a" / "checkpoints")
    remove_run(run_at(Path("..")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_linked_folder_of_runs_is_the_same_folder(tmp_path: Path) -> None:
    make_run(tmp_path / "disk" / "a")
    (tmp_path / "runs").symlink_to("disk")
    remove_run(open_run(Path("a"), tmp_path / "runs"), tmp_path / "runs")
    assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.parametrize("holder", ["comparisons/c/a", "comparisons/c"])
def test_a_run_under_way_is_not_deleted(tmp_path: Path, holder: str) -> None:
    path = make_run(tmp_path / "comparisons" / "c" / "a")
    with locked(tmp_path / holder / ".lock"), pytest.raises(RunBusy, match=rf"is training in .*{holder}\nhint: wait"):
        remove_run(run_at(path), tmp_path)
    assert (path / "config.json").exists()
    remove_run(run_at(path), tmp_path)
    assert not path.exists()


def test_a_run_that_starts_after_the_check_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_run(tmp_path / "a")
    monkeypatch.setattr("vitctl.runs.removal.check_removable", lambda run, runs_dir: None)
    with locked(path / ".lock"), pytest.raises(RunBusy):
        remove_run(run_at(path), tmp_path)
    assert (path / "config.json").exists()


def test_a_run_with_runs_in_it_is_not_deleted(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "deep" / "b")
    make_run(tmp_path / "spare")
    shutil.copytree(tmp_path / "spare", tmp_path / "a", dirs_exist_ok=True)
    with pytest.raises(RequestError, match=r"contains other runs, such as deep/b\nhint: .*--runs-dir .*/a deep/b$"):
        remove_run(run_at(tmp_path / "a"), tmp_path)
    assert (tmp_path / "a" / "config.json").exists()


def test_a_crash_leaves_no_incomplete_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a")

    def crash(path: Path) -> None:
        raise OSError(5, os.strerror(5), str(path))

    monkeypatch.setattr(shutil, "rmtree", crash)
    with pytest.raises(RunFailed, match=r"cannot delete .*\nhint: check its permissions: ls -ld "):
        remove_run(run_at(tmp_path / "a"), tmp_path)
    assert [path.name[:7] for path in tmp_path.iterdir()] == [".a.tmp-"]


def test_the_size_is_that_of_the_own_files(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", test_acc=None)
    before = size_of(run_at(path))
    (path / "checkpoints" / "last.pt").write_bytes(b"x" * 1000)
    (tmp_path / "big").write_bytes(b"x" * 9000)
    (path / "checkpoints" / "link").symlink_to(tmp_path / "big")
    assert 1000 <= size_of(run_at(path)) - before < 1200
