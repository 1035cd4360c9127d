"""Batch size and epochs fitted to small folders of images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vitctl.config import FITTED, TrainConfig, fit_to_images, fitting_note, free_settings, resolve_config
from vitctl.config.fitting import LEAST_BATCH, STEPS
from vitctl.recipes import RECIPES


def of_folder(tmp_path: Path, **flags: Any) -> TrainConfig:
    return resolve_config({"dataset": str(tmp_path), "net": "cct_2", **flags})


def steps(config: TrainConfig, images: int) -> int:
    assert config.epochs is not None
    return config.epochs * -(-images // (config.bs * config.accumulate))


@pytest.mark.parametrize(
    ("images", "flags", "bs", "epochs"),
    [
        (54, {}, 8, 43),
        (450, {}, 8, 10),
        (900, {}, 16, 10),
        (1000, {}, 32, 10),
        (3000, {}, 64, 10),
        (3800, {}, 128, 10),
        (45_000, {}, 128, 10),
        (450, {"net": "hybrid_tiny"}, 15, 10),
        (57, {"net": "hybrid_tiny"}, 9, 43),
        (57, {"net": "hybrid_tiny", "bs": 8}, 8, 43),
        (57, {}, 8, 38),
        (45_000, {"net": "hybrid_tiny"}, 250, 10),
        (54, {"bs": 128}, 128, 300),
        (54, {"epochs": 3}, 8, 3),
        (54, {"bs": 20, "epochs": 3}, 20, 3),
        (54, {"accumulate": 4}, 8, 150),
        (54, {"bs": 4}, 4, 22),
        (54, {"recipe": "strong"}, 32, 200),
        (54, {"recipe": "finetune", "net": "vit_tiny"}, 8, 43),
        (2, {}, 8, 300),
    ],
)
def test_batch_and_epochs_of_folders(tmp_path: Path, images: int, flags: dict[str, Any], bs: int, epochs: int) -> None:
    config = of_folder(tmp_path, **flags)
    after = fit_to_images(config, images, free_settings(config, flags))
    assert (after.bs, after.epochs) == (bs, epochs)
    assert dataclasses.replace(after, bs=config.bs, epochs=config.epochs) == config  # nothing else changes


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "sprint"])
@pytest.mark.parametrize("images", [1, 7, 100, 777, 5000])
def test_every_recipe_takes_enough_steps_at_little_cost(tmp_path: Path, recipe: str, images: int) -> None:
    config = of_folder(tmp_path, recipe=recipe)
    after = fit_to_images(config, images, FITTED)
    assert config.epochs is not None and after.epochs is not None
    assert steps(after, images) >= STEPS
    assert after.epochs * images <= max(config.epochs * images, STEPS * LEAST_BATCH + images * LEAST_BATCH)


@pytest.mark.parametrize(
    ("flags", "free"),
    [
        ({}, ("bs", "epochs")),
        ({"bs": 128}, ("epochs",)),
        ({"epochs": 10}, ("bs",)),
        ({"bs": 128, "epochs": 10}, ()),
        ({"max_steps": 20}, ()),
        ({"max_time": "1m"}, ()),
        ({"limit_train": 50}, ()),
        ({"recipe": "sprint"}, ()),  # its length is in steps
        ({"lr": 0.1, "net": "vit"}, ("bs", "epochs")),
    ],
)
def test_only_values_that_were_not_given_are_free(tmp_path: Path, flags: dict[str, Any], free: tuple[str, ...]) -> None:
    assert free_settings(of_folder(tmp_path, **flags), flags) == free


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "cifar100"])
def test_named_data_sets_keep_their_recipe(dataset: str) -> None:
    assert free_settings(resolve_config({"dataset": dataset}), {}) == ()


def test_the_note_names_what_changed(tmp_path: Path) -> None:
    config = of_folder(tmp_path)
    note = fitting_note(config, fit_to_images(config, 54, FITTED), 54)
    assert note == "fitted to 54 training images: --bs 8 instead of 128, --epochs 43 instead of 10; 301 steps"
    assert "--epochs" not in fitting_note(config, fit_to_images(config, 1000, FITTED), 1000)
