"""Runs on small folders of images: settings that fit themselves, in which modes, and what they reach."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.conftest import TINY_NET, Cli
from vitctl.config import fitting

COLOURS = {"blue": (40, 40, 220), "green": (40, 220, 40), "red": (220, 40, 40)}
FLAGS = ["--net", TINY_NET, "--size", 8]
MakeColours = Callable[..., Path]


@pytest.fixture
def make_colours(tmp_path: Path) -> MakeColours:
    """Return a function that writes three classes of noisy images that differ by colour."""

    def make(train: int, test: int, side: int) -> Path:
        random = np.random.default_rng(0)
        for part, count in (("train", train), ("test", test)):
            for name, colour in COLOURS.items():
                folder = tmp_path / "colours" / part / name
                folder.mkdir(parents=True)
                for i in range(count):
                    pixels = random.normal(colour, 50, (side, side, 3)) + random.normal(0, 25, 3)
                    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        return tmp_path / "colours"

    return make


@pytest.fixture
def colours(make_colours: MakeColours, monkeypatch: pytest.MonkeyPatch) -> Path:
    """12 training images, of which 3 are held out; 24 steps are enough."""
    monkeypatch.setattr(fitting, "STEPS", 24)
    return make_colours(4, 2, 8)


def stored(run: str) -> dict[str, Any]:
    return dict(json.loads((Path("runs") / run / "config.json").read_text())["config"])


def sizes(config: dict[str, Any]) -> tuple[int, int]:
    return config["bs"], config["epochs"]


FITS = (8, 12)
RECIPE = (128, 10)


def test_a_run_fits_its_settings_reports_and_stores_them(cli: Cli, colours: Path) -> None:
    run = cli("train", "--dataset", colours, *FLAGS, "--name", "r")
    assert run.code == 0
    assert "fitted to 9 training images: --bs 8 instead of 128, --epochs 12 instead of 10; 24 steps\n" in run.err
    assert sizes(stored("r")) == FITS and "12 / 24" in run.out
    again = cli("train", "--dataset", colours, *FLAGS, "--bs", 8, "--epochs", 12, "--name", "given")
    assert "fitted" not in again.err and stored("given") == stored("r")
    a, b = (json.loads((Path("runs") / name / "summary.json").read_text()) for name in ("r", "given"))
    assert (a["train_loss"], a["test_loss"]) == (b["train_loss"], b["test_loss"])


def test_a_resumed_run_keeps_its_settings(cli: Cli, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("train", "--dataset", colours, *FLAGS, "--name", "r").code == 0
    monkeypatch.setattr(fitting, "STEPS", 1000)
    longer = cli("train", "--resume", "runs/r", "--epochs", 13)
    assert longer.code == 0 and "fitted" not in longer.err and sizes(stored("r")) == (8, 13)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--bs", 128], (128, 24)),
        (["--epochs", 2], (8, 2)),
        (["--epochs", 2, "--bs", 4], (4, 2)),
        (["--limit-train", 9], RECIPE),
        (["--max-steps", 2], (128, None)),
    ],
)
def test_given_values_are_kept(cli: Cli, colours: Path, flags: list[Any], expected: tuple[int, int | None]) -> None:
    assert cli("train", "--dataset", colours, *FLAGS, *flags, "--name", "r").code == 0
    assert sizes(stored("r")) == expected


@pytest.mark.parametrize(
    "mode",
    [["--dry-run"], ["--lr-finder", "--lr", "0.001"], ["--preview-batch", "b.png"]],
    ids=lambda mode: mode[0],
)
def test_modes_without_a_run_use_what_the_run_would_use(cli: Cli, colours: Path, mode: list[str]) -> None:
    shown = cli("train", "--dataset", colours, *FLAGS, *mode, "--json")
    assert sizes(shown.json()["config"]) == FITS and "fitted to 9 training images" in shown.err


def test_a_printed_config_notes_the_settings_and_gives_the_same_run(cli: Cli, colours: Path) -> None:
    argv = ["train", "--dataset", colours, *FLAGS]
    printed = cli(*argv, "--print-config").out
    assert "\n# fitted to the number of training images when the run starts" in printed
    assert printed.endswith("\n# bs: 128\n# epochs: 10\n")
    assert not yaml.safe_load(printed).keys() & {"bs", "epochs"}
    Path("c.yaml").write_text(printed)
    assert cli("train", "--config", "c.yaml", "--name", "r").code == 0
    assert sizes(stored("r")) == FITS
    given = cli(*argv, "--bs", 128, "--epochs", 10, "--print-config").out
    assert "#" not in given and sizes(yaml.safe_load(given)) == RECIPE


def test_runs_of_a_w_and_b_sweep_are_not_fitted(cli: Cli, colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "x")
    argv = ["train", "--dataset", colours, *FLAGS, "--wandb", "disabled"]
    assert cli(*argv, "--name", "r").code == 0
    assert sizes(stored("r")) == RECIPE
    assert sizes(yaml.safe_load(cli(*argv, "--print-config").out)) == RECIPE


@pytest.mark.usefixtures("forked_runs")
def test_trials_of_a_sweep_are_not_fitted(cli: Cli, colours: Path) -> None:
    parameters = {"dataset": {"value": str(colours)}, "net": {"value": TINY_NET}, "size": {"value": 8}}
    sweep = {
        "method": "random",
        "metric": {"name": "val_acc", "goal": "maximize"},
        "run_cap": 1,
        "parameters": {**parameters, "lr": {"values": [0.01, 0.02]}},
    }
    Path("s.yaml").write_text(yaml.safe_dump(sweep))
    assert cli("sweep", "agent", "s.yaml").code == 0
    (trial,) = json.loads(cli("sweep", "export", "s.yaml", "--format", "json").out)
    assert sizes(stored(Path(trial["run"]).name)) == RECIPE
    best = yaml.safe_load(cli("sweep", "best", "s.yaml", "--config").out)
    assert sizes(best) == RECIPE  # a run with the best settings keeps what they were selected with


def test_runs_of_a_comparison_are_not_fitted(cli: Cli, colours: Path) -> None:
    compared = cli("compare-optimizers", "adam", "adamw", "--dataset", colours, *FLAGS, "--json")
    assert compared.code == 0 and "fitted" not in compared.err
    configs = [json.loads(path.read_text())["config"] for path in Path("runs").rglob("config.json")]
    assert len(configs) >= 2 and {sizes(config) for config in configs} == {RECIPE}


@pytest.mark.slow
def test_sixty_images_are_learned_without_any_flag(cli: Cli, tmp_path: Path) -> None:
    """Discs of three colours on backgrounds of any colour: with the recipe's ten steps, 50 to 70 % are correct."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48]
    for part, count in (("train", 20), ("test", 33)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "discs" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.tile(random.uniform(0, 255, 3), (48, 48, 1))
                row, column = random.integers(12, 36, 2)
                pixels[(y - row) ** 2 + (x - column) ** 2 < random.integers(7, 12) ** 2] = colour
                pixels += random.normal(0, 20, pixels.shape)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    summary = cli("train", "--dataset", tmp_path / "discs", "--json").json()
    assert summary["train_images"] + summary["val_images"] == 60 and summary["step"] >= 300
    assert summary["test_acc"] > 90
