"""Every command in the README of the original scripts, over all their versions: a script's name becomes a command."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Cli
from tests.data.official import small, write_batches
from vitctl.data import AUGMENTATIONS, cifar
from vitctl.models import MODELS

Refused = Callable[..., str]

TRAIN: list[tuple[str, dict[str, Any]]] = [
    # python train_cifar10.py ..., settings of vitctl train --recipe seed ...
    ("", {"net": "vit", "size": 32, "lr": 1e-4, "epochs": 200, "opt": "adam", "bs": 512, "aug": "seed-randaug"}),
    ("--patch 2", {"net": "vit", "patch_size": 2, "lr": 1e-4}),
    ("--patch 2 --lr 1e-4 --aug --n_epochs 200", {"patch_size": 2, "lr": 1e-4, "aug": "seed-randaug", "epochs": 200}),
    ("--size 48", {"size": 48, "epochs": 200}),
    ("--lr 1e-4 --aug --n_epochs 200", {"lr": 1e-4, "aug": "seed-randaug", "epochs": 200}),
    ("--lr 1e-4 --aug --n_epochs 200 --size 48", {"aug": "seed-randaug", "epochs": 200, "size": 48}),
    ("--lr 1e-4 --aug --n_epochs 400", {"epochs": 400}),
    ("--net res18", {"net": "res18", "lr": 1e-3}),
    ("--net res18 --aug --n_epochs 200", {"net": "res18", "lr": 1e-3, "aug": "seed-randaug", "epochs": 200}),
    ("--net vit_small --n_epochs 400", {"net": "vit_small", "epochs": 400}),
    ("--net vit_small --lr 1e-4 --aug --n_epochs 200", {"net": "vit_small", "aug": "seed-randaug", "epochs": 200}),
    ("--net vit_small --lr 1e-4 --aug --n_epochs 400", {"net": "vit_small", "epochs": 400}),
    ("--net vit_timm", {"net": "vit_timm", "size": 384, "pretrained": "true"}),
    ("--net vit_timm --lr 1e-4", {"net": "vit_timm", "size": 384, "lr": 1e-4}),
    ("--net swin --n_epochs 400", {"net": "swin", "window_size": 4, "epochs": 400}),
    ("--net swin --lr 1e-4 --aug --n_epochs 200", {"net": "swin", "aug": "seed-randaug", "epochs": 200}),
    ("--net swin --lr 1e-4 --aug --n_epochs 400", {"net": "swin", "aug": "seed-randaug", "epochs": 400}),
    ("--net convmixer --n_epochs 400", {"net": "convmixer", "kernel_size": 8, "epochs": 400}),
    ("--net convmixer --aug --n_epochs 200", {"net": "convmixer", "aug": "seed-randaug", "epochs": 200}),
    ("--net convmixer --aug --n_epochs 400", {"net": "convmixer", "aug": "seed-randaug", "epochs": 400}),
    ("--net convmixer --lr 1e-4", {"net": "convmixer", "lr": 1e-4, "epochs": 200}),
    ("--net cait --n_epochs 200", {"net": "cait", "epochs": 200}),
    ("--net cait --lr 1e-4 --aug --n_epochs 200", {"net": "cait", "aug": "seed-randaug", "epochs": 200}),
    ("--net mlpmixer --n_epochs 400", {"net": "mlpmixer", "epochs": 400, "lr": 1e-4}),
    ("--net mlpmixer --n_epochs 500 --lr 1e-3", {"net": "mlpmixer", "epochs": 500, "lr": 1e-3}),
    ("--net mlpmixer --n_epochs 500 --aug --lr 1e-3", {"epochs": 500, "lr": 1e-3, "aug": "seed-randaug"}),
    ("--net mlpmixer --lr 1e-4 --aug --n_epochs 400", {"net": "mlpmixer", "epochs": 400, "aug": "seed-randaug"}),
    ("--dataset cifar100", {"dataset": "cifar100", "epochs": 200}),
    ("--net dyt", {"net": "dyt", "epochs": 200}),
]

EXPORT = [
    # python export_models.py ..., vitctl ...
    (
        "--checkpoint last.pt --model_type vit --output_dir exported_models",
        "export last.pt -f onnx -f torchscript -o exported_models",
    ),
    (
        "--checkpoint=last.pt --model_type=vit --output_dir=files --img_size=32 --batch_size=1 --verify",
        "export last.pt -f onnx -f torchscript -o files",
    ),
]


@pytest.mark.parametrize("recipe", ["seed", "default"])
@pytest.mark.parametrize(("words", "expected"), TRAIN)
def test_training_commands_resolve_to_the_settings_they_meant(
    cli: Cli, words: str, expected: dict[str, Any], recipe: str
) -> None:
    result = cli("train", *words.split(), "--recipe", recipe, "--print-config")
    assert result.code == 0, result.err
    settings = yaml.safe_load(result.out)
    found = settings | settings["net_options"]
    if recipe == "default":  # which sets what the words do not say
        flags = {"--patch": "patch_size", "--n_epochs": "epochs", "--aug": "aug"}
        typed = [flags.get(word, word[2:]) for word in words.split() if word.startswith("--")]
        expected = {name: value for name, value in expected.items() if name in typed}
        expected |= {"aug": "randaug"} if "aug" in typed else {}
    assert {name: found[name] for name in expected} == expected


@pytest.mark.slow
@pytest.mark.parametrize("words", [words for words, _ in TRAIN])
def test_training_commands_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    for name in ("CIFAR10", "CIFAR100"):
        spec = small(getattr(cifar, name))
        monkeypatch.setattr(cifar, name, spec)
        write_batches(spec, tmp_path / "data" / spec.folder)
    few = ["--data-dir", "data", "--limit-train", 100, "--limit-test", 100, "--bs", 4]
    net = dict([words.split()[i : i + 2] for i, word in enumerate(words.split()) if word == "--net"]).get("--net")
    if net and MODELS[net].img_size > 32:
        result = cli("train", *words.split(), *few, "--pretrained", "false", "--bs", 1, "--dry-run", "--json")
        assert result.code == 0, result.err
        assert result.json()["config"]["size"] == 384
    else:
        result = cli("train", *words.split(), *few, "--max-steps", 2, "--json")
        assert result.code == 0, result.err
        assert result.json()["step"] == 2


@pytest.mark.parametrize(("words", "command"), EXPORT)
def test_export_commands_are_answered_with_ours(refused: Refused, words: str, command: str) -> None:
    error, hint = refused("export", *words.split()).split("\n")
    assert error == "error: --checkpoint is a flag of the original export_models.py"
    assert hint.endswith(f"&& vitctl {command}")


@pytest.mark.parametrize(
    ("words", "path"), [("runs/my run --model_type vit", "runs/my run"), ("--model_type vit --checkpoint", "CKPT")]
)
def test_the_answer_to_an_export_command_quotes_its_path(refused: Refused, words: str, path: str) -> None:
    argv = [words.partition(" --")[0], "--model_type", "vit"] if path != "CKPT" else words.split()
    command = shlex.split(refused("export", *argv).partition("&& vitctl ")[2])
    assert command == ["export", path, "-f", "onnx", "-f", "torchscript", "-o", "exported_models"]


def test_every_flag_of_the_original_export_is_answered(refused: Refused) -> None:
    for flag in ("--checkpoint", "--model_type", "--output_dir", "--img_size", "--batch_size"):
        assert "vitctl export" in refused("export", "last.pt", flag, "x").split("\n")[1]


def test_aug_without_a_name_is_the_recipes_own_randaugment(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "aug.yaml").write_text("aug: true\n")
    (tmp_path / "noaug.yaml").write_text("recipe: seed\naug: false\n")
    for argv, aug, options in (
        (["--aug"], "randaug", {"n": 2, "m": 9}),
        (["--aug=True"], "randaug", {"n": 2, "m": 9}),
        (["--config", "aug.yaml"], "randaug", {"n": 2, "m": 9}),
        (["--config", "aug.yaml", "--recipe", "seed"], "seed-randaug", {"n": 2, "m": 14}),
        (["--aug", "--recipe", "fast", "--max-time", "1h", "--net", "cct_4"], "randaug", {"n": 1, "m": 9}),
        (["--aug=false", "--recipe", "seed"], "basic", {}),
        (["--config", "noaug.yaml"], "basic", {}),
    ):
        settings = yaml.safe_load(cli("train", *argv, "--print-config").out)
        usual = AUGMENTATIONS[aug].resolve_options(options, "--aug")
        assert (settings["aug"], settings["aug_options"]) == (aug, usual), argv


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("--data-dir --n_epochs 3", "--data-dir"),
        ("--opt --learning-rate 0.1", "--opt"),
        ("--name --no-such-flag", "--name"),
        ("-c --aug", "-c"),
        ("--lr -r", "--lr"),
    ],
)
def test_a_flag_without_its_value_does_not_take_the_next_flag(refused: Refused, words: str, flag: str) -> None:
    assert refused("train", *words.split()).startswith(f"error: {flag} needs a value\nhint: use {flag} ")


def test_values_may_begin_with_a_hyphen(cli: Cli) -> None:
    argv = ("--wandb", "offline", "--wandb-notes", "-5 %", "--wandb-group=--x", "--print-config")
    settings = yaml.safe_load(cli("train", *argv).out)
    assert (settings["wandb_notes"], settings["wandb_group"]) == ("-5 %", "--x")
