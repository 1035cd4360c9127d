"""MNIST, Fashion-MNIST, KMNIST, SVHN and STL-10: downloaded from a faulty server, found in folders, damaged, trained on."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from tests.conftest import TINY_NET, Cli
from tests.data import small_sets
from tests.data.official import serving
from tests.data.small_sets import COUNTS, images_of, labels_of, write
from tests.data.test_download import Recorder, unwritable, visible
from vitctl.data import DATASETS, download, named, places
from vitctl.data.dataset import Dataset, load_dataset, split
from vitctl.data.decode import decode_image
from vitctl.data.named import NAMED, Named
from vitctl.errors import NoSpace, RequestError, VitctlWarning
from vitctl.observer import SILENT, Observer

made = functools.cache(small_sets.small)


@pytest.fixture(params=NAMED)
def spec(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Named:
    """A data set with few images; VITCTL_DATA is ``first/``, and the user's data folder is ``user/``."""
    small, _ = made(request.param)
    monkeypatch.setitem(named.NAMED, small.name, small)
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(places.platformdirs, "user_data_dir", lambda _: str(tmp_path / "user"))
    monkeypatch.setenv("VITCTL_DATA", str(tmp_path / "first"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return small


@pytest.fixture
def files(spec: Named) -> dict[str, bytes]:
    """The official archives by name."""
    return made(spec.name)[1]


@pytest.fixture
def home(spec: Named, tmp_path: Path) -> Path:
    """The folder that is searched first, and the target of downloads."""
    return tmp_path / "first" / spec.name


idx_only = pytest.mark.parametrize("spec", ["kmnist"], indirect=True)
two_formats = pytest.mark.parametrize("spec", ["mnist", "stl10"], indirect=True)


def load(
    spec: Named, data_dir: Path | None = None, *, size: int = 96, observer: Observer = SILENT, allowed: bool = True
) -> Dataset:
    return load_dataset(
        spec.name,
        data_dir=data_dir and str(data_dir),
        size=size,
        skip_bad_images=False,
        observer=observer,
        download=allowed,
    )


def is_complete(spec: Named, dataset: Dataset) -> bool:
    """Return whether ``dataset`` has all images and labels of ``spec``."""
    return all(
        np.array_equal(examples.images, images_of(spec, part)) and np.array_equal(examples.labels, labels_of(part))
        for part, examples in (("train", dataset.train), ("test", dataset.test))
    )


def unpacked_names(spec: Named) -> list[str]:
    return sorted(name for archive in spec.archives for name in spec.unpacked(archive) or (archive.name,))


@pytest.mark.parametrize("name", NAMED)
def test_checksums_are_those_of_torchvision(name: str) -> None:
    spec = NAMED[name]
    reader = getattr(datasets, spec.reader)
    if name == "svhn":
        expected = {file: md5 for part, (_, file, md5) in reader.split_list.items() if part != "extra"}
    elif name == "stl10":
        expected = {reader.filename: reader.tgz_md5}
    else:
        expected = dict(reader.resources)
    assert {archive.name: archive.checksums["md5"] for archive in spec.archives} == expected
    assert all(archive.size > 4000 for archive in spec.archives)
    assert name == "svhn" or name == "stl10" or list(spec.classes) == [each.split(" - ")[0] for each in reader.classes]


def test_only_images_that_keep_their_class_are_flipped() -> None:
    assert {name: DATASETS[name].flip for name in NAMED} == {
        "mnist": False,
        "fashionmnist": True,
        "kmnist": False,
        "svhn": False,
        "stl10": True,
    }


class TestDownload:
    def test_a_missing_data_set_is_downloaded_once(
        self, spec: Named, files: dict[str, bytes], home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = Recorder()
        with serving(files) as server:
            monkeypatch.setenv(spec.mirror, f"{server.url}/")
            assert is_complete(spec, load(spec, observer=shown))
            assert server.ranges == [None] * len(files)
        place = home / spec.folder
        assert shown.lines == [f"downloading {server.url}/{name} to {spec.home(place)}" for name in files]
        assert visible(place) == unpacked_names(spec)
        assert not list(home.rglob("*.gz")) and not list(home.rglob("*.part"))
        dataset = load(spec)  # without the server
        assert is_complete(spec, dataset) and dataset.source == str(place)

    @pytest.mark.parametrize("plan", ["cut 1000", "damage"])
    def test_failed_attempts_are_retried(
        self, plan: str, spec: Named, files: dict[str, bytes], home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serving(files, plan) as server:
            monkeypatch.setenv(spec.mirror, server.url)
            assert is_complete(spec, load(spec))
            again = "bytes=1000-" if plan == "cut 1000" else None
            assert server.ranges == [None, again] + [None] * (len(files) - 1)

    @pytest.mark.parametrize("given", [False, True], ids=["default folder", "--data-dir"])
    def test_an_interrupted_download_resumes(
        self,
        given: bool,
        spec: Named,
        files: dict[str, bytes],
        home: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        last, data_dir = len(files) - 1, tmp_path / "mine" if given else None
        (tmp_path / "mine").mkdir()
        with serving(files, *["complete"] * last, "cut 20", "404") as server:
            monkeypatch.setenv(spec.mirror, server.url)
            with pytest.raises(RequestError, match=r"the server responded 404 Not Found; 20 B of .* received and kept"):
                load(spec, data_dir)
            assert len(server.ranges) == last + 2
        with serving(files) as server:
            monkeypatch.setenv(spec.mirror, server.url)
            assert is_complete(spec, load(spec, data_dir))
            assert server.ranges == ["bytes=20-"]

    def test_a_mirror_with_another_file_is_refused(
        self, spec: Named, files: dict[str, bytes], home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, *_ = files
        other = files | {first: files[first][:-1] + bytes([files[first][-1] ^ 1])}
        with serving(other) as server:
            monkeypatch.setenv(spec.mirror, server.url)
            with pytest.raises(RequestError, match=rf"{first}: the server's file is not the official archive: its MD5"):
                load(spec)
        assert not [path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"]

    def test_an_offline_download_is_refused_with_the_place_for_the_files(
        self, spec: Named, files: dict[str, bytes], home: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(RequestError) as caught:
            load(spec)
        first, *_ = files
        assert str(caught.value) == (
            f"{spec.title} not found in {home}, {tmp_path}/user/{spec.name} or {tmp_path}/work/data, "
            f"and cannot download http://127.0.0.1:9/closed/{first}: Connection refused\n"
            f"hint: use --data-dir if you have a copy, put {', '.join(files)} into {home}, or use --dataset digits"
        )
        write(files, home)  # as the hint advises
        assert is_complete(spec, load(spec))

    @two_formats
    def test_nothing_is_downloaded_without_the_download_option(
        self, spec: Named, files: dict[str, bytes], home: Path
    ) -> None:
        urls = ", ".join(f"http://127.0.0.1:9/closed/{name}" for name in files)
        with pytest.raises(
            RequestError, match=rf"not found in .*\nhint: use --data-dir .*, or put {urls} into {home}$"
        ):
            load(spec, allowed=False)
        assert not home.exists()

    @two_formats
    def test_archives_are_read_if_they_cannot_be_unpacked(
        self, spec: Named, files: dict[str, bytes], home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flush, calls = download.flush, []

        def full_at_first(file: object) -> None:
            calls.append(file)
            if len(calls) == 1:
                raise OSError(28, os.strerror(28))
            flush(file)  # type: ignore[arg-type]

        monkeypatch.setattr(download, "flush", full_at_first)
        with serving(files) as server:
            monkeypatch.setenv(spec.mirror, server.url)
            assert is_complete(spec, load(spec))
        first, *_ = files
        assert first in os.listdir(spec.home(home / spec.folder))

    @pytest.mark.parametrize("spec", ["mnist"], indirect=True)
    def test_two_processes_download_once(
        self, python: list[str], spec: Named, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = (
            "import json, sys\nfrom dataclasses import replace\nfrom vitctl.data import named\n"
            "from vitctl.data.download import Archive\nfrom vitctl.data.dataset import load_dataset\n"
            "archives, counts = json.loads(sys.argv[1])\n"
            "made = replace(named.NAMED['mnist'], archives=tuple(Archive(**each) for each in archives), counts=counts)\n"
            "named.NAMED['mnist'] = made\n"
            "data = load_dataset('mnist', data_dir=None, size=32, skip_bad_images=False)\n"
            "print(data.train.images.sum().item())\n"
        )
        given = json.dumps([[vars(archive) for archive in spec.archives], spec.counts])
        with serving(files, "slow", seconds=1) as server:
            monkeypatch.setenv(spec.mirror, server.url)
            pair = [
                subprocess.Popen([*python, "-c", program, given], stdout=subprocess.PIPE, text=True) for _ in range(2)
            ]
            printed = [process.communicate(timeout=60)[0] for process in pair]
            assert printed == [f"{images_of(spec, 'train').sum()}\n"] * 2
            assert server.ranges == [None] * len(files)


class TestFolders:
    @pytest.mark.parametrize("root", ["data", "data/NAME", "first/NAME", "user/NAME", "mine", "mine/NAME"])
    def test_archives_are_found_in_torchvisions_layout(
        self, root: str, spec: Named, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        base = Path("work" if root.startswith("data") else "", root.replace("NAME", spec.name))
        place = tmp_path / base / spec.folder
        write(files, spec.home(place))
        data_dir = tmp_path / "mine" if root.startswith("mine") else None
        for _ in range(2):  # from the archives, and unpacked
            dataset = load(spec, data_dir, allowed=False)
            assert is_complete(spec, dataset) and dataset.source == str(place)
        assert set(unpacked_names(spec)) <= set(visible(place))

    @idx_only
    def test_torchvision_reads_what_was_unpacked(self, spec: Named, files: dict[str, bytes], home: Path) -> None:
        write(files, home / spec.folder)
        load(spec)
        reader = getattr(datasets, spec.reader)(home, train=False)
        assert np.array_equal(reader.data, images_of(spec, "test")[:, 0])

    def test_the_users_own_folders_come_before_data(
        self, spec: Named, files: dict[str, bytes], home: Path, tmp_path: Path
    ) -> None:
        write(files, spec.home(tmp_path / "work" / "data" / spec.folder))
        assert load(spec).source == str(tmp_path / "work" / "data" / spec.folder)
        write(files, spec.home(home / spec.folder))
        assert load(spec).source == str(home / spec.folder)

    @pytest.mark.parametrize("spec", ["mnist", "fashionmnist", "kmnist", "stl10"], indirect=True)
    def test_the_folder_of_the_files_may_be_given(self, spec: Named, files: dict[str, bytes], tmp_path: Path) -> None:
        place = tmp_path / "mine" / spec.folder
        write(files, spec.home(place))
        assert is_complete(spec, load(spec, tmp_path / "mine"))
        assert is_complete(spec, load(spec, place))
        assert is_complete(spec, load(spec, place.parent))

    @idx_only
    def test_files_of_another_data_set_with_the_same_names_are_not_read(
        self, spec: Named, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        raw = write(made("mnist")[1], tmp_path / "mine" / "MNIST" / "raw")
        for name in files:
            download.gunzip(raw / name, raw / name.removesuffix(".gz"))
        for data_dir in (raw, raw.parent, tmp_path / "mine"):
            with pytest.raises(RequestError, match="KMNIST not found in"):
                load(spec, data_dir)

    @idx_only
    def test_the_name_of_vitctl_data_does_not_matter(
        self, spec: Named, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VITCTL_DATA", str(tmp_path / "MNIST"))
        write(files, tmp_path / "MNIST" / "kmnist")
        assert is_complete(spec, load(spec))

    @two_formats
    def test_archives_in_a_read_only_folder_are_read(
        self, spec: Named, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        there = write(files, tmp_path / "there")
        assert is_complete(spec, load(spec, there))  # import all modules before the change of user
        with unwritable(*(there / name for name in files)) as folder:
            assert is_complete(spec, load(spec, folder))
            assert sorted(os.listdir(folder)) == sorted(files)

    def test_a_damaged_archive_in_data_dir_is_refused(
        self, spec: Named, files: dict[str, bytes], tmp_path: Path
    ) -> None:
        first, *_ = files
        folder = write(files | {first: files[first][:-1]}, tmp_path / "mine")
        size = len(files[first])
        with pytest.raises(
            RequestError,
            match=rf"{first} is not the official archive: it has {size - 1:,} bytes, not {size:,}\nhint: d",
        ):
            load(spec, folder)

    def test_what_an_interrupted_tutorial_left_in_data_is_ignored_with_a_warning(
        self, spec: Named, files: dict[str, bytes], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, *_ = files
        write({first: files[first][:100]}, spec.home(tmp_path / "work" / "data" / spec.folder))
        with serving(files) as server:
            monkeypatch.setenv(spec.mirror, server.url)
            with pytest.warns(
                VitctlWarning, match=r"^ignoring \S+, which is not the official archive: it has 100 bytes"
            ):
                dataset = load(spec)
        assert is_complete(spec, dataset) and dataset.source == str(home / spec.folder)

    @pytest.mark.parametrize("spec", ["mnist", "fashionmnist", "kmnist", "stl10"], indirect=True)
    @pytest.mark.parametrize("damage", ["cut", "empty", "other labels"])
    def test_damaged_files_are_refused_with_a_hint_that_works(
        self, damage: str, spec: Named, files: dict[str, bytes], home: Path
    ) -> None:
        write(files, home)
        place = Path(load(spec).source)
        images, labels = (
            ("train_X.bin", "train_y.bin") if spec.members else ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
        )
        whole = (place / images).read_bytes()
        if damage == "other labels":
            content = (place / labels).read_bytes()
            (place / labels).write_bytes(content[:-1] + b"\x63")
        else:
            (place / images).write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
        with pytest.raises(
            RequestError, match=rf"^{spec.title} in {place} is damaged: .*\nhint: delete .* there"
        ) as caught:
            load(spec)
        for name in str(caught.value.hint).removeprefix("delete ").removesuffix(" there, then try again").split(", "):
            (place / name).unlink()
        assert is_complete(spec, load(spec))

    @two_formats
    def test_files_that_cannot_be_read_are_not_called_damaged(
        self, spec: Named, files: dict[str, bytes], home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(13, os.strerror(13))

        write(files, home)
        monkeypatch.setattr(named, "_reader", refuse)
        with pytest.raises(RequestError, match=rf"^cannot read {home}\S*: Permission denied\nhint: make it readable"):
            load(spec)

    @two_formats
    def test_a_full_disk_is_named(
        self, spec: Named, files: dict[str, bytes], home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_: object) -> None:
            raise OSError(28, os.strerror(28))

        write(files, spec.home(home / spec.folder))
        monkeypatch.setattr(download, "flush", full)
        with pytest.raises(NoSpace, match=rf"^cannot unpack {spec.title} to \S+: No space left .*\nhint: free some"):
            load(spec)

    @two_formats
    def test_an_archive_without_its_files_is_refused(
        self, spec: Named, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        archives = tuple(
            download.Archive(url=each.url, size=5, checksums={"md5": hashlib.md5(b"hello").hexdigest()})
            for each in spec.archives
        )
        monkeypatch.setitem(named.NAMED, spec.name, replace(spec, archives=archives))
        write({each.name: b"hello" for each in archives}, home)
        with pytest.raises(RequestError, match=rf"{archives[0].name} is damaged: .*\nhint: delete"):
            load(spec)


class TestImages:
    @pytest.fixture
    def found(self, files: dict[str, bytes], home: Path) -> Path:
        return write(files, home)

    @pytest.mark.usefixtures("found")
    def test_mean_and_deviation_are_those_of_the_training_images(self, spec: Named) -> None:
        dataset = load(spec)
        values = images_of(spec, "train") / 255
        assert dataset.mean == pytest.approx(values.mean((0, 2, 3)), abs=1e-12)
        assert dataset.std == pytest.approx(values.std((0, 2, 3)), abs=1e-12)

    @pytest.mark.usefixtures("found")
    def test_larger_images_are_resized_like_image_files(self, spec: Named, tmp_path: Path) -> None:
        dataset = load(spec, size=16)
        assert dataset.train.images.shape == (COUNTS["train"], spec.shape[0], 16, 16)
        for i in (0, 7):
            image = images_of(spec, "test")[i].transpose(1, 2, 0)
            Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(tmp_path / "image.png")
            decoded = decode_image(tmp_path / "image.png", 16)[: spec.shape[0]]
            assert np.array_equal(dataset.test.images[i], decoded)

    @pytest.mark.usefixtures("found")
    def test_smaller_images_keep_their_size(self, spec: Named) -> None:
        assert load(spec, size=224).test.images.shape[1:] == spec.shape

    @pytest.mark.usefixtures("found")
    def test_held_out_images_follow_the_rule_for_images_without_names(self, spec: Named) -> None:
        dataset = load(spec)
        assert dataset.train.identities == ()
        splits = split(
            dataset,
            val="holdout",
            val_fraction=0.5,
            split_seed=3,
            holdout_by="position",
            limit_train=None,
            limit_test=None,
        )
        keys = {i: hashlib.sha256(f"3:{i}".encode()).digest()[:8] for i in range(COUNTS["train"])}
        labels = labels_of("train")
        expected = [i for k in range(10) for i in sorted(np.flatnonzero(labels == k).tolist(), key=keys.get)[:2]]
        assert splits.val is not None and splits.val.index.tolist() == sorted(expected)

    def test_statistics_of_many_images_are_exact(self) -> None:
        images = torch.randint(0, 256, (5000, 3, 4, 4), dtype=torch.uint8).numpy()
        mean, std = named._mean_and_std(images)
        assert mean == pytest.approx((images / 255).mean((0, 2, 3)), abs=1e-12)
        assert std == pytest.approx((images / 255).std((0, 2, 3)), abs=1e-12)
        assert named._mean_and_std(np.zeros((2, 1, 3, 3), dtype=np.uint8)) == ((0.0,), (0.5 / 255,))


class TestCommandLine:
    def test_it_is_downloaded_trained_evaluated_and_predicted(
        self, spec: Named, files: dict[str, bytes], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = ["train", "--dataset", spec.name, "--net", TINY_NET, "--bs", 16, "--epochs", 1, "--val-fraction", 0.25]
        with serving(files, "cut 100") as server:
            monkeypatch.setenv(spec.mirror, server.url)
            trained = cli(*run, "--name", "named", "--json")
        assert trained.code == 0, trained.err
        assert "downloading " in trained.err
        assert json.loads((tmp_path / "runs" / "named" / "config.json").read_text())["config"]["size"] == 32
        measured = cli("eval", "runs/named", "--json")
        assert measured.code == 0, measured.err
        assert measured.json()["top1"] == trained.json()["test_acc"] and measured.json()["images"] == COUNTS["test"]
        assert [row["class"] for row in measured.json()["classes"]] == list(spec.classes)
        image = images_of(spec, "test")[0].transpose(1, 2, 0)
        Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(tmp_path / "image.png")
        predicted = cli("predict", "runs/named", "image.png", "--json")
        assert predicted.code == 0 and predicted.json()[0]["top"][0]["class"] in spec.classes, predicted.err

    def test_the_names_are_listed_in_the_help(self, cli: Cli) -> None:
        text = " ".join(cli("train", "--help").out.split())
        assert all(name in text for name in DATASETS if name != "folder")

    @idx_only
    def test_an_offline_download_is_refused_in_two_lines(self, spec: Named, refused: Callable[..., str]) -> None:
        error, hint = refused("train", "--dataset", spec.name).splitlines()
        assert error.startswith("error: KMNIST not found in ") and hint.startswith("hint: use --data-dir")
