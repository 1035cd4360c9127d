"""Images with equal pixels in two parts or two classes."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY_NET, Cli
from vitctl.data import cache as cache_module
from vitctl.data import duplicates
from vitctl.data.dataset import Dataset, load_dataset
from vitctl.data.duplicates import describe_equal_images, image_digests, pairs_across, pairs_of_classes

MakeFolder = Callable[..., Path]
Refused = Callable[..., str]


def few_images(seed: int, count: int) -> np.ndarray:
    """Return images of which many are equal, uint8 [count, 1, 2, 2]."""
    return np.random.default_rng(seed).integers(0, 2, (count, 1, 2, 2), dtype=np.uint8)


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.tobytes() == b.tobytes()


def test_digests_are_equal_if_and_only_if_images_are() -> None:
    images = few_images(0, 60)
    digests = image_digests(images)
    assert digests.shape == (60, duplicates.DIGEST_BYTES) and digests.dtype == np.uint8
    for i, j in itertools.combinations(range(60), 2):
        assert equal(digests[i], digests[j]) == equal(images[i], images[j])
    assert np.array_equal(image_digests(np.asfortranarray(images)), digests)
    assert image_digests(images[:0]).shape == (0, duplicates.DIGEST_BYTES)


@pytest.mark.parametrize(("count", "others"), [(30, 5), (5, 30), (0, 5), (5, 0)])
def test_pairs_across_parts_are_those_of_a_comparison_of_all_images(count: int, others: int) -> None:
    a, b = few_images(1, count), few_images(2, others)
    expected = [
        (i, next(j for j in range(others) if equal(a[i], b[j])))
        for i in range(count)
        if any(equal(a[i], b[j]) for j in range(others))
    ]
    assert list(map(tuple, pairs_across(image_digests(a), image_digests(b)).tolist())) == expected
    assert bool(expected) == bool(count and others)


def test_pairs_in_two_classes_are_those_of_a_comparison_of_all_images() -> None:
    images = few_images(3, 25)
    labels = np.random.default_rng(4).integers(0, 3, 25)
    firsts = [i for i in range(25) if not any(equal(images[i], images[j]) for j in range(i))]
    expected = []
    for i in firsts:
        others = [j for j in range(25) if equal(images[i], images[j]) and labels[i] != labels[j]]
        expected += [(i, others[0])] if others else []
    assert list(map(tuple, pairs_of_classes(image_digests(images), labels).tolist())) == expected
    assert 1 < len(expected) < len(firsts)


def load(root: Path) -> Dataset:
    return load_dataset("folder", data_dir=str(root), size=16, skip_bad_images=True)


COPIES: dict[str, tuple[list[tuple[str, str]], str]] = {
    "none": ([], ""),
    "within a class": ([("train/cat/000.png", "train/cat/copy.png")], ""),
    "test": (
        [("train/cat/001.png", "test/cat/copy.png")],
        "1 test image is also in train, such as test/cat/copy.png and train/cat/001.png",
    ),
    "test, another class": (
        [("train/cat/001.png", "test/dog/a.png"), ("train/dog/002.png", "test/dog/b.png")],
        "2 test images are also in train, such as test/dog/a.png and train/cat/001.png",
    ),
    "two classes": (
        [("train/cat/001.png", "train/dog/copy.png"), ("train/cat/001.png", "train/dog/again.png")],
        "1 train image is in two classes, such as train/cat/001.png and train/dog/again.png",
    ),
    "both": (
        [("train/cat/003.png", "train/dog/x.png"), ("train/dog/000.png", "test/dog/y.png")],
        "1 test image is also in train and 1 train image is in two classes, such as test/dog/y.png and train/dog/000.png",
    ),
    "val": (
        [("train/cat/000.png", "val/cat/x.png"), ("test/cat/000.png", "val/cat/y.png")],
        "1 val image is also in train and 1 val image is also in test, such as val/cat/x.png and train/cat/000.png",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COPIES)
def test_copies_are_counted_with_the_first_pair(case: str, pets: Path) -> None:
    copies, expected = COPIES[case]
    for source, target in copies:
        (pets / target).parent.mkdir(parents=True, exist_ok=True)
        Image.open(pets / source).save(pets / target, compress_level=0)  # other bytes, equal pixels
    (pets / "train" / "cat" / "0000.png").write_text("not an image")
    for _ in range(2):  # decoded, and from the cache
        assert describe_equal_images(load(pets)) == expected


def test_digests_of_a_folder_are_computed_once_while_decoding(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(pets)
    for module in (cache_module, duplicates):
        monkeypatch.setattr(module, "image_digests", None)
    again = load(pets)
    assert describe_equal_images(again) == ""
    for part in (again.train, again.test):
        assert part.digests is not None and np.array_equal(part.digests, image_digests(part.images.numpy()))


@pytest.mark.parametrize("name", ["digits", "folder", "cifar10", "cifar100"])
def test_every_data_set_is_checked(name: str, load_small: Callable[[str], Dataset]) -> None:
    dataset = load_small(name)
    assert describe_equal_images(dataset) == ""
    test = replace(dataset.test, images=dataset.test.images.clone(), digests=None)
    test.images[3] = dataset.train.images[2]
    first = (test.paths[3], dataset.train.paths[2]) if test.paths else ("test/3", "train/2")
    expected = f"1 test image is also in train, such as {first[0]} and {first[1]}"
    assert describe_equal_images(replace(dataset, test=test)) == expected


def test_train_warns_of_equal_images_and_refuses_them_with_strict_data(
    cli: Cli, refused: Refused, pets: Path, tmp_path: Path
) -> None:
    argv = ["train", "--dataset", pets, "--net", TINY_NET, "--size", 8, "--max-steps", 1, "--name"]
    clean = cli(*argv, "clean", "--strict-data")
    assert clean.code == 0 and "also in train" not in clean.err
    shutil.copy(pets / "train/dog/001.png", pets / "test/dog/z.png")
    found = "1 test image is also in train, such as test/dog/z.png and train/dog/001.png"
    leaky = cli(*argv, "leaky")
    assert leaky.code == 0 and f"warning: {found}" in " ".join(leaky.err.split())
    for mode in ([], ["--dry-run"]):
        message = refused(*argv[:-1], "--strict-data", *mode)
        assert message == f"error: --strict-data: {found}\nhint: delete one image of each pair, or remove --strict-data"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["clean", "leaky"]
    assert "--strict-data" in refused("train", "--resume", "runs/leaky", "--strict-data", "--max-steps", 2)
