import dataclasses
import json
from collections.abc import Callable

import pytest

from tests.conftest import Cli
from vitctl.optim import OPTIMIZERS
from vitctl.recipes import RECIPES, Band, Card, Recipe

Refused = Callable[..., str]

CARD = Card(
    precision="bf16",
    net="cct_2",
    dataset="cifar10",
    epochs=2,
    val_acc=(Band(50.12, 0.5), Band(60.0, 0.25)),
    test_acc=Band(59.5, 0.31),
    seeds=(0, 1, 2),
    seconds=130.0,
    machine="cpu (a processor, 2 threads)",
    versions="torch 2.15.0, vitctl 0.1.0",
)


def test_optimizers_are_listed_with_their_defaults(cli: Cli) -> None:
    rows = cli("list-optimizers", "--json").json()
    assert [row["name"] for row in rows] == list(OPTIMIZERS)
    adan = next(row for row in rows if row["name"] == "adan")
    assert adan["options"] == {"beta1": 0.02, "beta2": 0.08, "beta3": 0.01, "eps": 1e-8}
    assert adan["lr"] == OPTIMIZERS["adan"].lr and adan["source"] and "2208.06677" in adan["paper"]
    text = cli("list-optimizers").out
    assert all(name in text for name in OPTIMIZERS) and "timm/NAME" in text
    assert [row["name"] for row in cli("list-optimizers", "adan*", "--json").json()] == [
        "adan", "adan_pytorch", "adan_official",
    ]  # fmt: skip


def test_the_table_of_optimizers_fits_80_columns(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = cli("list-optimizers").out
    for entry in OPTIMIZERS.values():
        assert all(f" {key}=" in text for key in entry.options), "an option is wrapped"
    assert " beta2=0.999 " in text and " adamw_lr=0.003 " in text


def test_timm_s_optimizers_are_listed_by_their_prefix(cli: Cli) -> None:
    rows = {row["name"]: row for row in cli("list-optimizers", "timm/*", "--json").json()}
    assert rows["timm/lamb"]["options"]["eps"] == 1e-6 and len(rows) > 40
    assert "timm/adahessian" not in rows
    table = cli("list-optimizers", "timm/*ada*n")
    assert "timm/cadan" in table.out and "second derivatives" in table.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["list-optimizers", "adamm"], "did you mean adam"),
        (["list-optimizers", "timm"], "timm/*"),
        (["list-optimizers", "timm/lambbb"], "unknown optimizer 'timm/lambbb'"),
        (["list-optimizers", "timm/bnb*"], "needs CUDA"),
        (["list-recipes", "sed"], "did you mean seed"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(refused: Refused, argv: list[str], message: str) -> None:
    assert message in refused(*argv)


def test_recipes_are_listed_with_settings_and_results(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "bare", Recipe(summary="none", settings={"net": "vit", "opt": "adam"}))
    rows = {row["name"]: row for row in cli("list-recipes", "--json").json()}
    assert list(rows) == list(RECIPES)
    assert rows["seed"]["settings"]["lr"] == 1e-4 and rows["seed"]["by_opt"]["sgd"]
    assert rows["bare"]["cards"] == [] and rows["bare"]["measured"] is False
    assert "not measured" in cli("list-recipes", "bare").out
    text = cli("list-recipes").out
    assert all(name in text for name in RECIPES) and "not measured" in text


def test_a_card_for_max_time_shows_the_network_used_for_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    card = dataclasses.replace(CARD, max_time="60s", max_steps=50)
    recipe = Recipe(
        summary="", settings={"net": "cct_2", "opt": "muon"}, by_time={90: {"net": "cct_2:depth=1"}}, cards=(card,)
    )
    monkeypatch.setitem(RECIPES, "timed", recipe)
    assert "measured: cct_2:depth=1, cifar10, --max-time 60s" in cli("list-recipes", "timed").out


def test_a_recipe_s_page_shows_its_complete_card(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    by_net = {"cct*": {"lr_factor": 0.5, "lr_scale": {"head": 2.0, "norm_bias": 64.0}}}
    recipe = Recipe(
        summary="for this test", settings={"net": "cct_2", "opt": "muon"}, by_net=by_net, cards=(CARD,), paper="A 2026"
    )
    monkeypatch.setitem(RECIPES, "measured", recipe)
    text = cli("list-recipes", "measured").out
    for words in ("for this test", "A 2026", "--net", "50.1 ± 0.5 %", "60.0 ± 0.2 %", "59.5 ± 0.3 %", "seeds 0, 1, 2"):
        assert words in text, words
    assert "lr_factor=0.5, lr_scale=head=2,norm_bias=64" in text
    for words in ("2 epochs, bf16, seeds", "2 min 10 s", "cpu (a processor, 2 threads)", "torch 2.15.0"):
        assert words in text.replace("\n", " "), words
    assert "not measured" not in text
    assert "59.5 ± 0.3 %" in cli("list-recipes").out
    (row,) = cli("list-recipes", "measured", "--json").json()
    assert row["cards"][0]["val_acc"][1] == {"mean": 60.0, "deviation": 0.25} and row["measured"] is True
    assert row["by_net"]["cct*"]["lr_scale"] == {"head": 2.0, "norm_bias": 64.0}
    assert json.dumps(row)
