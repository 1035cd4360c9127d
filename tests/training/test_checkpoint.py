"""Checkpoints are written atomically, verified on every load, and never run code."""

import errno
import hashlib
import io
import os
import pickle
import random
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitctl.errors import RequestError, RunFailed
from vitctl.training import checkpoint as ckpt
from vitctl.training.checkpoint import FILE_SHA256, KEYS, content_digest, load_checkpoint, save_checkpoint


def sample(step: int = 7) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    weights = {
        "a": torch.randn(8, 5, generator=generator),
        "b.c": torch.randn(3, generator=generator).to(torch.bfloat16),
    }
    return {
        "format": ckpt.FORMAT,
        "config": {"net": "x", "lr": 1e-3, "options": {"p": 0.1, "on": True, "none": None}},
        "model": weights,
        "ema": None,
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "m": torch.ones(2)}, 1: {"n": 4}},
            "param_groups": [{"betas": (0.9, 0.999), "params": [0, 1]}],
        },
        "scheduler": {},
        "scaler": None,
        "rng": {"cpu": torch.get_rng_state()},
        "epoch": 1,
        "step": step,
        "progress": {"loss_sum": 0.1},
        "history": [{"epoch": 1, "val_acc": 12.5}],
        "classes": ["a", "b"],
        "mean": [0.5],
        "std": [0.25],
    }


def test_a_checkpoint_survives_saving_and_loading(tmp_path: Path) -> None:
    save_checkpoint(sample(), tmp_path / "x.pt")
    loaded = load_checkpoint(tmp_path / "x.pt")
    assert loaded.pop(FILE_SHA256) == hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest()
    assert tuple(sorted(loaded)) == tuple(sorted(KEYS))
    assert content_digest(loaded) == loaded["digest"] == content_digest(sample())
    assert torch.equal(loaded["model"]["b.c"], sample()["model"]["b.c"])
    assert loaded["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["model"]["a"].view(-1)[3:4].mul_(1.0000002),
        lambda c: c["model"].update({"a": c["model"]["a"].view(5, 8)}),
        lambda c: c["model"].update({"a": c["model"]["a"].double()}),
        lambda c: c["model"].update({"z": c["model"].pop("a")}),
        lambda c: c["config"].update(lr=1e-3 + 1e-18),
        lambda c: c["config"]["options"].update(on=1),
        lambda c: c.update(step=8),
        lambda c: c["classes"].reverse(),
        lambda c: c["optimizer"]["param_groups"][0].update(betas=[0.9, 0.999]),
        lambda c: c["history"].append({}),
    ],
)
def test_the_digest_depends_on_every_value(change: Any) -> None:
    changed = sample()
    change(changed)
    assert content_digest(changed) != content_digest(sample())


def test_only_plain_values_may_be_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="PosixPath"):
        save_checkpoint({**sample(), "config": {"path": Path("/")}}, tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())


def test_a_file_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    save_checkpoint(sample(), file)
    content = file.read_bytes()
    for percent in range(100):
        file.write_bytes(content[: len(content) * percent // 100])
        with pytest.raises(ckpt.DamagedCheckpoint, match=r"x\.pt"):
            load_checkpoint(file)


def test_a_flipped_bit_is_detected_or_harmless(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    save_checkpoint(sample(), file)
    content, digest = file.read_bytes(), load_checkpoint(file)["digest"]
    found, chance = 0, random.Random(0)
    for _ in range(200):
        place = chance.randrange(len(content))
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            loaded = load_checkpoint(file)
        except RequestError:
            found += 1
        else:  # a flip in the padding between the archive's members changes nothing
            assert loaded["digest"] == digest == content_digest(loaded)
    assert found > 50


class Payload:
    """Creates the file ``canary`` when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.canary}",))


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "inside"])
def test_a_malicious_file_runs_no_code(tmp_path: Path, kind: str) -> None:
    canary, file = tmp_path / "canary", tmp_path / "evil.pt"
    payload = Payload(canary)
    if kind == "zip":
        torch.save(payload, file)
    elif kind == "legacy":
        torch.save(payload, file, _use_new_zipfile_serialization=False)
    elif kind == "pickle":
        file.write_bytes(pickle.dumps(payload))
    else:
        torch.save({**sample(), "digest": "", "model": {"w": payload}}, file)
    with pytest.raises(ckpt.DamagedCheckpoint) as error:
        load_checkpoint(file)
    assert not canary.exists()
    assert "weights_only" not in str(error.value)  # torch's advice to allow code


@pytest.mark.parametrize(
    "value",
    [
        torch.empty(3, device="meta"),
        torch.eye(3).to_sparse(),
        torch.zeros(1).expand(10**13),  # four bytes in the file
    ],
    ids=["meta", "sparse", "expanded"],
)
def test_unusual_tensors_are_refused(tmp_path: Path, value: Any) -> None:
    torch.save({**sample(), "model": {"a": value}, "digest": "0"}, tmp_path / "x.pt")
    with pytest.raises(ckpt.DamagedCheckpoint, match=r"x\.pt"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({**sample(), "model": {"w": torch.zeros(1 << 20)}, "digest": ""}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for member in source.infolist():
            bomb.writestr(member.filename, source.read(member))
    with pytest.raises(ckpt.DamagedCheckpoint, match="compressed"):
        load_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is empty"),
        (b"hello\n", "truncated, or a file of another kind"),
        ({"net": {}, "acc": 80.0, "epoch": 3}, "it contains something else"),
        ({"model": {"x": torch.ones(1)}}, "it has only weights"),
        (
            {"state_dict": {"x": torch.ones(1)}, "args": Namespace(lr=1)},
            "use it to start a run: vitctl train --net NAME",
        ),
        ([1, 2], "it contains something else"),
        ({**sample(), "format": 99, "digest": ""}, "format 99"),
    ],
)
def test_the_error_identifies_a_foreign_file(tmp_path: Path, content: Any, sentence: str) -> None:
    file = tmp_path / "x.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ckpt.DamagedCheckpoint, match=sentence):
        load_checkpoint(file)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none\.pt not found"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(RequestError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.pt"
    save_checkpoint(sample(1), file)
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match=r"cannot write .*x\.pt"):
        save_checkpoint(sample(2), file)
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_the_file_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    save_checkpoint(sample(), tmp_path / "x.pt")
    assert calls == ["fsync", "replace", "fsync"]  # file content, rename, folder
