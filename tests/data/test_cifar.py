"""CIFAR-10 and CIFAR-100 as image folders and as official batches: valid, damaged and malicious."""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from tests.data.official import batch, numbers, python2, rows_of, small, write_batches
from vitctl.data import cifar, places
from vitctl.data.dataset import Dataset, load_dataset
from vitctl.errors import RequestError, VitctlWarning

CLASSES = cifar.CIFAR10.classes
ROWS = rows_of(cifar.CIFAR10)
REAL = os.environ.get("VITCTL_DATA", "")

pytestmark = pytest.mark.filterwarnings("ignore:.*results are not comparable with published ones")


SPECS = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}
FILES = numbers(cifar.CIFAR10)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "CIFAR10", small(cifar.CIFAR10))
    monkeypatch.setattr(cifar, "CIFAR100", small(cifar.CIFAR100))


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    """CIFAR-10's official batches, with 20 images each."""
    return write_batches(cifar.CIFAR10, tmp_path / "cifar-10-batches-py")


def load(data_dir: Path | None, skip: bool = False, name: str = "cifar10") -> Dataset:
    return load_dataset(name, data_dir=None if data_dir is None else str(data_dir), size=32, skip_bad_images=skip)


@pytest.mark.parametrize("name", SPECS)
class TestOfficialBatches:
    def test_images_and_labels_are_those_written(self, name: str, tmp_path: Path) -> None:
        spec = getattr(cifar, name.upper())
        place = write_batches(spec, tmp_path / spec.folder)
        dataset = load(place, name=name)
        assert dataset.classes == spec.classes and dataset.val is None and dataset.train.images.shape[2:] == (32, 32)
        assert dataset.name == name and dataset.source == str(place)
        for part, files in ((dataset.train, spec.train), (dataset.test, spec.test)):
            written = [batch(numbers(spec)[file], spec) for file in files]
            expected = np.concatenate([each["data"] for each in written]).reshape(-1, 3, 32, 32)
            assert np.array_equal(part.images.numpy(), expected)
            assert part.labels.tolist() == [label for each in written for label in each[spec.label_key]]

    def test_torchvision_reads_the_same(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = getattr(cifar, name.upper())
        write_batches(spec, tmp_path / spec.folder)
        theirs = getattr(torchvision.datasets, name.upper())
        monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
        ours = load(tmp_path, name=name)
        for part, train in ((ours.train, True), (ours.test, False)):
            oracle = theirs(tmp_path, train=train)
            assert tuple(oracle.classes) == ours.classes
            assert np.array_equal(oracle.data.transpose(0, 3, 1, 2), part.images.numpy())
            assert oracle.targets == part.labels.tolist()

    def test_an_image_folder_gives_the_same_data(self, name: str, tmp_path: Path) -> None:
        spec = getattr(cifar, name.upper())
        official = load(write_batches(spec, tmp_path / spec.folder), name=name)
        root = tmp_path / "as_folder"
        for part in ("train", "test"):
            images = getattr(official, part)
            for i, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
                folder = root / part / spec.classes[label]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:04}.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no warning about missing images
            as_folder = load(root, name=name)
        assert (as_folder.classes, as_folder.mean, as_folder.std) == (official.classes, official.mean, official.std)
        for part in ("train", "test"):
            by_batch, by_folder = getattr(official, part), getattr(as_folder, part)
            order = by_batch.labels.sort(stable=True).indices
            assert torch.equal(by_batch.images[order], by_folder.images)
            assert torch.equal(by_batch.labels[order], by_folder.labels)


@pytest.mark.parametrize("name", SPECS)
def test_the_official_archive_is_that_of_torchvision(name: str) -> None:
    spec, theirs = SPECS[name], getattr(torchvision.datasets, name.upper())
    assert (spec.archive.url, spec.archive.checksums["md5"]) == (theirs.url, theirs.tgz_md5)
    assert spec.archive.name == theirs.filename and spec.folder == theirs.base_folder
    assert [*spec.train] == [file for file, _ in theirs.train_list]
    assert [*spec.test] == [file for file, _ in theirs.test_list]
    assert (spec.meta, spec.names_key) == (theirs.meta["filename"], theirs.meta["key"])
    assert sum(spec.train.values()) == 50_000 and sum(spec.test.values()) == 10_000


