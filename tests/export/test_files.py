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


def test_default_paths_are_next_to_the_checkpoint(tmp_path: Path) -> None:
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


def test_paths_for_an_output_folder_or_file(tmp_path: Path) -> None:
    folder = ExportRequest(path=tmp_path, output=tmp_path)
    assert plan(folder, Path("x/last.pt")) == {("onnx", "none"): [tmp_path / "last.onnx"]}
    file = ExportRequest(path=tmp_path, output=tmp_path / "a.b.onnx", quantize=("int8",))
    assert planned(file, Path("last.pt")) == {("onnx", "none"): ["a.b.onnx"], ("onnx", "int8"): ["a.b.int8.onnx"]}
    weights = ExportRequest(path=tmp_path, formats=("safetensors",), output=tmp_path / "model.safetensors")
    assert planned(weights, Path("last.pt")) == {("safetensors", "none"): ["model.safetensors", "config.json"]}
    script = ExportRequest(path=tmp_path, formats=("torchscript",), output=tmp_path / "net.ts")
    assert planned(script, Path("last.pt")) == {("torchscript", "none"): ["net.ts"]}


def test_a_json_file_of_another_program_is_not_overwritten(tmp_path: Path) -> None:
    request = ExportRequest(path=tmp_path, formats=("safetensors",), output=tmp_path / "model.safetensors")
    naming_vitctl = ('["vitctl"]', '"vitctl"', '{"vitctl": "0.1.0", "format": 1}', "[" * 100_000)
    for content in ('{"format": 1, "config": {}}', "no json", "[1]", "3", *naming_vitctl):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(RequestError, match="was not written by vitctl export"):
            plan(request, Path("last.pt"))
    (tmp_path / "config.json").write_text(json.dumps({"vitctl": {"format": 1}}))
    plan(request, Path("last.pt"))


def test_links_to_one_file_are_refused(tmp_path: Path) -> None:
    for name in ("a.onnx", "a.int8.onnx"):
        (tmp_path / name).symlink_to("target.onnx")
    request = ExportRequest(path=tmp_path, output=tmp_path / "a.onnx", quantize=("int8",))
    with pytest.raises(RequestError, match="several exported files to the same target"):
        plan(request, Path("last.pt"))


def test_all_files_are_written_and_replace_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("old")
    write_all({tmp_path / "a.onnx": b"new", tmp_path / "a.json": b"{}"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.onnx": b"new", "a.json": b"{}"}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_renaming_waits_until_all_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    replace = os.replace

    def slow(source: Path, target: Path) -> None:
        replace(source, target)
        os.kill(os.getpid(), signum)

    monkeypatch.setattr(os, "replace", slow)
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match="already written") as caught:
        write_all({tmp_path / "a.onnx": b"new", tmp_path / "a.json": b"{}"})
    assert caught.value.signum == signum and signal.getsignal(signum) == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "a.json"}


def test_only_temporary_files_of_a_killed_export_are_removed(tmp_path: Path) -> None:
    dead = subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"], text=True).strip()
    orphans = [f"last.onnx.tmp-{dead}", f"x.json.tmp-{dead}"]
    others = [f"last.onnx.tmp-{os.getppid()}", f"last.pt.tmp-{dead}", "notes.tmp-x"]
    for name in (*orphans, *others):
        (tmp_path / name).write_text("half")
    write_all({tmp_path / "a.onnx": b"new"})
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", *others}


@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_rename_restores_the_earlier_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if target == tmp_path / "a.pt2":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    if exists:
        (tmp_path / "a.onnx").write_bytes(b"old")
    (tmp_path / "a.pt2").write_bytes(b"old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RunFailed, match=r"a\.pt2: Operation not permitted; nothing was exported"):
        write_all({tmp_path / "a.onnx": b"new", tmp_path / "a.pt2": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_earlier_files_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(RunFailed, match=r"cannot write .*a\.onnx: needs 195\.3 KiB") as caught:
            write_all({tmp_path / "a.json": b"{}", tmp_path / "a.onnx": bytes(200_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "nothing was exported" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.onnx": b"old"}


def test_the_error_names_a_folder_that_was_deleted(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"cannot write .*gone/a\.onnx: No such file"):
        write_all({tmp_path / "gone" / "a.onnx": b"x"})
