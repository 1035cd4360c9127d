"""CIFAR-10 as an image folder and as the official batches, sound, damaged and malicious."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from vitctl.data import cifar
from vitctl.data.dataset import Dataset, load_dataset
from vitctl.errors import RequestError

CLASSES = cifar.CIFAR10.classes
ROWS = 20
REAL = os.environ.get("VITCTL_DATA", "")


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes as Python 2 and the numpy of its time did, like the official batches: all strings are byte strings."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)

    def save_string(self, text: bytes | str) -> None:
        raw = text if isinstance(text, bytes) else text.encode("latin1")
        short = len(raw) < 256
        self.write(b"U" + bytes([len(raw)]) + raw if short else b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    def save_global(self, what: Any, name: str | None = None) -> None:
        if what.__name__ == "_reconstruct":
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
            self.memoize(what)
        else:
            super().save_global(what, name)

    dispatch: ClassVar[Any] = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}  # type: ignore[attr-defined]


def python2(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file).dump(value)
    return file.getvalue()


def batch(number: int) -> dict[str, Any]:
    generator = np.random.default_rng(number)
    data = generator.integers(0, 256, (ROWS, 3072), dtype=np.uint8)
    labels = [(i + number) % 10 for i in range(ROWS)]
    names = [f"{number}_{i}.png" for i in range(ROWS)]
    return {"batch_label": f"batch {number}", "labels": labels, "data": data, "filenames": names}


FILES = {**{f"data_batch_{i}": i for i in range(1, 6)}, "test_batch": 6}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(
        cifar.CIFAR10, train={name: ROWS for name in FILES if name != "test_batch"}, test={"test_batch": ROWS}
    )
    monkeypatch.setattr(cifar, "CIFAR10", small)


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    """The official layout, of 20 pictures a batch."""
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    for name, number in FILES.items():
        (root / name).write_bytes(python2(batch(number)))
    meta = {"num_cases_per_batch": ROWS, "label_names": list(CLASSES), "num_vis": 3072}
    (root / "batches.meta").write_bytes(python2(meta))
    return root


def load(data_dir: Path | None, skip: bool = False) -> Dataset:
    return load_dataset("cifar10", data_dir=None if data_dir is None else str(data_dir), size=32, skip_bad_images=skip)


class TestBatches:
    def test_pictures_and_labels(self, batches: Path) -> None:
        dataset = load(batches)
        assert dataset.classes == CLASSES and dataset.val is None and dataset.native_size == 32 and dataset.flip
        assert dataset.mean == (0.4914, 0.4822, 0.4465) and dataset.std == (0.2023, 0.1994, 0.2010)
        assert dataset.source == str(batches)
        expected = np.concatenate([batch(i)["data"] for i in range(1, 6)]).reshape(-1, 3, 32, 32)
        assert np.array_equal(dataset.train.images.numpy(), expected)
        assert dataset.train.labels.tolist() == [label for i in range(1, 6) for label in batch(i)["labels"]]
        assert np.array_equal(dataset.test.images.numpy(), batch(6)["data"].reshape(-1, 3, 32, 32))

    def test_the_same_pictures_as_a_folder(self, batches: Path, tmp_path: Path) -> None:
        whole = load(batches)
        root = tmp_path / "as_folder"
        for part in ("train", "test"):
            pictures = getattr(whole, part)
            for i, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True)):
                folder = root / part / CLASSES[label]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:04}.png")
        as_folder = load(root)
        assert (as_folder.classes, as_folder.mean, as_folder.std) == (whole.classes, whole.mean, whole.std)
        for part in ("train", "test"):
            by_batch, by_folder = getattr(whole, part), getattr(as_folder, part)
            order = by_batch.labels.sort(stable=True).indices
            assert torch.equal(by_batch.images[order], by_folder.images)
            assert torch.equal(by_batch.labels[order], by_folder.labels)

    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize("key", [str, str.encode])
    def test_batches_written_by_python_3(self, protocol: int, key: Callable[[str], Any], batches: Path) -> None:
        before = load(batches)
        for name, number in FILES.items():
            content = {key(word): value for word, value in batch(number).items()}
            (batches / name).write_bytes(pickle.dumps(content, protocol=protocol))
        assert torch.equal(load(batches).train.images, before.train.images)

    @pytest.mark.parametrize("protocol", [2, 4, 5])
    def test_columns_first(self, protocol: int, batches: Path) -> None:
        content = batch(6)
        content["data"] = np.asfortranarray(content["data"])
        (batches / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
        assert np.array_equal(load(batches).test.images.numpy(), batch(6)["data"].reshape(-1, 3, 32, 32))

    def test_the_names_are_not_needed(self, batches: Path) -> None:
        (batches / "batches.meta").unlink()
        assert load(batches).classes == CLASSES

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_batch_is_named(self, name: str, batches: Path) -> None:
        (batches / name).unlink()
        with pytest.raises(
            RequestError, match=rf"{name} cannot be read \(No such file.*unpack the official archive again"
        ):
            load(batches)

    @pytest.mark.parametrize("name", [*FILES, "batches.meta"])
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
    def test_a_truncated_batch_is_named(self, name: str, share: float, batches: Path) -> None:
        path = batches / name
        os.truncate(path, int(path.stat().st_size * share))
        with pytest.raises(RequestError, match=rf"{path} is damaged") as caught:
            load(batches)
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def _with(**changes: object) -> bytes:
    return python2({**batch(1), **changes})


def _labels(first: object) -> list[object]:
    return [first, *batch(1)["labels"][1:]]


BAD_BATCHES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no pickle": (lambda: b"hello, this is a text", r"is damaged"),
    "no table": (lambda: python2([1, 2]), r"it holds no table"),
    "no data": (lambda: python2({"labels": batch(1)["labels"]}), r"its 'data' is no array of bytes"),
    "data a list": (lambda: _with(data=[[0] * 3072] * ROWS), r"its 'data' is no array of bytes"),
    "data of floats": (lambda: _with(data=batch(1)["data"].astype(np.float32)), r"its 'data' is no array of bytes"),
    "data signed": (lambda: _with(data=batch(1)["data"].view(np.int8)), r"its 'data' is no array of bytes"),
    "other shape": (lambda: _with(data=batch(1)["data"].reshape(-1, 3, 32, 32)), r"is not 20 rows of 3072 bytes"),
    "fewer rows": (lambda: _with(data=batch(1)["data"][:-1]), r"is not 20 rows of 3072 bytes"),
    "more rows": (lambda: _with(data=np.repeat(batch(1)["data"], 2, axis=0)), r"is not 20 rows of 3072 bytes"),
    "no labels": (lambda: python2({"data": batch(1)["data"]}), r"it does not have 20 labels"),
    "cifar-100's labels": (lambda: python2({"data": batch(1)["data"], "fine_labels": []}), r"not have 20 labels"),
    "fewer labels": (lambda: _with(labels=batch(1)["labels"][1:]), r"it does not have 20 labels"),
    "label 10": (lambda: _with(labels=_labels(10)), r"labels are not all whole numbers from 0 to 9"),
    "label -1": (lambda: _with(labels=_labels(-1)), r"labels are not all whole numbers from 0 to 9"),
    "label true": (lambda: _with(labels=_labels(True)), r"labels are not all whole numbers from 0 to 9"),
    "label a word": (lambda: _with(labels=_labels("cat")), r"labels are not all whole numbers from 0 to 9"),
    "a huge key": (lambda: pickle.dumps({10**5000: 1}), r"its 'data' is no array of bytes"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_a_bad_batch_gets_a_sentence(case: str, batches: Path) -> None:
    write, sentence = BAD_BATCHES[case]
    (batches / "data_batch_1").write_bytes(write())
    with pytest.raises(RequestError, match=sentence) as caught:
        load(batches)
    assert str(batches / "data_batch_1") in str(caught.value) and "unpack the official archive" in str(caught.value)


@pytest.mark.parametrize("names", [[*CLASSES[:-1], "tank"], list(CLASSES[:-1]), "cat", None, [1] * 10])
def test_foreign_class_names(names: object, batches: Path) -> None:
    (batches / "batches.meta").write_bytes(python2({"label_names": names}))
    with pytest.raises(RequestError, match=r"batches.meta is damaged.*class names are not those of CIFAR-10"):
        load(batches)


class Evil:
    """Pickles as a call of anything."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class TestMaliciousBatch:
    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
    def test_nothing_is_run(self, protocol: int, file: str, batches: Path, tmp_path: Path) -> None:
        canary = tmp_path / "canary"
        attacks = [
            Evil(os.system, f"touch {canary}"),
            Evil(exec, f"open({str(canary)!r}, 'w')"),
            Evil(open, str(canary), "w"),
            Evil(np.save, str(canary), 1),
            Evil(Path(canary).touch),
        ]
        for attack in attacks:
            for content in (attack, {**batch(1), "data": attack}, [attack], {**batch(1), "more": attack}):
                (batches / file).write_bytes(pickle.dumps(content, protocol=protocol))
                with pytest.raises(RequestError, match=rf"{file} is damaged.*it asks for '.*', which no batch needs"):
                    load(batches)
                assert not list(tmp_path.glob("canary*"))
        pickle.loads(pickle.dumps(Evil(open, str(canary), "w"))).close()
        assert canary.exists()  # so the attack is one

    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            # a way into an allowed name
            (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.", "it asks for 'numpy.dtype.__init__'"),
            # an attribute set on a stand-in, by its __dict__ and by setattr
            (b"cnumpy\ndtype\n}X\x05\x00\x00\x00__x__I1\nsb.", "has no attribute '__dict__'"),
            (b"cnumpy\ndtype\n(N}X\x08\x00\x00\x00__call__I1\nstb.", "is read-only"),
            # an instance of one that is no class
            (b"cnumpy\nndarray\n)\x81.", "must be a type"),
            # another codec, an extension code, a persistent id
            (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "strange encoding"),
            (b"\x82\x01.", "unregistered extension"),
            (b"Pcanary\n.", "persistent"),
        ],
    )
    def test_the_stand_ins_are_out_of_reach(self, program: bytes, reason: str, batches: Path) -> None:
        before = {key: (type(value), dir(value)) for key, value in cifar._STAND_INS.items()}
        (batches / "test_batch").write_bytes(program)
        with pytest.raises(RequestError, match=rf"test_batch is damaged.*{reason}"):
            load(batches)
        assert {key: (type(value), dir(value)) for key, value in cifar._STAND_INS.items()} == before

    def test_nothing_of_it_reaches_the_terminal(self, batches: Path) -> None:
        (batches / "test_batch").write_bytes(b"cevil\n\x1b[2J" + b"x" * 100_000 + b"\n.")
        with pytest.raises(RequestError) as caught:
            load(batches)
        assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.fixture
