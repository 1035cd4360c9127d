import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vitctl.errors import Interrupted, RequestError, RunFailed
from vitctl.export import EXPORTERS
from vitctl.export.files import plan, write_all
from vitctl.export.request import ExportRequest


def planned(request: ExportRequest, checkpoint: Path) -> dict[tuple[str, str], list[str]]:
    return {kind: [path.name for path in paths] for kind, paths in plan(request, checkpoint).items()}


def test_names_beside_the_checkpoint(tmp_path: Path) -> None:
    request = ExportRequest(path=tmp_path, formats=tuple(EXPORTERS), quantize=("int8", "fp16"))
    assert planned(request, tmp_path / "best.pt") == {
        ("onnx", "none"): ["best.onnx"],
        ("torchscript", "none"): ["best.torchscript"],
        ("torch-export", "none"): ["best.pt2"],
        ("safetensors", "none"): ["best.safetensors", "best.json"],
        ("onnx", "int8"): ["best.int8.onnx"],
        ("onnx", "fp16"): ["best.fp16.onnx"],
    }
    assert all(path.parent == tmp_path for paths in plan(request, tmp_path / "best.pt").values() for path in paths)


def test_names_of_an_output(tmp_path: Path) -> None:
    folder = ExportRequest(path=tmp_path, output=tmp_path)
    assert plan(folder, Path("x/last.pt")) == {("onnx", "none"): [tmp_path / "last.onnx"]}
    file = ExportRequest(path=tmp_path, output=tmp_path / "a.b.onnx", quantize=("int8",))
    assert planned(file, Path("last.pt")) == {("onnx", "none"): ["a.b.onnx"], ("onnx", "int8"): ["a.b.int8.onnx"]}
    weights = ExportRequest(path=tmp_path, formats=("safetensors",), output=tmp_path / "model.safetensors")
    assert planned(weights, Path("last.pt")) == {("safetensors", "none"): ["model.safetensors", "config.json"]}
    script = ExportRequest(path=tmp_path, formats=("torchscript",), output=tmp_path / "net.ts")
    assert planned(script, Path("last.pt")) == {("torchscript", "none"): ["net.ts"]}


def test_somebody_else_s_json_is_not_overwritten(tmp_path: Path) -> None:
    request = ExportRequest(path=tmp_path, formats=("safetensors",), output=tmp_path / "model.safetensors")
    theirs_too = ('["vitctl"]', '"vitctl"', '{"vitctl": "0.1.0", "format": 1}', "[" * 100_000)
    for theirs in ('{"format": 1, "config": {}}', "no json", "[1]", "3", *theirs_too):
        (tmp_path / "config.json").write_text(theirs)
        with pytest.raises(RequestError, match="was not written by vitctl export"):
            plan(request, Path("last.pt"))
    (tmp_path / "config.json").write_text(json.dumps({"vitctl": {"format": 1}}))
    plan(request, Path("last.pt"))


def test_all_files_appear_and_replace_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("old")
    write_all({tmp_path / "a.onnx": b"new", tmp_path / "a.json": b"{}"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.onnx": b"new", "a.json": b"{}"}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_files_appear_waits_for_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    replace = os.replace

    def slow(source: Path, target: Path) -> None:
        replace(source, target)
        os.kill(os.getpid(), signum)

    monkeypatch.setattr(os, "replace", slow)
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match="written already") as caught:
        write_all({tmp_path / "a.onnx": b"new", tmp_path / "a.json": b"{}"})
    assert caught.value.signum == signum and signal.getsignal(signum) == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "a.json"}


def test_what_a_killed_export_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"], text=True).strip()
    theirs = [f"last.onnx.tmp-{dead}", f"x.json.tmp-{dead}"]
    ours = [f"last.onnx.tmp-{os.getppid()}", f"last.pt.tmp-{dead}", "notes.tmp-x"]
    for name in (*theirs, *ours):
        (tmp_path / name).write_text("half")
    write_all({tmp_path / "a.onnx": b"new"})
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", *ours}


@pytest.mark.parametrize("there", [True, False])
def test_when_the_last_file_cannot_be_renamed_the_first_is_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    replace = os.replace

    def stubborn(source: Path, target: Path) -> None:
        if target == tmp_path / "a.pt2":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        replace(source, target)

    monkeypatch.setattr(os, "replace", stubborn)
    if there:
        (tmp_path / "a.onnx").write_bytes(b"old")
    (tmp_path / "a.pt2").write_bytes(b"theirs")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunFailed, match=r"a\.pt2: Operation not permitted; nothing was exported"):
        write_all({tmp_path / "a.onnx": b"new", tmp_path / "a.pt2": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunFailed, match=r"no room to write .*a\.onnx: it takes 195\.3 KiB") as caught:
            write_all({tmp_path / "a.json": b"{}", tmp_path / "a.onnx": bytes(200_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "nothing was exported" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.onnx": b"old"}


def test_a_folder_that_went_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"cannot write .*gone/a\.onnx: No such file"):
        write_all({tmp_path / "gone" / "a.onnx": b"x"})
