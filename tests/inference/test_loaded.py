"""``vitctl.load`` gives the figures of the commands and of exported files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

import vitctl
from tests.conftest import TINY_NET, Cli
from vitctl.data.dataset import load_dataset
from vitctl.errors import RequestError, VitctlWarning
from vitctl.inference.loaded import LoadedModel
from vitctl.training.checkpoint import load_checkpoint


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the test digits, uint8 ``[n, 1, 8, 8]``, and their classes."""
    data = load_dataset("digits", data_dir=None, size=8, skip_bad_images=False)
    return data.test.images, data.test.labels


@pytest.fixture
def loaded(digits_runs: Path) -> LoadedModel:
    return vitctl.load(digits_runs / "digits")


def test_a_run_loads_by_folder_name_and_checkpoint(
    digits_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(digits_runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    stored = load_checkpoint(tmp_path / "runs/digits/checkpoints/last.pt")
    for path in ("runs/digits", "digits", Path("runs/digits/checkpoints/last.pt")):
        loaded = vitctl.load(path, device=torch.device("cpu"))
        assert not loaded.model.training
        assert all(torch.equal(t, stored["model"][name]) for name, t in loaded.model.state_dict().items())
        assert loaded.classes == tuple("0123456789") and (loaded.size, loaded.channels) == (8, 1)
        assert (loaded.settings.lr, loaded.settings.dataset) == (0.01, "digits")
        assert (loaded.epoch, loaded.weights, loaded.path.name) == (6, "model", "last.pt")


def test_the_best_weights_are_those_of_the_best_epoch(digits_runs: Path) -> None:
    run = digits_runs / "digits"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(records, key=lambda record: record["val_acc"])["epoch"]
    assert vitctl.load(run, weights="best").epoch == best


def test_a_damaged_checkpoint_is_skipped_with_a_warning(digits_run: Path) -> None:
    newest = digits_run / "checkpoints" / "last.pt"
    shutil.copy(newest, newest.with_name("kept-1.pt"))
    newest.write_bytes(newest.read_bytes()[:5000])
    with pytest.warns(VitctlWarning) as warned:
        assert vitctl.load(digits_run).path.name == "kept-1.pt"
    assert "last.pt is not a vitctl checkpoint" in str(warned[0].message)
    assert {each.filename for each in warned} == {__file__}


@pytest.mark.parametrize("run", ["digits", "resized"])
@pytest.mark.parametrize("convert", [lambda images: images, lambda images: images.numpy()], ids=["tensor", "array"])
def test_logits_give_the_figures_of_eval(
    cli: Cli, digits_runs: Path, run: str, convert: Callable[[torch.Tensor], Any]
) -> None:
    """Also where the network's images are larger than those of the data set."""
    expected = cli("eval", digits_runs / run, "--json").json()
    images, labels = digits()
    logits = vitctl.load(digits_runs / run).logits(convert(images))
    assert logits.shape == (len(images), 10) and logits.dtype == torch.float32
    assert F.cross_entropy(logits.double(), labels).item() == pytest.approx(expected["loss"], rel=1e-6)
    assert 100 * (logits.argmax(1) == labels).double().mean().item() == pytest.approx(expected["top1"])


def test_model_and_preprocessing_compute_the_logits_and_can_be_trained(loaded: LoadedModel) -> None:
    images, labels = digits()
    x = loaded.preprocess(images[:20])
    assert x.shape == (20, 1, 8, 8) and x.dtype == torch.float32
    outputs = loaded.model(x)
    assert torch.equal(outputs.detach(), loaded.logits(images[:20]))
    assert torch.equal(loaded.preprocess(images[3]), x[3:4])
    F.cross_entropy(outputs, labels[:20]).backward()
    assert all(each.grad is not None for each in loaded.model.parameters())


@pytest.mark.parametrize("normalize", ["none", "baked"])
def test_logits_match_those_of_an_exported_file(cli: Cli, digits_runs: Path, normalize: str) -> None:
    assert cli("export", digits_runs / "digits", "--no-verify", "--normalize", normalize, "-o", "m.onnx").code == 0
    session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    loaded, images = vitctl.load(digits_runs / "digits"), digits()[0]
    given = loaded.preprocess(images).numpy() if normalize == "none" else (images / 255).numpy()
    (theirs,) = session.run(["logits"], {"images": given})
    np.testing.assert_allclose(loaded.logits(images).numpy(), theirs, atol=1e-4)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_predictions_match_those_of_the_command(cli: Cli, tmp_path: Path, fit: str) -> None:
    """For color images of other shapes, with an orientation, in grey and transparent."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name, low in (("dark", 0), ("light", 120)):
            (tmp_path / "noise" / part / name).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(low, low + 120, (20, 10 + 3 * i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "noise" / part / name / f"{i}.png")
    test = tmp_path / "noise" / "test" / "dark"
    Image.open(test / "1.png").convert("L").save(test / "grey.png")
    transparent = Image.open(test / "2.png")
    transparent.putalpha(90)
    transparent.save(test / "transparent.png")
    turned = Image.open(test / "5.png")
    turned.getexif()[0x0112] = 6
    turned.save(test / "turned.tiff", exif=turned.getexif())
    turned.save(test / "turned.png", exif=turned.getexif())
    words = ["--net", TINY_NET, "--size", 8, "--bs", 8, "--epochs", 3, "--fit", fit]
    assert cli("train", "--dataset", "noise", *words, "--name", "n").code == 0
    rows = cli("predict", "n", "noise/test", "--json").json()
    paths = [row["image"] for row in rows]
    loaded = vitctl.load("n")
    for images in (paths, map(Path, paths), [Image.open(path) for path in paths]):
        predictions = loaded.predict(images)
        for row, prediction in zip(rows, predictions, strict=True):
            assert [entry["class"] for entry in row["top"]] == [name for name, _ in prediction]
            assert [entry["probability"] for entry in row["top"]] == pytest.approx([p for _, p in prediction])
    (upright,) = loaded.predict(ImageOps.exif_transpose(Image.open(test / "turned.png")), top=1)
    assert [upright] == loaded.predict(str(test / "turned.png"), top=1) and len(upright) == 1
    assert sum(p for _, p in predictions[0]) == pytest.approx(1)


def test_an_image_of_pillow_is_not_changed(loaded: LoadedModel, tmp_path: Path) -> None:
    Image.effect_noise((400, 300), 60).save(tmp_path / "large.jpg")
    image = Image.open(tmp_path / "large.jpg")
    before = loaded.predict(image)
    assert image.size == (400, 300) and np.array_equal(image, Image.open(tmp_path / "large.jpg"))
    assert loaded.predict(image) == before


def test_more_images_than_a_batch_give_the_same_logits(loaded: LoadedModel) -> None:
    images = digits()[0]
    loaded._classifier = replace(loaded._classifier, batch=100)
    assert len(images) > 300
    torch.testing.assert_close(loaded.logits(images), loaded.model(loaded.preprocess(images)).detach())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8), np.float32), "pixels are float32, not uint8"),
        (torch.zeros(1, 8, 8, dtype=torch.int64), "pixels are int64, not uint8"),
        (np.zeros((8, 8, 1), np.uint8), r"pixels have the shape \[8, 8, 1\], not \[B, 1, H, W\]"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"pixels have the shape \[2, 3, 8, 8\], not \[B, 1, H, W\]"),
        (np.zeros((8, 8), np.uint8), r"pixels have the shape \[8, 8\], not"),
        (np.zeros((0, 1, 8, 8), np.uint8), r"pixels have the shape \[0, 1, 8, 8\], not"),
        (np.zeros((1, 8, 9), np.uint8), "which is not square"),
        ([np.zeros((1, 8, 8), np.uint8)], "an image is of the type ndarray"),
        ([], "no images"),
        ("none.png", "cannot read the image none.png: No such file or directory"),
        (Image.new("F", (8, 8), 7), "cannot read the image in memory: grey values outside 0-1"),
    ],
)
def test_impossible_images_are_refused_with_a_hint(loaded: LoadedModel, images: Any, message: str) -> None:
    for method in (loaded.predict, loaded.logits, loaded.preprocess):
        with pytest.raises(RequestError, match=message) as refused:
            method(images)
        assert refused.value.hint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "none"}, "none not found"),
        ({"device": "warp"}, "unknown device 'warp'"),
        ({"device": "cuda:7"}, "device cuda:7 is not available"),
        ({"weights": "bets"}, "unknown weights 'bets'"),
        ({"path": "m.onnx"}, "m.onnx is not a vitctl checkpoint"),
        ({"path": "m.safetensors"}, "m.safetensors is not a vitctl checkpoint"),
    ],
)
def test_impossible_requests_are_refused(
    digits_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("m.onnx", "m.safetensors"):
        (tmp_path / name).write_bytes(b"\x08\x0a" * 40)
    with pytest.raises(RequestError, match=message) as refused:
        vitctl.load(**{"path": digits_runs / "digits", **arguments})
    assert refused.value.hint
