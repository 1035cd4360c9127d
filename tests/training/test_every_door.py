"""Folders as people have them, from the first command to predictions; the accuracy is the same wherever it is measured."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import TINY_NET, Cli

FLAGS = ["--net", TINY_NET, "--size", 8, "--bs", 8, "--lr", 0.01]
CLASSES = ("n01", "n02", "n03")
COUNT = 8
"""Images per class in each part."""


def noisy(random: np.random.Generator, label: int) -> Image.Image:
    """Return an image whose class can be told by its colour, most of the time."""
    pixels = random.normal(110, 60, (12, 12, 3))
    pixels[..., label % 3] += random.normal(40, 30)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def cells(random: np.random.Generator, label: int, bits: int = 12) -> Image.Image:
    """Return a grey image of 12 bits, whose class can be told by its brightness, most of the time."""
    pixels = random.normal(1000 + 700 * label, 600, (12, 12)) + random.normal(0, 200)
    return Image.fromarray((pixels.clip(0, 2**bits - 1)).astype(np.uint16))


def strips(random: np.random.Generator, label: int) -> Image.Image:
    """Return a strip of 1:4 whose class can be told by its ends only."""
    pixels = random.normal(110, 30, (12, 48, 3))
    pixels[:, 3 * label : 3 * label + 12 if label else 12, label % 3] += 90
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


Draw = Callable[[np.random.Generator, int], Image.Image]


def samples(draw: Draw, seed: int) -> Iterator[tuple[int, int, Image.Image]]:
    """Yield number, class and image of ``COUNT`` images per class, in turns."""
    random = np.random.default_rng(seed)
    for i in range(len(CLASSES) * COUNT):
        yield i, i % len(CLASSES), draw(random, i % len(CLASSES))


def in_class_folders(root: Path, draw: Draw = noisy, names: tuple[str, ...] = CLASSES, end: str = "png") -> None:
    for seed, place in enumerate(root.iterdir() if root.is_dir() else [root]):
        for i, label, image in samples(draw, seed):
            (place / names[label]).mkdir(parents=True, exist_ok=True)
            image.save(place / names[label] / f"{i}.{end}")


def split(*parts: str, **more: object) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for part in parts:
            (root / part).mkdir(parents=True)
        in_class_folders(root, **more)  # type: ignore[arg-type]

    return make


def tiny_imagenet(root: Path) -> None:
    for i, label, image in samples(noisy, 0):
        name = CLASSES[label]
        (root / "train" / name / "images").mkdir(parents=True, exist_ok=True)
        image.save(root / "train" / name / "images" / f"{name}_{i}.JPEG")
        (root / "train" / name / f"{name}_boxes.txt").write_text("n\t0\t0\t1\t1\n")
    for part in ("val", "test"):
        (root / part / "images").mkdir(parents=True)
    lines = []
    for i, label, image in samples(noisy, 1):
        image.save(root / "val" / "images" / f"val_{i}.JPEG")
        image.save(root / "test" / "images" / f"test_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{CLASSES[label]}\t0\t0\t9\t9\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))


def kaggle(root: Path) -> None:
    for part in ("train", "test"):
        (root / part).mkdir(parents=True)
        for i, _, image in samples(noisy, len(part)):
            image.save(root / part / f"{i + 1}.png")
    lines = [f"{i + 1},{CLASSES[label]}\n" for i, label, _ in samples(noisy, 5)]
    (root / "trainLabels.csv").write_text("id,label\n" + "".join(lines))


def not_utf8(root: Path) -> None:
    names = tuple(os.fsdecode(name) for name in (b"\x94L", b"\x8c\xa2", b"\xe9t\xe9"))
    try:
        (root / names[0]).mkdir(parents=True)
    except OSError:
        pytest.skip("the disk takes only names in UTF-8")
    (root / names[0]).rmdir()
    split("train", "test", names=names)(root)


def in_two_unicode_forms(root: Path) -> None:
    names = ("café", "thé", "maté")
    for part, form in (("train", "NFD"), ("test", "NFC")):
        in_class_folders(root / part, names=tuple(unicodedata.normalize(form, name) for name in names))


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "Tiny ImageNet": (tiny_imagenet, ""),
    "Roboflow": (split("train", "valid", "test"), ""),
    "Kaggle's CIFAR-10": (kaggle, "--labels trainLabels.csv --test-fraction 0.3"),
    "class folders": (lambda root: in_class_folders(root / "PetImages"), "--test-fraction 0.3"),
    "microscopy, 12 bits": (split("train", "test", draw=cells, end="tif"), ""),
    "microscopy without a split": (lambda root: in_class_folders(root, cells, end="tif"), "--test-fraction 0.3"),
    "strips": (split("train", "test", draw=strips), "--fit pad"),
    "two Unicode forms": (in_two_unicode_forms, ""),
    "names that are not UTF-8": (not_utf8, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_trains_resumes_and_has_one_accuracy(kind: str, cli: Cli, tmp_path: Path) -> None:
    make, needed = KINDS[kind]
    flags = shlex.split(needed)
    make(tmp_path / "images")
    assert (cli("train", "--dataset", "images", *FLAGS, "--epochs", 3).code == 2) == ("-fraction" in needed)
    trained = cli("train", "--dataset", "images", *flags, *FLAGS, "--epochs", 2, "--name", "r", "--json")
    assert trained.code == 0, trained.err
    resumed = cli("train", "--resume", "runs/r", "--epochs", 4, "--json")
    assert resumed.code == 0, resumed.err
    summary = resumed.json()

    def measured(*words: object) -> float:
        scores = cli("eval", *words, "--json")
        assert scores.code == 0, scores.err
        return float(scores.json()["top1"])

    test_acc = pytest.approx(summary["test_acc"])
    copy = shutil.copytree("images", "copy")
    checkpoint = "runs/r/checkpoints/last.pt"
    assert measured(checkpoint) == measured(checkpoint, "--dataset", "images") == test_acc
    assert measured(checkpoint, "--data-dir", copy) == measured(checkpoint, "--dataset", copy) == test_acc
    assert measured(checkpoint, "--split", "val") == pytest.approx(summary["val_acc"])
    for form in ("onnx", "safetensors"):
        exported = cli("export", checkpoint, "--format", form, "-o", f"x.{form}")
        assert exported.code == 0, exported.err
        labels = flags[:2] if "--labels" in flags else []
        assert measured(f"x.{form}", "--dataset", copy, *labels) == test_acc
    assert right_in_predictions(cli, checkpoint, "runs/r") == test_acc
    assert right_in_predictions(cli, "x.onnx", "runs/r") == test_acc


def right_in_predictions(cli: Cli, model: str, run: str) -> float:
    """Return the accuracy in percent of ``vitctl predict`` on the test images that the run stored."""
    with np.load(Path(run) / "predictions.npz") as stored:
        classes, labels = stored["classes"].tolist(), stored["test_labels"].tolist()
        paths = [str(Path(str(stored["source"])) / path) for path in stored["test_paths"]]
    result = cli("predict", model, *paths, "--csv", "predictions.csv")
    assert result.code == 0, result.err
    with open("predictions.csv", encoding="utf-8") as file:
        predicted = [row["class_1"] for row in csv.DictReader(file)]
    return 100 * float(np.mean([name == classes[label] for name, label in zip(predicted, labels, strict=True)]))


HINTS: dict[str, Callable[[Path], object]] = {
    "class folders": in_class_folders,
    "class folders in another": lambda root: in_class_folders(root / "PetImages"),
    "train only": split("train"),
    "labels beside the images": kaggle,
    "a test folder without labels": lambda root: (split("train")(root), (root / "test").mkdir(), shutil.copy(root / "train/n01/0.png", root / "test")),
    "one level too high": lambda root: (split("train", "test")(root / "a"), split("train", "test")(root / "b")),
    "a damaged image": lambda root: (split("train", "test")(root), (root / "train/n01/0.png").write_bytes(b"x")),
    "a class without images": lambda root: (split("train", "test")(root), (root / "train/n04").mkdir()),
}  # fmt: skip


@pytest.mark.parametrize("case", HINTS)
def test_following_the_hints_leads_to_training(case: str, cli: Cli, tmp_path: Path) -> None:
    HINTS[case](tmp_path / "images")
    words = ["--dataset", "images"]
    hints = []
    while (result := cli("train", *words, "--net", TINY_NET, "--size", 8, "--max-steps", 1, "--name", "r")).code:
        (hint,) = re.findall("^hint: (.*)", result.err, re.MULTILINE)
        if meant := re.search(r"did you mean --dataset (\S+?)(?:\?| or )", hint):
            words[1] = meant[1]
        elif added := re.match(r"add (--[a-z-]+)(?: ([\d.]+|\S+\.csv)\b)?", hint):
            words += [each for each in added.groups() if each]
        elif unneeded := re.match(r"add images to (\S+), or remove it", hint):
            shutil.rmtree(unneeded[1])
        else:
            pytest.fail(hint)
        assert hint not in hints
        hints.append(hint)
    assert hints
