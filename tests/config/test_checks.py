"""Each check of complete settings in isolation."""

from collections.abc import Callable
from typing import Any

import pytest

from vitctl.config import TrainConfig, check_tracked, checks
from vitctl.errors import RequestError

Check = Callable[[TrainConfig], None]

CASES: list[tuple[Check, dict[str, Any], str]] = [
    (checks.check_micro_batch_without_batchnorm, {"net": "res18", "micro_batch": 16}, "BatchNorm needs .* batch\nhint: remove --micro-batch, or use --bs 16"),
    (checks.check_frozen_backbone_is_pretrained, {"freeze_backbone": True}, "pretrained weights\nhint: use --net vit_timm"),
    (checks.check_layer_decay_has_layers, {"freeze_backbone": True, "layer_decay": 0.5}, "--layer-decay 0.5 does nothing"),
    (checks.check_batchnorm_has_a_batch, {"net": "res18", "bs": 1}, "--bs 1 does not work with --net res18.*\nhint: use --bs 2"),
    (checks.check_mixing_has_two_images, {"bs": 1, "cutmix": 1.0}, "--cutmix 1 needs several images per step"),
    (checks.check_flip_has_an_augmentation, {"flip": "on", "aug": "none"}, "--flip on does nothing with --aug none"),
    (checks.check_reading_has_files, {"fit": "pad"}, "--fit pad does nothing with --dataset cifar10\nhint: remove --fit, or use --dataset DIR"),
    (checks.check_reading_has_files, {"value_range": "0,1", "dataset": "digits"}, "--value-range 0,1 does nothing with --dataset digits"),
    (checks.check_tta_keeps_classes, {"tta": "flip", "flip": "off"}, "--tta flip conflicts with --flip off"),
    (checks.check_tta_keeps_classes, {"tta": "flip", "dataset": "digits"}, "mirrored images of digits may have another class"),
    (checks.check_folder_settings_have_a_folder, {"holdout_by": "identity"}, "not --dataset cifar10\nhint: use --holdout-by position"),
    (checks.check_folder_settings_have_a_folder, {"test_fraction": 0.2}, "--test-fraction 0.2: cifar10 has test images\nhint: remove"),
    (checks.check_loss_sum_is_measured, {"loss_sum": True, "val": "none"}, "--loss-sum does nothing with --val none"),
    (checks.check_run_ends, {"epochs": None}, "length of the run is missing\nhint: add --epochs"),
    (checks.check_refits_have_a_length, {"refits": [[3, 9]]}, "change max_steps, which is missing"),
    (checks.check_refits_have_a_length, {"refits": [[3, 9]], "max_steps": 3}, "begin after the last step"),
    (checks.check_durations, {"max_time": "soon"}, "--max-time takes a duration"),
    (checks.check_durations, {"save_every": "often"}, "--save-every takes steps or a duration"),
    (checks.check_wandb_names, {"wandb_project": "a/b"}, "--wandb-project 'a/b' .* not allow: /"),
    (checks.check_wandb_names, {"wandb_entity": "x" * 129}, "--wandb-entity has 129 characters\nhint: use at most 128"),
    (checks.check_wandb_tags, {"wandb_tags": "a,,b"}, "the tag '' has 0"),
    (checks.check_wandb_tags, {"wandb_tags": "x" * 65}, "the tag 'x+' has 65"),
    (checks.check_warmdown_has_a_constant_schedule, {"warmdown": 0.2, "schedule": "cosine"}, "does nothing with --schedule cosine\nhint: remove --warmdown"),
    (checks.check_warmup_and_warmdown_fit, {"warmup": 0.6, "warmdown": 0.5}, "add up to more than 1\nhint: use --warmdown 0.4 or less"),
    (checks.check_warmup_ends, {"warmup": "5ep", "epochs": 5}, "--warmup 5ep takes the whole run of 5 epochs\nhint: use a shorter"),
    (checks.check_warmup_ends, {"warmup": "9st", "max_steps": 9, "epochs": 2}, "--warmup 9st takes the whole run of 9 steps"),
    (checks.check_patience_has_a_holdout, {"patience": 2, "val": "test"}, "--val test holds out none\nhint: use --val holdout"),
]  # fmt: skip

