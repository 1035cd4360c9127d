"""Preview of the training images: the contact sheet shows what the network sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from tests.conftest import TINY, Cli
from tests.training.test_resume_optimizers import session
from vitctl.data import AUGMENTATIONS
from vitctl.tools import preview

Refused = Callable[..., str]
SHEET = ["--preview-batch", "out.png"]


@pytest.fixture
def colourful(tmp_path: Path) -> Path:
    """Return a folder of smooth 32-px images without uniform areas, in two classes."""
    generator = np.random.default_rng(0)
    root = tmp_path / "colourful"
    for part, count in (("train", 40), ("test", 2)):
        for name in ("one", "another class with a long name"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                small = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
                small.resize((32, 32), Image.Resampling.BICUBIC).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize("aug", AUGMENTATIONS)
@pytest.mark.parametrize("size", [8, 12])
def test_the_sheet_shows_the_input_of_the_network(cli: Cli, tmp_path: Path, aug: str, size: int) -> None:
    found = cli("train", *TINY, "--size", size, "--aug", aug, "--mixup", "--seed", 3, *SHEET, "--json")
    assert found.code == 0, found.err
    sheet = found.json()
    assert (sheet["file"], sheet["shown"], sheet["size"]) == ("out.png", 64, size)
    image = Image.open(tmp_path / "out.png")
    assert image.format == "PNG"
    pixels = np.asarray(image)
    opened = session(size=size, aug=aug, mixup=0.8)  # the same settings
    images, labels = opened.batches.batch(0, 0)
    mean, std = opened.dataset.mean[0], opened.dataset.std[0]
    x = (opened.normalize(images) * std + mean) * 255  # [64, 1, size, size]
    zoom = 96 // size
    down = zoom * size + 2 * preview.LINE + preview.GAP
    for i in range(64):
        top = 2 * preview.GAP + preview.LINE + i // 8 * down
        left = preview.GAP + i % 8 * (zoom * size + preview.GAP)
        shown = pixels[top : top + zoom * size : zoom, left : left + zoom * size : zoom]
        assert (shown == shown[..., :1]).all()
        assert np.abs(shown[..., 0].astype(float) - x[i, 0].numpy()).max() <= 0.51
        shares = {name: pytest.approx(share, abs=1e-4) for name, share in sheet["classes"][i].items()}
        assert shares == {opened.dataset.classes[j]: float(labels[i, j]) for j in range(10) if labels[i, j] > 0}
    assert not (tmp_path / "runs").exists() and sorted(path.name for path in tmp_path.iterdir()) == ["out.png"]


def test_blank_images_are_counted(cli: Cli, colourful: Path) -> None:
    def blank(*argv: object) -> Any:
        found = cli("train", "--dataset", colourful, "--val", "none", "--bs", 32, "--size", 32, *argv, *SHEET, "--json")
        assert found.code == 0, found.err
        assert found.json()["images"] == 80 and found.json()["blank_stored"] == 0
        assert found.json()["blank"] == found.json()["blank_images"] / 80
        return found.json()["blank"]

    seeds = [blank("--aug", "seed-randaug", "--seed", seed) for seed in range(5)]
    # 22.7 % of 400 images, within three standard deviations
    assert sum(seeds) / 5 == pytest.approx(0.227, abs=0.063)
    assert blank("--aug", "seed-randaug:padding=31", "--seed", 0) == seeds[0]  # nor does padding count
    assert blank("--aug", "randaug") == blank("--aug", "basic") == blank("--aug", "none") == 0
    # counted before mixing, erasing and cutout, which would hide them
    assert blank("--aug", "seed-randaug", "--mixup", "--seed", 0) == seeds[0]
    assert blank("--aug", "seed-randaug", "--cutout", 0.5, "--erase", 0.5, "--seed", 0) == seeds[0]


def test_the_output_names_the_augmentation_and_the_share_of_blank_images(cli: Cli, colourful: Path) -> None:
    argv = ["train", "--dataset", colourful, "--size", 32, "--bs", 16]
    bad = cli(*argv, "--aug", "seed-randaug", "--erase", 0.25, *SHEET).out
    assert "out.png: 16 augmented images" in bad and "augmentation: --aug seed-randaug:n=2,m=14 --erase 0.25" in bad
    assert "blank (one color" in bad and "augmentation is too strong" in bad
    good = cli(*argv, "--aug", "randaug:m=5", *SHEET).out
    options = "basic:padding=20,padding_mode=reflect,flip=alternate"
    assert f"augmentation: --aug {options}" in cli(*argv, "--aug", options, *SHEET).out
    assert "--aug randaug:n=2,m=5" in good and "0.0 % of 64 images" in good and "too strong" not in good


def test_images_blank_before_augmentation_are_counted_separately(cli: Cli, colourful: Path) -> None:
    for path in list((colourful / "train" / "one").iterdir())[:20]:
        Image.new("RGB", (32, 32), (9, 99, 199)).save(path)
    found = cli("train", "--dataset", colourful, "--val", "none", "--size", 32, "--bs", 16, *SHEET)
    assert "25.0 % of 80 images" in found.out and ", 25.0 % before augmentation" in found.out
    assert "Nothing" not in found.out


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 20, 50), (3, 300, 200)], ids=str)
@pytest.mark.parametrize("count", [1, 7])
def test_a_sheet_shows_images_of_any_shape(shape: tuple[int, int, int], count: int) -> None:
    import io

    images = torch.full((count, *shape), 200, dtype=torch.uint8)
    image = Image.open(io.BytesIO(preview.contact_sheet(images, [["a"] * 2] * count, "title")))
    zoom = 1 if shape[1] > 96 else -(-96 // min(shape[1:]))
    assert image.mode == "RGB"
    assert (np.asarray(image) == 200).all(2).sum() == pytest.approx(count * zoom**2 * shape[1] * shape[2], abs=50)


def test_a_sheet_shows_fewer_large_images(cli: Cli, tmp_path: Path) -> None:
    found = cli("train", *TINY, "--net", "res18", "--size", 1024, *SHEET, "--json").json()
    assert (found["shown"], found["size"]) == (16, 1024)
    assert Image.open(tmp_path / "out.png").width == pytest.approx(4 * 1024, rel=0.02)


def test_long_captions_are_truncated() -> None:
    font = ImageFont.load_default(preview.FONT)
    assert preview.fitting("cat", font, 96) == "cat"
    cut = preview.fitting("a very long name of a class", font, 96)
    assert cut.endswith("...") and font.getlength(cut) <= 96


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preview-batch", "a.jpg"], "--preview-batch a.jpg does not end in .png"),
        (["--preview-batch", "nowhere/a.png"], "no such folder"),
        (["--preview-batch", "/proc/a.png"], "--preview-batch /proc/a.png"),
        ([*SHEET, "--resume", "x"], "--resume does nothing with"),
        ([*SHEET, "--name", "x"], "--name does nothing with"),
        ([*SHEET, "--print-config"], "--print-config does nothing with"),
        ([*SHEET, "--dry-run"], "--dry-run does nothing with"),
        ([*SHEET, "--lr-finder"], "--lr-finder does nothing with"),
        ([*SHEET, "--compile"], "--compile does nothing with"),
        ([*SHEET, "--wandb", "offline"], "--wandb does nothing with"),
        ([*SHEET, "--aug", "randug"], "did you mean randaug"),
        ([*SHEET, "--mixup", "--limit-train", "1"], "mixes classes"),
        ([*SHEET, "--device", "cuda:7"], "--device cuda:7"),
    ],
)
def test_bad_requests_are_refused(refused: Refused, tmp_path: Path, argv: list[str], message: str) -> None:
    assert message in refused("train", *TINY, *argv)
    assert not list(tmp_path.iterdir())


def test_an_earlier_sheet_is_replaced_only_by_a_complete_one(cli: Cli, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(b"mine")
    refused("train", *TINY, "--mixup", "--limit-train", 1, *SHEET)
    assert (tmp_path / "out.png").read_bytes() == b"mine"
    assert cli("train", *TINY, *SHEET).code == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
