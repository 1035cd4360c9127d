import itertools
import json
import re
from typing import Any

import pytest

from vitctl.config import FLAGS, TrainConfig, normalise_keys, resolve_config
from vitctl.errors import RequestError
from vitctl.models import MODELS
from vitctl.optim import OPTIMIZERS, doubtful_betas
from vitctl.recipes import RECIPES, Recipe


@pytest.mark.parametrize("value", [True, False])
def test_pretrained_may_be_a_boolean_in_a_file(value: bool) -> None:
    assert (
        resolve_config({}, normalise_keys({"net": "timm/resnet18", "pretrained": value}, "f")).pretrained
        == str(value).lower()
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_combination_resolves_and_survives_json(recipe: str) -> None:
    for net, opt in itertools.product(MODELS, OPTIMIZERS):
        config = resolve_config({"recipe": recipe, "net": net, "opt": opt})
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config, (net, opt)
        assert (config.net, config.opt, config.recipe) == (net, opt, recipe)
        assert config.net_options.keys() == MODELS[net].options.keys(), (net, opt)


def test_a_printed_config_is_a_config_file() -> None:
    config = resolve_config({"recipe": "seed", "net": "vit:depth=2", "patch": 8, "opt": "adan", "adan_beta1": 0.03})
    assert resolve_config({}, normalise_keys(config.to_dict(), "file")) == config


def test_flags_override_the_file_and_the_file_the_recipe() -> None:
    assert resolve_config({"recipe": "seed"}).lr == 1e-4
    assert resolve_config({"recipe": "seed"}, {"lr": 3e-4}).lr == 3e-4
    assert resolve_config({"recipe": "seed", "lr": 5e-4}, {"lr": 3e-4}).lr == 5e-4
    assert resolve_config({}, {"recipe": "seed"}).bs == 512
    assert resolve_config({"recipe": "default"}, {"recipe": "seed"}).bs == 250


def test_stored_runs_keep_what_they_did_before_an_option_existed() -> None:
    stored = resolve_config({"net": "hybrid_small"}).to_dict()
    assert (stored["net_options"].pop("late_groups"), stored["net_options"].pop("growth")) == (1, 3)
    options = TrainConfig.from_dict(stored).net_options
    assert (options["late_groups"], options["growth"]) == (0, 2)


def test_a_network_given_by_flag_ignores_the_options_of_the_file_s_network() -> None:
    file = normalise_keys({"net": "vit", "patch": 8, "opt": "sgd", "opt_options": {"momentum": 0.5}}, "file")
    assert resolve_config({}, file).net_options["patch_size"] == 8
    assert resolve_config({"net": "cct_2"}, file).net == "cct_2"
    assert resolve_config({"opt": "adam"}, file).opt == "adam"


def test_the_seed_recipe_reproduces_the_original_scripts() -> None:
    config = resolve_config({"recipe": "seed"})
    assert (config.net, config.opt, config.lr, config.bs, config.epochs) == ("vit", "adam", 1e-4, 512, 200)
    assert (config.schedule, config.schedule_per, config.warmup, config.label_smoothing) == ("cosine", "epoch", 0, 0)
    assert (config.val, config.decay_all, config.clip_grad) == ("test", True, 0)
    assert config.net_options["init"] == "predecessor" and config.net_options["dropout"] == 0.1
    assert resolve_config({"recipe": "seed", "net": "res18"}).lr == 1e-3
    assert resolve_config({"recipe": "seed", "opt": "sgd"}).opt_options == {"momentum": 0.0, "nesterov": False}
    assert resolve_config({"recipe": "seed", "opt": "adamw"}).weight_decay == 0.02
    adan = resolve_config({"recipe": "seed", "opt": "adan"})
    assert [adan.opt_options[f"beta{i}"] for i in (1, 2, 3)] == [0.02, 0.08, 0.01] and adan.weight_decay == 0.02


def test_a_given_length_replaces_those_of_file_and_recipe() -> None:
    assert resolve_config({"max_steps": 5}).epochs is None
    both = resolve_config({"max_steps": 5, "epochs": 2})
    assert (both.epochs, both.max_steps) == (2, 5)
    assert resolve_config({"epochs": 2}, {"max_steps": 5}).max_steps is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"net": "vitt"}, "unknown --net 'vitt'\nhint: did you mean vit"),
        ({"net": "vit", "patch": 5}, "--patch 5 does not divide --size 32\nhint: use --patch 1, 2, 4, 8, 16 or 32"),
        ({"net": "cct_2", "patch": 4}, "--patch 4: --net cct_2 has no option patch_size\nhint: remove --patch"),
        ({"net": "vit:dept=3"}, "did you mean depth"),
        ({"net": "vit:patch_size=4", "patch": 4}, "both set patch_size\nhint: remove --patch"),
        ({"opt": "adm"}, "unknown --opt 'adm'\nhint: did you mean adam"),
        ({"opt": "lamb"}, "hint: use adam, .* lion or timm/NAME"),
        ({"opt": "adan:lr=1e-3", "lr": 0.1}, "both set lr\nhint: remove --lr"),
        ({"opt": "adan:beta1=3"}, "beta1=3 is too large\nhint: use a value of more than 0 and at most 1"),
        (
            {"adan_beta1": 0.1, "opt": "adamw"},
            "--adan-beta1 does nothing with --opt adamw\nhint: use --opt adamw:beta1=0.9",
        ),
        ({"adan_beta1": 0.1, "opt": "sgd"}, "does nothing with --opt sgd\nhint: remove --adan-beta1"),
        ({"adan_beta1": 0.1, "opt": "adan_official"}, "hint: use --opt adan_official:beta1=0.9"),
        ({"opt": "adan_pytorch:beta2=0.1", "adan_beta2": 0.1}, "--opt adan_pytorch:beta2=... both set beta2"),
        ({"opt": "adan:beta3=0"}, "beta3=0 is too small\nhint: use a value of more than 0"),
        ({"opt": "adan", "adan_beta2": 1.5}, "--adan-beta2 1.5 is too large"),
        ({"opt": "adan_pytorch", "adan_beta1": 0.0}, "--adan-beta1 0 is too small"),
        ({"opt": "adan:eps=0"}, "eps=0 is too small\nhint: use a value of more than 0"),
        ({"opt": "adamw:beta2=1"}, "beta2=1 is too large\nhint: use a value of at least 0 and less than 1"),
        ({"opt": "muon:ns_step=3"}, "did you mean ns_steps"),
        ({"opt": "muon:adamw_lr=-1"}, "--opt muon:adamw_lr=-1 is too small\nhint: use 0 or more"),
        ({"opt": "muon", "lr": 0}, "--lr 0 would also set the adamw_lr of --opt muon to 0"),
        ({"opt": "muon:lr=-1"}, "--lr -1 is too small\nhint: use 0 or more"),
        ({"opt": "lion:lr=inf"}, "--lr takes a number"),
        ({"opt": "timm/lam"}, "did you mean timm/lamb"),
        ({"opt": "timm/lamb:esp=1"}, "did you mean eps"),
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"schedule": "linear", "warmdown": 0.2}, "--warmdown 0.2 does nothing with --schedule linear"),
        ({"schedule": "constant", "warmup": 0.6, "warmdown": 0.5}, "--warmup 0.6 and --warmdown 0.5 add up to more"),
        ({"recipe": "seeed"}, "did you mean seed"),
        ({"dataset": "cifar"}, "did you mean cifar10"),
        ({"dataset": "./nowhere"}, "no such folder"),
        ({"val": "none", "patience": 2}, "use --val holdout"),
        ({"micro_batch": "some"}, "--micro-batch takes auto or a number"),
        ({"net": "res18", "micro_batch": "16"}, "--micro-batch 16 does not work with --net res18"),
        ({"net": "res18", "bs": 1}, "--bs 1 does not work with --net res18"),
        ({"save_every": "often"}, "--save-every takes"),
    ],
)
def test_impossible_settings_are_refused(flags: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        resolve_config(flags)


def test_options_of_optimizers_are_stored() -> None:
    config = resolve_config({"opt": "muon:lr=0.03,adamw_lr=2e-3,ns_steps=6"})
    assert config.lr == 0.03 and config.opt_options["adamw_lr"] == 2e-3 and config.opt_options["ns_steps"] == 6
    assert config.weight_decay == OPTIMIZERS["muon"].weight_decay
    for name in ("adan", "adan_pytorch"):
        assert resolve_config({"opt": name, "adan_beta2": 0.11}).opt_options["beta2"] == 0.11
    lamb = resolve_config({"opt": "timm/lamb:eps=1e-4,trust_clip=true,lr=0.01"})
    assert (lamb.opt, lamb.lr) == ("timm/lamb", 0.01)
    assert (lamb.opt_options["eps"], lamb.opt_options["trust_clip"]) == (1e-4, True)
    assert TrainConfig.from_dict(json.loads(json.dumps(lamb.to_dict()))) == lamb


def test_recipes_scale_the_learning_rate_that_depends_on_the_width() -> None:
    narrow, wide = (resolve_config({"recipe": "fast", "net": net}) for net in ("cct_2", "vit"))
    assert narrow.lr == wide.lr == 0.02
    assert wide.opt_options["adamw_lr"] == narrow.opt_options["adamw_lr"] / 4  # type: ignore[operator]
    adam = [resolve_config({"recipe": "fast", "net": net, "opt": "adam"}).lr for net in ("cct_2", "vit")]
    assert adam[1] == adam[0] / 4
    of_the_recipe = [resolve_config({"recipe": "strong", "net": net}).lr for net in ("cct_7", "vit")]
    assert of_the_recipe == [5.5e-4, 5.5e-4 / 2]
    assert resolve_config({"recipe": "strong", "net": "vit", "lr": 1e-3}).lr == 1e-3
    assert resolve_config({"recipe": "fast", "net": "vit", "opt": "muon:adamw_lr=1e-3"}).opt_options["adamw_lr"] == 1e-3


def test_one_cycle_has_a_longer_warmup_and_constant_may_have_a_warmdown() -> None:
    assert resolve_config({"schedule": "onecycle"}).warmup == 0.3
    assert resolve_config({"schedule": "onecycle", "warmup": 0.1}).warmup == 0.1
    assert resolve_config({"schedule": "onecycle"}, {"warmup": 0.2}).warmup == 0.2
    assert resolve_config({"schedule": "linear", "net": "cct_2"}).warmup == 0.05
    trapezoid = resolve_config({"schedule": "constant", "warmdown": 0.4, "net": "cct_2"})
    assert (trapezoid.warmup, trapezoid.warmdown) == (0.05, 0.4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_only_set_existing_settings_and_options(recipe: str) -> None:
    each = RECIPES[recipe]
    further = [
        values
        for table in (each.by_net, each.by_opt, each.by_dataset, each.by_time, each.by_epochs)
        for values in table.values()
    ]
    for name in {name for values in (each.settings, *further) for name in values}:
        assert name in FLAGS or name == "lr_factor", name
    for opt, options in each.opt_options.items():
        assert options.keys() <= OPTIMIZERS[opt].options.keys()
    for option in each.net_options:
        assert any(option in entry.options for entry in MODELS.values()), option
    assert {"net", "opt"} <= each.settings.keys() and each.summary
    assert (
        "timm" in str(each.settings["net"])
        or resolve_config({"recipe": recipe}).net == str(each.settings["net"]).split(":")[0]
    )


def test_the_seed_recipe_s_learning_rate_is_used_only_with_the_original_optimizers() -> None:
    for opt in ("adam", "adamw", "sgd", "adan", "adan_pytorch"):
        assert resolve_config({"recipe": "seed", "opt": opt}).lr == 1e-4
    for opt in ("muon", "lion", "adan_official"):
        config = resolve_config({"recipe": "seed", "opt": opt})
        assert config.lr == OPTIMIZERS[opt].lr and config.decay_all


@pytest.mark.parametrize(
    ("opt", "warning"),
    [
        ("adan:beta1=0.98,beta3=0.99", "beta1=0.98 (default 0.02), beta3=0.99 (default 0.01)"),
        ("adan_official:beta2=0.08", "use beta2=0.92"),
        ("adamw:beta1=0.1", "use beta1=0.9"),
        ("timm/lamb:beta2=0.001", "use beta2=0.999"),
        ("adan:beta1=0.05,beta2=1", None),
        ("adam:beta1=0,beta2=0.95", None),
        ("sgd:momentum=0.1", None),
    ],
)
def test_betas_in_the_other_convention_cause_a_warning(opt: str, warning: str | None) -> None:
    config = resolve_config({"opt": opt})
    doubt = doubtful_betas(config.opt, config.opt_options)
    assert doubt is None if warning is None else doubt is not None and warning in doubt


def test_a_recipe_depends_on_max_time() -> None:
    short, medium, long = (resolve_config({"recipe": "fast", "max_time": text}) for text in ("60s", "10m", "1h"))
    assert [each.net for each in (short, medium, long)] == ["hybrid_tiny", "hybrid_small", "hybrid_base"]
    usual = resolve_config({"recipe": "fast"})
    assert (usual.net, usual.epochs) == ("hybrid_small", 4)
    asked = resolve_config({"recipe": "fast", "max_time": "60s", "net": "vit", "bs": 64})
    assert (asked.net, asked.bs, asked.aug) == ("vit", 64, "none")
    times: dict[float, dict[str, object]] = {60: {"net": "b"}, 600: {"net": "c", "bs": 2}}
    recipe = Recipe(summary="", settings={"net": "a", "bs": 1}, by_time=times, by_dataset={"digits": {"net": "d"}})
    assert [recipe.net("mnist", seconds) for seconds in (None, 1, 60, 61, 600, 601)] == ["a", "b", "b", "c", "c", "a"]
    assert recipe.net("digits", 60) == "d"


def test_a_recipe_s_optimizer_depends_on_the_network() -> None:
    hybrid, other = resolve_config({"recipe": "fast"}), resolve_config({"recipe": "fast", "net": "cct_4"})
    assert (hybrid.opt, other.opt) == ("muon_sgd", "muon")
    assert hybrid.lr_scale and not other.lr_scale
    assert resolve_config({"opt": "muon"}, {"recipe": "fast", "net": "cct_4", "lr": 0.07}).lr == 0.07


def test_a_recipe_depends_on_epochs() -> None:
    one, two, usual = (
        resolve_config({"recipe": "vit_small", **length}) for length in ({"epochs": 1}, {"epochs": 2}, {})
    )
    assert (one.bs, one.aug) == (64, "none")
    assert (two.bs, two.aug) == (usual.bs, usual.aug) == (128, "basic")
    assert resolve_config({"recipe": "vit_small", "max_steps": 100}).aug == "basic"
    asked = resolve_config({"recipe": "vit_small", "aug": "basic"}, {"epochs": 1, "bs": 16})
    assert (asked.epochs, asked.bs, asked.aug) == (1, 16, "basic")
    digits = resolve_config({"recipe": "vit_small", "epochs": 1, "dataset": "digits"})
    assert (digits.bs, digits.aug) == (32, "none")
    within = Recipe(summary="", settings={"bs": 1}, by_epochs={1: {"bs": 2}, 4: {"bs": 3}})
    assert [within.overrides("vit", "adam", "cifar10", None, n)["bs"] for n in (None, 1, 2, 4, 5)] == [1, 2, 3, 3, 1]


def test_a_recipe_may_give_its_length_in_steps() -> None:
    sprint = resolve_config({"recipe": "sprint"})
    assert sprint.max_steps and sprint.epochs is None and sprint.net_options["embed_dim"] == 64
    for length in ({"epochs": 2}, {"max_steps": 7}, {"max_time": "60s"}):
        longer = resolve_config({"recipe": "sprint", **length})
        assert {name: getattr(longer, name) for name in ("epochs", "max_steps", "max_time")} == {
            "epochs": None, "max_steps": None, "max_time": None, **length,
        }  # fmt: skip


def test_the_default_learning_rate_depends_on_network_and_data_set() -> None:
    base = OPTIMIZERS["adamw"].lr
    for net, dataset, scale in (
        ("cct_2", "cifar10", 2),
        ("cct_2", "digits", 1),
        ("vit", "cifar10", 0.25),
        ("vit", "digits", 0.125),
    ):
        assert resolve_config({"net": net, "dataset": dataset}).lr == pytest.approx(scale * base), (net, dataset)
    assert resolve_config({"net": "cct_2", "lr": 0.5}).lr == 0.5


def test_rates_in_a_file_are_dropped_if_a_flag_replaces_the_optimizer() -> None:
    file = resolve_config({"recipe": "fast"}).to_dict()
    file = {name: value for name, value in file.items() if value is not None}
    other = resolve_config({"opt": "adamw"}, normalise_keys(file, "f.yaml"))
    usual = resolve_config({"recipe": "fast", "opt": "adamw"})
    assert (other.lr, other.weight_decay, other.clip_grad) == (usual.lr, usual.weight_decay, usual.clip_grad)
    same = resolve_config({"opt": "muon:ns_steps=3"}, normalise_keys(file, "f.yaml"))
    assert (same.lr, same.clip_grad) == (0.02, 0.0)


def written(**settings: object) -> dict[str, object]:
    """Return the settings of a file that --print-config writes."""
    every = resolve_config(settings).to_dict()
    return normalise_keys({name: value for name, value in every.items() if value is not None}, "f.yaml")


@pytest.mark.parametrize(
    "of_file", [{}, {"recipe": "vit_small"}, {"recipe": "sprint"}, {"recipe": "seed", "net": "cct_4"}]
)
@pytest.mark.parametrize(
    "flags",
    [
        {"recipe": "seed"},
        {"recipe": "strong"},
        {"recipe": "sprint"},
        {"net": "vit"},
        {"net": "vit_timm"},
        {"dataset": "digits"},
    ],
)
def test_defaults_in_a_file_are_dropped_if_a_flag_replaces_recipe_network_or_data_set(
    of_file: dict[str, object], flags: dict[str, object]
) -> None:
    # Values that differ from the recipe are kept, such as the network of the last file.
    assert resolve_config(flags, written(**of_file)) == resolve_config({**of_file, **flags})


def test_other_values_in_a_file_are_kept_if_a_flag_replaces_the_network() -> None:
    file = written(lr=0.0123, bs=17, epochs=3)
    config = resolve_config({"net": "vit"}, file)
    assert (config.lr, config.bs, config.epochs) == (0.0123, 17, 3)
    assert resolve_config({"net": "hybrid_tiny"}, written()) == resolve_config({})


def test_flags_override_inline_options_in_a_file() -> None:
    file = {"opt": "muon:momentum=0.8,lr=0.03", "net": "cct_2:depth=1", "aug": "randaug:n=1"}
    config = resolve_config({"lr": 0.01}, file)
    assert (config.lr, config.opt_options["momentum"], config.net_options["depth"]) == (0.01, 0.8, 1)
    assert resolve_config({}, file).lr == 0.03 and resolve_config({"opt": "muon"}, file).lr == 0.03
    assert resolve_config({"patch": 8}, {"net": "vit:patch_size=4"}).net_options["patch_size"] == 8
    assert resolve_config({"adan_beta1": 0.05}, {"opt": "adan:beta1=0.1"}).opt_options["beta1"] == 0.05


@pytest.mark.parametrize(
    ("file", "both"),
    [
        ({"opt": "muon:lr=0.03", "lr": 0.01}, "lr"),
        ({"opt": "muon:weight_decay=0.03", "weight_decay": 0.01}, "weight_decay"),
        ({"opt": "muon:momentum=0.9", "opt_options": {"momentum": 0.8}}, "opt_options.momentum"),
        ({"opt": "adan:beta1=0.1", "adan_beta1": 0.2}, "adan_beta1"),
        ({"net": "cct_2:depth=1", "net_options": {"depth": 2}}, "net_options.depth"),
        ({"net": "vit:patch_size=8", "patch": 4}, "patch"),
        ({"aug": "randaug:n=1", "aug_options": {"n": 2}}, "aug_options.n"),
    ],
)
def test_a_file_that_sets_something_twice_is_refused(file: dict[str, object], both: str) -> None:
    with pytest.raises(
        RequestError, match=rf"and {re.escape(both)} both set .*\nhint: remove {re.escape(both)} from the file"
    ):
        resolve_config({}, file)


def test_network_options_in_a_file_override_the_recipe_s() -> None:
    assert resolve_config({}, {"recipe": "sprint", "net_options": {"depth": 2}}).net_options["depth"] == 2
    assert resolve_config({}, {"recipe": "sprint", "net_options": {"depth": 2}}).net_options["embed_dim"] == 64


def test_a_learning_rate_in_a_file_belongs_to_the_optimizer_of_its_recipe() -> None:
    file = {"recipe": "fast", "lr": 0.07}
    assert resolve_config({"opt": "muon_sgd"}, file).lr == 0.07
    assert resolve_config({"opt": "adamw"}, file).lr == resolve_config({"recipe": "fast", "opt": "adamw"}).lr
    assert resolve_config({"opt": "muon"}, {"lr": 0.07}).lr == 0.07  # no optimizer in the file


@pytest.mark.parametrize("recipe", ["default", "fast", "finetune"])
def test_pretrained_networks_get_a_low_learning_rate_with_muon_too(recipe: str) -> None:
    config = resolve_config({"recipe": recipe, "net": "vit_timm", "opt": "muon"})
    assert config.lr < 0.003 and float(str(config.opt_options["adamw_lr"])) <= 5e-4


@pytest.mark.parametrize("opt", ["timm/adamw", "timm/lamb", "adamw"])
def test_fine_tuning_uses_a_low_learning_rate_with_timm_s_optimizers_too(opt: str) -> None:
    assert resolve_config({"recipe": "finetune", "opt": opt}).lr <= 3e-4


def test_val_none_overrides_loss_sum_in_a_file() -> None:
    file = resolve_config({"recipe": "seed"}).to_dict()
    file = {name: value for name, value in file.items() if value is not None}
    config = resolve_config({"val": "none"}, normalise_keys(file, "f.yaml"))
    assert (config.val, config.loss_sum) == ("none", False)


def test_pretrained_networks_of_timm_are_fine_tuned_like_ours() -> None:
    ours = resolve_config({"net": "vit_timm"})
    theirs = resolve_config({"net": "timm/vit_tiny_patch16_224", "pretrained": "true"})
    assert (theirs.lr, theirs.layer_decay) == (ours.lr, ours.layer_decay) == (pytest.approx(1e-4), 0.75)
    scratch = resolve_config({"net": "timm/vit_tiny_patch16_224", "size": 64})
    assert scratch.lr == resolve_config({"net": "vit"}).lr and scratch.layer_decay == 1


def test_a_momentum_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(RequestError, match="momentum takes a number"):
        resolve_config({"opt": "sgd:momentum=abc,nesterov=true"})


def test_augmentation_options_in_a_file_override_the_recipe_s() -> None:
    assert (
        resolve_config({}, {"recipe": "strong", "aug_options": {"m": 14}}).aug_options.items()
        >= {"n": 2, "m": 14}.items()
    )
    with pytest.raises(RequestError, match="--aug basic has no option 'm'"):
        resolve_config({}, {"aug_options": {"m": 14}})


@pytest.mark.parametrize(
    ("recipe", "aug", "flags"),
    [
        ("strong", "randaug:n=2,m=14", {"net": "vit_small"}),
        ("strong", "randaug:n=2,m=14", {"recipe": "default"}),
        ("seed", "randaug:n=2,m=14", {"net": "vit_small"}),
    ],
)
def test_an_augmentation_in_a_file_keeps_its_options(recipe: str, aug: str, flags: dict[str, object]) -> None:
    file = resolve_config({"recipe": recipe, "aug": aug}).to_dict()
    config = resolve_config(flags, file)
    assert config.aug == "randaug" and config.aug_options.items() >= {"n": 2, "m": 14}.items()
    usual = resolve_config({"recipe": "strong"}).to_dict()
    assert resolve_config({"recipe": "default"}, usual).aug == "basic"
    earlier = {**usual, "aug_options": {"n": 2, "m": 9}}  # from before the options of crop and flip
    assert resolve_config({"recipe": "default"}, earlier).aug == "basic"
    changed = {**usual, "aug_options": {"n": 2, "m": 9, "flip": "alternate"}}
    assert resolve_config({"recipe": "default"}, changed).aug_options["flip"] == "alternate"


def test_warmup_and_warmdown_in_a_file_are_dropped_if_a_flag_replaces_the_schedule() -> None:
    file = resolve_config({"schedule": "linear"}).to_dict()
    assert (
        resolve_config({"schedule": "onecycle"}, file).warmup == resolve_config({"schedule": "onecycle"}).warmup == 0.3
    )
    assert resolve_config({"schedule": "onecycle", "net": "vit"}, {**file, "warmup": 0.1}).warmup == 0.3
    assert resolve_config({"schedule": "cosine"}, {**file, "warmup": 0.1}).warmup == 0.1
    assert resolve_config({"schedule": "cosine"}, {"schedule": "constant", "warmdown": 0.3}).warmdown == 0


def test_mix_off_in_a_file_is_ignored_if_mixup_is_disabled() -> None:
    assert resolve_config({"mixup": 0.0}, {"mixup": 0.8, "mix_off": 0.4}).mix_off == 0
    assert resolve_config({}, {"mixup": 0.0, "mix_off": 0.4}).mix_off == 0  # for instance in sweeps over mixup
    with pytest.raises(RequestError, match=r"--mix-off 0\.4 does nothing without --mixup"):
        resolve_config({}, {"mix_off": 0.4})


def test_nesterov_without_momentum_is_refused_in_a_file_too() -> None:
    with pytest.raises(RequestError, match="needs momentum"):
        resolve_config({}, {"opt": "sgd:nesterov=true,momentum=0"})
    printed = resolve_config({"opt": "sgd:momentum=0"}).to_dict()
    assert resolve_config({}, printed).opt_options["nesterov"] is False


@pytest.mark.parametrize("epochs", [1, 10])
def test_a_warmup_within_the_first_epoch_is_refused_if_the_rate_changes_per_epoch(epochs: int) -> None:
    argv = {"net": "cct_2", "schedule_per": "epoch", "epochs": epochs}
    with pytest.raises(RequestError, match=r"--warmup 0\.1 ends in the first epoch"):
        resolve_config({**argv, "warmup": 0.1})
    assert resolve_config({**argv, "warmup": 0.1, "schedule_per": "step"}).warmup == 0.1
    assert resolve_config(argv).warmup == 0.05  # the recipe's
    assert resolve_config({**argv, "epochs": 10, "warmup": 0.2}).warmup == 0.2


def test_a_learning_rate_that_timm_s_optimizer_rejects_is_refused() -> None:
    with pytest.raises(RequestError, match="timm/madgrad rejects --lr 0 or"):
        resolve_config({"opt": "timm/madgrad", "lr": 0.0})
    assert resolve_config({"opt": "timm/lion", "lr": 0.0}).lr == 0


@pytest.mark.parametrize(
    ("given", "warmup"),
    [
        ({"warmup": "5ep"}, "5ep"),
        ({"warmup": "2.5 epochs"}, "2.5ep"),
        ({"warmup": 500}, "500st"),
        ({"warmup": "5 steps"}, "5st"),
        ({"warmup": 0}, 0.0),
        ({"warmup": "0.25"}, 0.25),
        ({"warmup_epochs": 5}, "5ep"),
        ({"warmup_steps": 20}, "20st"),
        ({"warmup_steps": 1_234_567}, "1234567st"),
        ({"warmup_epochs": 0}, 0.0),
    ],
)
def test_a_warmup_may_be_a_fraction_epochs_or_steps(given: dict[str, Any], warmup: float | str) -> None:
    for flags, file in ((given, {}), ({}, given), (given, {"warmup": 0.1}), (given, {"warmup_steps": 7})):
        config = resolve_config(normalise_keys(flags, "f"), normalise_keys(file, "f"))
        assert config.warmup == warmup
        assert TrainConfig.from_dict(config.to_dict()).warmup == warmup


@pytest.mark.parametrize("value", [5, "5", 1, 99.0, 1.5])
def test_a_warmup_without_a_unit_is_answered_with_all_three(value: object) -> None:
    with pytest.raises(
        RequestError, match=r"^f: --warmup .* has no unit\nhint: use .*ep for epochs, .*st for steps, or 0\.05"
    ) as error:
        normalise_keys({"warmup": value}, "f")
    assert error.value.hint is not None
    for suggested in re.findall(r"\d[\w.]*", error.value.hint):
        assert resolve_config(normalise_keys({"warmup": suggested, "epochs": 200}, "f")).warmup


@pytest.mark.parametrize("value", ["fast", -1, "5 weeks", True, "-3ep", "1.5st", float("nan")])
def test_other_warmups_are_refused(value: object) -> None:
    with pytest.raises(RequestError, match=r"^f: --warmup "):
        normalise_keys({"warmup": value}, "f")
