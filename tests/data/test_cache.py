"""The cache of decoded images: reuse, replacement, concurrent builders, full disks and pruning."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitctl.data import cache as cache_module
from vitctl.data import folder as folder_module
from vitctl.data.dataset import Dataset, load_dataset
from vitctl.errors import RequestError, RunFailed
from vitctl.observer import Observer

MakeFolder = Callable[..., Path]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files decoded so far."""
    names: list[str] = []
    decode = folder_module.decode_image

    def count(source: str, *more: object) -> np.ndarray:
        names.append(os.path.basename(source))
        return decode(source, *more)

    monkeypatch.setattr(folder_module, "decode_image", count)
    return names


def load(root: Path, size: int = 16, skip: bool = False) -> Dataset:
    return load_dataset("folder", data_dir=str(root), size=size, skip_bad_images=skip)


def content(dataset: Dataset) -> list[object]:
    images = [part for part in (dataset.train, dataset.val, dataset.test) if part is not None]
    return [dataset.mean, dataset.std, *((p.images.tolist(), p.labels.tolist()) for p in images)]


def caches(cache: Path) -> list[str]:
    return sorted(os.listdir(cache / "pictures"))


class TestReuse:
    def test_the_second_load_decodes_nothing(self, pets: Path, decoded: list[str]) -> None:
        first = load(pets)
        assert len(decoded) == 14
        second = load(pets)
        assert len(decoded) == 14 and content(first) == content(second)

    def test_images_are_memory_mapped(self, pets: Path, cache: Path) -> None:
        dataset = load(pets)
        (folder,) = caches(cache)
        file = cache / "pictures" / folder / "images"
        assert file.read_bytes() == torch.cat([dataset.train.images, dataset.test.images]).numpy().tobytes()
        mapped = Path("/proc/self/maps")
        if mapped.exists():
            assert str(file) in mapped.read_text()

    def test_writing_to_the_tensor_does_not_change_the_cache(self, pets: Path) -> None:
        before = content(load(pets))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns about read-only arrays
            load(pets).train.images.zero_()
        assert content(load(pets)) == before

    def test_mean_and_standard_deviation_are_those_of_train(self, make_folder: MakeFolder) -> None:
        root = make_folder({"train": {"a": 40, "b": 33}, "test": {"a": 9, "b": 1}})
        for _ in range(2):
            dataset = load(root)
            values = dataset.train.images.numpy().astype(np.float64) / 255
            assert dataset.mean == pytest.approx(values.mean(axis=(0, 2, 3)).tolist(), rel=1e-12)
            assert dataset.std == pytest.approx(values.std(axis=(0, 2, 3)).tolist(), rel=1e-12)

    def test_constant_channels_have_a_standard_deviation_above_zero(self, pets: Path) -> None:
        for path in pets.rglob("*.png"):
            Image.new("RGB", (4, 4), (0, 255, 7)).save(path)
        dataset = load(pets)
        assert dataset.mean == pytest.approx((0, 1, 7 / 255)) and dataset.std == pytest.approx([0.5 / 255] * 3)

    def test_images_larger_than_a_chunk_are_decoded(self, pets: Path, decoded: list[str]) -> None:
        dataset = load(pets, size=700)  # each larger than a chunk
        assert dataset.train.images.shape == (9, 3, 700, 700) and len(decoded) == 14
        assert dataset.std == pytest.approx((dataset.train.images.double() / 255).std((0, 2, 3), correction=0).tolist())


