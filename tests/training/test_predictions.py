"""``predictions.npz``: what the final evaluations predicted for each image."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import TINY, TINY_NET, Cli
from vitctl.data.dataset import load_dataset
from vitctl.training import loop
from vitctl.units import escaped


def read(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays of ``predictions.npz`` and the summary."""
    with np.load(run / "predictions.npz") as file:
        return dict(file), json.loads((run / "summary.json").read_text())


def assert_agree(found: dict[str, Any], summary: dict[str, Any], part: str) -> None:
    """Check the arrays of a part, and that accuracy and loss computed from them are those of the summary."""
    probabilities, predicted, labels = (found[f"{part}_{what}"] for what in ("probabilities", "predicted", "labels"))
    assert probabilities.dtype == np.float16 and probabilities.shape == (len(labels), len(found["classes"]))
    assert probabilities.astype(float).sum(1) == pytest.approx(1, abs=5e-3)
    assert np.array_equal(probabilities.max(1), probabilities[np.arange(len(labels)), predicted])
    assert len(labels) == summary[f"{part}_images"]
    assert 100 * np.sum(predicted == labels) / len(labels) == summary[f"{part}_acc"]
    assert found[f"{part}_losses"].astype(np.float64).mean() == pytest.approx(summary[f"{part}_loss"], rel=1e-12)


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """Return a folder of grey images in two classes, with ``train/`` and ``test/``; one name is no valid UTF-8."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 4)):
        for name, low in (("dark", 0), ("light", 128)):
            folder = tmp_path / "shades" / part / name / "deep"
            folder.mkdir(parents=True)
            for i in range(count):
                noise = draw.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / ("\udcff.png" if i == 0 else f"{i}.png"))
    return tmp_path / "shades"


@pytest.mark.parametrize("flags", [[], ["--ema", 0.9], ["--val", "test"], ["--val", "none"]])
def test_the_stored_predictions_agree_with_the_summary(cli: Cli, tmp_path: Path, flags: list[object]) -> None:
    cli("train", *TINY, "--epochs", 1, "--name", "r", *flags)
    found, summary = read(tmp_path / "runs/r")
    assert_agree(found, summary, "test")
    held_out = "--val" not in flags
    if held_out:
        assert_agree(found, summary, "val")
    assert held_out == any(key.startswith("val_") for key in found) and found["step"] == summary["step"]
    digits = load_dataset("digits", data_dir=None, size=8, skip_bad_images=False)
    for part, examples in (("test", digits.test), ("val", digits.train)) if held_out else (("test", digits.test),):
        places = [int(path.rpartition("/")[2]) for path in found[f"{part}_paths"]]
        assert examples.labels[places].tolist() == found[f"{part}_labels"].tolist()
        assert found[f"{part}_paths"][0].startswith("train/" if part == "val" else "test/")


def test_images_of_a_folder_are_stored_with_path_and_identity(cli: Cli, shades: Path, tmp_path: Path) -> None:
    argv = ["--net", TINY_NET, "--size", 8, "--bs", 8, "--epochs", 1, "--tta", "flip", "--name", "r"]
    assert cli("train", "--dataset", shades, *argv).code == 0
    found, summary = read(tmp_path / "runs/r")
    for part in ("test", "val"):
        assert_agree(found, summary, part)
        folder = "train" if part == "val" else part
        for path, identity, label in zip(
            *(found[f"{part}_{w}"] for w in ("paths", "identities", "labels")), strict=True
        ):
            assert (Path(str(found["source"])) / path).is_file() and escaped(path) == f"{folder}/{identity}"
            assert identity.split("/")[0] == found["classes"][label]
    assert any("\udcff" in path for path in found["test_paths"])
    assert cli("eval", "runs/r", "--predictions", "p.csv").code == 0
    with open(tmp_path / "p.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"].replace("\\xff", "\udcff") for row in rows] == [f"{shades}/{p}" for p in found["test_paths"]]
    assert [row["predicted"] for row in rows] == found["classes"][found["test_predicted"]].tolist()
    assert "class_3" not in rows[0]


def test_a_repeated_or_extended_run_replaces_them(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs/r"
    cli("train", *TINY, "--epochs", 1, "--name", "r")
    first, _ = read(run)
    (run / "summary.json").unlink()  # as if killed just before it was written
    assert cli("train", "--resume", run).code == 0
    again, _ = read(run)
    assert again.keys() == first.keys() and all(np.array_equal(again[key], first[key]) for key in first)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", fail)
        assert cli("train", "--resume", run, "--epochs", 2).code == 1
    assert not (run / "predictions.npz").exists()
    assert cli("train", "--resume", run).code == 0
    extended, summary = read(run)
    assert extended["step"] == summary["step"] == 8
    for part in ("test", "val"):
        assert_agree(extended, summary, part)
    assert not np.array_equal(extended["test_losses"], first["test_losses"])
