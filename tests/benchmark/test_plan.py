"""Tests of the plan of an optimizer comparison: contestants, settings and refused arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitctl.benchmark.plan import _ADDED, differences, make_plan
from vitctl.config import TrainConfig, normalise_keys, resolve_config
from vitctl.errors import RequestError
from vitctl.optim import OPTIMIZERS

SWEEP = {"opt": "adan", "net": "vit_small", "epochs": 5, "lr": 9e-4, "weight_decay": 0.015, "adan_beta1": 0.035}


def configs(*specs: str, settings: dict[str, Any] | None = None, **more: Any) -> dict[str, TrainConfig]:
    return {each.label: each.config for each in make_plan(specs, settings or {}, **more).contestants}


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_contestants_have_the_settings_of_train(opt: str) -> None:
    assert configs(opt, "sgd")[opt] == resolve_config({"opt": opt})


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_settings_survive_the_yaml_file_of_a_child_process(opt: str) -> None:
    config = configs(f"{opt}:lr=0.003", "sgd", settings={"seed": 7, "epochs": 2})[f"{opt}:lr=0.003"]
    assert resolve_config({}, normalise_keys(config.to_dict(), "file")) == config


def test_equal_optimizers_get_different_labels() -> None:
    plan = make_plan(["adam", "adam", "adam"], {})
    assert [each.label for each in plan.contestants] == ["adam", "adam (2)", "adam (3)"]
    assert len({each.slug for each in plan.contestants}) == 3
    assert len({str(each.config) for each in plan.contestants}) == 1


def test_own_learning_rate_and_weight_decay_override_the_flags() -> None:
    found = configs("adan:lr=1e-4", "adam", "adamw:weight_decay=0.3", settings={"lr": 5e-3, "weight_decay": 0.1})
    assert [each.lr for each in found.values()] == [1e-4, 5e-3, 5e-3]
    assert [each.weight_decay for each in found.values()] == [0.1, 0.1, 0.3]


def test_adan_betas_apply_only_to_adan() -> None:
    found = configs("adan", "adan:beta1=0.05", "adam", settings={"adan_beta1": 0.04})
    assert [each.opt_options["beta1"] for each in found.values()] == [0.04, 0.05, 0.9]


def test_a_sweeps_learning_rate_applies_to_all_and_its_betas_only_to_adan() -> None:
    found = configs("adan", "adam", "adamw:lr=1e-3", settings={"epochs": 200}, sweep=SWEEP)
    assert {(each.net, each.epochs, each.weight_decay) for each in found.values()} == {("vit_small", 200, 0.015)}
    assert [each.lr for each in found.values()] == [9e-4, 9e-4, 1e-3]
    assert [each.opt_options["beta1"] for each in found.values()] == [0.035, 0.9, 0.9]


def test_options_of_a_sweeps_optimizer_apply_only_to_that_optimizer() -> None:
    sweep = {"opt": "muon:momentum=0.8,lr=0.01", "epochs": 1}
    found = configs("muon", "muon:momentum=0.7", "sgd", sweep=sweep)
    assert [each.opt_options["momentum"] for each in found.values()] == [0.8, 0.7, 0.9]
    assert [each.lr for each in found.values()] == [0.01, 0.01, 0.01]


def test_a_file_overrides_a_sweep_and_flags_override_both() -> None:
    found = configs("adan", "adam", settings={"bs": 32}, file={"lr": 2e-3, "max_steps": 9, "bs": 16}, sweep=SWEEP)
    assert {(each.lr, each.epochs, each.max_steps, each.bs) for each in found.values()} == {(2e-3, None, 9, 32)}
    assert found["adan"].opt_options["beta1"] == 0.035


def test_the_default_name_depends_on_the_settings() -> None:
    one = make_plan(["adam", "sgd"], {"net": "cct_2"})
    assert one.name == make_plan(["sgd", "adam"], {"net": "cct_2"}).name  # the order only affects the columns
    others = [
        make_plan(["adam", "sgd"], {"net": "cct_2"}, seeds=2),
        make_plan(["adam", "sgd"], {"net": "cct_2", "seed": 1}),
        make_plan(["adam", "sgd"], {"net": "cct_2", "clip_grad": 0.0}),
        make_plan(["adam", "sgd"], {"net": "cct_2"}, lr_search=2),
    ]
    assert len({one.name, *(each.name for each in others)}) == 5


def test_differences_between_plans_are_listed() -> None:
    one = make_plan(["adam", "sgd"], {"epochs": 1}, seeds=2)
    other = make_plan(["adam", "sgd:lr=0.3"], {"epochs": 1}, seeds=2)
    assert differences(one.identity(), make_plan(["adam", "sgd"], {"epochs": 2}, seeds=3).identity()) == [
        "epochs 2 (stored: 1)",
        "seeds [0, 1, 2] (stored: [0, 1])",
    ]
    assert "sgd:lr=0.3" in differences(one.identity(), other.identity())[0]
    assert differences(one.identity(), one.identity()) == []


@pytest.mark.parametrize(
    ("count", "expected"), [(3, [1 / 3, 1, 3]), (5, [1 / 9, 1 / 3, 1, 3, 9]), (2, [3**-0.5, 3**0.5])]
)
def test_searched_rates_are_centred_on_the_default(count: int, expected: list[float]) -> None:
    plan = make_plan(["adamw", "sgd:lr=0.1"], {}, lr_search=count)
    searched, own = plan.contestants
    assert (searched.searched, own.searched) == (True, False)
    assert plan.rates(searched) == pytest.approx([searched.config.lr * factor for factor in expected], rel=1e-3)


def test_settings_that_a_recipe_chooses_per_optimizer_are_noted() -> None:
    plan = make_plan(["muon", "adamw"], {"recipe": "sprint"})
    different = [
        name for name in ("clip_grad", "warmup", "bs") if len({getattr(e.config, name) for e in plan.contestants}) > 1
    ]
    notes = " ".join(plan.unequal_settings())
    assert all(f"--{name.replace('_', '-')} per optimizer" in notes for name in different)
    assert make_plan(["adam", "sgd"], {}).unequal_settings() == []


@pytest.mark.parametrize(
    ("specs", "settings", "more", "words"),
    [
        (["adam"], {}, {}, "two or more optimizers"),
        (["adam", "adamm"], {}, {}, "did you mean adam"),
        (["adam", "sgd:mometum=0.9"], {}, {}, "did you mean momentum"),
        (["adam", "sgd:lr"], {}, {}, "is not of the form key=value"),
        (["adam", "sgd:lr=-1"], {}, {}, "use 0 or more"),
        (["adam", "sgd"], {}, {"seeds": 0}, "use --seeds 1 or more"),
        (["adam", "sgd"], {"opt": "adam"}, {}, "remove --opt, and add adam to the arguments"),
        (["adam", "sgd"], {"adan_beta1": 0.1}, {}, "does nothing without adan or adan_pytorch"),
        (["adam", "sgd"], {}, {"lr_search": 1}, "use --lr-search 2 or more"),
        (["adam", "sgd"], {}, {"lr_search": 0}, "use --lr-search 2 or more"),
        (["adam", "sgd"], {"lr": 0.1}, {"lr_search": 3}, "both set the learning rate"),
        (["adam:lr=1", "sgd:lr=1"], {}, {"lr_search": 3}, "every optimizer has an lr of its own"),
        (["adam", "sgd"], {"val": "test"}, {"lr_search": 3}, "--val test holds out none"),
        (["adam", "sgd"], {"val": "none"}, {"lr_search": 3}, "--val none holds out none"),
    ],
)
def test_invalid_arguments_are_refused(
    specs: list[str], settings: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        make_plan(specs, settings, **more)


def test_options_of_later_versions_are_part_of_the_identity_only_if_they_differ() -> None:
    plan = make_plan(["muon", "muon:renormalize=all"], {"net": "res18"})
    default, other = (each["opt_options"] for each in plan.identity()["optimizers"].values())
    assert "renormalize" not in default and other["renormalize"] == "all"
    muon = plan.identity()["optimizers"]["muon"]
    assert set(muon["net_options"]).isdisjoint({"bn_momentum", "bn_scale"}) and muon["aug_options"] == {}
    shifted = make_plan(["adam", "sgd"], {"aug": "randaug:padding=2"}).identity()["optimizers"]["adam"]
    assert shifted["aug_options"] == {"n": 2, "m": 9, "padding": 2}


def test_settings_of_later_versions_are_part_of_the_identity_only_if_they_differ(tmp_path: Path) -> None:
    """Comparisons that earlier versions started are found again."""
    one, two, three = (
        make_plan(["adam", "sgd"], settings).identity()["optimizers"]["adam"]
        for settings in ({}, {"dataset": str(tmp_path)}, {"dataset": str(tmp_path), "holdout_by": "position"})
    )
    assert not set(_ADDED) & {*one}
    assert {*three} & set(_ADDED) == {"value_range"}
    assert {name: two[name] for name in _ADDED if name in two} == {"holdout_by": "identity", "value_range": "auto"}