def _touch(root: Path) -> None:
    path = root / "train" / "cat" / "000.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def _grow(root: Path) -> None:
    path = root / "test" / "cat" / "000.png"
    times = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(0, times.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "time": _touch,
    "size": _grow,
    "renamed": lambda root: (root / "train" / "cat" / "000.png").rename(root / "train" / "cat" / "zzz.png"),
    "renamed, same order": lambda root: (root / "train" / "cat" / "004.png").rename(
        root / "train" / "cat" / "0041.png"
    ),
    "moved": lambda root: (root / "train" / "cat" / "000.png").rename(root / "test" / "cat" / "zzz.png"),
    "removed": lambda root: (root / "train" / "cat" / "000.png").unlink(),
    "added": lambda root: Image.new("RGB", (9, 9)).save(root / "train" / "cat" / "zzz.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_data_set_is_decoded_again_and_its_old_cache_removed(
    change: str, pets: Path, cache: Path, decoded: list[str]
) -> None:
    load(pets)
    old = caches(cache)
    other_size = load(pets, size=8)
    decoded.clear()
    CHANGES[change](pets)
    load(pets)
    assert len(decoded) == sum(1 for _ in pets.rglob("*.png"))
    assert len(caches(cache)) == 2 and not set(old) & set(caches(cache))
    assert other_size.train.images.shape == (9, 3, 8, 8)


def test_caches_of_other_paths_and_sizes_are_kept(pets: Path, make_folder: MakeFolder, decoded: list[str]) -> None:
    other = make_folder({"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}}, name="other")
    for _ in range(2):
        for root, size in ((pets, 3), (pets, 32), (other, 32)):
            load(root, size)
    assert len(decoded) == 14 + 14 + 6


def _cut(folder: Path) -> None:
    os.truncate(folder / "images", 100)


def _alter(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        change(meta)
        (folder / "meta.json").write_text(json.dumps(meta))

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "images cut": _cut,
    "images longer": lambda folder: (folder / "images").write_bytes((folder / "images").read_bytes() + b"0"),
    "images gone": lambda folder: (folder / "images").unlink(),
    "digests cut": lambda folder: os.truncate(folder / "digests", 100),
    "digests gone": lambda folder: (folder / "digests").unlink(),
    "meta gone": lambda folder: (folder / "meta.json").unlink(),
    "meta cut": lambda folder: (folder / "meta.json").write_text('{"key": "'),
    "meta empty": lambda folder: (folder / "meta.json").write_text(""),
    "meta foreign": lambda folder: (folder / "meta.json").write_text("[1, 2]"),
    "another key": _alter(lambda meta: meta.update(key="0" * 64)),
    "no mean": _alter(lambda meta: meta.pop("mean")),
    "short mean": _alter(lambda meta: meta.update(mean=[0.5])),
    "short deviation": _alter(lambda meta: meta.update(std=[0.5])),
    "mean of words": _alter(lambda meta: meta.update(mean=["a", "b", "c"])),
    "bad of nothing": _alter(lambda meta: meta.update(bad={"x": 1})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_rebuilt(damage: str, pets: Path, cache: Path, decoded: list[str]) -> None:
    before = content(load(pets))
    (folder,) = caches(cache)
    DAMAGES[damage](cache / "pictures" / folder)
    assert content(load(pets)) == before and len(decoded) == 28
    assert caches(cache) == [folder]


def test_digests_are_those_of_the_pixels(pets: Path) -> None:
    (pets / "train" / "dog" / "002.png").write_text("hello")
    for _ in range(2):  # decoded, and from the cache
        dataset = load(pets, skip=True)
        assert dataset.manifest is not None and len(dataset.manifest.images) == 13
        for part, examples in (("train", dataset.train), ("test", dataset.test)):
            for image, identity in zip(examples.images, examples.identities, strict=True):
                entry = dataset.manifest.images[f"{part}/{identity}"]
                assert entry.content == hashlib.blake2b(image.numpy().tobytes(), digest_size=16).hexdigest()
                assert entry.size == (pets / part / identity).stat().st_size


def test_only_unreadable_images_are_tried_again(pets: Path, decoded: list[str]) -> None:
    (pets / "train" / "dog" / "002.png").write_text("hello")
    first = load(pets, skip=True)
    decoded.clear()
    assert content(load(pets, skip=True)) == content(first)
    assert decoded == ["002.png"]


SCRIPT = """
import os, sys, time
from vitctl.data import folder
from vitctl.data.dataset import load_dataset
from vitctl.observer import Observer
root, pause = sys.argv[1], float(sys.argv[2])
decode, count = folder.decode_image, 0
def slow(source, *more):
    global count
    count += 1
    time.sleep(pause)
    return decode(source, *more)
folder.decode_image = slow
class Progress(Observer):
    def loading(self, done, total, *, download=""):
        print("building", os.getpid(), flush=True)
print("ready", flush=True)
sys.stdin.readline()
dataset = load_dataset("folder", data_dir=root, size=16, skip_bad_images=False, observer=Progress())
print("sum", dataset.train.images.sum().item(), "decoded", count, flush=True)
"""


def start(python: list[str], root: Path, pause: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*python, "-c", SCRIPT, str(root), str(pause)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def many(make_folder: MakeFolder) -> Path:
    """More images than are decoded ahead, so that a builder can be observed while it works."""
    return make_folder({"train": {"a": 300, "b": 300}, "test": {"a": 1, "b": 1}}, side=8)


class TestConcurrentBuilders:
    def test_two_processes_get_the_same_complete_cache(self, python: list[str], many: Path, cache: Path) -> None:
        pair = [start(python, many, 0.001) for _ in range(2)]
        for process in pair:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        last = [process.communicate(timeout=60)[0].splitlines()[-1].split() for process in pair]
        assert [process.returncode for process in pair] == [0, 0]
        assert last[0][1] == last[1][1] == str(load(many).train.images.sum().item())
        assert len(caches(cache)) == 1

    def test_the_second_process_waits_for_the_first(
        self, python: list[str], many: Path, cache: Path, decoded: list[str]
    ) -> None:
        first = start(python, many, 0.005)
        assert first.stdin is not None and first.stdout is not None
        first.stdin.write("go\n")
        first.stdin.flush()
        assert first.stdout.readline().startswith("building ")
        dataset = load(many)
        assert decoded == [] and len(dataset.train) == 600
        assert str(dataset.train.images.sum().item()) in first.communicate(timeout=60)[0]
        assert len(caches(cache)) == 1

    def test_a_suspended_builder_is_not_waited_for(
        self, python: list[str], many: Path, cache: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cache_module, "_STALLED_SECONDS", 0.3)
        first = start(python, many, 0.005)
        assert first.stdin is not None and first.stdout is not None
        first.stdin.write("go\n")
        first.stdin.flush()
        pid = int(first.stdout.readline().removeprefix("building "))
        os.kill(pid, signal.SIGSTOP)
        try:
            dataset = load(many)
            assert len(decoded) == 602
        finally:
            os.kill(pid, signal.SIGCONT)
        output = first.communicate(timeout=60)[0]
        assert first.returncode == 0 and f"sum {dataset.train.images.sum().item()} decoded 602" in output
        assert len(caches(cache)) == 1

    def test_files_of_a_killed_builder_are_removed(
        self, python: list[str], many: Path, cache: Path, decoded: list[str]
    ) -> None:
        first = start(python, many, 0.005)
        assert first.stdin is not None and first.stdout is not None
        first.stdin.write("go\n")
        first.stdin.flush()
        assert first.stdout.readline().startswith("building ")
        time.sleep(0.2)
        first.kill()
        first.communicate()
        (left,) = caches(cache)
        assert left.endswith(".tmp") and (cache / "pictures" / left / "images").stat().st_size > 0
        assert len(load(many).train) == 600 and len(decoded) == 602
        assert left not in caches(cache) and len(caches(cache)) == 1

    def test_the_folder_of_another_running_builder_is_kept(self, pets: Path, cache: Path, decoded: list[str]) -> None:
        load(pets)
        (name,) = caches(cache)
        other = cache / "pictures" / f".{name[:-16]}{'0' * 16}.abc.tmp"
        other.mkdir()
        (other / "images").write_bytes(b"x" * 100)
        with open(other / "lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _touch(pets)
            load(pets)
            assert len(decoded) == 28 and other.exists()
        _touch(pets)
        load(pets)
        assert not other.exists()

    def test_the_slower_builder_uses_the_cache_of_the_faster_one(
        self, pets: Path, cache: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = content(load(pets))
        (name,) = caches(cache)
        final = cache / "pictures" / name
        aside = cache / "aside"
        final.rename(aside)
        flush = cache_module.flush

        def another_is_faster(file: object) -> None:
            if aside.exists():
                aside.rename(final)
            flush(file)  # type: ignore[arg-type]

        monkeypatch.setattr(cache_module, "flush", another_is_faster)
        assert content(load(pets)) == before
        assert caches(cache) == [name] and len(decoded) == 28


class TestFailures:
    def test_a_cache_folder_that_cannot_be_written_is_refused(
        self, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("VITCTL_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(
            RequestError, match=r"file/cache/pictures: Not a directory\nhint: set VITCTL_CACHE to a writable"
        ):
            load(pets)

    def test_too_little_space_is_refused(self, pets: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = type("Usage", (), {"free": 14 * 3 * 16 * 16 - 1})
        monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(
            RequestError, match=r"images need 10.5 KiB, but \S+cache/pictures has 10.5 KiB free\nhint: .*VITCTL_C"
        ):
            load(pets)
        usage.free += 1  # type: ignore[attr-defined]
        assert len(load(pets).train) == 9

    def test_a_full_disk_fails_and_leaves_no_files(
        self, pets: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(cache_module, "flush", full)
            with pytest.raises(RunFailed, match=r"cache/pictures: No space left on device\nhint: .*VITCTL_CACHE"):
                load(pets)
        assert caches(cache) == []
        assert len(load(pets).train) == 9

    def test_a_cache_that_disappears_repeatedly_fails(
        self, pets: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
    ) -> None:
        monkeypatch.setattr(cache_module, "_open", lambda *_: None)
        with pytest.raises(RunFailed, match=r"disappeared three times[^\n]*\nhint: set VITCTL_CACHE"):
            load(pets)
        assert len(decoded) == 3 * 14

    def test_an_interruption_leaves_no_files(self, many: Path, cache: Path) -> None:
        class Interrupting(Observer):
            def loading(self, done: int, total: int, *, download: str = "") -> None:
                if done > 100:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            load_dataset("folder", data_dir=str(many), size=16, skip_bad_images=False, observer=Interrupting())
        assert caches(cache) == []


def test_the_default_is_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITCTL_CACHE")
    monkeypatch.setattr(cache_module.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    assert cache_module.cache_folder() == tmp_path / "vitctl"
    monkeypatch.setenv("VITCTL_CACHE", "~/there")
    monkeypatch.setenv("HOME", "/home/x")
    assert cache_module.cache_folder() == Path("/home/x/there")


class TestPruning:
    """Building a cache removes those of data sets that no longer exist."""

    @pytest.fixture
    def other(self, make_folder: MakeFolder) -> Path:
        return make_folder({"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}}, name="other")

    def test_caches_of_deleted_folders_are_removed(
        self, pets: Path, other: Path, cache: Path, decoded: list[str]
    ) -> None:
        load(pets)
        load(pets, size=8)
        gone = caches(cache)
        shutil.rmtree(pets)
        load(other)
        assert len(caches(cache)) == 1 and not set(gone) & set(caches(cache))
        decoded.clear()
        load(other)
        assert decoded == []

    def test_caches_of_existing_folders_are_kept(self, pets: Path, other: Path, cache: Path) -> None:
        kept = content(load(pets))
        before = caches(cache)
        load(other)
        assert set(before) < set(caches(cache)) and content(load(pets)) == kept

    def test_a_removed_link_to_an_existing_folder_keeps_the_cache(
        self, pets: Path, other: Path, cache: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "link").symlink_to(pets)
        load(tmp_path / "link")
        (tmp_path / "link").unlink()
        load(other)
        assert len(caches(cache)) == 2  # the folder itself still exists

    def test_caches_of_unreadable_folders_are_kept(
        self, pets: Path, other: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load(pets)
        stat = os.stat

        def refuse(path: object, *args: object, **options: object) -> os.stat_result:
            if str(path) == str(pets):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return stat(path, *args, **options)  # type: ignore[call-overload,no-any-return]

        monkeypatch.setattr(cache_module.os, "stat", refuse)
        load(other)
        assert len(caches(cache)) == 2

    def test_other_folders_are_kept(self, pets: Path, other: Path, cache: Path) -> None:
        load(pets)
        (mine,) = caches(cache)
        meta = json.loads((cache / "pictures" / mine / "meta.json").read_text())
        prefix = mine[:-16]
        strange = {
            "holiday": json.dumps(meta),  # not the name of a cache
            f"{prefix}{'1' * 16}": None,  # no meta.json
            f"{prefix}{'2' * 16}": "{",
            f"{prefix}{'3' * 16}": json.dumps({"key": "x"}),  # without the path of the data set
            f"{prefix}{'4' * 16}": json.dumps({**meta, "root": 7}),
            ".holiday.tmp": None,
        }
        shutil.rmtree(pets)
        for name, text in strange.items():
            (cache / "pictures" / name).mkdir()
            if text is not None:
                (cache / "pictures" / name / "meta.json").write_text(text)
        load(other)
        left = set(caches(cache))
        assert set(strange) < left and mine not in left and len(left) == len(strange) + 1

    def test_only_folders_of_dead_builders_are_removed(self, pets: Path, other: Path, cache: Path) -> None:
        load(pets)
        (mine,) = caches(cache)
        shutil.rmtree(pets)
        dead, alive = (cache / "pictures" / f".{mine}.{word}.tmp" for word in ("dead", "live"))
        for folder in (dead, alive):
            folder.mkdir()
            (folder / "images").write_bytes(b"half")
        with open(alive / "lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            load(other)
            assert not dead.exists() and alive.exists() and mine not in caches(cache)

    def test_a_removed_cache_stays_mapped_where_it_is_open(self, pets: Path, other: Path, cache: Path) -> None:
        dataset = load(pets)
        before = content(dataset)
        shutil.rmtree(pets)
        load(other)
        assert len(caches(cache)) == 1 and content(dataset) == before

    def test_two_processes_may_prune_at_once(
        self, python: list[str], many: Path, make_folder: MakeFolder, cache: Path
    ) -> None:
        for i in range(20):
            gone = make_folder({"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}, name=f"gone{i}", side=8)
            load(gone)
        for i in range(20):
            shutil.rmtree(many.parent / f"gone{i}")
        others = [
            make_folder({"train": {"a": 9, "b": 9}, "test": {"a": 1, "b": 1}}, name=f"new{i}", side=8) for i in "ab"
        ]
        pair = [start(python, root, 0.0) for root in others]
        for process in pair:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in pair:
            process.communicate(timeout=120)
        assert [process.returncode for process in pair] == [0, 0]
        assert len(caches(cache)) == 2