def test_mean_and_standard_deviation_are_the_published_ones() -> None:
    ten, hundred = SPECS.values()
    assert ten.mean == (0.4914, 0.4822, 0.4465) and ten.std == (0.2023, 0.1994, 0.2010)
    assert hundred.mean == (0.5071, 0.4867, 0.4408) and hundred.std == (0.2675, 0.2565, 0.2761)
    assert len(ten.classes) == 10 and len(hundred.classes) == 100
    assert list(hundred.classes) == sorted(set(hundred.classes))


class TestBatches:
    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize("key", [str, str.encode])
    def test_batches_pickled_by_python_3_are_read(
        self, protocol: int, key: Callable[[str], Any], batches: Path
    ) -> None:
        before = load(batches)
        for name, number in FILES.items():
            content = {key(word): value for word, value in batch(number).items()}
            (batches / name).write_bytes(pickle.dumps(content, protocol=protocol))
        assert torch.equal(load(batches).train.images, before.train.images)

    @pytest.mark.parametrize("protocol", [2, 4, 5])
    def test_arrays_in_fortran_order_are_read(self, protocol: int, batches: Path) -> None:
        content = batch(6)
        content["data"] = np.asfortranarray(content["data"])
        (batches / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
        assert np.array_equal(load(batches).test.images.numpy(), batch(6)["data"].reshape(-1, 3, 32, 32))

    def test_the_file_of_class_names_is_optional(self, batches: Path) -> None:
        (batches / "batches.meta").unlink()
        assert load(batches).classes == CLASSES

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_batch_is_named(self, name: str, batches: Path) -> None:
        (batches / name).unlink()
        with pytest.raises(
            RequestError,
            match=rf"cannot read {batches / name}: No such file.*\nhint: unpack the official archive again",
        ):
            load(batches)

    @pytest.mark.parametrize("name", [*FILES, "batches.meta"])
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
    def test_a_truncated_batch_is_named(self, name: str, share: float, batches: Path) -> None:
        path = batches / name
        os.truncate(path, int(path.stat().st_size * share))
        with pytest.raises(RequestError, match=rf"{path} is damaged") as caught:
            load(batches)
        assert caught.value.exit_code == 2 and "\n" not in caught.value.message


def _with(**changes: object) -> bytes:
    return python2({**batch(1), **changes})


def _labels(first: object) -> list[object]:
    return [first, *batch(1)["labels"][1:]]


BAD_BATCHES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no pickle": (lambda: b"hello, this is a text", r"is damaged"),
    "no dictionary": (lambda: python2([1, 2]), r"it is not a dictionary"),
    "no data": (lambda: python2({"labels": batch(1)["labels"]}), r"its 'data' is not an array of bytes"),
    "data a list": (lambda: _with(data=[[0] * 3072] * ROWS), r"its 'data' is not an array of bytes"),
    "data of floats": (lambda: _with(data=batch(1)["data"].astype(np.float32)), r"its 'data' is not an array of bytes"),
    "data signed": (lambda: _with(data=batch(1)["data"].view(np.int8)), r"its 'data' is not an array of bytes"),
    "other shape": (lambda: _with(data=batch(1)["data"].reshape(-1, 3, 32, 32)), r"is not 20 rows of 3072 bytes"),
    "fewer rows": (lambda: _with(data=batch(1)["data"][:-1]), r"is not 20 rows of 3072 bytes"),
    "more rows": (lambda: _with(data=np.repeat(batch(1)["data"], 2, axis=0)), r"is not 20 rows of 3072 bytes"),
    "no labels": (lambda: python2({"data": batch(1)["data"]}), r"it does not have a list of 20 labels"),
    "cifar-100's labels": (
        lambda: python2({"data": batch(1)["data"], "fine_labels": []}),
        r"not have a list of 20 labels",
    ),
    "fewer labels": (lambda: _with(labels=batch(1)["labels"][1:]), r"it does not have a list of 20 labels"),
    "label 10": (lambda: _with(labels=_labels(10)), r"labels are not whole numbers from 0 to 9"),
    "label -1": (lambda: _with(labels=_labels(-1)), r"labels are not whole numbers from 0 to 9"),
    "label true": (lambda: _with(labels=_labels(True)), r"labels are not whole numbers from 0 to 9"),
    "label a word": (lambda: _with(labels=_labels("cat")), r"labels are not whole numbers from 0 to 9"),
    "cifar-100's batch": (
        lambda: python2(batch(1, cifar.CIFAR100)),
        r"is not 20 rows of 3072 bytes",
    ),
    "a huge key": (lambda: pickle.dumps({10**5000: 1}), r"its 'data' is not an array of bytes"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_a_damaged_batch_is_named_with_the_reason(case: str, batches: Path) -> None:
    write, reason = BAD_BATCHES[case]
    (batches / "data_batch_1").write_bytes(write())
    with pytest.raises(RequestError, match=reason) as caught:
        load(batches)
    assert str(batches / "data_batch_1") in str(caught.value) and "unpack the official archive" in str(caught.value)


@pytest.mark.parametrize("names", [[*CLASSES[:-1], "tank"], list(CLASSES[:-1]), "cat", None, [1] * 10])
def test_other_class_names_are_refused(names: object, batches: Path) -> None:
    (batches / "batches.meta").write_bytes(python2({"label_names": names}))
    with pytest.raises(RequestError, match=r"batches.meta is damaged.*class names are not those of CIFAR-10"):
        load(batches)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("fine_labels", [100, *range(199)], r"labels are not whole numbers from 0 to 99"),
        ("fine_labels", None, r"it does not have a list of 200 labels"),
    ],
)
def test_a_damaged_batch_of_cifar100_is_refused(key: str, value: object, reason: str, tmp_path: Path) -> None:
    spec = cifar.CIFAR100
    place = write_batches(spec, tmp_path / spec.folder)
    (place / "test").write_bytes(python2({**batch(2, spec), key: value}))
    with pytest.raises(
        RequestError, match=rf"{place}/test is damaged: .*{reason}\nhint: .* delete {place} to download"
    ):
        load(place, name="cifar100")


