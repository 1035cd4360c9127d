"""How a few given settings become a full set: an ordered list of rules.

Tables < recipe < file < flags: each supplies what those to its right leave open. :data:`RULES`, at the end, says exactly
how. A rule is a function that changes or refuses the :class:`Draft`; its name says what it does, its docstring why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitctl.config.checks import check_tracked
from vitctl.config.flag import flag_name
from vitctl.config.keys import ADANS, FLAGS, LENGTHS, NET_FLAGS, OPT_FLAGS
from vitctl.config.paths import resolve_dataset, resolve_pretrained
from vitctl.config.train_config import TrainConfig
from vitctl.data import AUGMENTATIONS, AugmentationEntry
from vitctl.errors import RequestError
from vitctl.models import ModelEntry, find_model
from vitctl.optim import OptimizerEntry, find_optimizer
from vitctl.recipes import RECIPES, Recipe
from vitctl.registry import TRUE_WORDS, lookup, split_spec
from vitctl.units import parse_duration

CHOICES = ("recipe", "dataset", "net")
"""The settings that most defaults depend on."""

RATES = ("lr", "weight_decay")
"""Settings that may also be given as options of ``--opt``."""

MIXING = ("mixup", "cutmix")

ONECYCLE_RISE = 0.3
"""The default share of a one-cycle run in which the rate rises (Smith and Topin 2019; torch's default)."""


@dataclass
class Draft:
    """The settings of a run while they are resolved.

    Attributes:
        flags: settings given by flag.
        file: settings of the file; the first rules remove those that give way to flags.
        settings: what the :class:`TrainConfig` is made of.
        seconds: ``--max-time``, or None.
        recipe: the recipe.
        preset: the recipe's values for the chosen network, optimizer, data set and length.
        net_entry: the network's row in its table.
        net_inline: options in the network's name, ``NAME:key=value``.
        opt_entry: the optimizer's row in its table.
        opt_inline: options in the optimizer's name.
        opt_rates: learning rate and weight decay in the optimizer's name, parsed.
        lr_factor: the recipe's factor of ``lr`` for the network.
        second_lr_factor: the same of the optimizer's second learning rate.
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
        """What was asked for, by file or flag."""
        return {**self.file, **self.flags}

    def drop(self, *names: str) -> None:
        """Remove settings from the file."""
        for name in names:
            self.file.pop(name, None)

    def drop_defaults(self, defaults: Mapping[str, Any], *names: str) -> None:
        """Remove settings from the file where all of them have these values."""
        if all(self.file.get(name, defaults[name]) == defaults[name] for name in names):
            self.drop(*names)

    def options(self, key: str, inline: Mapping[str, str]) -> dict[str, Any]:
        """Return the options of net, opt or aug.

        Those in its name win over ``*_options`` where file or flag gave the name, and give way where the recipe did.
        """
        given = self.given.get(f"{key}_options", {})
        return {**given, **inline} if key in self.given else {**inline, **given}


# What of the file gives way to flags


def take_apart_file_specs(draft: Draft) -> None:
    """Each option in the file's ``NAME:key=value`` becomes a setting of its own, so that a flag can replace it."""
    for key, option_flags in (("net", NET_FLAGS), ("opt", OPT_FLAGS), ("aug", {})):
        if key not in draft.file:
            continue
        table, own = f"{key}_options", RATES if key == "opt" else ()
        name, inline = split_spec(str(draft.file[key]), key)
        elsewhere = {option: f"{table}.{option}" for option in draft.file.get(table, {})}
        elsewhere |= {option: option for option in own if option in draft.file}
        elsewhere |= {option: flag for flag, option in option_flags.items() if flag in draft.file}
        for option in inline:
            if option in elsewhere:
                raise RequestError(f"{key} {name}:{option}=... and {elsewhere[option]} both set it; give one of them")
        draft.file[key] = name
        draft.file |= {option: FLAGS[option].parse(option, inline.pop(option)) for option in own if option in inline}
        if inline:
            draft.file[table] = {**draft.file.get(table, {}), **inline}


def drop_warmup_when_onecycle_begins_or_ends(draft: Draft) -> None:
    """The share of a run in which a one-cycle rate rises does not suit as a warm-up, nor the reverse."""
    schedules = {each["schedule"] for each in (draft.file, draft.flags) if "schedule" in each}
    if len(schedules) == 2 and "onecycle" in schedules:
        draft.drop("warmup")


def drop_defaults_of_replaced_choices(draft: Draft) -> None:
    """A value that is only the default of the file's recipe, data set and network gives way with them.

    A file from ``--print-config`` holds every setting: kept, they would leave nothing of a flag's recipe but its name.
    """
    file, flags = draft.file, draft.flags
    if not file or not flags.keys() & set(CHOICES):
        return
    try:
        of_recipe = _defaults(file, "recipe", "dataset")
        of_net = _defaults(file, *CHOICES)
        of_opt = _defaults(file, *CHOICES, "opt", *LENGTHS)
    except RequestError:  # such as a data folder that is gone, where a flag names another
        return
    if all(split_spec(str(flags.get(name, of_opt[name])), flag_name(name))[0] == of_opt[name] for name in CHOICES):
        return
    draft.drop_defaults(of_recipe, "net", "net_options")
    draft.drop_defaults(of_net, "opt", "opt_options")
    draft.drop_defaults(of_net, *LENGTHS)
    draft.drop_defaults(of_opt, "aug", "aug_options")
    for name in of_opt.keys() - {*CHOICES, "data_dir", "opt", *LENGTHS, "aug", "aug_options"}:
        draft.drop_defaults(of_opt, name)


def _defaults(file: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return what a file with only these of its settings resolves to.

    There are no flags, so that :func:`drop_defaults_of_replaced_choices` has nothing to do and the recursion ends.
    """
    return resolve_config({}, {name: file[name] for name in (*names, "data_dir") if name in file}).to_dict()


def drop_file_net_options(draft: Draft) -> None:
    """The file's options are for the file's network; ``--net`` starts from the defaults."""
    if "net" in draft.flags:
        draft.drop("net_options", *NET_FLAGS)


def drop_file_opt_options(draft: Draft) -> None:
    """The file's options are for the file's optimizer; ``--opt`` starts from the defaults."""
    if "opt" in draft.flags:
        draft.drop("opt_options", *OPT_FLAGS)


def drop_file_aug_options(draft: Draft) -> None:
    """The file's options are for the file's augmentation; ``--aug`` starts from the defaults."""
    if "aug" in draft.flags:
        draft.drop("aug_options")


def drop_rates_of_replaced_opt(draft: Draft) -> None:
    """Learning rate, decay and clipping that suit one optimizer do not suit another."""
    if "opt" not in draft.flags:
        return
    opt = split_spec(str(draft.flags["opt"]), "--opt")[0]
    replaced = draft.file.get("opt")
    if replaced is None and draft.file.get("recipe") in RECIPES:
        replaced = RECIPES[str(draft.file["recipe"])].settings["opt"]
    if replaced not in (None, opt):
        draft.drop(*RATES, "clip_grad")


def drop_loss_sum_without_validation(draft: Draft) -> None:
    """``--val none`` measures no loss that could be summed."""
    if draft.flags.get("val") == "none":
        draft.drop("loss_sum")


def drop_warmdown_of_replaced_schedule(draft: Draft) -> None:
    """Only a constant rate has a warm-down; the other schedules fall anyway."""
    if draft.flags.get("schedule", "constant") != "constant":
        draft.drop("warmdown")


def drop_replaced_length(draft: Draft) -> None:
    """A length by flag replaces the file's even in another unit, such as ``--max-steps`` for epochs."""
    if draft.flags.keys() & set(LENGTHS):
        draft.drop(*LENGTHS)


# What is chosen


def choose_recipe(draft: Draft) -> None:
    """The recipe comes first, as it has defaults for every other choice."""
    draft.recipe = lookup(RECIPES, str(draft.given.get("recipe", "default")), "--recipe")


def choose_dataset(draft: Draft) -> None:
    """A folder of images may stand for the name of a data set."""
    name, data_dir = resolve_dataset(str(draft.given.get("dataset", "cifar10")), draft.given.get("data_dir"))
    draft.settings.update(dataset=name, data_dir=data_dir)


def choose_time(draft: Draft) -> None:
    """A recipe may have another network for a short run, so the time is read before the network is chosen."""
    if draft.given.get("max_time") is not None:
        draft.seconds = parse_duration(draft.given["max_time"], "--max-time")


def choose_net(draft: Draft) -> None:
    """The network is the one given, else the recipe's for the time."""
    spec = draft.given.get("net", draft.recipe.within(draft.seconds)["net"])
    draft.settings["net"], draft.net_inline = split_spec(str(spec), "--net")
    draft.net_entry = find_model(draft.settings["net"])


def choose_weights(draft: Draft) -> None:
    """Some networks start from pretrained weights by default."""
    net, given = draft.settings["net"], draft.given.get("pretrained")
    draft.settings["pretrained"] = resolve_pretrained(net, draft.net_entry, given)


def choose_opt(draft: Draft) -> None:
    """The optimizer is the one given, else the recipe's for the time."""
    spec = draft.given.get("opt", draft.recipe.within(draft.seconds)["opt"])
    draft.settings["opt"], draft.opt_inline = split_spec(str(spec), "--opt")
    draft.opt_entry = find_optimizer(draft.settings["opt"])


# What the recipe has for these choices


def fill_in_from_recipe(draft: Draft) -> None:
    """The recipe has values for this network, optimizer, data set and length."""
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
    """A given length replaces the recipe's, which may be in another unit."""
    given = draft.given
    if given.keys() & set(LENGTHS):
        draft.settings.update({name: given.get(name) for name in LENGTHS})


# Options of the network


def collect_net_options(draft: Draft) -> None:
    """A recipe's options are for every network that has them."""
    of_recipe = {key: value for key, value in draft.recipe.net_options.items() if key in draft.net_entry.options}
    draft.settings["net_options"] = {**of_recipe, **draft.options("net", draft.net_inline)}


def apply_net_flags(draft: Draft) -> None:
    """``--patch`` and ``--convkernel`` are options of the network under the original scripts' names."""
    net, given = draft.settings["net"], draft.given
    for flag, option in NET_FLAGS.items():
        if flag not in given:
            continue
        if option not in draft.net_entry.options:
            lacks = "no patches" if flag == "patch" else "no kernels to choose; --net convmixer has"
            other = "; its window is --net swin:window_size=..." if net == "swin" and flag == "patch" else ""
            raise RequestError(f"--{flag} {given[flag]}: --net {net} has {lacks}; leave --{flag} out{other}")
        if "net" in given and option in draft.net_inline:
            raise RequestError(f"--{flag} and --net ...:{option}=... both set it; give one of them")
        draft.settings["net_options"][option] = given[flag]


def fill_in_net_options(draft: Draft) -> None:
    """The network's row has the default of every option that the network takes."""
    what = f"--net {draft.settings['net']}"
    draft.settings["net_options"] = draft.net_entry.resolve_options(draft.settings["net_options"], what)


# Options of the optimizer


def choose_lr_factors(draft: Draft) -> None:
    """Recipes scale the learning rate to the network, whose width matters, and lower it for pretrained weights.

    Of an optimizer with two learning rates, only the second depends on the width.
    """
    draft.lr_factor = draft.second_lr_factor = float(draft.settings.pop("lr_factor", 1.0))
    if draft.opt_entry.second_lr:
        pretrained = draft.recipe.pretrained if draft.settings["pretrained"] != "false" else {}
        draft.lr_factor = float(str(pretrained.get("lr_factor", 1.0)))


def split_rates_from_opt(draft: Draft) -> None:
    """``--opt NAME:lr=...`` means ``--lr``, which is no option of the optimizer's row."""
    draft.opt_rates = {
        name: FLAGS[name].parse(name, draft.opt_inline.pop(name)) for name in RATES if name in draft.opt_inline
    }


def collect_opt_options(draft: Draft) -> None:
    """A recipe's options are for one optimizer, and its second learning rate is scaled to the network."""
    entry = draft.opt_entry
    options: dict[str, Any] = dict(draft.recipe.opt_options.get(draft.settings["opt"], {}))
    if second := entry.second_lr:
        options[second] = float(options.get(second, entry.options[second].default)) * draft.second_lr_factor
    draft.settings["opt_options"] = {**options, **draft.options("opt", draft.opt_inline)}


def apply_adan_betas(draft: Draft) -> None:
    """``--adan-beta1`` to ``3`` are options of Adan in the paper's convention, which other optimizers do not share."""
    opt, entry, given = draft.settings["opt"], draft.opt_entry, draft.given
    for name, beta in OPT_FLAGS.items():
        if name not in given:
            continue
        if opt not in ADANS:
            like = f"; say --opt {opt}:{beta}=..." if beta in entry.options else " and would do nothing"
            raise RequestError(f"{flag_name(name)} belongs to --opt {' and '.join(ADANS)}, not to {opt}{like}")
        if beta in draft.opt_inline:
            raise RequestError(f"{flag_name(name)} and --opt {opt}:{beta}=... both set it; give one of them")
        draft.settings["opt_options"][beta] = entry.options[beta].parse(given[name], flag_name(name))


def fill_in_opt_options(draft: Draft) -> None:
    """The optimizer's row has the default of every option that the optimizer takes."""
    what = f"--opt {draft.settings['opt']}"
    draft.settings["opt_options"] = draft.opt_entry.resolve_options(draft.settings["opt_options"], what)


def settle_nesterov(draft: Draft) -> None:
    """SGD without momentum has no Nesterov momentum either, which is refused only when asked for.

    Otherwise it is stored as off, so that a file from ``--print-config`` does not ask for it.
    """
    options = draft.settings["opt_options"]
    if draft.settings["opt"] != "sgd" or options["momentum"]:
        return
    if str(draft.options("opt", draft.opt_inline).get("nesterov", "")).lower() in TRUE_WORDS:
        raise RequestError(
            "--opt sgd:nesterov=true needs momentum, which is 0; say --opt sgd:momentum=0.9,nesterov=true"
        )
    options["nesterov"] = False


# Learning rate and weight decay


def scale_recipe_lr(draft: Draft) -> None:
    """The recipe's learning rate is for a network of scale 1; a given one is taken as it is."""
    if "lr" in draft.settings and "lr" not in draft.given:
        draft.settings["lr"] = float(draft.settings["lr"]) * draft.lr_factor


def apply_rates_of_opt(draft: Draft) -> None:
    """Learning rate and decay in ``--opt`` win over the file and the recipe, and must not compete with a flag."""
    for name, rate in draft.opt_rates.items():
        if name in draft.flags:
            opt = draft.settings["opt"]
            raise RequestError(f"--opt {opt}:{name}=... and {flag_name(name)} both set it; give one of them")
        draft.settings[name] = rate


def fill_in_rates(draft: Draft) -> None:
    """The optimizer's row has a learning rate, for a network of scale 1, and a decay."""
    draft.settings.setdefault("lr", draft.opt_entry.lr * draft.lr_factor)
    draft.settings.setdefault("weight_decay", draft.opt_entry.weight_decay)


def refuse_zero_lr_with_a_second(draft: Draft) -> None:
    """The schedule moves the second learning rate in proportion to the first."""
    if draft.opt_entry.second_lr and draft.settings["lr"] == 0:
        raise RequestError(
            f"--lr 0 stops --opt {draft.settings['opt']} and its {draft.opt_entry.second_lr}, which the schedule moves with "
            f"it; take a small rate such as 1e-9"
        )


# What depends on another setting


def replace_recipe_warmup_of_onecycle(draft: Draft) -> None:
    """A recipe's warm-up is a share of its own schedule, and one-cycle rises for longer."""
    if draft.settings.get("schedule") == "onecycle" and "warmup" not in draft.given:
        draft.settings["warmup"] = ONECYCLE_RISE


def remove_recipe_warmdown_of_other_schedules(draft: Draft) -> None:
    """A recipe's warm-down is for its own constant rate."""
    if draft.settings.get("schedule") != "constant" and "warmdown" not in draft.given:
        draft.settings.pop("warmdown", None)


def fill_in_size(draft: Draft) -> None:
    """Pretrained networks see larger images than the others."""
    draft.settings.setdefault("size", draft.net_entry.img_size)


def fill_in_wandb(draft: Draft) -> None:
    """Under a W&B agent, which sets the variable, a run reports to W&B."""
    draft.settings.setdefault("wandb", "online" if os.environ.get("WANDB_SWEEP_ID") else "disabled")


def refuse_idle_wandb_flags(draft: Draft) -> None:
    """Flags about W&B do nothing where W&B is disabled."""
    check_tracked(str(draft.settings["wandb"]), draft.flags)


def reset_recipe_layer_decay(draft: Draft) -> None:
    """A recipe's layer decay preserves pretrained layers; it has no place on random or frozen ones."""
    random = draft.settings["pretrained"] == "false"
    if "layer_decay" not in draft.given and (random or draft.settings.get("freeze_backbone")):
        draft.settings["layer_decay"] = 1.0


# Augmentation


def choose_aug(draft: Draft) -> None:
    """The augmentation is the one given, else the recipe's; its row has a default for every option."""
    aug, inline = split_spec(str(draft.settings.get("aug", TrainConfig.aug)), "--aug")
    entry: AugmentationEntry = lookup(AUGMENTATIONS, aug, "--aug")
    options = entry.resolve_options(draft.options("aug", inline), f"--aug {aug}")
    draft.settings.update(aug=aug, aug_options=options)


def fill_in_mixing(draft: Draft) -> None:
    """``--mixup`` without a number means the recipe's strength, else the usual one."""
    for name in MIXING:
        if draft.settings.get(name) is True:
            draft.settings[name] = draft.preset.get(name) or FLAGS[name].when_true


def settle_mix_off(draft: Draft) -> None:
    """Without mixing there is nothing to end.

    A file may still have ``mix_off`` where a flag or a trial of a sweep sets ``mixup`` to 0.
    """
    given = draft.given
    if any(draft.settings.get(name, 0) for name in MIXING):
        return
    if given.get("mix_off") and ("mix_off" in draft.flags or not given.keys() & set(MIXING)):
        raise RequestError(
            f"--mix-off {given['mix_off']:g} ends mixup and CutMix, and neither is on; give --mixup or --cutmix too"
        )
    draft.settings["mix_off"] = 0.0


# What is left


def remove_recipe_loss_sum(draft: Draft) -> None:
    """``--val none`` measures no loss that could be summed."""
    if draft.settings.get("val") == "none" and "loss_sum" not in draft.given:
        draft.settings["loss_sum"] = False


def remove_option_flags(draft: Draft) -> None:
    """Flags that set an option are part of the options by now."""
    for name in (*NET_FLAGS, *OPT_FLAGS):
        draft.settings.pop(name, None)


# What the complete settings are refused for


def refuse_warmup_within_the_first_epoch(draft: Draft, config: TrainConfig) -> None:
    """With one rate per epoch, a warm-up that ends in the first of them does nothing. The recipe's may."""
    rising = config.warmup * config.epochs if config.epochs and not config.max_steps else 0.0
    if "warmup" in draft.flags and config.schedule_per == "epoch" and 0 < rising <= 1:
        more = f"take more than {1 / config.epochs:g}, or " if config.epochs and config.epochs > 1 else "take "
        raise RequestError(
            f"--warmup {config.warmup:g} ends within the first epoch, and with --schedule-per epoch that has one rate, so that "
            f"nothing rises; {more}--schedule-per step"
        )


def refuse_rates_of_optimizer(draft: Draft, config: TrainConfig) -> None:
    """Some of timm's optimizers refuse rates that the flags allow."""
    draft.opt_entry.check_rate(config.lr, config.weight_decay, config.opt_options)


def refuse_size_of_network(draft: Draft, config: TrainConfig) -> None:
    """A network takes only some image sizes: its patches must tile the image, say."""
    draft.net_entry.check_size(config.net, config.net_options, config.size)


RULES: tuple[Callable[[Draft], None], ...] = (
    # What of the file gives way to flags
    take_apart_file_specs,
    drop_warmup_when_onecycle_begins_or_ends,
    drop_defaults_of_replaced_choices,
    drop_file_net_options,
    drop_file_opt_options,
    drop_file_aug_options,
    drop_rates_of_replaced_opt,
    drop_loss_sum_without_validation,
    drop_warmdown_of_replaced_schedule,
    drop_replaced_length,
    # What is chosen
    choose_recipe,
    choose_dataset,
    choose_time,
    choose_net,
    choose_weights,
    choose_opt,
    # What the recipe has for these choices
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
    # What depends on another setting
    replace_recipe_warmup_of_onecycle,
    remove_recipe_warmdown_of_other_schedules,
    fill_in_size,
    fill_in_wandb,
    refuse_idle_wandb_flags,
    reset_recipe_layer_decay,
    # Augmentation
    choose_aug,
    fill_in_mixing,
    settle_mix_off,
    # What is left
    remove_recipe_loss_sum,
    remove_option_flags,
)
"""Every rule, in order. A rule may rely on those before it; of two that refuse, the first is what the user reads."""

REFUSALS: tuple[Callable[[Draft, TrainConfig], None], ...] = (
    refuse_warmup_within_the_first_epoch,
    refuse_rates_of_optimizer,
    refuse_size_of_network,
)
"""Every refusal, in order, beyond :mod:`~vitctl.config.checks`: these are of flags and tables, not of stored settings."""


def resolve_config(flags: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> TrainConfig:
    """Complete the given settings: tables < recipe < file < flags.

    Args:
        flags: settings by name, from the command line; only those that were given.
        file: settings by name, from a ``--config`` file.

    Raises:
        RequestError: an unknown name, or an impossible combination.
    """
    draft = Draft(flags=flags, file=dict(file or {}))
    for rule in RULES:
        rule(draft)
    config = TrainConfig(**draft.settings)
    for refusal in REFUSALS:
        refusal(draft, config)
    return config