def tiny(make_folder: Callable[..., Path]) -> Path:
    return make_folder({part: dict.fromkeys(CLASSES, 1) for part in ("train", "test")}, side=32)


class TestFolder:
    def test_published_figures_and_own_size(self, tiny: Path) -> None:
        dataset = load_dataset("cifar10", data_dir=str(tiny), size=64, skip_bad_images=False)
        assert dataset.train.images.shape == (10, 3, 32, 32) and dataset.native_size == 32
        assert dataset.mean == (0.4914, 0.4822, 0.4465) and dataset.std == (0.2023, 0.1994, 0.2010)
        first = np.asarray(Image.open(tiny / "train" / "airplane" / "000.png"))
        assert np.array_equal(dataset.train.images[0].permute(1, 2, 0).numpy(), first)

    @pytest.mark.parametrize("skip", [False, True])
    def test_other_sizes_are_refused(self, skip: bool, tiny: Path) -> None:
        Image.new("RGB", (48, 32)).save(tiny / "test" / "cat" / "000.png")
        with pytest.raises(RequestError, match=r"test/cat/000.png has 48x32 pixels and CIFAR-10 has 32x32.*folder"):
            load(tiny, skip)

    def test_a_missing_class(self, tiny: Path) -> None:
        for part in ("train", "test"):
            (tiny / part / "cat" / "000.png").unlink()
            (tiny / part / "cat").rmdir()
        with pytest.raises(RequestError, match=r"'cat' is not among its class folders.*--dataset folder --data-dir"):
            load(tiny)

    def test_a_foreign_class(self, tiny: Path) -> None:
        (tiny / "train" / "tank").mkdir()
        Image.new("RGB", (32, 32)).save(tiny / "train" / "tank" / "0.png")
        with pytest.raises(RequestError, match=r"'tank' is among its class folders"):
            load(tiny)

    def test_an_unreadable_picture(self, tiny: Path) -> None:
        (tiny / "train" / "cat" / "zzz.png").write_text("hello")
        with pytest.raises(RequestError, match=r"1 of 21 pictures .*zzz.png \(not a picture\).*--skip-bad-images"):
            load(tiny)
        assert load(tiny, skip=True).skipped == ("train/cat/zzz.png",)