class Evil:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class TestMaliciousBatch:
    @pytest.mark.parametrize("protocol", range(6))
    @pytest.mark.parametrize("file", ["data_batch_1", "test_batch", "batches.meta"])
    def test_no_code_is_executed(self, protocol: int, file: str, batches: Path, tmp_path: Path) -> None:
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
                with pytest.raises(RequestError, match=rf"{file} is damaged: it refers to '.*', which is not allowed"):
                    load(batches)
                assert not list(tmp_path.glob("canary*"))
        pickle.loads(pickle.dumps(Evil(open, str(canary), "w"))).close()
        assert canary.exists()  # the attack works with plain pickle

    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            # an attribute of an allowed name
            (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.", "it refers to 'numpy.dtype.__init__'"),
            # an attribute set on a stand-in, through its __dict__ and through setattr
            (b"cnumpy\ndtype\n}X\x05\x00\x00\x00__x__I1\nsb.", "has no attribute '__dict__'"),
            (b"cnumpy\ndtype\n(N}X\x08\x00\x00\x00__call__I1\nstb.", "is read-only"),
            # an instance of a stand-in that is not a class
            (b"cnumpy\nndarray\n)\x81.", "must be a type"),
            # another codec, an extension code, a persistent id
            (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "unexpected encoding"),
            (b"\x82\x01.", "unregistered extension"),
            (b"Pcanary\n.", "persistent"),
        ],
    )
    def test_the_stand_ins_cannot_be_modified(self, program: bytes, reason: str, batches: Path) -> None:
        before = {key: (type(value), dir(value)) for key, value in cifar._STAND_INS.items()}
        (batches / "test_batch").write_bytes(program)
        with pytest.raises(RequestError, match=rf"test_batch is damaged.*{reason}"):
            load(batches)
        assert {key: (type(value), dir(value)) for key, value in cifar._STAND_INS.items()} == before

    def test_messages_are_short_and_without_escape_sequences(self, batches: Path) -> None:
        (batches / "test_batch").write_bytes(b"cevil\n\x1b[2J" + b"x" * 100_000 + b"\n.")
        with pytest.raises(RequestError) as caught:
            load(batches)
        assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.fixture
