"""Completion of the given settings to a full set by an ordered list of rules.

Flags take precedence over the file, the file over the recipe, the recipe over the defaults of the tables. :data:`RULES`
defines the details. A rule is a function that changes or refuses a :class:`Draft`; its docstring explains why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitctl.config.checks import check_tracked
from vitctl.config.flag import flag_name
from vitctl.config.keys import ADANS, FILE_ONLY, FLAGS, LENGTHS, NET_FLAGS, OPT_FLAGS
from vitctl.config.lr_scale import parse_lr_scale
from vitctl.config.paths import resolve_dataset, resolve_labels, resolve_pretrained
from vitctl.config.train_config import TrainConfig
from vitctl.config.warmup import WARMUP_UNITS, parse_warmup, split_warmup
from vitctl.data import AUGMENTATIONS, AugmentationEntry
from vitctl.data.reading import AUTO
from vitctl.errors import RequestError
from vitctl.models import ModelEntry, find_model
from vitctl.optim import OptimizerEntry, find_optimizer
from vitctl.recipes import RECIPES, Recipe
from vitctl.registry import TRUE_WORDS, lookup, split_spec
from vitctl.units import parse_duration

CHOICES = ("recipe", "dataset", "net")
"""Settings that most defaults depend on."""

RATES = ("lr", "weight_decay")
"""Settings that ``--opt NAME:key=value`` can give too."""

MIXING = ("mixup", "cutmix")

ONECYCLE_RISE = 0.3
"""Default share of a one-cycle run in which the learning rate rises (Smith and Topin 2019; torch's default)."""


@dataclass
class Draft:
    """Settings of a run during resolution.

    Attributes:
        flags: settings given by flag.
        file: settings of the file; the first rules remove those that flags override.
        settings: the resulting settings, from which the :class:`TrainConfig` is built.
        seconds: ``--max-time`` in seconds, or None.
        recipe: the recipe.
        preset: the recipe's values for the chosen network, optimizer, data set and length.
        net_entry: the network's row in its table.
        net_inline: options in the network's name, ``NAME:key=value``.
        opt_entry: the optimizer's row in its table.
        opt_inline: options in the optimizer's name.
        opt_rates: learning rate and weight decay in the optimizer's name, parsed.
        lr_factor: the recipe's factor for ``lr`` with this network.
        second_lr_factor: the same for the optimizer's second learning rate.
    """

    flags: Mapping[str, Any]
    file: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    recipe: Recipe = field(init=False)
    preset: dict[str, Any] = field(default_factory=dict)
    net_entry: ModelEntry = field(init=False)
    net_inline: dict[str, str] = field(default_factory=dict)
    opt_entry: OptimizerEntry = field(init=False)
    opt_inline: dict[str, str] = field(default_factory=dict)
    opt_rates: dict[str, float] = field(default_factory=dict)
    lr_factor: float = 1.0
    second_lr_factor: float = 1.0

    @property
    def given(self) -> dict[str, Any]:
        """Settings given by file or flag."""
        return {**self.file, **self.flags}

    def drop(self, *names: str) -> None:
        """Remove settings from the file."""
        for name in names:
            self.file.pop(name, None)

    def drop_defaults(self, defaults: Mapping[str, Any], *names: str) -> None:
        """Remove settings from the file if all of them equal their default; options may be missing, as in older files."""
        values = {name: self.file.get(name, defaults[name]) for name in names}
        values |= {name: {**defaults[name], **each} for name, each in values.items() if isinstance(each, dict)}
        if all(value == defaults[name] for name, value in values.items()):
            self.drop(*names)

    def options(self, key: str, inline: Mapping[str, str]) -> dict[str, Any]:
        """Return the options of net, opt or aug.

        Inline options, ``NAME:key=value``, override ``*_options`` if file or flag gave the name, not if the recipe did.
        """
        given = self.given.get(f"{key}_options", {})
        return {**given, **inline} if key in self.given else {**inline, **given}


# Other names of settings


def merge_warmup_units(draft: Draft) -> None:
    """Merge ``warmup_epochs`` and ``warmup_steps`` into ``warmup``, so that the other rules see one setting."""
    draft.flags, draft.file = _with_warmup(draft.flags), _with_warmup(draft.file)


def _with_warmup(settings: Mapping[str, Any]) -> dict[str, Any]:
    given = [name for name in ("warmup", *WARMUP_UNITS) if name in settings]
    if len(given) > 1:
        first, second = (flag_name(name) for name in given[:2])
        raise RequestError(f"{first} and {second} both set the warm-up", hint=f"remove {first} or {second}")
    units = [
        parse_warmup(f"{settings[name]:.10g}{WARMUP_UNITS[name]}", flag_name(name))
        for name in given
        if name in WARMUP_UNITS
    ]
    rest = {name: value for name, value in settings.items() if name not in WARMUP_UNITS}
    return {**rest, "warmup": units[0]} if units else rest


# File settings that flags override


def split_file_specs(draft: Draft) -> None:
    """Split the file's ``NAME:key=value`` into separate settings, so that a flag can override each."""
    for key, option_flags in (("net", NET_FLAGS), ("opt", OPT_FLAGS), ("aug", {})):
        if key not in draft.file or draft.file[key] is True:  # aug: true names no augmentation
            continue
        table, own = f"{key}_options", RATES if key == "opt" else ()
        name, inline = split_spec(str(draft.file[key]), key)
        elsewhere = {option: f"{table}.{option}" for option in draft.file.get(table, {})}
        elsewhere |= {option: option for option in own if option in draft.file}
        elsewhere |= {option: flag for flag, option in option_flags.items() if flag in draft.file}
        for option in inline:
            if option in elsewhere:
                raise RequestError(
                    f"{key} {name}:{option}=... and {elsewhere[option]} both set {option}",
                    hint=f"remove {elsewhere[option]} from the file",
                )
        draft.file[key] = name
        draft.file |= {option: FLAGS[option].parse(option, inline.pop(option)) for option in own if option in inline}
        if inline:
            draft.file[table] = {**draft.file.get(table, {}), **inline}


def drop_warmup_if_onecycle_changes(draft: Draft) -> None:
    """Drop the file's warm-up if a flag switches to or from one-cycle, which rises for much longer."""
    schedules = {each["schedule"] for each in (draft.file, draft.flags) if "schedule" in each}
    if len(schedules) == 2 and "onecycle" in schedules:
        draft.drop("warmup")


def drop_defaults_of_replaced_choices(draft: Draft) -> None:
    """Drop defaults of the file's recipe, data set and network if a flag replaces one of these.

    A file from ``--print-config`` holds every setting, and would override everything that a flag's recipe sets.
    """
    file, flags = draft.file, draft.flags
    if not file or not flags.keys() & set(CHOICES):
        return
    try:
        of_recipe = _defaults(file, "recipe", "dataset")
        of_net = _defaults(file, *CHOICES)
        of_opt = _defaults(file, *CHOICES, "opt", *LENGTHS)
    except RequestError:  # the file may name a deleted data folder that a flag replaces
        return
    if all(split_spec(str(flags.get(name, of_opt[name])), flag_name(name))[0] == of_opt[name] for name in CHOICES):
        return
    draft.drop_defaults(of_recipe, "net", "net_options")
    draft.drop_defaults(of_net, "opt", "opt_options")
    draft.drop_defaults(of_net, *LENGTHS)
    draft.drop_defaults(of_opt, "aug", "aug_options")
    for name in of_opt.keys() - {*CHOICES, "data_dir", "labels", "opt", *LENGTHS, "aug", "aug_options"}:
        draft.drop_defaults(of_opt, name)


def _defaults(file: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Resolve only these settings of the file, so that all others get their defaults.

    Without flags, :func:`drop_defaults_of_replaced_choices` does nothing, which ends the recursion.
    """
    return resolve_config({}, {name: file[name] for name in (*names, "data_dir") if name in file}).to_dict()


def drop_file_net_options(draft: Draft) -> None:
    """Drop options of the file's network if ``--net`` replaces it."""
    if "net" in draft.flags:
        draft.drop("net_options", *NET_FLAGS)


def drop_file_opt_options(draft: Draft) -> None:
    """Drop options of the file's optimizer if ``--opt`` replaces it."""
    if "opt" in draft.flags:
        draft.drop("opt_options", *OPT_FLAGS)


def drop_file_aug_options(draft: Draft) -> None:
    """Drop options of the file's augmentation if ``--aug`` replaces it."""
    if "aug" in draft.flags:
        draft.drop("aug_options")


def drop_rates_of_replaced_opt(draft: Draft) -> None:
    """Drop learning rates, decay and clipping if a flag replaces the optimizer that they were chosen for."""
    if "opt" not in draft.flags:
        return
    opt = split_spec(str(draft.flags["opt"]), "--opt")[0]
    replaced = draft.file.get("opt")
    if replaced is None and draft.file.get("recipe") in RECIPES:
        recipe = RECIPES[str(draft.file["recipe"])]
        replaced = recipe.opt(
            split_spec(str(draft.file.get("net", recipe.net(str(draft.file.get("dataset", "cifar10")), None))), "net")[
                0
            ]
        )
    if replaced not in (None, opt):
        draft.drop(*RATES, "clip_grad", "lr_scale")


def drop_loss_sum_without_validation(draft: Draft) -> None:
    """Drop the file's ``loss_sum`` if ``--val none`` leaves no loss to sum."""
    if draft.flags.get("val") == "none":
        draft.drop("loss_sum")


def drop_warmdown_of_replaced_schedule(draft: Draft) -> None:
    """Drop the file's warm-down if a flag selects a schedule other than ``constant``, as the others decay anyway."""
    if draft.flags.get("schedule", "constant") != "constant":
        draft.drop("warmdown")


def drop_replaced_length(draft: Draft) -> None:
    """Drop the file's length if a flag gives one, even in another unit, such as ``--max-steps`` for epochs."""
    if draft.flags.keys() & set(LENGTHS):
        draft.drop(*LENGTHS, *FILE_ONLY)


def drop_length_fitted_to_other_settings(draft: Draft) -> None:
    """Drop the length that the file's run fitted to its ``max_time`` if a flag changes what the run computes.

    It is then fitted again; with the file's own settings, the run is repeated with the same steps.
    """
    changed = any(name not in FLAGS or not FLAGS[name].resumable for name in draft.flags)
    if changed and draft.file.get("max_time") and draft.file.get("refits") is not None:
        draft.drop("max_steps", *FILE_ONLY)


# Choices: recipe, data set, network, weights, optimizer


def choose_recipe(draft: Draft) -> None:
    """Choose the recipe first, as it has defaults for every other choice."""
    draft.recipe = lookup(RECIPES, str(draft.given.get("recipe", "default")), "--recipe")


def choose_dataset(draft: Draft) -> None:
    """Resolve the data set, which may be given as a folder of images."""
    name, data_dir = resolve_dataset(str(draft.given.get("dataset", "cifar10")), draft.given.get("data_dir"))
    labels = resolve_labels(draft.given.get("labels"), name, data_dir)
    draft.settings.update(dataset=name, data_dir=data_dir, labels=labels)


def choose_holdout_rule(draft: Draft) -> None:
    """Hold out a folder's images by identity, so that adding images moves no others; named data sets never change."""
    by_default = "identity" if draft.settings["dataset"] == "folder" else "position"
    draft.settings["holdout_by"] = draft.given.get("holdout_by", by_default)


def choose_time(draft: Draft) -> None:
    """Parse the time before the network is chosen, as a recipe may use another network for a short run."""
    if draft.given.get("max_time") is not None:
        draft.seconds = parse_duration(draft.given["max_time"], "--max-time")


def choose_net(draft: Draft) -> None:
    """Use the given network, or the recipe's for this ``--max-time``."""
    spec = draft.given.get("net", draft.recipe.net(draft.settings["dataset"], draft.seconds))
    draft.settings["net"], draft.net_inline = split_spec(str(spec), "--net")
    draft.net_entry = find_model(draft.settings["net"])


_NET_OF_FLAG = {"patch": "vit", "dimhead": "vit", "convkernel": "convmixer"}
"""The network of the original scripts that each of :data:`~vitctl.config.keys.NET_FLAGS` is for."""


def choose_net_of_flag(draft: Draft) -> None:
    """Use the original scripts' network for ``--patch 2`` without ``--net`` if the recipe's has no patch size."""
    for flag, option in NET_FLAGS.items():
        if flag in draft.given and "net" not in draft.given and option not in draft.net_entry.options:
            draft.settings["net"], draft.net_inline = _NET_OF_FLAG[flag], {}
            draft.net_entry = find_model(_NET_OF_FLAG[flag])


def choose_weights(draft: Draft) -> None:
    """Resolve the weights; some networks start from pretrained ones by default."""
    net, given = draft.settings["net"], draft.given.get("pretrained")
    draft.settings["pretrained"] = resolve_pretrained(net, draft.net_entry, given)


def choose_opt(draft: Draft) -> None:
    """Use the given optimizer, or the recipe's for this network."""
    spec = draft.given.get("opt", draft.recipe.opt(draft.settings["net"]))
    draft.settings["opt"], draft.opt_inline = split_spec(str(spec), "--opt")
    draft.opt_entry = find_optimizer(draft.settings["opt"])


# Values of the recipe for these choices


def fill_in_from_recipe(draft: Draft) -> None:
    """Apply the recipe's values for this network, optimizer, data set and length."""
    given, chosen = draft.given, draft.settings
    draft.preset = draft.recipe.overrides(
        chosen["net"],
        chosen["opt"],
        chosen["dataset"],
        draft.seconds,
        int(given["epochs"]) if given.get("epochs") is not None else None,
        pretrained=chosen["pretrained"] != "false",
    )
    draft.settings = {**draft.preset, **given, **chosen}


def keep_only_the_given_length(draft: Draft) -> None:
    """Remove the recipe's length if one was given, as it may be in another unit."""
    given = draft.given
    if given.keys() & set(LENGTHS):
        draft.settings.update({name: given.get(name) for name in LENGTHS})


# Options of the network


def collect_net_options(draft: Draft) -> None:
    """Merge the given options with those of the recipe that this network has."""
    of_recipe = {key: value for key, value in draft.recipe.net_options.items() if key in draft.net_entry.options}
    draft.settings["net_options"] = {**of_recipe, **draft.options("net", draft.net_inline)}


def apply_net_flags(draft: Draft) -> None:
    """Apply ``--patch``, ``--convkernel`` and ``--dimhead``, the original scripts' names for options of the network."""
    net, given = draft.settings["net"], draft.given
    for flag, option in NET_FLAGS.items():
        if flag not in given:
            continue
        if option not in draft.net_entry.options:
            hint = f"remove --{flag}, or use --net {_NET_OF_FLAG[flag]}"
            if net == "swin" and flag == "patch":
                hint = "use --net swin:window_size=4"
            raise RequestError(f"--{flag} {given[flag]}: --net {net} has no option {option}", hint=hint)
        if "net" in given and option in draft.net_inline:
            raise RequestError(f"--{flag} and --net {net}:{option}=... both set {option}", hint=f"remove --{flag}")
        draft.settings["net_options"][option] = given[flag]


def fill_in_net_options(draft: Draft) -> None:
    """Fill in the network's remaining options from its row in the table."""
    what = f"--net {draft.settings['net']}"
    draft.settings["net_options"] = draft.net_entry.resolve_options(draft.settings["net_options"], what)


# Options of the optimizer


def choose_lr_factors(draft: Draft) -> None:
    """Choose the recipe's factors, which depend on the network's width and are lower for pretrained weights.

    If an optimizer has two learning rates, only the second depends on the width.
    """
    draft.lr_factor = draft.second_lr_factor = float(draft.settings.pop("lr_factor", 1.0))
    if draft.opt_entry.second_lr:
        pretrained = draft.recipe.pretrained if draft.settings["pretrained"] != "false" else {}
        draft.lr_factor = float(str(pretrained.get("lr_factor", 1.0)))


def split_rates_from_opt(draft: Draft) -> None:
    """Split ``lr`` and ``weight_decay`` from the options in ``--opt``, as they are settings of their own."""
    draft.opt_rates = {
        name: FLAGS[name].parse(name, draft.opt_inline.pop(name)) for name in RATES if name in draft.opt_inline
    }


def collect_opt_options(draft: Draft) -> None:
    """Merge the given options with the recipe's for this optimizer, scaling its second learning rate to the network."""
    entry = draft.opt_entry
    options: dict[str, Any] = dict(draft.recipe.opt_options.get(draft.settings["opt"], {}))
    if second := entry.second_lr:
        options[second] = float(options.get(second, entry.options[second].default)) * draft.second_lr_factor
    draft.settings["opt_options"] = {**options, **draft.options("opt", draft.opt_inline)}


def apply_adan_betas(draft: Draft) -> None:
    """Apply ``--adan-beta1`` to ``3``, which follow the Adan paper's convention and so fit no other optimizer."""
    opt, entry, given = draft.settings["opt"], draft.opt_entry, draft.given
    for name, beta in OPT_FLAGS.items():
        if name not in given:
            continue
        if opt not in ADANS:
            hint = (
                f"use --opt {opt}:{beta}={1 - given[name]:g}"
                if beta in entry.options
                else f"remove {flag_name(name)}, or use --opt adan"
            )
            raise RequestError(f"{flag_name(name)} does nothing with --opt {opt}", hint=hint)
        if beta in draft.opt_inline:
            raise RequestError(
                f"{flag_name(name)} and --opt {opt}:{beta}=... both set {beta}", hint=f"remove {flag_name(name)}"
            )
        draft.settings["opt_options"][beta] = entry.options[beta].parse(given[name], flag_name(name))


def fill_in_opt_options(draft: Draft) -> None:
    """Fill in the optimizer's remaining options from its row in the table."""
    what = f"--opt {draft.settings['opt']}"
    draft.settings["opt_options"] = draft.opt_entry.resolve_options(draft.settings["opt_options"], what)


def settle_nesterov(draft: Draft) -> None:
    """Turn off Nesterov momentum for SGD without momentum, or refuse it if it was given.

    It is stored as off, so that a file from ``--print-config`` does not request it.
    """
    options = draft.settings["opt_options"]
    if draft.settings["opt"] != "sgd" or options["momentum"]:
        return
    if str(draft.options("opt", draft.opt_inline).get("nesterov", "")).lower() in TRUE_WORDS:
        raise RequestError(
            "--opt sgd:nesterov=true needs momentum, which is 0", hint="use --opt sgd:momentum=0.9,nesterov=true"
        )
    options["nesterov"] = False


# Learning rate and weight decay


def scale_recipe_lr(draft: Draft) -> None:
    """Scale the recipe's learning rate to the network; a given one is used unchanged."""
    if "lr" in draft.settings and "lr" not in draft.given:
        draft.settings["lr"] = float(draft.settings["lr"]) * draft.lr_factor


def apply_rates_of_opt(draft: Draft) -> None:
    """Apply learning rate and decay from ``--opt``; they override file and recipe, and must not duplicate a flag."""
    for name, rate in draft.opt_rates.items():
        if name in draft.flags:
            opt = draft.settings["opt"]
            raise RequestError(
                f"--opt {opt}:{name}=... and {flag_name(name)} both set {name}", hint=f"remove {flag_name(name)}"
            )
        draft.settings[name] = rate


def fill_in_rates(draft: Draft) -> None:
    """Fill in learning rate, scaled to the network, and decay from the optimizer's row in the table."""
    draft.settings.setdefault("lr", draft.opt_entry.lr * draft.lr_factor)
    draft.settings.setdefault("weight_decay", draft.opt_entry.weight_decay)


def refuse_zero_lr_with_a_second(draft: Draft) -> None:
    """Refuse ``--lr 0`` if there is a second learning rate, which the schedule scales in proportion to the first."""
    if draft.opt_entry.second_lr and draft.settings["lr"] == 0:
        raise RequestError(
            f"--lr 0 would also set the {draft.opt_entry.second_lr} of --opt {draft.settings['opt']} to 0",
            hint="use a small rate such as --lr 1e-9",
        )


def merge_lr_scale(draft: Draft) -> None:
    """Merge the given factors of the learning rate with the recipe's, so that a flag can change one of them.

    The recipe's factors apply only with its own optimizer, for whose rates they were chosen, and only to the head if
    the backbone is frozen.
    """
    preset = dict(draft.preset.get("lr_scale", {}))
    if draft.settings["opt"] != split_spec(draft.recipe.opt(draft.settings["net"]), "--opt")[0]:
        preset = {}
    elif draft.settings.get("freeze_backbone"):
        preset = {role: factor for role, factor in preset.items() if role == "head"}
    merged = {**preset, **draft.file.get("lr_scale", {}), **draft.flags.get("lr_scale", {})}
    draft.settings["lr_scale"] = parse_lr_scale(merged, "--lr-scale")


# Settings that depend on another setting


def replace_recipe_warmup_of_onecycle(draft: Draft) -> None:
    """Replace the recipe's warm-up if the schedule is one-cycle, which rises for longer."""
    if draft.settings.get("schedule") == "onecycle" and "warmup" not in draft.given:
        draft.settings["warmup"] = ONECYCLE_RISE


def remove_recipe_warmdown_of_other_schedules(draft: Draft) -> None:
    """Remove the recipe's warm-down if the schedule is not ``constant``."""
    if draft.settings.get("schedule") != "constant" and "warmdown" not in draft.given:
        draft.settings.pop("warmdown", None)


def fill_in_size(draft: Draft) -> None:
    """Fill in the network's image size, which is larger for pretrained networks."""
    draft.settings.setdefault("size", draft.net_entry.img_size)


def measure_value_range_of_folders(draft: Draft) -> None:
    """Measure the value range of a folder by default; runs of earlier versions, which stored none, keep ``full``."""
    if draft.settings["dataset"] == "folder":
        draft.settings.setdefault("value_range", AUTO)


def fill_in_wandb(draft: Draft) -> None:
    """Report to W&B by default under a W&B agent, which sets the variable."""
    draft.settings.setdefault("wandb", "online" if os.environ.get("WANDB_SWEEP_ID") else "disabled")


def refuse_unused_wandb_flags(draft: Draft) -> None:
    """Refuse W&B flags if W&B is disabled."""
    check_tracked(str(draft.settings["wandb"]), draft.flags)


def reset_recipe_layer_decay(draft: Draft) -> None:
    """Disable the recipe's layer decay for random or frozen layers; it is meant to preserve pretrained ones."""
    random = draft.settings["pretrained"] == "false"
    if "layer_decay" not in draft.given and (random or draft.settings.get("freeze_backbone")):
        draft.settings["layer_decay"] = 1.0


# Augmentation


def fill_in_aug(draft: Draft) -> None:
    """Replace ``--aug`` without a name by the recipe's policy, if it has one, or else RandAugment."""
    if draft.settings.get("aug") is True:
        of_recipe = str(draft.preset.get("aug", TrainConfig.aug))
        has_policy = AUGMENTATIONS[split_spec(of_recipe, "--aug")[0]].target
        draft.settings["aug"] = of_recipe if has_policy else FLAGS["aug"].when_true


def choose_aug(draft: Draft) -> None:
    """Use the given augmentation, or the recipe's, and fill in its options from its row in the table."""
    aug, inline = split_spec(str(draft.settings.get("aug", TrainConfig.aug)), "--aug")
    entry: AugmentationEntry = lookup(AUGMENTATIONS, aug, "--aug")
    options = entry.resolve_options(draft.options("aug", inline), f"--aug {aug}")
    draft.settings.update(aug=aug, aug_options=options)


def fill_in_mixing(draft: Draft) -> None:
    """Replace ``--mixup`` without a number by the recipe's strength, or else the usual one."""
    for name in MIXING:
        if draft.settings.get(name) is True:
            draft.settings[name] = draft.preset.get(name) or FLAGS[name].when_true


def settle_mix_off(draft: Draft) -> None:
    """Reset ``mix_off`` without mixup and CutMix, or refuse it if it was given.

    A file's ``mix_off`` is only reset if mixup or CutMix is given too, as a flag or a sweep's trial may set it to 0.
    """
    given = draft.given
    if any(draft.settings.get(name, 0) for name in MIXING):
        return
    if given.get("mix_off") and ("mix_off" in draft.flags or not given.keys() & set(MIXING)):
        raise RequestError(
            f"--mix-off {given['mix_off']:g} does nothing without --mixup or --cutmix", hint="add --mixup or --cutmix"
        )
    draft.settings["mix_off"] = 0.0


# Clean-up


def remove_recipe_loss_sum(draft: Draft) -> None:
    """Disable the recipe's ``loss_sum`` if ``--val none`` leaves no loss to sum."""
    if draft.settings.get("val") == "none" and "loss_sum" not in draft.given:
        draft.settings["loss_sum"] = False


def remove_option_flags(draft: Draft) -> None:
    """Remove flags that were merged into the options."""
    for name in (*NET_FLAGS, *OPT_FLAGS):
        draft.settings.pop(name, None)


# Refusals of complete settings


def refuse_warmup_within_the_first_epoch(draft: Draft, config: TrainConfig) -> None:
    """Refuse ``--warmup`` that ends in the first epoch if the rate changes once per epoch: it would do nothing."""
    share, unit = split_warmup(config.warmup)
    rising = share * config.epochs if config.epochs and not config.max_steps and not unit else 0.0
    if "warmup" in draft.flags and config.schedule_per == "epoch" and 0 < rising <= 1:
        more = f", or --warmup above {1 / config.epochs:g}" if config.epochs and config.epochs > 1 else ""
        raise RequestError(
            f"--warmup {share:g} ends in the first epoch and does nothing with --schedule-per epoch",
            hint=f"use --schedule-per step{more}",
        )


def refuse_rates_of_optimizer(draft: Draft, config: TrainConfig) -> None:
    """Refuse rates that the optimizer does not accept, as some of timm's do not."""
    draft.opt_entry.check_rate(config.lr, config.weight_decay, config.opt_options)


def refuse_flip_of_aug_without_flips(draft: Draft, config: TrainConfig) -> None:
    """Refuse ``--aug NAME:flip=alternate`` if images are not flipped; in a file or a recipe it may serve other runs."""
    flip = split_spec(str(draft.flags.get("aug")), "--aug")[1].get("flip")
    if flip and not config.flips:
        aug = f"--aug {config.aug}:flip={flip}"
        mirrored = f"{aug}: mirrored images of {config.dataset} may have another class"
        raise RequestError(
            f"{aug} does nothing with --flip off" if config.flip == "off" else mirrored,
            hint=f"remove flip={flip}, or use --flip on",
        )


def refuse_padding_mode_without_padding(draft: Draft, config: TrainConfig) -> None:
    """Refuse ``--aug NAME:padding_mode=X`` if nothing is padded; in a file or a recipe it may serve other runs."""
    mode = split_spec(str(draft.flags.get("aug")), "--aug")[1].get("padding_mode")
    if mode and config.aug_options.get("padding") == 0:
        raise RequestError(
            f"--aug {config.aug}:padding_mode={mode} does nothing with padding=0",
            hint=f"remove padding_mode={mode}, or use padding=2",
        )


def refuse_size_of_network(draft: Draft, config: TrainConfig) -> None:
    """Refuse image sizes that the network does not accept, for instance if its patches do not tile the image."""
    draft.net_entry.check_size(config.net, config.net_options, config.size)


RULES: tuple[Callable[[Draft], None], ...] = (
    # Other names of settings
    merge_warmup_units,
    # File settings that flags override
    split_file_specs,
    drop_warmup_if_onecycle_changes,
    drop_defaults_of_replaced_choices,
    drop_file_net_options,
    drop_file_opt_options,
    drop_file_aug_options,
    drop_rates_of_replaced_opt,
    drop_loss_sum_without_validation,
    drop_warmdown_of_replaced_schedule,
    drop_replaced_length,
    drop_length_fitted_to_other_settings,
    # Choices: recipe, data set, network, weights, optimizer
    choose_recipe,
    choose_dataset,
    choose_holdout_rule,
    choose_time,
    choose_net,
    choose_net_of_flag,
    choose_weights,
    choose_opt,
    # Values of the recipe for these choices
    fill_in_from_recipe,
    keep_only_the_given_length,
    # Options of the network
    collect_net_options,
    apply_net_flags,
    fill_in_net_options,
    # Options of the optimizer
    choose_lr_factors,
    split_rates_from_opt,
    collect_opt_options,
    apply_adan_betas,
    fill_in_opt_options,
    settle_nesterov,
    # Learning rate and weight decay
    scale_recipe_lr,
    apply_rates_of_opt,
    fill_in_rates,
    refuse_zero_lr_with_a_second,
    merge_lr_scale,
    # Settings that depend on another setting
    replace_recipe_warmup_of_onecycle,
    remove_recipe_warmdown_of_other_schedules,
    fill_in_size,
    measure_value_range_of_folders,
    fill_in_wandb,
    refuse_unused_wandb_flags,
    reset_recipe_layer_decay,
    # Augmentation
    fill_in_aug,
    choose_aug,
    fill_in_mixing,
    settle_mix_off,
    # Clean-up
    remove_recipe_loss_sum,
    remove_option_flags,
)
"""All rules, in order. A rule may rely on those before it; if several refuse, the user sees the first error."""

REFUSALS: tuple[Callable[[Draft, TrainConfig], None], ...] = (
    refuse_warmup_within_the_first_epoch,
    refuse_rates_of_optimizer,
    refuse_size_of_network,
    refuse_flip_of_aug_without_flips,
    refuse_padding_mode_without_padding,
)
"""Refusals beyond :mod:`~vitctl.config.checks`, in order: these depend on flags and tables, not only on settings."""


def resolve_config(flags: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> TrainConfig:
    """Complete the given settings; flags override the file, the file the recipe, the recipe the tables.

    Args:
        flags: settings by name, from the command line; only those that were given.
        file: settings by name, from a ``--config`` file.

    Raises:
        RequestError: a name is unknown, or a combination of settings is impossible.
    """
    draft = Draft(flags=flags, file=dict(file or {}))
    for rule in RULES:
        rule(draft)
    config = TrainConfig(**draft.settings)
    for refusal in REFUSALS:
        refusal(draft, config)
    return config
