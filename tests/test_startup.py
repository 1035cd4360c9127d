"""Help and usage errors must not load torch; these tests check the loaded modules, not the time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "wandb",
    "optuna",
    "onnx",
    "onnxruntime",
    "sklearn",
    "numpy",
    "PIL",
    "tensorboard",
    "vitctl.tracking.tensorboard",
    "vitctl.tracking.wandb",
)

PROBE = """
import functools, json, os, sys
import typer.main
from vitctl.cli import main
typer.main.get_command = functools.cache(typer.main.get_command)  # takes a tenth of a second
requests, heavy = json.load(sys.stdin)
answers = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for argv in requests:
    before = set(sys.modules)
    code = main(argv)
    print(json.dumps([code, [name for name in heavy if name in sys.modules and name not in before]]), file=answers)
"""
"""Prints the exit code of ``vitctl`` and the heavy modules it newly imports, for each list of arguments."""


def probe(python: list[str], *requests: list[str]) -> list[tuple[int, list[str]]]:
    done = subprocess.run(
        [*python, "-c", PROBE], input=json.dumps([requests, HEAVY]), capture_output=True, text=True, check=True
    )
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


LIGHT = [
    (["--help"], 0),
    (["--version"], 0),
    (["train", "--help"], 0),
    (["eval", "--help"], 0),
    (["list-models"], 0),
    (["list-models", "--json"], 0),
    (["list-optimizers"], 0),
    (["list-optimizers", "ad*", "--json"], 0),
    (["list-optimizers", "admm"], 2),
    (["list-recipes"], 0),
    (["list-recipes", "seed"], 0),
    (["list-recipes", "--json"], 0),
    (["list-recipes", "sed"], 2),
    (["train", "--recipe", "fast", "--opt", "lion", "--print-config"], 0),
    (["train", "--opt", "adan:beta1=0"], 2),
    (["train", "--recipe", "fats"], 2),
    (["train", "--print-config"], 0),
    (["train", "--nett", "x"], 2),
    (["train", "--net", "vitt"], 2),
    (["train", "--net", "vit", "--patch", "5"], 2),
    (["train", "--net", "vit:dept=5"], 2),
    (["train", "--lr", "fast"], 2),
    (["train", "--config", "/nowhere.yaml"], 2),
    (["train", "--dataset", "cifar"], 2),
    (["eval", "x", "--split", "tset"], 2),
    (["export", "--help"], 0),
    (["export", "x.pt", "--format", "onx"], 2),
    (["export", "x.pt", "--opset", "5"], 2),
    (["export", "x.pt", "--input", "uint8", "--normalize", "none"], 2),
    (["export", "x.pt", "--output", "/nowhere/x.onnx"], 2),
    (["export", "x.pt", "--max-drop", "2"], 2),
    (["predict", "--help"], 0),
    (["predict", "x.onnx", "/nowhere.png"], 2),
    (["bench-device", "--help"], 0),
    (["bench-device", "cpu", "--net", "vitt"], 2),
    (["compare-optimizers", "adam", "adamm"], 2),
    (["trian"], 2),
    (["convert", "x.t7", "--net", "vitt", "-o", "y.pt"], 2),
    (["convert", "x.t7", "--net", "vit", "-o", "y.pt", "--dataset", "cifar"], 2),
    (["list-models", "--details", "vitt"], 2),
    (["list-models", "--details", "vit:dept=3"], 2),
    (["runs", "--help"], 0),
    (["runs", "list", "--runs-dir", "tests/cli"], 0),
    (["runs", "list", "--runs-dir", "/nowhere"], 2),
    (["runs", "show", "nowhere"], 2),
    (["runs", "rm", "nowhere", "--yes"], 2),
    (["sweep", "--help"], 0),
    (["sweep", "create", "/nowhere.yaml"], 2),
    (["sweep", "create", "x.yaml", "--engine", "wanbd"], 2),
]


@pytest.fixture(scope="module")
def probed() -> list[tuple[int, list[str]]]:
    return probe([sys.executable], *(argv for argv, _ in LIGHT))


@pytest.mark.parametrize(
    ("row", "code"), [(row, code) for row, (_, code) in enumerate(LIGHT)], ids=[" ".join(argv) for argv, _ in LIGHT]
)
def test_light_commands_load_no_heavy_modules(probed: list[tuple[int, list[str]]], row: int, code: int) -> None:
    assert probed[row] == (code, [])


def test_training_loads_wandb_and_tensorboard_only_on_request(python: list[str], tmp_path: Path) -> None:
    run = ["train", *TINY, "--epochs", "1", "--runs-dir", str(tmp_path)]
    plain, tracked = probe(python, run, [*run, "--tensorboard"])
    # The package wandb is not among them, as timm imports it if it is installed.
    trackers = {"tensorboard", "vitctl.tracking.tensorboard", "vitctl.tracking.wandb"}
    assert plain[0] == 0 and not trackers & set(plain[1])
    assert tracked[0] == 0 and trackers & set(tracked[1]) == trackers - {"vitctl.tracking.wandb"}