def tiny(make_folder: Callable[..., Path]) -> Path:
    return make_folder({part: dict.fromkeys(CLASSES, 1) for part in ("train", "test")}, side=32)


class TestFolder:
    def test_mean_and_size_do_not_depend_on_the_images_and_options(self, tiny: Path) -> None:
        dataset = load_dataset("cifar10", data_dir=str(tiny), size=64, skip_bad_images=False)
        assert dataset.train.images.shape == (10, 3, 32, 32)
        assert dataset.mean == (0.4914, 0.4822, 0.4465) and dataset.std == (0.2023, 0.1994, 0.2010)
        first = np.asarray(Image.open(tiny / "train" / "airplane" / "000.png"))
        assert np.array_equal(dataset.train.images[0].permute(1, 2, 0).numpy(), first)

    @pytest.mark.parametrize("skip", [False, True])
    def test_other_sizes_are_refused(self, skip: bool, tiny: Path) -> None:
        Image.new("RGB", (48, 32)).save(tiny / "test" / "cat" / "000.png")
        with pytest.raises(
            RequestError, match=r"test/cat/000.png has 48x32 pixels, but CIFAR-10 has 32x32\nhint: .*folder"
        ):
            load(tiny, skip)

    @pytest.mark.parametrize("part", ["train", "test"])
    @pytest.mark.parametrize(("count", "which"), [(1, "folder 'cat' is"), (3, "folders 'cat' and 2 more are")])
    @pytest.mark.parametrize("empty", [False, True])
    def test_missing_and_empty_class_folders_are_refused(
        self, part: str, count: int, which: str, empty: bool, tiny: Path
    ) -> None:
        for name in CLASSES[3 : 3 + count]:
            shutil.rmtree(tiny / part / name)
            if empty:
                (tiny / part / name).mkdir()
        what = "empty" if empty else "missing"
        with pytest.raises(
            RequestError,
            match=rf"{tiny}/{part} is incomplete: class {which} {what}\nhint: unpack CIFAR-10 again, or .*"
            rf"--dataset folder --data-dir {tiny}$",
        ):
            load(tiny)

    def test_other_classes_are_refused(self, tiny: Path) -> None:
        (tiny / "train" / "tank").mkdir()
        Image.new("RGB", (32, 32)).save(tiny / "train" / "tank" / "0.png")
        with pytest.raises(RequestError, match=r"'tank', which is not a class of CIFAR-10\nhint: use --dataset folder"):
            load(tiny)

    def test_missing_images_give_a_warning(self, tiny: Path) -> None:
        with pytest.warns(
            VitctlWarning,
            match=rf"^{tiny} has 10 training and 10 test images, not 100 and 20; "
            r"results are not comparable with published ones$",
        ):
            assert len(load(tiny).train) == 10

    def test_classes_of_unequal_size_give_a_warning(self, make_folder: Callable[..., Path]) -> None:
        train, test = dict.fromkeys(CLASSES, 10), dict.fromkeys(CLASSES, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load(make_folder({"train": train, "test": test}, name="complete", side=32))
            with_val = make_folder(
                {"train": dict.fromkeys(CLASSES, 9), "val": dict.fromkeys(CLASSES, 1), "test": test},
                name="split",
                side=32,
            )
            load(with_val)
        root = make_folder({"train": {**train, "cat": 9, "dog": 11}, "test": test}, name="odd", side=32)
        with pytest.warns(VitctlWarning, match=rf"^{root} has classes of unequal size; results"):
            load(root)

    def test_unreadable_images_can_be_skipped(self, tiny: Path) -> None:
        (tiny / "train" / "cat" / "zzz.png").write_text("hello")
        with pytest.raises(RequestError, match=r"1 of 21 images, .*zzz.png: not an image\nhint: add --skip-bad-images"):
            load(tiny)
        assert load(tiny, skip=True).skipped == ("train/cat/zzz.png",)


class TestPlaces:
    @pytest.mark.parametrize("up", [0, 1, 2])
    def test_batches_are_found_in_and_below_data_dir(self, up: int, batches: Path, tmp_path: Path) -> None:
        (tmp_path / "data" / "cifar10").mkdir(parents=True)
        place = batches.rename(tmp_path / "data" / "cifar10" / "cifar-10-batches-py")
        named = [place, *place.parents][up]
        assert load(named).source == str(place)

    def test_an_image_folder_is_found_below_data_dir(self, tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        place = tiny.rename(tmp_path / "data" / "cifar10")
        assert load(tmp_path / "data").source == str(place)

    def test_vitctl_data_is_searched_before_the_users_folder(
        self, tiny: Path, batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home, data = tmp_path / "home", tmp_path / "data"
        monkeypatch.setattr(places.platformdirs, "user_data_dir", lambda name: str(home / name))
        (home / "vitctl").mkdir(parents=True)
        data.mkdir()
        tiny.rename(home / "vitctl" / "cifar10")
        monkeypatch.setenv("VITCTL_DATA", str(data))
        assert load(None).source == str(home / "vitctl" / "cifar10")
        batches.rename(data / "cifar10")
        assert load(None).source == str(data / "cifar10")

    def test_a_missing_data_set_is_refused_with_the_searched_folders(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VITCTL_DATA", str(tmp_path / "data"))
        monkeypatch.setattr(places.platformdirs, "user_data_dir", lambda name: str(tmp_path / "home" / name))
        with pytest.raises(RequestError) as caught:
            load(None)
        message, hint = caught.value.message, str(caught.value.hint)
        assert caught.value.exit_code == 2
        assert (
            f"not found in {tmp_path}/data/cifar10, {tmp_path}/home/vitctl/cifar10 or {Path.cwd()}/data, "
            "and cannot download"
        ) in message
        assert "http://127" in message and "cifar-10-python.tar.gz: " in message
        assert (
            f"put the archive into {tmp_path}/data/cifar10" in hint
            and "--data-dir" in hint
            and "--dataset digits" in hint
        )

    def test_batches_in_data_are_used_if_there_are_no_others(
        self, batches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "work" / "data" / "train" / "cat").mkdir(parents=True)  # somebody's own images
        monkeypatch.chdir(tmp_path / "work")
        with pytest.raises(RequestError, match="CIFAR-10 not found in"):
            load(None)
        tutorial = Path(shutil.copytree(batches, tmp_path / "work" / "data" / "cifar-10-batches-py"))
        assert load(None).source == str(tutorial)
        monkeypatch.setenv("VITCTL_DATA", str(tmp_path / "first"))
        shutil.copytree(batches, tmp_path / "first" / "cifar10")
        assert load(None).source == str(tmp_path / "first" / "cifar10")

    def test_only_data_dir_is_searched_if_given(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VITCTL_DATA", str(tmp_path / "data"))
        (tmp_path / "data").mkdir()
        tiny.rename(tmp_path / "data" / "cifar10")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "notes.txt").write_text("hello")
        with pytest.raises(
            RequestError,
            match=rf"^CIFAR-10 not found in {tmp_path}/other\nhint: use --data-dir with its folder, "
            rf"or remove --data-dir to download it to {tmp_path}/data/cifar10$",
        ):
            load(tmp_path / "other")
        with pytest.raises(RequestError, match=rf"--data-dir {tmp_path}/nowhere is not a folder"):
            load(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="needs VITCTL_DATA, the folder with the real CIFAR-10 in cifar10/")
def test_the_real_cifar10_is_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("VITCTL_CACHE", str(cache))
    monkeypatch.setenv("VITCTL_DATA", REAL)
    dataset = load(None)
    assert dataset.classes == CLASSES
    assert dataset.train.labels.bincount().tolist() == [5000] * 10
    assert dataset.test.labels.bincount().tolist() == [1000] * 10
    values = dataset.train.images[::7].double() / 255
    assert values.mean((0, 2, 3)).tolist() == pytest.approx(dataset.mean, abs=0.003)