ALLOWED: list[tuple[Check, dict[str, Any]]] = [
    (checks.check_micro_batch_without_batchnorm, {"net": "res18", "micro_batch": 128}),
    (checks.check_micro_batch_without_batchnorm, {"net": "vit", "micro_batch": 16}),
    (checks.check_frozen_backbone_is_pretrained, {"freeze_backbone": True, "pretrained": "true"}),
    (checks.check_layer_decay_has_layers, {"layer_decay": 0.5}),
    (checks.check_batchnorm_has_a_batch, {"net": "vit", "bs": 1}),
    (checks.check_batchnorm_has_a_batch, {"net": "unknown", "bs": 1}),
    (checks.check_mixing_has_two_images, {"bs": 1, "accumulate": 2, "mixup": 0.8}),
    (checks.check_flip_has_an_augmentation, {"flip": "off", "aug": "none"}),
    (checks.check_reading_has_files, {"fit": "pad", "value_range": "auto", "dataset": "folder"}),
    (checks.check_tta_keeps_classes, {"tta": "flip", "dataset": "digits", "flip": "on"}),
    (checks.check_tta_keeps_classes, {"tta": "crops", "dataset": "digits"}),
    (checks.check_tta_keeps_classes, {"tta": "crops", "flip": "off"}),
    (checks.check_folder_settings_have_a_folder, {"dataset": "folder", "holdout_by": "identity", "test_fraction": 0.2}),
    (checks.check_loss_sum_is_measured, {"loss_sum": True, "val": "test"}),
    (checks.check_run_ends, {"epochs": None, "max_time": "60s"}),
    (checks.check_refits_have_a_length, {"refits": [[3, 9]], "max_steps": 4}),
    (checks.check_refits_have_a_length, {"refits": []}),
    (checks.check_durations, {"max_time": "60s", "save_every": "10m"}),
    (checks.check_wandb_names, {"wandb_project": "x" * 128, "wandb_entity": "me"}),
    (checks.check_wandb_tags, {"wandb_tags": "a, b," + "x" * 64}),
    (checks.check_warmdown_has_a_constant_schedule, {"warmdown": 0.2, "schedule": "constant"}),
    (checks.check_warmup_and_warmdown_fit, {"warmup": 0.5, "warmdown": 0.5}),
    (checks.check_warmup_and_warmdown_fit, {"warmup": "5ep", "warmdown": 0.9}),
    (checks.check_warmup_ends, {"warmup": "5ep", "epochs": 6}),
    (checks.check_warmup_ends, {"warmup": "9st", "epochs": 1}),
    (checks.check_warmup_ends, {"warmup": "5ep", "max_steps": 3}),
    (checks.check_patience_has_a_holdout, {"patience": 2, "val": "holdout"}),
]


def unchecked(settings: dict[str, Any]) -> TrainConfig:
    """Return a config with these settings, bypassing all checks."""
    config = TrainConfig(epochs=1)
    for name, value in settings.items():
        object.__setattr__(config, name, value)
    return config


@pytest.mark.parametrize(("check", "settings", "message"), CASES)
def test_a_check_refuses_invalid_combinations(check: Check, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        check(unchecked(settings))
    assert refused.value.hint


@pytest.mark.parametrize(("check", "settings"), ALLOWED)
def test_a_check_accepts_valid_combinations(check: Check, settings: dict[str, Any]) -> None:
    check(unchecked(settings))


def test_every_check_is_tested() -> None:
    for table in (CASES, ALLOWED):
        assert {case[0] for case in table} == set(checks.CHECKS)


def test_every_check_runs_when_a_config_is_built() -> None:
    for _, settings, _ in CASES:
        with pytest.raises(RequestError):
            TrainConfig(**{"epochs": 1, **settings})


def test_wandb_flags_require_wandb() -> None:
    check_tracked("offline", {"wandb_notes": "first"})
    check_tracked("disabled", {"wandb": "disabled"})
    with pytest.raises(RequestError, match="--wandb-notes 'first' does nothing with --wandb disabled"):
        check_tracked("disabled", {"wandb_notes": "first"})
