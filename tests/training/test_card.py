"""Comparison of a run with its recipe's card."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.conftest import Cli
from vitctl.config import find_card, resolve_config
from vitctl.recipes import RECIPES, Band, Card, Recipe
from vitctl.training.card import CardWatch
from vitctl.training.session import Session

RECIPE = Recipe(
    summary="for the test",
    settings={
        "net": "cct_2", "opt": "muon", "bs": 64, "schedule": "linear", "warmup": 0.1, "limit_train": 200,
        "limit_test": 100, "size": 8, "val": "holdout",
    },
    epochs={"*": 2},
    net_options={"embed_dim": 16, "depth": 1, "conv_width": 8},
)  # fmt: skip
CARD = Card(
    net="cct_2",
    dataset="digits",
    epochs=2,
    val_acc=(Band(0, 0), Band(0, 0)),
    test_acc=Band(0, 0),
    seeds=(0, 1, 2),
    seconds=1.0,
    machine="cpu",
    versions="torch 2",
)

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that registers the recipe ``mine`` with a card of the given values."""

    def put(**bands: Any) -> None:
        card = dataclasses.replace(CARD, **bands)
        monkeypatch.setitem(RECIPES, "mine", dataclasses.replace(RECIPE, cards=(card,)))

    return put


RUN = ["train", "--recipe", "mine", "--dataset", "digits", "--name", "r"]


def warnings(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("warning: ") and "usual for recipe" in line]


def test_a_run_within_the_band_causes_no_warning(cli: Cli, install: Install) -> None:
    install(test_acc=Band(0.0, 0.1))
    result = cli(*RUN, "--json")
    assert result.code == 0 and not warnings(result.err)
    assert result.json()["card"] == {"test_acc": 0.0, "deviation": 0.1, "below": False}


def test_a_run_below_the_band_causes_a_warning(cli: Cli, install: Install, tmp_path: Path) -> None:
    install(val_acc=(Band(100, 0.1), Band(100, 0.1)), test_acc=Band(100, 0.1))
    result = cli(*RUN, "--json")
    assert result.code == 0
    epoch, final = warnings(result.err)  # one for the epochs and one at the end
    usual = r"\d+\.\d % is below the 100\.0 ± 0\.1 % that is usual for recipe mine"
    assert re.search(rf"held-out accuracy {usual} after 1 of 2 epochs", epoch)
    assert re.search(rf"test accuracy {usual} after 2 epochs", final)
    assert "check that data and versions match the recipe's runs (torch 2, cpu)" in result.err
    assert result.json()["card"]["below"] is True


def test_the_usual_accuracy_is_printed_at_the_start(cli: Cli, install: Install) -> None:
    install(test_acc=Band(71.25, 0.5))
    assert "recipe mine usually reaches 71.2 ± 0.5 % test accuracy (seeds 0, 1, 2; 1.0 s on cpu)" in cli(*RUN).err
    other = cli(*RUN[:-1], "q", "--lr", 0.01)
    assert other.code == 0 and "usually" not in other.err


@pytest.mark.parametrize(("steps", "below"), [(1400, True), (1399, False)])
def test_a_card_for_a_time_limit(install: Install, steps: int, below: bool) -> None:
    install(test_acc=Band(90, 0.1), val_acc=(), max_time="60s", max_steps=1400)
    asked = {"recipe": "mine", "dataset": "digits"}
    config = dataclasses.replace(resolve_config({**asked, "max_time": "1m"}), max_steps=steps)
    watch = CardWatch(
        cast(Session, SimpleNamespace(config=config, total_steps=steps, history=[])), find_card(config, "fp32")
    )
    said: list[str] = []
    watch.expect(said.append)
    assert said == [
        (
            "recipe mine usually reaches 90.0 ± 0.1 % test accuracy within 60s "
            f"(seeds 0, 1, 2; 1,400 steps on cpu, {steps:,} on this machine)"
        )
    ]
    # A slower machine is not expected to reach the band.
    result = watch.final({"test_acc": 80.0, "stopped_early": False}, said.append)
    assert result["card"]["below"] is below and len(said) == 1 + below
    assert not below or "is usual for recipe mine after 1,400 steps" in said[1]
    for other in ({"max_time": "61s"}, {"max_steps": 1400}, {}):
        assert find_card(resolve_config({**asked, **other}), "fp32") is None


