import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
from PIL import Image
from timm import create_model as timm_model

from tests.cli.test_train_command import image_folder
from tests.conftest import TINY_NET, Cli, made_once
from vitctl.data.dataset import load_dataset

Refused = Callable[..., str]
COUNT = 30


@pytest.fixture(scope="module")
def exported(digits_runs: Path, request: pytest.FixtureRequest) -> Path:
    """Return a folder with the small run's exports: a.onnx, u.onnx (uint8, nhwc), a.safetensors."""

    def export(folder: Path) -> None:
        from vitctl.cli import main

        words = ["export", str(digits_runs / "digits"), "--verify-on", "20", "--json", "-o"]
        assert main([*words, str(folder / "a.onnx")]) == 0
        assert main([*words, str(folder / "u.onnx"), "--input", "uint8", "--layout", "nhwc"]) == 0
        assert main([*words, str(folder / "a.safetensors"), "--format", "safetensors"]) == 0

    return made_once(request.config, "exported", export)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder with the first test digits as PNG, and their classes in the names."""
    data = load_dataset("digits", data_dir=None, size=8, skip_bad_images=False)
    folder = tmp_path / "images"
    (folder / "inner").mkdir(parents=True)
    for i in range(COUNT):
        place = folder / "inner" if i >= 20 else folder
        Image.fromarray(data.test.images[i, 0].numpy()).save(place / f"{i:03d}_{data.test.labels[i]}.png")
    return folder


def known(exported: Path) -> np.ndarray:
    """Return the probabilities of the first test digits, float [COUNT, 10], by onnxruntime and numpy."""
    data = load_dataset("digits", data_dir=None, size=8, skip_bad_images=False)
    session = onnxruntime.InferenceSession(exported / "a.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": (data.test.images[:COUNT].numpy() / 255).astype(np.float32)})
    powers = np.exp(logits.astype(np.float64))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("what", ["a.onnx", "u.onnx", "a.safetensors", "run"])
def test_the_images_of_a_folder_are_classified(
    cli: Cli, exported: Path, digits_runs: Path, images: Path, what: str
) -> None:
    source = digits_runs / "digits" if what == "run" else exported / what
    result = cli("predict", source, images, "--json", "--top", 3, "--csv", "p.csv")
    assert result.code == 0, result.err
    rows = result.json()
    assert [Path(row["image"]).name[:3] for row in rows] == [f"{i:03d}" for i in range(COUNT)]
    probabilities = known(exported)
    for row, expected in zip(rows, probabilities, strict=True):
        order = np.argsort(-expected)[:3]
        assert [entry["class"] for entry in row["top"]] == [str(k) for k in order]
        assert [entry["probability"] for entry in row["top"]] == pytest.approx(expected[order], abs=1e-4)
    with open("p.csv") as file:
        table = list(csv.DictReader(file))
    assert [line["class_1"] for line in table] == [row["top"][0]["class"] for row in rows]
    assert float(table[0]["probability_3"]) == pytest.approx(rows[0]["top"][2]["probability"], abs=1e-6)
    right = [Path(row["image"]).stem[-1] == row["top"][0]["class"] for row in rows]
    assert np.mean(right) > 0.6


def test_the_table_shows_single_images_and_those_of_folders(cli: Cli, exported: Path, images: Path) -> None:
    some = sorted(path.relative_to(Path.cwd()) for path in images.glob("*.png"))[:2]
    result = cli("predict", exported / "a.onnx", *some, "images/inner", "-k", 3)
    assert result.code == 0 and result.out.count(".png") == 2 + 10
    most_likely = known(exported)[0].argmax()
    assert f"{most_likely} ({100 * known(exported)[0].max():.1f} %)" in result.out
    everything = cli("predict", exported / "a.onnx", some[0], "-k", 20, "--json").json()
    assert len(everything[0]["top"]) == 10


def test_images_of_other_sizes_and_color_modes_are_converted(
    cli: Cli, exported: Path, images: Path, tmp_path: Path
) -> None:
    original = Image.open(next(images.glob("000_*")))
    big = original.resize((80, 80), Image.Resampling.NEAREST)
    for name, image in (("rgb.png", big.convert("RGB")), ("palette.png", big.convert("P")), ("grey.png", big)):
        image.save(tmp_path / name)
    rows = cli("predict", exported / "a.onnx", *(f"{n}.png" for n in ("rgb", "palette", "grey")), "--json").json()
    assert rows[0]["top"] == rows[1]["top"] == rows[2]["top"]


def test_predictions_on_color_images_match_eval(cli: Cli, tmp_path: Path) -> None:
    image_folder(tmp_path / "shades")
    cli("train", "--dataset", "shades", "--net", TINY_NET, "--size", 8, "--bs", 8, "--epochs", 3, "--name", "s")
    rows = cli("predict", "runs/s", tmp_path / "shades" / "test", "--json").json()
    top1 = 100 * np.mean([row["top"][0]["class"] == Path(row["image"]).parent.name for row in rows])
    assert top1 == pytest.approx(cli("eval", "runs/s", "--json").json()["top1"])


def test_unreadable_images_are_reported_and_can_be_skipped(cli: Cli, exported: Path, images: Path) -> None:
    (images / "bad.png").write_text("no image")
    (images / "short.png").write_bytes(next(images.glob("000_*")).read_bytes()[:60])
    result = cli("predict", exported / "a.onnx", images, "--json", "--csv", "p.csv")
    assert result.code == 1 and "Traceback" not in result.err
    assert (
        "cannot read 2 of 32 images" in result.err
        and "hint: add --skip-bad-images" in result.err
        and "bad.png (not an image)" in result.err
    )
    rows = result.json()
    assert len(rows) == 32 and sum("error" in row for row in rows) == 2
    with open("p.csv") as file:
        assert sum(bool(line["error"]) for line in csv.DictReader(file)) == 2
    lenient = cli("predict", exported / "a.onnx", images, "--skip-bad-images")
    assert lenient.code == 0 and "cannot be read: not an image" in lenient.out
    assert cli("predict", exported / "a.onnx", images / "bad.png").code == 1


def test_control_characters_in_file_names_are_escaped(
    cli: Cli, exported: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    first, second = sorted(path for path in images.iterdir() if path.is_file())[:2]
    os.rename(first, images / "\x1b[31mred.png")
    second.unlink()
    (images / "\x1b[2Jbad\n.png").write_bytes(b"no image")
    result = cli("predict", exported / "a.onnx", images)
    assert result.code == 1 and "\x1b" not in result.out + result.err
    assert "\\x1b[31mred.png" in result.out and "\\x1b[2Jbad\\n.png" in result.err


def test_file_names_that_are_not_utf_8_are_escaped(cli: Cli, exported: Path, images: Path) -> None:
    first = min(path for path in images.iterdir() if path.is_file())
    os.rename(first, os.fsencode(images) + b"/caf\xe9.png")
    result = cli("predict", exported / "a.onnx", images, "--csv", "p.csv")
    assert result.code == 0, result.err
    with open("p.csv", encoding="utf-8") as file:
        assert any(line["image"].endswith("caf\\xe9.png") for line in csv.DictReader(file))


@pytest.mark.parametrize("name", ["a.onnx", "u.onnx", "a.safetensors"])
def test_eval_accepts_exported_files(cli: Cli, exported: Path, digits_runs: Path, name: str) -> None:
    ours = cli("eval", exported / name, "--json", "--csv", "c.csv", "--predictions", "p.csv").json()
    theirs = cli("eval", digits_runs / "digits", "--json").json()
    assert ours.keys() == theirs.keys()
    for key in ("top1", "top5", "confusion", "images", "classes", "epoch", "net", "weights"):
        assert ours[key] == theirs[key], key
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["engine"].split()[0] == ("onnxruntime" if name.endswith("onnx") else "torch")
    val = cli("eval", exported / name, "--split", "val", "--json").json()
    assert val["top1"] == pytest.approx(cli("eval", digits_runs / "digits", "--split", "val", "--json").json()["top1"])
    assert "top-1 accuracy" in cli("eval", exported / name).out


def alter(source: Path, target: Path, change: Callable[[onnx.ModelProto], Any]) -> None:
    model = onnx.load(source)
    change(model)
    target.write_bytes(model.SerializeToString())


def other_size(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == "size").value = "9"


def fewer_classes(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == "classes").value = '["a", "b"]'


def test_impossible_requests_are_refused(
    refused: Refused, exported: Path, digits_runs: Path, images: Path, tmp_path: Path
) -> None:
    good = exported / "a.onnx"
    alter(good, tmp_path / "bare.onnx", lambda model: model.ClearField("metadata_props"))
    alter(good, tmp_path / "size.onnx", other_size)
    alter(good, tmp_path / "classes.onnx", fewer_classes)
    (tmp_path / "short.onnx").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "void").mkdir()
    for suffix in (".pt2", ".torchscript", ".ts"):
        (tmp_path / f"x{suffix}").write_bytes(b"PK")
    os.mkfifo(tmp_path / "pipe.png")
    for argv, sentence in (
        (["none.onnx", images], "none.onnx not found"),
        (["none.pt2", images], "none.pt2 not found"),
        (["bare.onnx", images], "was not written by vitctl export"),
        (["size.onnx", images], "its input and outputs do not match its metadata"),
        (["classes.onnx", images], "is damaged"),
        (["short.onnx", images], "is damaged or not an ONNX file"),
        (["text.onnx", images], "is damaged or not an ONNX file"),
        (["empty.onnx", images], "is damaged or not an ONNX file"),
        (["x.pt2", images], "loading a torch-export file would run code in it"),
        (["x.torchscript", images], "loading a torchscript file would run code in it"),
        ([tmp_path, images], "is not a run folder"),
        ([good, "void"], "void contains no images"),
        ([good, "nowhere.png"], "nowhere.png not found\nhint: use the path of an image"),
        ([good, "pipe.png"], "pipe.png is not a file or folder"),
        ([good, images, "--device", "mps"], "ONNX files run only on the CPU"),
        ([good, images, "--weights", "best"], "--weights best needs a run's folder"),
        ([good, images, "--weights", "bets"], "did you mean best"),
        ([good, images, "--csv", "no/where.csv"], "no such folder"),
        ([good, images, "--csv", "."], "--csv . is a folder"),
        ([digits_runs / "digits", images, "--device", "warp"], "unknown --device 'warp'"),
    ):
        assert sentence in refused("predict", *argv), argv
    for name in ("short.onnx", "bare.onnx", "x.pt2"):
        refused("eval", name)


def test_damaged_or_foreign_safetensors_files_are_refused(
    refused: Refused, exported: Path, images: Path, tmp_path: Path
) -> None:
    weights, described = (exported / "a.safetensors").read_bytes(), json.loads((exported / "a.json").read_text())

    def attempt(data: bytes, document: Any) -> str:
        (tmp_path / "b.safetensors").write_bytes(data)
        (tmp_path / "b.json").write_text(document if isinstance(document, str) else json.dumps(document))
        return refused("predict", "b.safetensors", images)

    assert "is damaged or not a safetensors file" in attempt(weights[:-5], described)
    assert "is damaged or not a safetensors file" in attempt(b"hello", described)
    for document in ("{", "[]", "3", {}, {"vitctl": 3}, {"other": {}}):
        assert "b.json" in attempt(weights, document)
    wrong = {"vitctl": described["vitctl"] | {"net": "vit_gone"}}
    assert "unknown --net 'vit_gone'" in attempt(weights, wrong)
    for options, sentence in (
        ({"embed_dim": 32}, "does not fit the network in b.json"),
        ({"nonsense": 1}, "has no option 'nonsense'"),
        ({"depth": 1_000_000}, "depth=1000000 is too large"),
        ({"depth": 200}, "..."),  # torch names each of the weights that are missing
        ({"depth": "many"}, "takes a whole number"),
    ):
        changed = {"vitctl": described["vitctl"] | {"net_options": described["vitctl"]["net_options"] | options}}
        assert sentence in attempt(weights, changed)
    timm = {"vitctl": described["vitctl"], "architecture": "resnet10t", "num_classes": 10}
    for architecture in ("no_such", "hf-hub:someone/resnet10t", "local-dir:/tmp"):
        assert f"unknown timm network '{architecture}'" in attempt(weights, timm | {"architecture": architecture})
    for foreign in ("pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir"):
        sentence = attempt(weights, timm | {"model_args": {foreign: "x.pth"}})
        assert f"forbidden arguments of timm: {foreign}" in sentence
    tensors = {
        name: t.contiguous() for name, t in timm_model("test_vit", in_chans=1, num_classes=12).state_dict().items()
    }
    fewer = timm | {"architecture": "test_vit", "num_classes": 12, "model_args": {"in_chans": 1, "img_size": 160}}
    fewer["vitctl"] = described["vitctl"] | {"net": "timm/test_vit", "net_options": {}, "size": 160}
    assert "the output has the shape [1, 12] for 10 classes" in attempt(safetensors.torch.save(tensors), fewer)
    (tmp_path / "b.json").unlink()
    assert "needs b.json, which was not found" in refused("predict", "b.safetensors", images)
