"""Each resolution rule in isolation: how it changes a draft, and what it refuses."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitctl.config import resolution as rules
from vitctl.config import resolve_config
from vitctl.config.resolution import RULES, Draft
from vitctl.data import CROP_DEFAULTS
from vitctl.errors import RequestError
from vitctl.models import MODELS, find_model
from vitctl.optim import OPTIMIZERS, find_optimizer
from vitctl.recipes import RECIPES, Recipe

Rule = Callable[[Draft], None]

RECIPE = Recipe(
    summary="for these tests",
    settings={"net": "cct_2:depth=1", "opt": "muon", "bs": 64, "lr": 0.5},
    epochs={"digits": 7, "*": 3},
    by_net={"vit*": {"lr_factor": 0.25}, "cct_4": {"opt": "adam"}},
    by_time={60: {"net": "cct_4"}},
    by_epochs={1: {"bs": 8}},
    pretrained={"lr_factor": 0.125, "layer_decay": 0.75},
    net_options={"depth": 5, "pool": "avg"},
    opt_options={"muon": {"momentum": 0.75}},
)


def draft(
    *,
    flags: dict[str, Any] | None = None,
    file: dict[str, Any] | None = None,
    net: str = "cct_2",
    opt: str = "muon",
    settings: dict[str, Any] | None = None,
    **attributes: Any,
) -> Draft:
    """Return a draft with recipe, network and optimizer already chosen."""
    chosen = {"net": net, "opt": opt, "dataset": "cifar10", "data_dir": None, "pretrained": "false"}
    result = Draft(flags=flags or {}, file=file or {}, settings={**chosen, **(settings or {})})
    result.recipe, result.net_entry, result.opt_entry = RECIPE, find_model(net), find_optimizer(opt)
    for name, value in attributes.items():
        assert hasattr(result, name)
        setattr(result, name, value)
    return result


FILE_CASES: list[tuple[Rule, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # rule, flags, file before, file after
    (
        rules.split_file_specs,
        {},
        {"net": "vit:depth=2", "net_options": {"pool": "avg"}, "opt": "adam:lr=0.5,beta1=0.8", "aug": "randaug:n=1"},
        {
            "net": "vit", "net_options": {"pool": "avg", "depth": "2"}, "opt": "adam", "lr": 0.5,
            "opt_options": {"beta1": "0.8"}, "aug": "randaug", "aug_options": {"n": "1"},
        },
    ),
    (rules.merge_warmup_units, {}, {"warmup_epochs": 2.5}, {"warmup": "2.5ep"}),
    (rules.merge_warmup_units, {}, {"warmup_steps": 0, "lr": 1.0}, {"warmup": 0.0, "lr": 1.0}),
    (rules.split_file_specs, {}, {"aug": True}, {"aug": True}),
    (
        rules.drop_warmup_if_onecycle_changes,
        {"schedule": "onecycle"},
        {"schedule": "linear", "warmup": 0.1},
        {"schedule": "linear"},
    ),
    (
        rules.drop_warmup_if_onecycle_changes,
        {"schedule": "cosine"},
        {"schedule": "linear", "warmup": 0.1},
        {"schedule": "linear", "warmup": 0.1},
    ),
    (rules.drop_warmup_if_onecycle_changes, {"schedule": "onecycle"}, {"warmup": 0.1}, {"warmup": 0.1}),
    (
        rules.drop_defaults_of_replaced_choices,
        {"recipe": "seed"},
        {"recipe": "default", "net": "hybrid_tiny", "bs": 250, "clip_grad": 0.5, "epochs": 10},
        {"recipe": "default", "clip_grad": 0.5},
    ),
    (rules.drop_defaults_of_replaced_choices, {"recipe": "default"}, {"bs": 128}, {"bs": 128}),
    (rules.drop_defaults_of_replaced_choices, {"opt": "adam"}, {"bs": 128}, {"bs": 128}),
    (
        rules.drop_defaults_of_replaced_choices,  # the data set cannot be resolved
        {"dataset": "digits"},
        {"dataset": "./nowhere", "bs": 128},
        {"dataset": "./nowhere", "bs": 128},
    ),
    (
        rules.drop_file_net_options,
        {"net": "vit"},
        {"net": "vit", "net_options": {"depth": 2}, "patch": 8, "convkernel": 3, "bs": 1},
        {"net": "vit", "bs": 1},
    ),
    (rules.drop_file_net_options, {}, {"patch": 8}, {"patch": 8}),
    (
        rules.drop_file_opt_options,
        {"opt": "adan"},
        {"opt": "adan", "opt_options": {"eps": 1.0}, "adan_beta1": 0.1, "lr": 1.0},
        {"opt": "adan", "lr": 1.0},
    ),
    (rules.drop_file_opt_options, {}, {"adan_beta1": 0.1}, {"adan_beta1": 0.1}),
    (rules.drop_file_aug_options, {"aug": "randaug"}, {"aug_options": {"n": 1}, "erase": 0.1}, {"erase": 0.1}),
    (rules.drop_file_aug_options, {}, {"aug_options": {"n": 1}}, {"aug_options": {"n": 1}}),
    (
        rules.drop_rates_of_replaced_opt,
        {"opt": "adam:beta1=0.8"},
        {"opt": "sgd", "lr": 0.1, "weight_decay": 0.1, "clip_grad": 2.0, "bs": 1},
        {"opt": "sgd", "bs": 1},
    ),
    (rules.drop_rates_of_replaced_opt, {"opt": "adam:eps=1"}, {"opt": "adam", "lr": 0.1}, {"opt": "adam", "lr": 0.1}),
    (rules.drop_rates_of_replaced_opt, {"opt": "adam"}, {"recipe": "fast", "lr": 0.1}, {"recipe": "fast"}),
    (rules.drop_rates_of_replaced_opt, {"opt": "adam"}, {"lr": 0.1}, {"lr": 0.1}),
    (rules.drop_rates_of_replaced_opt, {"opt": "adam"}, {"opt": "sgd", "lr_scale": {"head": 2.0}}, {"opt": "sgd"}),
    (rules.drop_loss_sum_without_validation, {"val": "none"}, {"loss_sum": True}, {}),
    (rules.drop_loss_sum_without_validation, {"val": "test"}, {"loss_sum": True}, {"loss_sum": True}),
    (rules.drop_warmdown_of_replaced_schedule, {"schedule": "cosine"}, {"warmdown": 0.2}, {}),
    (rules.drop_warmdown_of_replaced_schedule, {"schedule": "constant"}, {"warmdown": 0.2}, {"warmdown": 0.2}),
    (rules.drop_warmdown_of_replaced_schedule, {}, {"warmdown": 0.2}, {"warmdown": 0.2}),
    (rules.drop_replaced_length, {"max_steps": 5}, {"epochs": 2, "max_time": "60s", "bs": 1}, {"bs": 1}),
    (rules.drop_replaced_length, {"bs": 1}, {"epochs": 2}, {"epochs": 2}),
    (rules.drop_replaced_length, {"epochs": 2}, {"max_steps": 9, "refits": [[3, 7]]}, {}),
    (rules.drop_length_fitted_to_other_settings, {"bs": 1}, {"max_time": "9s", "max_steps": 9, "refits": []}, {"max_time": "9s"}),
    (rules.drop_length_fitted_to_other_settings, {"keep": 1}, {"max_time": "9s", "refits": []}, {"max_time": "9s", "refits": []}),
    (rules.drop_length_fitted_to_other_settings, {"bs": 1}, {"max_time": "9s", "max_steps": 9}, {"max_time": "9s", "max_steps": 9}),
    (rules.drop_length_fitted_to_other_settings, {"bs": 1}, {"max_steps": 9, "refits": []}, {"max_steps": 9, "refits": []}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "flags", "file", "left"), FILE_CASES)
def test_a_rule_changes_the_file(rule: Rule, flags: dict[str, Any], file: dict[str, Any], left: dict[str, Any]) -> None:
    subject = draft(flags=flags, file=dict(file))
    settings = dict(subject.settings)
    rule(subject)
    assert subject.file == left and subject.settings == settings and subject.flags == flags


SETTINGS_CASES: list[tuple[Rule, dict[str, Any], dict[str, Any]]] = [
    # rule, draft before, settings after; None for a setting that must be absent
    (rules.choose_dataset, {}, {"dataset": "cifar10", "data_dir": None}),
    (
        rules.choose_dataset,
        {"flags": {"dataset": "digits"}, "file": {"data_dir": "/data"}},
        {"dataset": "digits", "data_dir": "/data"},
    ),
    (rules.choose_holdout_rule, {}, {"holdout_by": "position"}),
    (rules.choose_holdout_rule, {"settings": {"dataset": "folder"}}, {"holdout_by": "identity"}),
    (
        rules.choose_holdout_rule,
        {"settings": {"dataset": "folder"}, "file": {"holdout_by": "position"}},
        {"holdout_by": "position"},
    ),
    (rules.choose_net, {"net": "vit"}, {"net": "cct_2"}),
    (rules.choose_net, {"seconds": 60.0}, {"net": "cct_4"}),
    (rules.choose_net, {"file": {"net": "swin"}, "flags": {"net": "vit:depth=2"}}, {"net": "vit"}),
    (rules.choose_net_of_flag, {"flags": {"patch": 2}}, {"net": "vit"}),
    (rules.choose_net_of_flag, {"file": {"convkernel": 5}}, {"net": "convmixer"}),
    (rules.choose_net_of_flag, {"flags": {"dimhead": 64}}, {"net": "cct_2"}),  # it has the option
    (rules.choose_net_of_flag, {"flags": {"patch": 2, "net": "res18"}, "net": "res18"}, {"net": "res18"}),
    (rules.choose_weights, {}, {"pretrained": "false"}),
    (rules.choose_weights, {"net": "vit_timm"}, {"pretrained": "true"}),
    (rules.choose_weights, {"net": "vit_timm", "flags": {"pretrained": "no"}}, {"pretrained": "false"}),
    (rules.choose_opt, {"opt": "sgd"}, {"opt": "muon"}),
    (rules.choose_opt, {"net": "cct_4"}, {"opt": "adam"}),
    (rules.choose_opt, {"file": {"opt": "sgd"}, "flags": {"opt": "adan:beta1=0.1"}}, {"opt": "adan"}),
    (rules.fill_in_from_recipe, {}, {"net": "cct_2", "bs": 64, "lr": 0.5, "epochs": 3, "lr_factor": 1.0}),
    (
        rules.fill_in_from_recipe,
        {"net": "vit", "file": {"bs": 2, "lr": 3}, "flags": {"lr": 4}, "settings": {"dataset": "digits"}},
        {"net": "vit", "bs": 2, "lr": 4, "epochs": 7, "lr_factor": 0.25},
    ),
    (rules.fill_in_from_recipe, {"flags": {"epochs": 1}}, {"bs": 8, "epochs": 1}),
    (rules.fill_in_from_recipe, {"settings": {"pretrained": "true"}}, {"layer_decay": 0.75, "lr_factor": 0.125}),
    (
        rules.keep_only_the_given_length,
        {"flags": {"max_steps": 9}, "settings": {"epochs": 3}},
        {"epochs": None, "max_steps": 9, "max_time": None},
    ),
    (rules.keep_only_the_given_length, {"settings": {"epochs": 3}}, {"epochs": 3}),
    # The recipe's pool is dropped, as cct_2 has no such option.
    (rules.collect_net_options, {"net_inline": {"depth": "1"}}, {"net_options": {"depth": "1"}}),
    (
        rules.collect_net_options,
        {"net_inline": {"depth": "1"}, "file": {"net_options": {"depth": 2}}},
        {"net_options": {"depth": 2}},
    ),
    (
        rules.collect_net_options,
        {"net": "vit", "net_inline": {"depth": "1"}, "flags": {"net": "vit:depth=1", "net_options": {"depth": 2}}},
        {"net_options": {"depth": "1", "pool": "avg"}},
    ),
    (
        rules.apply_net_flags,
        {"net": "vit", "flags": {"patch": 8}, "settings": {"net_options": {"depth": 1}}},
        {"net_options": {"depth": 1, "patch_size": 8}},
    ),
    (
        rules.apply_net_flags,
        {"net": "convmixer", "file": {"convkernel": 5}, "settings": {"net_options": {}}},
        {"net_options": {"kernel_size": 5}},
    ),
    (
        rules.fill_in_net_options,
        {"net": "res18", "settings": {"net_options": {"width": "16"}}},
        {"net_options": {**{name: option.default for name, option in MODELS["res18"].options.items()}, "width": 16}},
    ),
    (rules.choose_lr_factors, {"settings": {"lr_factor": 0.5}}, {"lr_factor": None}),
    (
        rules.collect_opt_options,
        {"opt_inline": {"eps": "1"}, "flags": {"opt": "muon:eps=1"}, "second_lr_factor": 0.5},
        {"opt_options": {"momentum": 0.75, "adamw_lr": 0.0015, "eps": "1"}},
    ),
    (
        rules.collect_opt_options,
        {"file": {"opt_options": {"adamw_lr": 0.1}}, "second_lr_factor": 0.5},
        {"opt_options": {"momentum": 0.75, "adamw_lr": 0.1}},
    ),
    (rules.collect_opt_options, {"opt": "sgd", "second_lr_factor": 0.5}, {"opt_options": {}}),
    (
        rules.apply_adan_betas,
        {"opt": "adan", "flags": {"adan_beta1": 0.1}, "settings": {"opt_options": {"beta1": 0.3}}},
        {"opt_options": {"beta1": 0.1}},
    ),
    (
        rules.fill_in_opt_options,
        {"opt": "sgd", "settings": {"opt_options": {"momentum": "0.5"}}},
        {"opt_options": {"momentum": 0.5, "nesterov": True}},
    ),
    (
        rules.settle_nesterov,
        {"opt": "sgd", "settings": {"opt_options": {"momentum": 0.0, "nesterov": True}}},
        {"opt_options": {"momentum": 0.0, "nesterov": False}},
    ),
    (
        rules.settle_nesterov,
        {"opt": "sgd", "settings": {"opt_options": {"momentum": 0.5, "nesterov": True}}},
        {"opt_options": {"momentum": 0.5, "nesterov": True}},
    ),
    (rules.scale_recipe_lr, {"settings": {"lr": 0.5}, "lr_factor": 0.5}, {"lr": 0.25}),
    (rules.scale_recipe_lr, {"settings": {"lr": 0.5}, "lr_factor": 0.5, "file": {"lr": 0.5}}, {"lr": 0.5}),
    (rules.scale_recipe_lr, {"lr_factor": 0.5}, {"lr": None}),
    (
        rules.apply_rates_of_opt,
        {"opt_rates": {"lr": 0.25}, "settings": {"lr": 1.0, "weight_decay": 2.0}, "file": {"lr": 1.0}},
        {"lr": 0.25, "weight_decay": 2.0},
    ),
    (rules.fill_in_rates, {"opt": "adan", "lr_factor": 0.5}, {"lr": 0.0005, "weight_decay": 0.02}),
    (rules.fill_in_rates, {"settings": {"lr": 1.0, "weight_decay": 2.0}}, {"lr": 1.0, "weight_decay": 2.0}),
    (rules.merge_lr_scale, {}, {"lr_scale": {}}),
    (
        rules.merge_lr_scale,
        {
            "preset": {"lr_scale": {"head": 2.0, "norm_bias": 64.0, "matrices": 3.0}},
            "file": {"lr_scale": {"norm_bias": 8.0, "matrices": 4.0}},
            "flags": {"lr_scale": {"matrices": 5.0}},
        },
        {"lr_scale": {"head": 2.0, "matrices": 5.0, "norm_bias": 8.0}},
    ),
    (
        rules.merge_lr_scale,  # not the recipe's optimizer
        {"preset": {"lr_scale": {"head": 2.0}}, "opt": "adamw", "flags": {"lr_scale": {"norm_bias": 8.0}}},
        {"lr_scale": {"norm_bias": 8.0}},
    ),
    (
        rules.merge_lr_scale,  # the recipe's optimizer for this network
        {"preset": {"lr_scale": {"head": 2.0}}, "net": "cct_4", "opt": "adam"},
        {"lr_scale": {"head": 2.0}},
    ),
    (
        rules.merge_lr_scale,
        {"preset": {"lr_scale": {"head": 2.0, "norm_bias": 64.0}}, "settings": {"freeze_backbone": True}},
        {"lr_scale": {"head": 2.0}},
    ),
    (
        rules.replace_recipe_warmup_of_onecycle,
        {"settings": {"schedule": "onecycle", "warmup": 0.1}},
        {"warmup": rules.ONECYCLE_RISE},
    ),
    (
        rules.replace_recipe_warmup_of_onecycle,
        {"settings": {"schedule": "onecycle", "warmup": 0.1}, "file": {"warmup": 0.1}},
        {"warmup": 0.1},
    ),
    (rules.replace_recipe_warmup_of_onecycle, {"settings": {"schedule": "linear", "warmup": 0.1}}, {"warmup": 0.1}),
    (
        rules.remove_recipe_warmdown_of_other_schedules,
        {"settings": {"schedule": "linear", "warmdown": 0.1}},
        {"warmdown": None},
    ),
    (
        rules.remove_recipe_warmdown_of_other_schedules,
        {"settings": {"schedule": "linear", "warmdown": 0.1}, "flags": {"warmdown": 0.1}},
        {"warmdown": 0.1},
    ),
    (
        rules.remove_recipe_warmdown_of_other_schedules,
        {"settings": {"schedule": "constant", "warmdown": 0.1}},
        {"warmdown": 0.1},
    ),
    (rules.fill_in_size, {"net": "vit_timm"}, {"size": 384}),
    (rules.fill_in_size, {"net": "vit_timm", "settings": {"size": 64}}, {"size": 64}),
    (rules.measure_value_range_of_folders, {"settings": {"dataset": "folder"}}, {"value_range": "auto"}),
    (
        rules.measure_value_range_of_folders,
        {"settings": {"dataset": "folder", "value_range": "0,1"}},
        {"value_range": "0,1"},
    ),
    (rules.measure_value_range_of_folders, {"settings": {"dataset": "digits"}}, {"dataset": "digits"}),
    (rules.fill_in_wandb, {}, {"wandb": "disabled"}),
    (rules.fill_in_wandb, {"settings": {"wandb": "offline"}}, {"wandb": "offline"}),
    (rules.reset_recipe_layer_decay, {"settings": {"layer_decay": 0.5}}, {"layer_decay": 1.0}),
    (
        rules.reset_recipe_layer_decay,
        {"settings": {"layer_decay": 0.5, "pretrained": "true", "freeze_backbone": True}},
        {"layer_decay": 1.0},
    ),
    (rules.reset_recipe_layer_decay, {"settings": {"layer_decay": 0.5, "pretrained": "true"}}, {"layer_decay": 0.5}),
    (
        rules.reset_recipe_layer_decay,
        {"settings": {"layer_decay": 0.5}, "flags": {"layer_decay": 0.5}},
        {"layer_decay": 0.5},
    ),
    (rules.fill_in_aug, {"settings": {"aug": True}, "preset": {"aug": "basic"}}, {"aug": "randaug"}),
    (rules.fill_in_aug, {"settings": {"aug": True}, "preset": {"aug": "randaug:m=3"}}, {"aug": "randaug:m=3"}),
    (rules.fill_in_aug, {"settings": {"aug": "none"}, "preset": {"aug": "randaug:m=3"}}, {"aug": "none"}),
    (rules.choose_aug, {}, {"aug": "basic", "aug_options": CROP_DEFAULTS}),
    (
        rules.choose_aug,  # from the recipe
        {"settings": {"aug": "randaug:n=1,m=3"}, "file": {"aug_options": {"m": 5}}},
        {"aug": "randaug", "aug_options": {"n": 1, "m": 5, **CROP_DEFAULTS}},
    ),
    (
        rules.choose_aug,
        {"settings": {"aug": "randaug:m=3"}, "flags": {"aug": "randaug:m=3", "aug_options": {"m": 5}}},
        {"aug": "randaug", "aug_options": {"n": 2, "m": 3, **CROP_DEFAULTS}},
    ),
    (
        rules.fill_in_mixing,
        {"settings": {"mixup": True, "cutmix": True}, "preset": {"mixup": 0.25}},
        {"mixup": 0.25, "cutmix": 1.0},
    ),
    (rules.fill_in_mixing, {"settings": {"mixup": 0.5}, "preset": {"mixup": 0.25}}, {"mixup": 0.5, "cutmix": None}),
    (rules.settle_mix_off, {"settings": {"mix_off": 0.5, "cutmix": 1.0}}, {"mix_off": 0.5}),
    (rules.settle_mix_off, {"settings": {"mix_off": 0.5}}, {"mix_off": 0.0}),
    (rules.settle_mix_off, {"file": {"mix_off": 0.5}, "flags": {"mixup": 0.0}}, {"mix_off": 0.0}),
    (rules.remove_recipe_loss_sum, {"settings": {"val": "none", "loss_sum": True}}, {"loss_sum": False}),
    (
        rules.remove_recipe_loss_sum,
        {"settings": {"val": "none", "loss_sum": True}, "flags": {"loss_sum": True}},
        {"loss_sum": True},
    ),
    (rules.remove_recipe_loss_sum, {"settings": {"val": "test", "loss_sum": True}}, {"loss_sum": True}),
    (
        rules.remove_option_flags,
        {"settings": {"patch": 1, "convkernel": 1, "adan_beta1": 1, "adan_beta2": 1, "adan_beta3": 1, "bs": 1}},
        {"patch": None, "convkernel": None, "adan_beta1": None, "adan_beta2": None, "adan_beta3": None, "bs": 1},
    ),
]


@pytest.mark.parametrize(("rule", "before", "after"), SETTINGS_CASES)
def test_a_rule_changes_the_settings(
    monkeypatch: pytest.MonkeyPatch, rule: Rule, before: dict[str, Any], after: dict[str, Any]
) -> None:
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    subject = draft(**before)
    unchanged = {name: value for name, value in subject.settings.items() if name not in after}
    rule(subject)
    assert {name: subject.settings.get(name) for name in after} == after
    assert unchanged.items() <= subject.settings.items()
    assert (subject.flags, subject.file) == (before.get("flags", {}), before.get("file", {}))


ATTRIBUTE_CASES: list[tuple[Rule, dict[str, Any], dict[str, Any]]] = [
    # rule, draft before, attributes after
    (rules.choose_recipe, {}, {"recipe": RECIPES["default"]}),
    (rules.choose_recipe, {"file": {"recipe": "seed"}, "flags": {"recipe": "fast"}}, {"recipe": RECIPES["fast"]}),
    (rules.choose_time, {"flags": {"max_time": "2m"}}, {"seconds": 120.0}),
    (rules.choose_time, {"flags": {"max_time": None}}, {"seconds": None}),
    (rules.choose_net, {"net": "vit"}, {"net_entry": MODELS["cct_2"], "net_inline": {"depth": "1"}}),
    (
        rules.choose_net,
        {"flags": {"net": "vit:dim=3"}},
        {"net_entry": MODELS["vit"], "net_inline": {"dim": "3"}},
    ),
    (
        rules.choose_opt,
        {"flags": {"opt": "sgd:lr=1"}},
        {"opt_entry": OPTIMIZERS["sgd"], "opt_inline": {"lr": "1"}},
    ),
    (rules.choose_lr_factors, {"settings": {"lr_factor": 0.5}}, {"lr_factor": 1.0, "second_lr_factor": 0.5}),
    (rules.choose_lr_factors, {"opt": "adam", "settings": {"lr_factor": 0.5}}, {"lr_factor": 0.5}),
    (
        rules.choose_lr_factors,
        {"settings": {"lr_factor": 0.5, "pretrained": "true"}},
        {"lr_factor": 0.125, "second_lr_factor": 0.5},
    ),
    (
        rules.split_rates_from_opt,
        {"opt_inline": {"lr": "1e-3", "eps": "1", "weight_decay": "2"}},
        {"opt_inline": {"eps": "1"}, "opt_rates": {"lr": 1e-3, "weight_decay": 2.0}},
    ),
]


@pytest.mark.parametrize(("rule", "before", "after"), ATTRIBUTE_CASES)
def test_a_rule_sets_attributes_for_later_rules(rule: Rule, before: dict[str, Any], after: dict[str, Any]) -> None:
    subject = draft(**before)
    rule(subject)
    assert {name: getattr(subject, name) for name in after} == after


def test_the_preset_of_the_recipe_is_stored() -> None:
    subject = draft(flags={"bs": 2})
    rules.fill_in_from_recipe(subject)
    assert subject.preset["bs"] == 64 and subject.settings["bs"] == 2


REFUSED: list[tuple[Rule, dict[str, Any], str]] = [
    (
        rules.split_file_specs,
        {"file": {"opt": "adam:lr=1", "lr": 2}},
        "opt adam:lr=... and lr both set lr\nhint: remove lr from the file",
    ),
    (rules.split_file_specs, {"file": {"net": "vit:patch_size=8", "patch": 4}}, "and patch both set patch_size"),
    (
        rules.split_file_specs,
        {"file": {"aug": "randaug:n=1", "aug_options": {"n": 2}}},
        "and aug_options.n both set n",
    ),
    (
        rules.drop_rates_of_replaced_opt,
        {"flags": {"opt": "adam:"}},
        "--opt 'adam:' is incomplete\nhint: use --opt NAME",
    ),
    (rules.choose_recipe, {"flags": {"recipe": "fats"}}, "did you mean fast"),
    (
        rules.choose_dataset,
        {"flags": {"dataset": "./nowhere"}},
        "no such folder\nhint: use --dataset digits, cifar10, cifar100, mnist, fashionmnist, kmnist, svhn or stl10",
    ),
    (rules.choose_time, {"file": {"max_time": "soon"}}, "--max-time takes a duration"),
    (rules.merge_warmup_units, {"flags": {"warmup": 0.1, "warmup_steps": 5}}, "--warmup and --warmup-steps both set"),
    (rules.choose_net, {"flags": {"net": "vitt"}}, "did you mean vit"),
    (
        rules.choose_weights,
        {"flags": {"pretrained": "true"}},
        "no pretrained weights for --net cct_2\nhint: use --net vit_timm",
    ),
    (rules.choose_weights, {"flags": {"pretrained": "nowhere.pt"}}, "no such file"),
    (rules.choose_opt, {"flags": {"opt": "adm"}}, "did you mean adam"),
    (
        rules.apply_net_flags,
        {"flags": {"patch": 8}},
        "--patch 8: --net cct_2 has no option patch_size\nhint: remove --patch, or use --net vit$",
    ),
    (rules.apply_net_flags, {"net": "swin", "flags": {"patch": 8}}, "hint: use --net swin:window_size=4"),
    (
        rules.apply_net_flags,
        {"net": "vit", "flags": {"convkernel": 3}},
        "--net vit has no option kernel_size\nhint: remove --convkernel, or use --net convmixer",
    ),
    (
        rules.apply_net_flags,
        {"net": "vit", "net_inline": {"patch_size": "4"}, "flags": {"net": "vit:patch_size=4", "patch": 8}},
        "--patch and --net vit:patch_size=... both set patch_size",
    ),
    (rules.fill_in_net_options, {"settings": {"net_options": {"dept": 1}}}, "did you mean depth"),
    (rules.split_rates_from_opt, {"opt_inline": {"lr": "fast"}}, "--lr takes a number"),
    (
        rules.apply_adan_betas,
        {"flags": {"adan_beta1": 0.1}},
        "does nothing with --opt muon\nhint: use --opt muon:beta1=0.9",
    ),
    (
        rules.apply_adan_betas,
        {"opt": "sgd", "flags": {"adan_beta1": 0.1}},
        "does nothing with --opt sgd\nhint: remove --adan-beta1",
    ),
    (
        rules.apply_adan_betas,
        {"opt": "adan", "opt_inline": {"beta1": "0.2"}, "flags": {"adan_beta1": 0.1}},
        "--adan-beta1 and --opt adan:beta1=... both set beta1",
    ),
    (rules.fill_in_opt_options, {"settings": {"opt_options": {"ns_step": 1}}}, "did you mean ns_steps"),
    (
        rules.settle_nesterov,
        {
            "opt": "sgd",
            "flags": {"opt": "sgd:nesterov=yes,momentum=0"},
            "opt_inline": {"nesterov": "yes", "momentum": "0"},
            "settings": {"opt_options": {"momentum": 0.0, "nesterov": True}},
        },
        "nesterov=true needs momentum",
    ),
    (
        rules.apply_rates_of_opt,
        {"opt_rates": {"weight_decay": 0.1}, "flags": {"weight_decay": 0.2}},
        "--opt muon:weight_decay=... and --weight-decay both set weight_decay",
    ),
    (
        rules.refuse_zero_lr_with_a_second,
        {"settings": {"lr": 0.0}},
        "--lr 0 would also set the adamw_lr of --opt muon to 0",
    ),
    (
        rules.refuse_unused_wandb_flags,
        {"settings": {"wandb": "disabled"}, "flags": {"wandb_group": "g"}},
        "--wandb-group 'g' does nothing with --wandb disabled",
    ),
    (rules.choose_aug, {"settings": {"aug": "bazic"}}, "did you mean basic"),
    (rules.choose_aug, {"file": {"aug_options": {"n": 1}}}, "--aug basic has no option 'n'"),
    (
        rules.settle_mix_off,
        {"flags": {"mix_off": 0.5, "mixup": 0.0}},
        "--mix-off 0.5 does nothing without --mixup or --cutmix",
    ),
    (rules.settle_mix_off, {"file": {"mix_off": 0.5}}, "hint: add --mixup or --cutmix"),
]


@pytest.mark.parametrize(("rule", "before", "message"), REFUSED)
def test_a_rule_refuses_bad_settings(rule: Rule, before: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        rule(draft(**before))
    assert refused.value.hint


@pytest.mark.parametrize(
    ("rule", "before"),
    [
        (rules.refuse_zero_lr_with_a_second, {"settings": {"lr": 1e-9}}),
        (rules.refuse_zero_lr_with_a_second, {"opt": "adam", "settings": {"lr": 0.0}}),
        (rules.refuse_unused_wandb_flags, {"settings": {"wandb": "offline"}, "flags": {"wandb_group": "g"}}),
        (rules.refuse_unused_wandb_flags, {"settings": {"wandb": "disabled"}, "file": {"wandb_group": "g"}}),
    ],
)
def test_a_rule_accepts_valid_settings(rule: Rule, before: dict[str, Any]) -> None:
    subject = draft(**before)
    settings = dict(subject.settings)
    rule(subject)
    assert subject.settings == settings


def test_a_folder_is_accepted_as_a_data_set(tmp_path: Path) -> None:
    subject = draft(flags={"dataset": str(tmp_path)})
    rules.choose_dataset(subject)
    assert (subject.settings["dataset"], subject.settings["data_dir"]) == ("folder", str(tmp_path))


def test_wandb_is_on_by_default_under_a_wandb_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    subject = draft()
    rules.fill_in_wandb(subject)
    assert subject.settings["wandb"] == "online"


def test_every_rule_is_tested() -> None:
    tested = {case[0] for table in (FILE_CASES, SETTINGS_CASES, ATTRIBUTE_CASES, REFUSED) for case in table}
    assert tested == set(RULES) and len(RULES) == len(set(RULES))


@pytest.mark.parametrize(
    ("flags", "settings", "message"),
    [
        ({"warmup": 0.1}, {"warmup": 0.1, "schedule_per": "epoch", "epochs": 10}, "hint: use --schedule-per step, or --warmup above 0.1"),
        ({"warmup": 0.1}, {"warmup": 0.1, "schedule_per": "epoch", "epochs": 1}, "hint: use --schedule-per step$"),
        ({"warmup": 0.1}, {"warmup": 0.1, "schedule_per": "step", "epochs": 10}, None),
        ({"warmup": 0.1}, {"warmup": 0.11, "schedule_per": "epoch", "epochs": 10}, None),
        ({}, {"warmup": 0.1, "schedule_per": "epoch", "epochs": 10}, None),
        ({"warmup": 0.1}, {"warmup": 0.1, "schedule_per": "epoch", "epochs": 10, "max_steps": 5}, None),
    ],
)  # fmt: skip
def test_a_warmup_within_the_first_epoch_is_refused(
    flags: dict[str, Any], settings: dict[str, Any], message: str | None
) -> None:
    subject, config = draft(flags=flags), dataclasses.replace(resolve_config({}), **settings)
    if message is None:
        rules.refuse_warmup_within_the_first_epoch(subject, config)
        return
    with pytest.raises(RequestError, match=message):
        rules.refuse_warmup_within_the_first_epoch(subject, config)


def test_rates_that_the_optimizer_rejects_are_refused() -> None:
    config = resolve_config({"opt": "timm/madgrad"})
    rules.refuse_rates_of_optimizer(draft(opt="timm/madgrad"), config)
    with pytest.raises(RequestError, match="timm/madgrad rejects --lr 0 or"):
        rules.refuse_rates_of_optimizer(draft(opt="timm/madgrad"), dataclasses.replace(config, lr=0.0))


def test_a_size_that_the_network_rejects_is_refused() -> None:
    config = resolve_config({"net": "vit"})
    rules.refuse_size_of_network(draft(net="vit"), config)
    with pytest.raises(RequestError, match="--size 30"):
        rules.refuse_size_of_network(draft(net="vit"), dataclasses.replace(config, size=30))
