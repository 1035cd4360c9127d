"""Atomic writes, links and devices, refused paths, and locks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vitctl import files
from vitctl.errors import NoSpace, RequestError, RunFailed

LOCK = """
import sys, time
from pathlib import Path
from vitctl.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_file_is_replaced_completely(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("one", "two, which is longer", ""):
        files.write_text(path, text)
        assert path.read_text() == text and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_text(path, "old")
    with pytest.raises(KeyError), files.replacing(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "table.csv", tmp_path / "link.csv"
    link.symlink_to(target)
    for text in ("first", "second"):  # the first write creates the target
        files.write_text(link, text)
        assert link.is_symlink() and target.read_text() == text
    assert list((tmp_path / "there").iterdir()) == [target]


def test_a_fifo_receives_the_content(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    files.write_text(fifo, "words")
    reader.join(10)
    assert read == [b"words"] and fifo.is_fifo() and list(tmp_path.iterdir()) == [fifo]


def test_a_full_device_raises_no_space_and_is_not_replaced(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    files.check_table(full, "--csv")
    with pytest.raises(NoSpace):
        files.write_text(full, "words")
    assert full.is_char_device()


def test_redirected_stdout_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = "from pathlib import Path; from vitctl.files import write_text; write_text(Path('/dev/stdout'), 'words')"
    with open(out, "wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
        assert os.fstat(file.fileno()).st_ino == out.stat().st_ino
    assert out.read_text() == "words"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_raises_no_space(number: int, tmp_path: Path) -> None:
    found = files.write_failed(OSError(number, "x"), tmp_path / "a")
    assert isinstance(found, NoSpace) and found.kind == "no_space"


def test_other_write_errors_raise_run_failed(tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as failed:
        files.write_text(tmp_path / "nowhere" / "a", "x")
    assert failed.value.kind == "failed"


# -- refused paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nowhere/a.csv", "folder", "/proc/a.csv"])
def test_paths_that_cannot_be_written_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match="\nhint: "):
        files.check_writable(tmp_path / name, "--csv")


def test_the_hint_for_a_missing_folder_creates_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.csv"
    with pytest.raises(RequestError, match="no such folder") as refused:
        files.check_writable(path, "--csv")
    assert refused.value.hint is not None
    command = refused.value.hint.removeprefix("create it: ")
    subprocess.run(command, shell=True, check=True)
    files.check_writable(path, "--csv")


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    files.check_table(tmp_path / "new.csv", "--csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("last.pt", b"PK\3\4"),
        ("image.png", b"\x89PNG\r\n"),
        ("config.json", b"{}"),
        ("train.py", b"import os"),
        ("image.csv", b"\xff\xd8\xff\0"),
    ],
)
def test_a_table_does_not_replace_another_kind_of_file(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RequestError):
        files.check_table(path, "--csv")
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    with pytest.raises(RequestError):
        files.check_table(link, "--csv")
    assert path.read_bytes() == content


@pytest.mark.parametrize(("name", "content"), [("a.csv", b"x,y\n"), ("a.TSV", b"x\ty\n"), ("last.pt", b"")])
def test_a_table_replaces_a_table_or_an_empty_file(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    files.check_table(tmp_path / name, "--csv")


# -- folders and unfinished files ----------------------------------------------------------------------------------


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    with files.new_folder(tmp_path / "a") as staging:
        (staging / "x").write_text("1")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "x").read_text() == "1"
    with pytest.raises(KeyError), files.new_folder(tmp_path / "b"):
        raise KeyError
    with pytest.raises(OSError), files.new_folder(tmp_path / "a") as staging:
        (staging / "y").write_text("2")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "x"]


def test_unfinished_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f"a.pt.tmp-{dead.pid}", f"a.onnx.tmp-{dead.pid}", f"b.pt.tmp-{os.getpid()}", "notes.tmp"):
        (tmp_path / name).touch()
    files.remove_temporaries(tmp_path, suffixes={".pt"})
    assert {path.name for path in tmp_path.iterdir()} == {
        f"a.onnx.tmp-{dead.pid}",
        f"b.pt.tmp-{os.getpid()}",
        "notes.tmp",
    }
    files.remove_temporaries(tmp_path, keep_running=False)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.tmp"}


# -- locks ---------------------------------------------------------------------------------------------------------


def test_a_lock_is_exclusive_and_released_when_its_process_dies(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(files.Locked), files.locked(path):
            pass
        holder.kill()
    with files.locked(path), pytest.raises(files.Locked), files.locked(path):
        pass


def test_a_held_lock_is_seen_and_a_missing_one_not_created(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not files.is_locked(path) and not files.is_locked(tmp_path / "none" / ".lock") and not path.exists()
    with files.locked(path):
        assert files.is_locked(path)
    assert not files.is_locked(path)
