import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.conftest import TINY, Cli
from vitctl import devices
from vitctl.data.dataset import load_dataset
from vitctl.export.formats import Deployed
from vitctl.export.metadata import Metadata
from vitctl.export.onnx import Onnx, serialize
from vitctl.inference.trained import load_trained
from vitctl.training.checkpoint import load_checkpoint, save_checkpoint

Refused = Callable[..., str]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def digits_test() -> tuple[np.ndarray, np.ndarray]:
    data = load_dataset("digits", data_dir=None, size=8, skip_bad_images=False)
    return data.test.images.numpy(), data.test.labels.numpy()


def props(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


MADE: dict[str, bytes] = {}
"""Traced ONNX files of the small runs, by their metadata apart from ``verified_on``; tracing takes longest."""


def sabotage(monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.ModelProto], None]) -> None:
    """Alter every ONNX file before it is verified."""
    real = Onnx.export

    def export(self: Onnx, network: Deployed, record: Metadata, *, opset: int) -> dict[str, bytes]:
        kind = json.dumps(dataclasses.replace(record, verified_on="").to_strings())
        if kind not in MADE:
            MADE[kind] = real(self, network, record, opset=opset)[".onnx"]
        model = onnx.load_from_string(serialize(onnx.load_from_string(MADE[kind]), record))
        change(model)
        return {".onnx": model.SerializeToString()}

    monkeypatch.setattr(Onnx, "export", export)


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reuse the ONNX file of an earlier test with the same input."""
    sabotage(monkeypatch, lambda model: None)


def test_an_onnx_file_beside_the_checkpoint_is_usable_without_vitctl(cli: Cli, digits_run: Path) -> None:
    last = digits_run / "checkpoints" / "last.pt"
    result = cli("export", digits_run, "--softmax", "--verify-on", "all", "--json")
    assert result.code == 0, result.err
    report = result.json()
    (row,) = report["files"]
    path = last.with_suffix(".onnx")
    assert row["path"] == str(path) and path.stat().st_size == row["bytes"]
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report["compared_on"] == "359 digits test images" and report["verified"] is True
    # Without vitctl: only onnxruntime, numpy and images scaled to 0-1.
    images, labels = digits_test()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits, probs = session.run(["logits", "probs"], {"images": (images / 255).astype(np.float32)})
    top1 = 100 * (logits.argmax(1) == labels).mean()
    scores = cli("eval", digits_run, "--json").json()
    assert row["top1"] == pytest.approx(top1) == pytest.approx(report["network"]["top1"]) == scores["top1"]
    assert np.allclose(probs.sum(1), 1, atol=1e-5) and (probs.argmax(1) == logits.argmax(1)).all()
    assert row["changed"] == row["ties"] == 0 and 0 < row["max_difference"] <= 1e-4
    assert set(row["batches"]) == {"1", "3", "17"}
    for figures in (row, report["network"]):
        assert 0 < figures["latency_p50"] <= figures["latency_p95"] and figures["images_per_second"] > 0
    stored = props(path)
    summary = json.loads((digits_run / "summary.json").read_text())
    assert json.loads(stored["classes"]) == [str(digit) for digit in range(10)]
    assert json.loads(stored["accuracy"])["test_acc"] == summary["test_acc"] == pytest.approx(top1)
    assert json.loads(stored["accuracy"])["val_acc"] == summary["val_acc"]
    assert stored["checkpoint_sha256"] == hashlib.sha256(last.read_bytes()).hexdigest()
    assert (stored["run"], stored["verified"]) == ("digits", "true") and stored["verified_on"] == report["compared_on"]
    assert json.loads(stored["mean"]) == load_checkpoint(last)["mean"]
    assert str(digits_run.parent) not in path.read_bytes().decode("latin1")


def test_every_format_can_be_written_to_a_folder_at_once(cli: Cli, digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    flags = [word for name in ("onnx", "torchscript", "torch-export", "safetensors") for word in ("--format", name)]
    result = cli("export", digits_run, *flags, "-o", "out", "--input", "uint8", "--layout", "nhwc", "--verify-on", 50)
    assert result.code == 0, result.err
    assert names(tmp_path / "out") == {"last.onnx", "last.torchscript", "last.pt2", "last.safetensors", "last.json"}
    assert result.err.count("deprecated") == 1 and "runs the code in it" in result.err
    for word in ("changed predictions", "top-1 accuracy", "latency p95", "images/s, batch 256", "last.pt2"):
        assert word in result.out
    assert "UserWarning" not in result.err and "[torch.onnx]" not in result.err
    images, labels = digits_test()
    with pytest.warns((FutureWarning, DeprecationWarning)):
        script = torch.jit.load(tmp_path / "out" / "last.torchscript")
    logits = script(torch.from_numpy(images).permute(0, 2, 3, 1))
    assert (logits.argmax(1).numpy() == labels).mean() > 0.6


@pytest.mark.slow
def test_the_best_and_averaged_weights_are_exported(cli: Cli, digits_run: Path, tmp_path: Path) -> None:
    assert cli("export", digits_run, "--weights", "best", "--verify-on", 20).code == 0
    best = digits_run / "checkpoints" / "best.onnx"
    assert props(best)["checkpoint"] == "best.pt"
    assert props(best)["epoch"] == str(load_checkpoint(best.with_suffix(".pt"))["epoch"])
    words = ["--dataset", "digits", "--net", "cct_2:embed_dim=16,depth=1,num_heads=2,conv_width=8", "--size", 8]
    cli("train", *words, "--epochs", 1, "--limit-train", 100, "--ema", 0.9, "--name", "averaged")
    report = cli("export", "runs/averaged", "--verify-on", "all", "--json").json()
    assert report["weights"] == "ema"
    assert report["files"][0]["top1"] == pytest.approx(cli("eval", "runs/averaged", "--json").json()["top1"])


def test_a_model_trained_in_half_precision_is_verified_in_fp32(cli: Cli, tmp_path: Path) -> None:
    if "bf16" not in devices.half_precisions(torch.device("cpu")):
        pytest.skip("this CPU has no bf16 instructions")
    assert cli("train", *TINY, "--epochs", 1, "--precision", "bf16", "--name", "half").code == 0
    result = cli("export", "runs/half", "-o", "a.onnx", "--verify-on", 20, "--json")
    assert result.code == 0, result.err
    assert result.json()["files"][0]["max_difference"] <= 1e-4


@pytest.mark.slow
def test_two_exports_are_byte_identical(digits_run: Path, tmp_path: Path) -> None:
    words = ["--quantize", "int8", "--max-drop", "100", "--verify-on", "20"]
    for seed in ("1", "2"):  # each seed orders sets differently
        command = [sys.executable, "-m", "vitctl", "export", str(digits_run), "-o", f"{seed}.onnx", *words]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()
    assert (tmp_path / "1.int8.onnx").read_bytes() == (tmp_path / "2.int8.onnx").read_bytes()


@pytest.mark.slow
def test_a_timm_model_is_exported_and_read_by_timm(cli: Cli, tmp_path: Path) -> None:
    import timm

    net = ["--net", "timm/test_vit:drop_path_rate=0.1", "--size", 32]
    words = ["--dataset", "digits", *net, "--epochs", 1, "--limit-train", 100, "--name", "t"]
    assert cli("train", *words).code == 0
    (tmp_path / "out").mkdir()
    formats = [word for name in ("onnx", "torchscript", "torch-export") for word in ("--format", name)]
    result = cli("export", "runs/t", *formats, "-o", "out", "--verify-on", 20)
    assert result.code == 0, result.err
    result = cli("export", "runs/t", "--format", "safetensors", "-o", "out/model.safetensors", "--verify-on", 20)
    assert result.code == 0, result.err
    paths = ("runs/t", "out/last.onnx", "out/model.safetensors")
    scores = [cli("eval", path, "--json").json()["top1"] for path in paths]
    assert scores[0] == scores[1] == scores[2]
    assert {cli("eval", path, "--split", "train", "--json").json()["images"] for path in paths} == {100}
    # timm itself reads the folder as one of its own.
    model = timm.create_model("local-dir:out", pretrained=True)
    checkpoint = load_checkpoint(tmp_path / "runs/t/checkpoints/last.pt")
    assert model.pretrained_cfg["mean"] == pytest.approx(checkpoint["mean"])
    images = torch.rand(3, 1, 32, 32)
    ours = load_trained(tmp_path / "runs/t", weights="last", device=torch.device("cpu"), warn=print).model
    assert torch.allclose(model.eval()(images), ours(images), atol=1e-5)


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(
    "flags",
    [
        [],
        pytest.param(["--input", "uint8"], marks=pytest.mark.slow),
        pytest.param(["--normalize", "none"], marks=pytest.mark.slow),
    ],
)
def test_a_model_for_resized_images_scores_as_in_eval(cli: Cli, resized_run: Path, flags: list[str]) -> None:
    report = cli("export", resized_run, *flags, "--verify-on", "all", "--json").json()
    top1 = cli("eval", resized_run, "--json").json()["top1"]
    assert report["files"][0]["top1"] == report["network"]["top1"] == pytest.approx(top1, abs=1.5)
    if not flags:
        assert report["network"]["top1"] == pytest.approx(top1)
    assert cli("eval", resized_run / "checkpoints" / "last.onnx", "--json").json()["top1"] == pytest.approx(
        report["files"][0]["top1"]
    )


@pytest.mark.slow
def test_without_data_the_export_is_verified_on_generated_images(
    cli: Cli, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cli.test_train_command import image_folder
    from tests.conftest import TINY_NET

    image_folder(tmp_path / "shades")
    cli("train", "--dataset", "shades", "--net", TINY_NET, "--size", 8, "--bs", 8, "--epochs", 1, "--name", "s")
    (tmp_path / "shades").rename(tmp_path / "moved")
    result = cli("export", "runs/s", "-o", "s.onnx", "--verify-on", 40, "--json")
    assert result.code == 0 and "verifying on generated images" in result.err
    report = result.json()
    assert report["compared_on"] == "40 generated images" == props(tmp_path / "s.onnx")["verified_on"]
    assert report["network"]["top1"] is None and report["files"][0]["max_difference"] <= 1e-4
    assert "--verify-on all needs the test images" in refused("export", "runs/s", "--verify-on", "all")
    assert "--quantize int8 needs images" in refused("export", "runs/s", "--quantize", "int8")
    assert "nowhere not found" in refused("export", "runs/s", "--data-dir", "nowhere")
    assert cli("export", "runs/s", "--data-dir", "moved", "--json").json()["compared_on"].endswith("test images")


@pytest.mark.usefixtures("traced_once")
def test_no_verify_is_stored_in_the_file(cli: Cli, digits_run: Path, tmp_path: Path) -> None:
    result = cli("export", digits_run, "-o", "a.onnx", "--no-verify")
    assert result.code == 0 and "not verified (--no-verify)" in result.out
    assert props(tmp_path / "a.onnx")["verified"] == "false" and props(tmp_path / "a.onnx")["verified_on"] == ""


OTHERWISE = "the onnx file does not match the model on 359 digits test images"


def disturb(name: str, by: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (tensor,) = [each for each in model.graph.initializer if each.name == name]
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.flat[0] += by
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))

    return change


def state(name: str, value: object) -> Callable[[onnx.ModelProto], None]:
    """Change a value of the file's metadata."""

    def change(model: onnx.ModelProto) -> None:
        (entry,) = [each for each in model.metadata_props if each.key == name]
        entry.value = json.dumps(value)

    return change


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        (disturb("model.head.weight", 0.01), [], OTHERWISE),
        (disturb("offset", 0.02), [], OTHERWISE),
        (disturb("scale", 0.01), ["--format", "onnx", "--format", "safetensors", "--format", "torchscript"], OTHERWISE),
        (state("mean", [0.5]), ["--normalize", "none"], "the export to onnx changed the metadata: mean"),
        (state("classes", [str(9 - i) for i in range(10)]), [], "the export to onnx changed the metadata: classes"),
        (fixed_batch, [], "onnx: "),
    ],
)
def test_an_export_that_does_not_match_fails_and_leaves_no_file(
    refused: Refused,
    digits_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[onnx.ModelProto], None],
    flags: list[str],
    message: str,
) -> None:
    before = names(digits_run / "checkpoints")
    sabotage(monkeypatch, change)
    sentence = refused("export", digits_run, *flags, code=1)
    assert message in sentence and "nothing was exported" in sentence and "unexpected" not in sentence
    assert names(digits_run / "checkpoints") == before