def test_a_card_for_another_optimizer(install: Install) -> None:
    install(opt="adamw:lr=1e-3")
    asked = {"recipe": "mine", "dataset": "digits"}
    assert find_card(resolve_config(asked), "fp32") is None
    assert find_card(resolve_config({**asked, "opt": "adamw", "lr": 1e-3}), "fp32") is not None


def test_the_band_is_three_deviations_or_at_least_one_point() -> None:
    assert Band(60, 0.1).floor == 59 and Band(60, 2).floor == 54 and str(Band(66.84, 0.42)) == "66.8 ± 0.4 %"
    assert Band(60).floor == 57 and str(Band(66.84)) == "66.8 %", "three points for a single seed"


def test_a_recipe_without_cards_is_not_compared(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "mine", RECIPE)
    result = cli(*RUN, "--json")
    assert "card" not in result.json() and not warnings(result.err)


@pytest.mark.parametrize(
    ("flags", "compared"),
    [
        ({}, True),
        ({"seed": 7, "threads": 1, "save_every": "3", "micro_batch": "16"}, True),
        ({"epochs": 2}, True),
        ({"epochs": 3}, False),
        ({"max_steps": 5}, False),
        ({"lr": 0.01}, False),
        ({"opt": "adamw"}, False),
        ({"opt": "muon:adamw_lr=1e-3"}, False),
        ({"net": "cct_4"}, False),
        ({"net": "cct_2:depth=2"}, False),
        ({"val": "none"}, False),
        ({"dataset": "cifar10"}, False),
        ({"recipe": "fast"}, False),
    ],
)
def test_only_runs_with_the_recipe_s_settings_are_compared(
    install: Install, flags: dict[str, object], compared: bool
) -> None:
    install()
    config = resolve_config({"recipe": "mine", "dataset": "digits", **flags})
    assert (find_card(config, "fp32") is not None) is compared


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_runs_in_the_card_s_precision_are_compared(install: Install, precision: str) -> None:
    install(precision=precision)
    config = resolve_config({"recipe": "mine", "dataset": "digits"})
    assert {each: find_card(config, each) is not None for each in ("fp32", "bf16", "fp16")} == {
        each: each == precision for each in ("fp32", "bf16", "fp16")
    }


def test_an_extended_run_is_not_compared(cli: Cli, install: Install) -> None:
    install(test_acc=Band(100, 0.1))
    assert cli(*RUN, "--epochs", 1).code == 0
    longer = cli("train", "--resume", "runs/r", "--epochs", 2, "--json")
    assert longer.code == 0 and "card" not in longer.json() and not warnings(longer.err)


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_card_matches_the_current_recipe(recipe: str) -> None:
    for card in RECIPES[recipe].cards:
        asked = {"recipe": recipe, "net": card.net, "dataset": card.dataset, "seed": 5}
        own = resolve_config({"recipe": recipe})
        if own.net == card.net:
            del asked["net"]  # keeps the recipe's options of the network
        length = "max_time" if card.max_time else "max_steps" if card.max_steps else "epochs"
        if getattr(own, length) != getattr(card, length):
            asked[length] = getattr(card, length)
        assert find_card(resolve_config(asked), card.precision) is card
        assert (
            len(card.val_acc) in (0, card.epochs)
            and (not card.max_time or card.max_steps)
            and len(card.seeds) >= 1
            and card.seconds > 0
        )
        assert card.machine and card.versions


def test_a_recipe_with_max_steps_can_have_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve_config({"recipe": "sprint", "dataset": "digits"})
    card = Card(
        net=config.net, dataset="digits", epochs=1, max_steps=config.max_steps, val_acc=(), test_acc=Band(90, 1),
        seeds=(0,), seconds=1, machine="cpu", versions="torch 2",
    )  # fmt: skip
    monkeypatch.setitem(RECIPES, "sprint", dataclasses.replace(RECIPES["sprint"], cards=(card,)))
    assert find_card(config, "fp32") is card
    assert find_card(dataclasses.replace(config, seed=5), "fp32") is card
    assert (
        find_card(resolve_config({"recipe": "sprint", "dataset": "digits", "max_steps": config.max_steps}), "fp32")
        is card
    )
    for other in ({"max_steps": 5}, {"epochs": 1}, {"net": "cct_2"}):
        assert find_card(resolve_config({"recipe": "sprint", "dataset": "digits", **other}), "fp32") is None
