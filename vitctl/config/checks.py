"""Checks for impossible combinations of settings.

Each check takes a :class:`~vitctl.config.settings.Settings` with parsed values and raises
:class:`~vitctl.errors.RequestError`. Checks run in the order of :data:`CHECKS`; the user sees the first error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vitctl.config.flag import flag_name
from vitctl.config.settings import Settings
from vitctl.config.warmup import split_warmup
from vitctl.data import AUGMENTATIONS
from vitctl.errors import RequestError
from vitctl.models import MODELS, TIMM, find_model
from vitctl.units import parse_duration, parse_save_every, plural


def check_micro_batch_without_batchnorm(config: Settings) -> None:
    """Refuse micro-batches with BatchNorm, whose statistics need the whole batch."""
    if config.micro_batch != "auto" and int(config.micro_batch) < config.bs and has_batchnorm(config.net):
        raise RequestError(
            f"--micro-batch {config.micro_batch} does not work with --net {config.net}: BatchNorm needs the complete batch",
            hint=f"remove --micro-batch, or use --bs {config.micro_batch}",
        )


def check_frozen_backbone_is_pretrained(config: Settings) -> None:
    """Refuse to freeze random layers: the head could not learn from their output."""
    if config.freeze_backbone and config.pretrained == "false":
        has_weights = config.net not in MODELS or MODELS[config.net].weights
        hint = (
            "use --pretrained true or --pretrained FILE" if has_weights else "use --net vit_timm, or --pretrained FILE"
        )
        raise RequestError("--freeze-backbone needs pretrained weights", hint=hint)


def check_layer_decay_has_layers(config: Settings) -> None:
    """Refuse layer decay with a frozen backbone, which leaves one trained layer."""
    if config.freeze_backbone and config.layer_decay != 1:
        raise RequestError(
            f"--layer-decay {config.layer_decay:g} does nothing with --freeze-backbone, which trains one layer",
            hint="remove --layer-decay",
        )


def check_batchnorm_has_a_batch(config: Settings) -> None:
    """Refuse batches of one with BatchNorm, which cannot normalise a single image."""
    if config.bs == 1 and has_batchnorm(config.net):
        raise RequestError(
            f"--bs 1 does not work with --net {config.net}: BatchNorm needs several images", hint="use --bs 2 or more"
        )


def check_mixing_has_two_images(config: Settings) -> None:
    """Refuse mixup and CutMix on a single image per step: they mix the images of a step."""
    for name, alpha in (("mixup", config.mixup), ("cutmix", config.cutmix)):
        if alpha and config.bs * config.accumulate < 2:
            raise RequestError(
                f"--{name} {alpha:g} needs several images per step, and --bs is {config.bs}",
                hint=f"use --bs 2 or more, or --{name} 0",
            )


def check_flip_has_an_augmentation(config: Settings) -> None:
    """Refuse flips without an augmentation that crops: no other augmentation flips."""
    if config.flip == "on" and config.aug in AUGMENTATIONS and not AUGMENTATIONS[config.aug].crop:
        raise RequestError(f"--flip on does nothing with --aug {config.aug}", hint="use --aug basic")


def check_reading_has_files(config: Settings) -> None:
    """Refuse to choose how files are read for data sets whose images are square and 8-bit."""
    for name in ("fit", "value_range"):
        value = getattr(config, name)
        if config.dataset != "folder" and value != getattr(Settings, name):
            raise RequestError(
                f"{flag_name(name)} {value} does nothing with --dataset {config.dataset}",
                hint=f"remove {flag_name(name)}, or use --dataset DIR with a folder of images",
            )


def check_tta_keeps_classes(config: Settings) -> None:
    """Refuse averaging over mirrored images where mirroring changes the class."""
    if config.tta == "flip" and not config.flips:
        off = "--tta flip conflicts with --flip off"
        mirrored = f"--tta flip: mirrored images of {config.dataset} may have another class"
        raise RequestError(off if config.flip == "off" else mirrored, hint="remove --tta, or use --tta crops")


def check_folder_settings_have_a_folder(config: Settings) -> None:
    """Refuse choices by identity, and of test images, for named data sets, whose split is fixed."""
    if config.dataset == "folder":
        return
    if config.holdout_by == "identity":
        raise RequestError(
            f"--holdout-by identity needs a folder of images, not --dataset {config.dataset}",
            hint="use --holdout-by position",
        )
    if config.test_fraction is not None:
        raise RequestError(
            f"--test-fraction {config.test_fraction:g}: {config.dataset} has test images", hint="remove --test-fraction"
        )


def check_loss_sum_is_measured(config: Settings) -> None:
    """Refuse the summed validation loss if ``--val none`` skips validation."""
    if config.loss_sum and config.val == "none":
        raise RequestError("--loss-sum does nothing with --val none", hint="remove --loss-sum")


def check_run_ends(config: Settings) -> None:
    """Require a length."""
    if config.epochs is None and config.max_steps is None and config.max_time is None:
        raise RequestError("the length of the run is missing", hint="add --epochs, --max-steps or --max-time")


def check_refits_have_a_length(config: Settings) -> None:
    """Refuse ``refits`` without ``max_steps``, or that begin after the last step."""
    if not config.refits:
        return
    if config.max_steps is None:
        raise RequestError(f"refits {config.refits} change max_steps, which is missing", hint="remove refits")
    if config.refits[0][0] >= config.max_steps:
        raise RequestError(
            f"refits {config.refits} begin after the last step, max_steps {config.max_steps}", hint="remove refits"
        )


def check_durations(config: Settings) -> None:
    """Parse ``--max-time`` and ``--save-every``, which are stored as text."""
    if config.max_time is not None:
        parse_duration(config.max_time, "--max-time")
    if config.save_every is not None:
        parse_save_every(config.save_every, "--save-every")


def check_wandb_names(config: Settings) -> None:
    """Refuse names that W&B would refuse only after the run has started."""
    for name in ("wandb_project", "wandb_entity"):
        value = getattr(config, name) or ""
        if bad := sorted(set(value) & set("/\\#?%:")):
            raise RequestError(
                f"{flag_name(name)} {value!r} contains characters that W&B does not allow: {' '.join(bad)}",
                hint="use letters, digits, hyphens and underscores",
            )
        if len(value) > 128:
            raise RequestError(f"{flag_name(name)} has {len(value)} characters", hint="use at most 128")


def check_wandb_tags(config: Settings) -> None:
    """Refuse tags that W&B would refuse only after the run has started."""
    for tag in split_tags(config.wandb_tags):
        if not 1 <= len(tag) <= 64:
            raise RequestError(
                f"--wandb-tags {config.wandb_tags!r}: the tag {tag!r} has {len(tag)} characters",
                hint="use 1 to 64 characters for each tag",
            )


def check_warmdown_has_a_constant_schedule(config: Settings) -> None:
    """Refuse a warm-down of any schedule but ``constant``; the others decay anyway."""
    if config.warmdown and config.schedule != "constant":
        raise RequestError(
            f"--warmdown {config.warmdown:g} does nothing with --schedule {config.schedule}",
            hint="remove --warmdown, or use --schedule constant",
        )


def check_warmup_and_warmdown_fit(config: Settings) -> None:
    """Refuse a warm-up and a warm-down that overlap."""
    share, unit = split_warmup(config.warmup)
    if not unit and share + config.warmdown > 1:
        raise RequestError(
            f"--warmup {share:g} and --warmdown {config.warmdown:g} add up to more than 1",
            hint=f"use --warmdown {1 - share:g} or less",
        )


def check_warmup_ends(config: Settings) -> None:
    """Refuse a warm-up that takes the whole run, if both are in the same unit."""
    count, unit = split_warmup(config.warmup)
    by_steps = config.max_steps is not None
    length = config.max_steps if by_steps else config.epochs
    if unit == ("st" if by_steps else "ep") and length is not None and count >= length:
        raise RequestError(
            f"--warmup {config.warmup} takes the whole run of {plural(length, 'step' if by_steps else 'epoch')}",
            hint="use a shorter --warmup, or --warmup 0.05 for a fraction of the run",
        )


def check_patience_has_a_holdout(config: Settings) -> None:
    """Refuse early stopping without held-out images: the test set must not select the end."""
    if config.patience is not None and config.val != "holdout":
        raise RequestError(
            f"--patience needs held-out images, and --val {config.val} holds out none", hint="use --val holdout"
        )


CHECKS: tuple[Callable[[Settings], None], ...] = (
    check_micro_batch_without_batchnorm,
    check_frozen_backbone_is_pretrained,
    check_layer_decay_has_layers,
    check_batchnorm_has_a_batch,
    check_mixing_has_two_images,
    check_flip_has_an_augmentation,
    check_reading_has_files,
    check_tta_keeps_classes,
    check_folder_settings_have_a_folder,
    check_loss_sum_is_measured,
    check_run_ends,
    check_refits_have_a_length,
    check_durations,
    check_wandb_names,
    check_wandb_tags,
    check_warmdown_has_a_constant_schedule,
    check_warmup_and_warmdown_fit,
    check_warmup_ends,
    check_patience_has_a_holdout,
)
"""All checks, in the order they run."""


def has_batchnorm(net: str) -> bool:
    """Return whether the network has BatchNorm; an unknown network has none."""
    return (net in MODELS or net.startswith(TIMM)) and find_model(net).batchnorm


def split_tags(text: str | None) -> list[str]:
    """Return the tags of ``a,b``."""
    return [tag.strip() for tag in text.split(",")] if text else []


def check_tracked(wandb: str, flags: Mapping[str, Any]) -> None:
    """Refuse W&B flags if W&B is disabled.

    Args:
        wandb: the run's ``--wandb``.
        flags: settings given by flag. Those of a file are allowed, as the file may serve other runs too.

    Raises:
        RequestError: a W&B flag has no effect.
    """
    for name in ("wandb_project", "wandb_entity", "wandb_group", "wandb_tags", "wandb_notes"):
        if wandb == "disabled" and name in flags:
            raise RequestError(
                f"{flag_name(name)} {flags[name]!r} does nothing with --wandb disabled",
                hint="add --wandb online or --wandb offline",
            )