@pytest.mark.slow
def test_a_small_difference_passes_with_a_higher_tolerance(
    cli: Cli, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch, disturb("model.head.bias", 1e-3))
    assert cli("export", digits_run, "--verify-on", 20).code == 1
    assert cli("export", digits_run, "--verify-on", 20, "--tolerance", 0.01).code == 0


def test_a_failed_export_keeps_the_earlier_file(cli: Cli, digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = digits_run / "checkpoints" / "last.onnx"
    sabotage(monkeypatch, lambda model: None)
    assert cli("export", digits_run, "--verify-on", 20).code == 0
    good = path.read_bytes()
    sabotage(monkeypatch, disturb("offset", 0.5))
    assert cli("export", digits_run, "--verify-on", 20).code == 1
    assert path.read_bytes() == good


@pytest.mark.usefixtures("traced_once")
def test_quantized_files_are_smaller_and_lose_little_accuracy(
    cli: Cli, refused: Refused, digits_run: Path, tmp_path: Path
) -> None:
    words = ["--quantize", "int8", "--quantize", "fp16", "--verify-on", "all", "--max-drop", 3]
    report = cli("export", digits_run, "-o", "a.onnx", *words, "--json").json()
    assert [Path(row["path"]).name for row in report["files"]] == ["a.onnx", "a.int8.onnx", "a.fp16.onnx"]
    whole, int8, fp16 = report["files"]
    assert fp16["bytes"] < whole["bytes"]
    assert int8["drop"] <= 3 and int8["layers"] > 0 and whole["max_difference"] <= 1e-4 < int8["max_difference"]
    assert props(tmp_path / "a.int8.onnx")["quantized"] == "int8"
    own = json.loads(props(tmp_path / "a.int8.onnx")["accuracy"])
    assert own == {"held_out_acc": int8["held_out_top1"], "held_out_drop": int8["drop"]}
    scores = cli("eval", "a.int8.onnx", "--json").json()
    assert scores["top1"] == pytest.approx(int8["top1"])
    shown = cli("export", digits_run, "-o", "b.onnx", *words).out
    for word in ("onnx int8", "onnx fp16", "held-out accuracy", "accuracy lost", "layers in float"):
        assert word in shown


def test_a_quantized_file_that_loses_more_than_max_drop_is_not_written(
    cli: Cli, refused: Refused, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitctl.export import quantize

    real = quantize.measure
    monkeypatch.setattr(quantize, "measure", lambda *args: real(*args) - 10)  # only measured for quantized files
    before = names(digits_run / "checkpoints")
    sabotage(monkeypatch, lambda model: None)
    sentence = refused("export", digits_run, "--quantize", "fp16", "--verify-on", 20, code=1)
    assert re.search(r"fp16 loses 10\.\d\d points .* more than --max-drop 1;", sentence)
    assert re.search(r"hint: use --max-drop 1[01], or add --allow-drop", sentence)
    assert names(digits_run / "checkpoints") == before
    assert cli("export", digits_run, "--quantize", "fp16", "--allow-drop", "--verify-on", 20).code == 0


@pytest.mark.slow
def test_quantization_without_held_out_images_prints_a_warning(cli: Cli) -> None:
    words = ["--dataset", "digits", "--net", "cct_2:embed_dim=16,depth=1,num_heads=2,conv_width=8", "--size", 8]
    cli("train", *words, "--epochs", 1, "--limit-train", 100, "--val", "none", "--name", "n")
    result = cli("export", "runs/n", "--quantize", "fp16", "--verify-on", 20)
    assert result.code == 0 and "measuring accuracy on training images" in result.err


def test_impossible_requests_are_refused(cli: Cli, refused: Refused, digits_run: Path, tmp_path: Path) -> None:
    last = digits_run / "checkpoints" / "last.pt"
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "short.pt").write_bytes(last.read_bytes()[:2000])
    gone = load_checkpoint(last)
    gone["config"]["net"] = "vit_gone"
    save_checkpoint({key: value for key, value in gone.items() if key != "digest"}, tmp_path / "gone.pt")
    (tmp_path / "dir.onnx").mkdir()
    before = names(tmp_path), names(digits_run / "checkpoints")
    for argv, sentence in (
        (["none.pt"], "none.pt not found"),
        (["text.pt"], "is not a vitctl checkpoint"),
        (["empty.pt"], "is empty"),
        (["short.pt"], "is not a vitctl checkpoint"),
        (["gone.pt"], "unknown --net 'vit_gone'"),
        ([tmp_path], "is not a run folder"),
        ([last, "--weights", "best"], "is a single checkpoint"),
        ([digits_run, "--weights", "bets"], "did you mean best"),
        ([digits_run, "--format", "onxx"], "did you mean onnx"),
        ([digits_run, "--quantize", "int4"], "did you mean int8"),
        ([digits_run, "--opset", 5], "--opset 5 is too small\nhint: use a value from 18 to 23"),
        ([digits_run, "-o", "no/where.onnx"], "no such folder"),
        ([digits_run, "-o", "nowhere"], "or create the folder: mkdir -p nowhere"),
        ([digits_run, "-o", last], "must end in .onnx"),
        (
            [digits_run, "--format", "onnx", "--format", "torchscript", "-o", "a.onnx"],
            "several formats need a folder",
        ),
        ([digits_run, "--format", "safetensors", "-o", digits_run / "config.safetensors"], "was not written by vitctl"),
        ([digits_run, "-o", "dir.onnx/last.onnx", "--layout", "nhcw"], "did you mean nhwc"),
        ([digits_run, "--normalize", "none", "--input", "uint8"], "--input uint8 conflicts with --normalize none"),
        ([digits_run, "--format", "safetensors", "--softmax"], "--softmax does nothing with --format safetensors"),
        ([digits_run, "--format", "torchscript", "--opset", 18], "--opset 18 does nothing without --format onnx"),
        ([digits_run, "--format", "torchscript", "--quantize", "int8"], "add --format onnx"),
        ([digits_run, "--no-verify", "--verify-on", 5], "--verify-on 5 does nothing with --no-verify"),
        ([digits_run, "--no-verify", "--data-dir", "."], "--data-dir . does nothing with --no-verify"),
        ([digits_run, "--max-drop", 2], "--max-drop 2.0 does nothing without --quantize\nhint: remove --max-drop"),
        ([digits_run, "--quantize", "int8", "--max-drop", 200], "--max-drop 200"),
        ([digits_run, "--verify-on", "some"], "takes a number of images or all"),
        ([digits_run, "--tolerance", 0], "--tolerance 0"),
        ([digits_run, "--dataset", "cifar"], "did you mean cifar10"),
    ):
        assert sentence in refused("export", *argv), argv
    assert before == (names(tmp_path), names(digits_run / "checkpoints"))


def test_code_in_a_checkpoint_is_never_executed(refused: Refused, tmp_path: Path) -> None:
    import pickle

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "canary"),)

    torch.save({"format": 1, "config": Payload(), "model": {}}, tmp_path / "zip.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Payload()))
    for name in ("zip.pt", "raw.pt"):
        assert "is not a vitctl checkpoint" in refused("export", name)
    assert not (tmp_path / "canary").exists()


def test_an_export_to_a_full_disk_leaves_no_file(
    refused: Refused, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    before = names(digits_run / "checkpoints")
    sabotage(monkeypatch, lambda model: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        sentence = refused("export", digits_run, "--verify-on", 20, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write" in sentence and "File too large" in sentence and "nothing was exported" in sentence
    assert names(digits_run / "checkpoints") == before


def start(digits_run: Path, *words: str) -> "subprocess.Popen[str]":
    temporary = digits_run.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "vitctl", "export", str(digits_run), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=digits_run.parent,
        env={**os.environ, "TMPDIR": str(temporary)},
    )


@pytest.fixture
def default_sighup() -> Iterator[None]:
    """Start child processes with the default action of SIGHUP, even under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.usefixtures("default_sighup")
@pytest.mark.parametrize(
    ("signum", "during"),
    [(signal.SIGTERM, "exporting to onnx"), (signal.SIGINT, "quantizing to"), (signal.SIGHUP, "quantizing to")],
)
def test_an_interrupted_export_leaves_no_file(digits_run: Path, signum: signal.Signals, during: str) -> None:
    before = names(digits_run / "checkpoints")
    process = start(digits_run, "--quantize", "int8")
    assert process.stderr is not None
    for line in process.stderr:
        if during in line:
            break
    else:
        pytest.fail(f"it never printed {during!r}")
    process.send_signal(signum)
    out, err = process.communicate(timeout=120)
    assert process.returncode == -signum and out == ""
    assert "stopped; nothing was exported" in err and "Traceback" not in err
    assert names(digits_run / "checkpoints") == before
    assert not {name for name in names(digits_run.parent / "tmp") if name.startswith("vitctl-")}


@pytest.mark.slow
def test_a_killed_export_leaves_no_incomplete_file(digits_run: Path) -> None:
    before = names(digits_run / "checkpoints")
    start_time = time.monotonic()
    assert start(digits_run, "--verify-on", "20").wait(timeout=300) == 0
    whole = time.monotonic() - start_time
    (digits_run / "checkpoints" / "last.onnx").unlink()
    draw = random.Random(0)
    for _ in range(6):
        process = start(digits_run, "--verify-on", "20")
        try:
            process.wait(timeout=draw.uniform(0.2, 0.95) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finished = names(digits_run / "checkpoints") - before
        assert finished <= {"last.onnx"}
        if finished:
            onnx.checker.check_model(str(digits_run / "checkpoints" / "last.onnx"))
            (digits_run / "checkpoints" / "last.onnx").unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a 2-MiB file system, or skip."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("needs permission to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_an_export_to_a_full_file_system_leaves_no_file(refused: Refused, digits_run: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes((2 << 20) - 60_000))
    flags = ["--format", "onnx", "--format", "torchscript", "--verify-on", 20]
    sentence = refused("export", digits_run, *flags, "-o", small_disk, code=1)
    assert "cannot write" in sentence and "No space left" in sentence
    assert names(small_disk) == {"filler"}


README = Path(__file__).parents[2] / "README.md"


def snippet() -> str:
    """Return the README's program that runs an ONNX file with onnxruntime and numpy."""
    blocks = re.split(r"\n(?=\S)", README.read_text(encoding="utf-8"))
    for block in blocks:
        lines = [line[4:] if line.startswith("    ") else "" for line in block.splitlines()]
        if "import onnxruntime" in lines:
            return "\n".join(lines)
    pytest.skip("no program in README imports onnxruntime")


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "vitctl", "timm", "torchvision", "onnx"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.usefixtures("traced_once")
def test_the_readme_s_program_needs_only_onnxruntime_and_numpy(cli: Cli, digits_run: Path, tmp_path: Path) -> None:
    program = snippet()
    assert cli("export", digits_run, "-o", "model.onnx", "--verify-on", 20).code == 0
    images, labels = digits_test()
    np.save(tmp_path / "images.npy", images)
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED + program], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    printed = result.stdout.split()
    assert len(printed) == len(labels)
    top1 = 100 * np.mean([word == str(label) for word, label in zip(printed, labels, strict=True)])
    assert top1 == pytest.approx(cli("eval", "model.onnx", "--json").json()["top1"])


@pytest.mark.long
@pytest.mark.parametrize("net", ["cct_4", "vit_small"])
def test_exports_match_on_all_test_images_of_the_real_cifar10(cli: Cli, real_cifar10: Path, net: str) -> None:
    """Uses the trained run NET/ in the folder VITCTL_TRAINED."""
    runs = os.environ.get("VITCTL_TRAINED")
    if not runs:
        pytest.skip("set VITCTL_TRAINED to a folder with trained runs cct_4/ and vit_small/")
    report = cli("export", Path(runs).expanduser() / net, "-o", "a.onnx", "--verify-on", "all", "--json").json()
    assert report["compared_on"] == "10,000 cifar10 test images"
    (row,) = report["files"]
    assert row["changed"] == row["ties"] and row["max_difference"] <= 1e-4
    assert row["top1"] == report["network"]["top1"] > 50
