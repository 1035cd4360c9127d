"""``vitctl list-models``: the table, details of one model, and the search of timm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from tests.conftest import Cli
from vitctl.models import MODELS, build_model
from vitctl.recipes import RECIPES, Band, Card, Recipe

Refused = Callable[..., str]

FIELDS = [
    *("name", "family", "params", "mflop", "tokens", "img_size", "published_acc"),
    *("measured_acc", "measured_recipe", "measured_epochs", "pretrained", "summary", "paper", "note", "options"),
]


def test_the_json_has_every_network_and_field(cli: Cli) -> None:
    rows = cli("list-models", "--json").json()
    assert [row["name"] for row in rows] == list(MODELS)
    assert all(list(row) == FIELDS for row in rows)
    vit = rows[0]
    assert (vit["name"], vit["params"], vit["published_acc"]) == ("vit", 9_523_722, 80.0)
    assert "2010.11929" in vit["paper"] and "1,281.9 MFLOP" in vit["note"]
    assert vit["options"]["depth"] == 6 and vit["options"]["pool"] == "cls"
    assert {row["name"] for row in rows if row["pretrained"]} == {"vit_timm", "vit_small_timm"}
    assert all(row["paper"] and row["summary"] for row in rows)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("vit", "vit vit_small vit_tiny simplevit dyt vit_timm vit_small_timm"),  # the family
        ("vit_s*", "vit_small vit_small_timm"),
        ("res*", "res18 res34 res50 res101"),
        ("dyt", "dyt"),
        ("[cs]*i*", "simplevit cait cait_small swin convmixer"),
    ],
)
def test_patterns_select_networks_by_name_or_family(cli: Cli, pattern: str, names: str) -> None:
    assert [row["name"] for row in cli("list-models", pattern, "--json").json()] == names.split()


@pytest.mark.parametrize("field", ["name", "family", "params", "mflop", "tokens"])
def test_costs_are_sorted_in_ascending_order(cli: Cli, field: str) -> None:
    values = [row[field] for row in cli("list-models", "--sort", field, "--json").json()]
    assert values == sorted(values) and len(values) == len(MODELS)


@pytest.mark.parametrize("field", ["published_acc", "measured_acc"])
def test_accuracies_are_sorted_in_descending_order_with_missing_ones_last(cli: Cli, field: str) -> None:
    values = [row[field] for row in cli("list-models", "--sort", field, "--json").json()]
    known = [value for value in values if value is not None]
    assert known and values == sorted(known, reverse=True) + [None] * (len(values) - len(known))


def test_the_best_measured_accuracy_is_shown_with_its_recipe_and_epochs(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def card(net: str, acc: float, dataset: str = "cifar10") -> Card:
        return Card(
            net=net,
            dataset=dataset,
            epochs=7,
            val_acc=(),
            test_acc=Band(acc, 0.1),
            seeds=(0,),
            seconds=1.0,
            machine="",
            versions="",
        )

    cards = (card("swin", 51.0), card("swin", 52.0), card("swin:depth=4", 98.0), card("swin", 99.0, "digits"))
    short = dataclasses.replace(card("swin", 97.0), max_steps=300)
    for name, net, measured in [
        ("ours", "swin", (*cards, short, card("cct_4", 1.0))),
        ("narrow", "swin:depth=4", (card("swin", 96.0),)),
    ]:
        recipe = Recipe(summary="", settings={"net": net, "opt": "muon"}, cards=measured)
        monkeypatch.setitem(RECIPES, name, recipe)
    rows = {row["name"]: row for row in cli("list-models", "--json").json()}
    assert [rows["swin"][f"measured_{what}"] for what in ("acc", "recipe", "epochs")] == [52.0, "ours", 7]
    assert rows["cct_4"]["measured_acc"] > 1 and rows["vgg"]["measured_acc"] is None
    assert "52.0 % ours x7" in cli("list-models", "swin").out


@pytest.mark.parametrize("columns", [80, 100, 120, 200])
def test_the_table_fits_the_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = cli("list-models").out.splitlines()
    assert max(map(len, lines)) <= columns
    assert not any("…" in line for line in lines), "text is cut off"
    starts = [line.split()[0] for line in lines if line[1:2].strip()]
    assert [word for word in starts if word in MODELS] == list(MODELS)
    # Rows must not wrap to many lines.
    assert len(lines) < 3 * len(MODELS) + 6


def test_no_row_wraps_if_the_output_is_piped(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")
    rows = [line.split() for line in cli("list-models").out.splitlines()]
    lines = {words[0]: " ".join(words) for words in rows if words and words[0] in MODELS}
    for name, entry in MODELS.items():
        assert f"{entry.params:,}" in lines[name] and entry.summary in lines[name]


@pytest.mark.parametrize("net", MODELS)
def test_details_at_the_default_size_match_the_table(cli: Cli, net: str) -> None:
    document, entry = cli("list-models", "--details", net, "--json").json(), MODELS[net]
    assert [document[key] for key in ("params", "mflop", "tokens", "img_size")] == [
        *(entry.params, entry.mflop, entry.tokens, entry.img_size)
    ]
    assert {option["name"]: option["value"] for option in document["options"]} == {
        name: option.default for name, option in entry.options.items()
    }
    assert all(option["allowed"] and option["help"] for option in document["options"])
    layers = document["layers"]
    assert 2 <= len(layers) < 80 and layers[-1]["shape"][-1] == 10
    with torch.device("meta"):
        model = build_model(net, entry.resolve_options({}, net), img_size=entry.img_size, in_chans=3, num_classes=10)
    lone = sum(parameter.numel() for name, parameter in model.named_parameters() if "." not in name)  # in no layer
    assert document["params"] == lone + sum(layer["params"] for layer in layers)


def test_details_depend_on_options_and_size(cli: Cli) -> None:
    out = cli("list-models", "--details", "vit:depth=2,embed_dim=64,pool=avg", "--size", 48).out
    for words in ("144 tokens", "at 48 px and 10 classes", "blocks.1", "1 x 10"):
        assert words in out, words
    assert "blocks.2" not in out and "2010.11929" in out and "whole number from 1" in out
    assert "1,281.9" not in out and "1,281.9" in cli("list-models", "--details", "vit").out  # only at the default size


def test_details_of_a_timm_model(cli: Cli) -> None:
    document = cli("list-models", "--details", "timm/test_vit:patch_size=8", "--size", 32, "--json").json()
    assert (document["tokens"], document["img_size"]) == (17, 32)
    values = {option["name"]: option["value"] for option in document["options"]}
    assert values["patch_size"] == 8 and values["depth"] is None
    assert "timm/test_vit" in cli("list-models", "--details", "timm/test_vit").out


def test_timm_s_models_are_searched_by_pattern(cli: Cli) -> None:
    rows = cli("list-models", "--timm", "vit*tiny*", "--json").json()
    names = [row["name"] for row in rows]
    assert "timm/vit_tiny_patch16_224" in names and all("tiny" in name for name in names)
    (tiny,) = (row for row in rows if row["name"] == "timm/vit_tiny_patch16_224")
    assert tiny == {"name": "timm/vit_tiny_patch16_224", "img_size": 224, "pretrained": True}
    assert "timm/vit_tiny_patch16_224" in cli("list-models", "--timm", "vit*tiny*").out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["vitz"], "unknown network 'vitz'\nhint: did you mean vit?"),
        (["q*"], "unknown network 'q*'\nhint: "),
        (["--sort", "parms"], "unknown --sort 'parms'\nhint: did you mean params"),
        (["--details", "vitt"], "unknown --net 'vitt'\nhint: did you mean vit"),
        (["--details", "vit:dept=2"], "did you mean depth"),
        (["--details", "vit", "--size", 30], "--size 28 or 32"),
        (["--details", "vit", "--sort", "params"], "--sort params does nothing with --details\nhint: remove --sort"),
        (["vit", "--details", "vit"], "PATTERN and --details are mutually exclusive"),
        (["--size", 32], "--size 32 does nothing without --details\nhint: add --details"),
        (["--timm", "tinny"], "tiny_vit"),
        (["--timm", "vit_tiny"], "hint: use --timm '*vit_tiny*'"),
        (["--timm", "zzzzzz*"], "no timm model matches 'zzzzzz*'\nhint: use --timm"),
    ],
)
def test_mistakes_are_refused_with_a_hint(refused: Refused, argv: list[object], message: str) -> None:
    assert message in refused("list-models", *argv)
