"""Thumbnails: only images that a run used, as they were."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Cli
from tests.report.folders import make_run
from vitctl.data.dataset import Dataset, load_dataset
from vitctl.data.manifest import MANIFEST
from vitctl.report.images import ImageReader
from vitctl.report.run import RunRecord, read_run_record

CLASSES = ("cat", "a dog")
EACH = 3


def draw(path: Path, seed: int) -> None:
    """Write an image of noise, which is not square."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 14, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    places = itertools.product(("train", "test"), CLASSES, range(EACH))
    for seed, (part, name, number) in enumerate(places):
        draw(tmp_path / "data" / part / name / f"{number}.png", seed)
    return tmp_path / "data"


def load(name: str, data_dir: str | None) -> Dataset:
    return load_dataset(name, data_dir=data_dir, size=16, skip_bad_images=False)


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Path:
    """Return the folder of a run on image files, with its manifest; its first predictions are wrong."""
    folder = make_run(
        tmp_path / "run",
        classes=CLASSES,
        images=2 * EACH,
        settings={"dataset": "folder", "data_dir": str(data), "size": 16},
    )
    dataset = load("folder", str(data))
    assert dataset.manifest is not None
    dataset.manifest.write(folder / MANIFEST)
    rewrite(
        folder,
        source=str(data),
        classes=dataset.classes,
        test_labels=dataset.test.labels.numpy(),
        test_paths=dataset.test.paths,
        test_identities=dataset.test.identities,
    )
    return folder


def rewrite(folder: Path, **arrays: object) -> None:
    """Replace arrays in the predictions of a run."""
    with np.load(folder / "predictions.npz") as file:
        stored = dict(file)
    np.savez(folder / "predictions.npz", **{**stored, **{name: np.array(each) for name, each in arrays.items()}})


def reader(folder: Path, data_dir: str | None = None) -> ImageReader:
    return ImageReader(read_run_record(folder), data_dir)


def problem(images: ImageReader, index: int = 0) -> str:
    """Return why an image is not shown."""
    with pytest.raises(Exception) as caught:
        images.read(index)
    return str(caught.value)


def named(run: RunRecord, name: str) -> int:
    assert run.test is not None
    return run.test.names.index(name)


def test_images_are_read_as_stored_and_as_the_network_saw_them(run: Path, data: Path) -> None:
    images = reader(run)
    for index, name in enumerate(images.predictions.names):
        stored, prepared = images.read(index)
        assert np.array_equal(stored.transpose(1, 2, 0), np.asarray(Image.open(data / name)))
        assert prepared.shape == (3, 16, 16)


def test_a_moved_data_set_is_found_with_data_dir(run: Path, data: Path, tmp_path: Path) -> None:
    shutil.move(data, tmp_path / "moved")
    assert "is missing" in problem(reader(run))
    assert reader(run, str(tmp_path / "moved")).read(0)[0].shape == (3, 20, 14)


@pytest.mark.parametrize("how", ["drawn over", "swapped within the class", "swapped between classes"])
def test_a_changed_image_is_not_shown(how: str, run: Path, data: Path) -> None:
    images = reader(run)
    index = named(read_run_record(run), "test/cat/0.png")
    path = data / "test/cat/0.png"
    if how == "drawn over":
        draw(path, 99)
    else:
        other = "test/cat/1.png" if how == "swapped within the class" else "test/a dog/0.png"
        shutil.copy(data / other, path)
    assert "changed since the run" in problem(images, index)
    assert images.read(named(read_run_record(run), "test/a dog/2.png"))


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("way", ["absolute", "parents", "link", "source"])
@pytest.mark.parametrize("given", [True, False])
def test_other_images_of_the_machine_are_not_shown(
    manifest: bool, way: str, given: bool, run: Path, data: Path, tmp_path: Path
) -> None:
    private = tmp_path / "private" / "test" / "cat" / "photo.png"
    draw(private, 98)
    paths = list(read_run_record(run).test.names)  # type: ignore[union-attr]
    paths[0] = {
        "absolute": str(private),
        "parents": "../private/test/cat/photo.png",
        "link": "test/cat/link.png",
        "source": "test/cat/photo.png",
    }[way]
    (data / "test/cat/link.png").symlink_to(private)
    rewrite(run, test_paths=paths, source=str(private.parents[2] if way == "source" else data))
    if not manifest:
        (run / MANIFEST).unlink()
    problem(reader(run, str(data) if given else None))


def test_without_a_record_of_the_images_data_dir_shows_them(run: Path, data: Path) -> None:
    (run / MANIFEST).unlink()
    assert "no record of its images" in problem(reader(run))
    assert reader(run, str(data)).read(0)


def test_a_fifo_is_not_opened(run: Path, data: Path) -> None:
    path = data / reader(run).predictions.names[0]
    path.unlink()
    os.mkfifo(path)
    assert "is missing" in problem(reader(run))


def test_images_without_names_are_not_taken_from_a_folder(run: Path) -> None:
    names = [f"test/{index}" for index in range(2 * EACH)]
    rewrite(run, test_paths=names, test_identities=names)
    assert "the run read no image files" in problem(reader(run))


def test_a_page_says_why_thumbnails_are_missing(run: Path, data: Path, cli: Cli) -> None:
    for path in (data / "test").rglob("*.png"):
        draw(path, 97)
    assert cli("report", run).code == 0
    html = Path("report.html").read_text()
    assert "changed since the run" in html and "<img" not in html


def test_images_of_another_data_set_are_not_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", images=20)
    document = json.loads((folder / "config.json").read_text())
    assert document["config"]["dataset"] == "digits"
    labels = load("digits", None).test.labels[:20].numpy()
    rewrite(folder, test_labels=labels)
    assert reader(folder).read(3)[0].shape == (1, 8, 8)
    rewrite(folder, test_labels=(labels + 1) % 10)
    assert "changed since the run" in problem(reader(folder), 3)