class TestPlaces:
    @pytest.mark.parametrize("up", [0, 1, 2])
    def test_in_the_named_folder_or_within(self, up: int, batches: Path, tmp_path: Path) -> None:
        (tmp_path / "data" / "cifar10").mkdir(parents=True)
        place = batches.rename(tmp_path / "data" / "cifar10" / "cifar-10-batches-py")
        named = [place, *place.parents][up]
        assert load(named).source == str(place)

    def test_an_image_folder_within(self, tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        place = tiny.rename(tmp_path / "data" / "cifar10")
        assert load(tmp_path / "data").source == str(place)

    def test_the_environment_comes_before_the_users_folder(
        self, tiny: Path, batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home, data = tmp_path / "home", tmp_path / "data"
        monkeypatch.setattr(cifar.platformdirs, "user_data_dir", lambda name: str(home / name))
        (home / "vitctl").mkdir(parents=True)
        data.mkdir()
        tiny.rename(home / "vitctl" / "cifar10")
        monkeypatch.setenv("VITCTL_DATA", str(data))
        assert load(None).source == str(home / "vitctl" / "cifar10")
        batches.rename(data / "cifar10")
        assert load(None).source == str(data / "cifar10")

    def test_in_none_of_the_places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VITCTL_DATA", str(tmp_path / "data"))
        monkeypatch.setattr(cifar.platformdirs, "user_data_dir", lambda name: str(tmp_path / "home" / name))
        with pytest.raises(RequestError) as caught:
            load(None)
        sentence = str(caught.value)
        assert caught.value.exit_code == 2
        assert f"not in {tmp_path}/data/cifar10 nor in {tmp_path}/home/vitctl/cifar10;" in sentence
        assert "cifar-10-python.tar.gz" in sentence and "--data-dir" in sentence and "--dataset digits" in sentence

    def test_a_named_folder_is_the_only_place(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VITCTL_DATA", str(tmp_path / "data"))
        (tmp_path / "data").mkdir()
        tiny.rename(tmp_path / "data" / "cifar10")
        (tmp_path / "empty").mkdir()
        with pytest.raises(RequestError, match=rf"CIFAR-10 is not in {tmp_path}/empty; unpack"):
            load(tmp_path / "empty")
        with pytest.raises(RequestError, match=rf"--data-dir {tmp_path}/nowhere is not a folder"):
            load(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="VITCTL_DATA is not set; it names the folder with the real CIFAR-10 in cifar10/")
def test_the_real_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("VITCTL_CACHE", str(cache))
    monkeypatch.setenv("VITCTL_DATA", REAL)
    dataset = load(None)
    assert dataset.classes == CLASSES
    assert dataset.train.labels.bincount().tolist() == [5000] * 10
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    values = dataset.train.images[::7].double() / 255
    assert values.mean((0, 2, 3)).tolist() == pytest.approx(dataset.mean, abs=0.003)
