import dataclasses
import json

import pytest

from vitctl.config import FLAGS, TrainConfig, normalise_keys, resolve_config
from vitctl.errors import RequestError
from vitctl.models import MODELS
from vitctl.optim import OPTIMIZERS
from vitctl.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("net", MODELS)
@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_every_combination_resolves_and_survives_json(recipe: str, net: str, opt: str) -> None:
    config = resolve_config({"recipe": recipe, "net": net, "opt": opt})
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert (config.net, config.opt, config.recipe) == (net, opt, recipe)
    assert config.net_options.keys() == MODELS[net].options.keys()


def test_a_printed_config_is_a_config_file() -> None:
    config = resolve_config({"recipe": "seed", "net": "vit:depth=2", "patch": 8, "opt": "adan", "adan_beta1": 0.03})
    assert resolve_config({}, normalise_keys(config.to_dict(), "file")) == config


def test_recipe_then_file_then_flags() -> None:
    assert resolve_config({"recipe": "seed"}).lr == 1e-4
    assert resolve_config({"recipe": "seed"}, {"lr": 3e-4}).lr == 3e-4
    assert resolve_config({"recipe": "seed", "lr": 5e-4}, {"lr": 3e-4}).lr == 5e-4
    assert resolve_config({}, {"recipe": "seed"}).bs == 512
    assert resolve_config({"recipe": "default"}, {"recipe": "seed"}).bs == 128


def test_a_flag_s_network_does_not_take_the_file_s_options() -> None:
    file = normalise_keys({"net": "vit", "patch": 8, "opt": "sgd", "opt_options": {"momentum": 0.5}}, "file")
    assert resolve_config({}, file).net_options["patch_size"] == 8
    assert resolve_config({"net": "cct_2"}, file).net == "cct_2"
    assert resolve_config({"opt": "adam"}, file).opt == "adam"


def test_the_seed_recipe_is_the_predecessor_s_protocol() -> None:
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


def test_epochs_and_max_steps() -> None:
    assert resolve_config({"max_steps": 5}).epochs is None
    both = resolve_config({"max_steps": 5, "epochs": 2})
    assert (both.epochs, both.max_steps) == (2, 5)
    assert resolve_config({"epochs": 2}, {"max_steps": 5}).max_steps is None


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"net": "vitt"}, "--net 'vitt' is unknown; did you mean vit"),
        ({"net": "vit", "patch": 5}, "--patch 5 does not divide --size 32 .*: 1, 2, 4, 8, 16, 32"),
        ({"net": "cct_2", "patch": 4}, "--patch 4: --net cct_2 has no patches"),
        ({"net": "vit:dept=3"}, "did you mean depth"),
        ({"net": "vit:patch_size=4", "patch": 4}, "both set it"),
        ({"opt": "adm"}, "--opt 'adm' is unknown; did you mean adam"),
        ({"opt": "adan:lr=1e-3", "lr": 0.1}, "both set it"),
        ({"opt": "adan:beta1=3"}, "the greatest is 1"),
        ({"adan_beta1": 0.1}, "--adan-beta1 belongs to --opt adan"),
        ({"recipe": "seeed"}, "did you mean seed"),
        ({"dataset": "cifar"}, "did you mean cifar10"),
        ({"dataset": "./nowhere"}, "no such folder"),
        ({"val": "none", "patience": 2}, "use --val holdout"),
        ({"micro_batch": "some"}, "--micro-batch takes auto or a number"),
        ({"net": "res18", "micro_batch": "16"}, "BatchNorm needs the whole batch"),
        ({"net": "res18", "bs": 1}, "--bs 1: the BatchNorm"),
        ({"save_every": "often"}, "--save-every takes"),
    ],
)
def test_impossible_settings_are_refused(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        resolve_config(flags)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1),
        ("bs", 0),
        ("epochs", 0),
        ("warmup", 1),
        ("label_smoothing", 1),
        ("ema", 1),
        ("val_fraction", 0),
        ("seed", -1),
    ],
)
def test_values_out_of_range_name_the_flag(name: str, value: float) -> None:
    with pytest.raises(RequestError, match="--" + name.replace("_", "-")):
        FLAGS[name].parse(name, value)


def test_file_keys() -> None:
    assert normalise_keys({"n-epochs": 3, "batch_size": "64", "lr": 1e-3}, "f") == {"epochs": 3, "bs": 64, "lr": 1e-3}
    for values, sentence in (
        ({"epoch": 3}, "'epoch' is no setting of train; did you mean epochs"),
        ({"epochs": 3, "n_epochs": 4}, "sets epochs a second time"),
        ({"lr": "fast"}, "--lr takes a number"),
        ({"net_options": 3}, "must be a mapping"),
    ):
        with pytest.raises(RequestError, match=sentence):
            normalise_keys(values, "f")


def test_stored_settings_of_a_later_version_are_named() -> None:
    with pytest.raises(RequestError, match="hyperdrive"):
        TrainConfig.from_dict({"hyperdrive": 1})


def test_every_setting_is_described() -> None:
    for field in dataclasses.fields(TrainConfig):
        assert "flag" in field.metadata or field.name in ("net_options", "opt_options")
    assert all(flag.help for flag in FLAGS.values())
