"""Names of settings as flags and as keys of files and sweeps."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitctl.config.flag import NETWORK, OPTIMIZER, SCHEDULE, Flag, flag_name
from vitctl.config.names import SWITCHES, SYNONYMS, foreign_name
from vitctl.config.paths import find_run, is_run
from vitctl.config.settings import parse_refits
from vitctl.config.train_config import TrainConfig
from vitctl.data import AUGMENTATIONS
from vitctl.errors import RequestError
from vitctl.models import find_model
from vitctl.optim import find_optimizer
from vitctl.recipes import RECIPES
from vitctl.registry import Entry, convert, lookup, or_list, similar, split_spec
from vitctl.yamlfile import Mistakes, Place, line_numbers, parse_yaml, read_text

NET_FLAGS = {"patch": "patch_size", "convkernel": "kernel_size", "dimhead": "embed_dim"}
"""Flags that set an option of the network, with the name of the option. The original scripts misnamed ``--dimhead``."""

OPT_FLAGS = {f"adan_beta{i}": f"beta{i}" for i in (1, 2, 3)}
"""Flags that set an option of the optimizer, with the name of the option."""

ADAN_BETAS = tuple(OPT_FLAGS)
ADANS = ("adan", "adan_pytorch")
"""Optimizers that accept :data:`ADAN_BETAS`."""

INPUT_ONLY: dict[str, Flag] = {
    "patch": Flag(kind=int, help="patch size in pixels, for networks with patches", panel=NETWORK, low=1),
    "convkernel": Flag(kind=int, help="kernel size of convmixer", panel=NETWORK, low=1),
    "dimhead": Flag(kind=int, help="width of the embeddings, option embed_dim of --net", panel=NETWORK, low=1),
    **{
        name: Flag(kind=float, help=f"Adan's {beta} as in its paper: 1 minus the usual {beta}", panel=OPTIMIZER)
        for name, beta in OPT_FLAGS.items()
    },
    "warmup_epochs": Flag(kind=float, help="warm-up in epochs, like --warmup 5ep", panel=SCHEDULE, low=0, high=1e6),
    "warmup_steps": Flag(kind=int, help="warm-up in optimizer steps", panel=SCHEDULE, low=0, high=10**9),
}
"""Flags that are stored in ``net_options``, ``opt_options`` or ``warmup``."""

FLAGS: dict[str, Flag] = {
    **{f.name: f.metadata["flag"] for f in dataclasses.fields(TrainConfig) if "flag" in f.metadata},
    **INPUT_ONLY,
}
"""Every setting that can be given by flag or file, by name."""

MAIN_FLAGS = (
    "net", "dataset", "data_dir", "recipe", "epochs", "bs", "opt", "lr", "weight_decay", "aug", "mixup", "cutmix", "size",
    "pretrained", "device", "seed", "wandb",
)  # fmt: skip
"""The settings that ``--help`` lists first, in its order."""

ALIASES = SYNONYMS | {
    spelling.lstrip("-").replace("-", "_"): name for name, flag in FLAGS.items() for spelling in flag.names
}
"""Settings by their other names."""

FILE_ONLY: Mapping[str, Callable[[object, str], Any]] = {"refits": parse_refits}
"""Parsers of the settings that have no flag: what a run recorded in its file, so that it can be repeated."""

OPTION_TABLES = ("net_options", "opt_options", "aug_options")
"""Settings of a file that hold options by name."""

MAPPINGS = (*OPTION_TABLES, "lr_scale")
"""Settings that are mappings, whose values a sweep varies one by one."""

RUN_FLAGS = (
    *("resume", "accept_data", "name", "runs_dir", "config", "print_config", "dry_run", "lr_finder", "lr_finder_out"),
    *("preview_batch", "json"),
)
"""Flags of ``vitctl train`` that are not settings."""

LENGTHS = ("epochs", "max_steps", "max_time")
"""Settings that limit the length of a run. Giving one replaces all of the recipe's."""


def setting_of(name: str) -> str:
    """Return the canonical name of a setting for any spelling of it: ``--n-epochs`` -> ``epochs``."""
    word = name.strip().lstrip("-").replace("-", "_")
    return ALIASES.get(word, word)


def similar_settings(word: str) -> list[str]:
    """Return the canonical names of up to three settings that resemble ``word``, most similar first."""
    return [*dict.fromkeys(ALIASES.get(name, name) for name in similar(word, [*FLAGS, *OPTION_TABLES, *ALIASES]))]


def suggest_setting(word: str) -> str:
    """Return a hint for an unknown setting: similar ones, else how to list all."""
    near = similar_settings(word)
    return f"did you mean {or_list(near)}?" if near else "list all settings with vitctl train --help"


def read_settings(path: Path) -> dict[str, Any]:
    """Return the parsed settings of a ``--config`` file, or those of a run, under their canonical names.

    Args:
        path: a YAML file, a run or its ``config.json``.

    Raises:
        RequestError: the file cannot be read or has mistakes; all of them are listed by line.
    """
    path = find_run(path)
    path = path / "config.json" if is_run(path) else path
    text, source = read_text(path), str(path)
    document = parse_yaml(text, source)
    root: Place = ()
    if document.keys() >= {"config", "sessions"} and isinstance(document["config"], dict):  # the record of a run
        document, root = document["config"], ("config",)
    if "method" in document and "parameters" in document:
        raise RequestError(f"{source} is a sweep file", hint=f"run vitctl sweep create {shlex.quote(source)}")
    mistakes = Mistakes(line_numbers(text, source), source)
    settings: dict[str, Any] = {}
    for key, value in document.items():
        with mistakes.collected((*root, key)):
            name = _add_setting(settings, key, value)
            check_name(name, settings.get(name))
    mistakes.raise_all(f"vitctl train --config {shlex.quote(source)} --print-config")
    return settings


def normalise_keys(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return parsed settings under their canonical names.

    Args:
        values: settings of a sweep under any of their names, such as ``n_epochs`` or ``weight-decay``.
        source: name of the sweep in error messages.

    Raises:
        RequestError: an unknown key, a setting given twice, or a bad value.
    """
    settings: dict[str, Any] = {}
    for key, value in values.items():
        try:
            _add_setting(settings, key, value)
        except RequestError as error:
            error.add_context(source)
            raise
    return settings


def _add_setting(settings: dict[str, Any], key: str, value: Any) -> str:
    """Add a setting by any of its names, and return its canonical name; None counts as not given.

    Raises:
        RequestError: an unknown key, a setting that was added before, or a bad value.
    """
    name = setting_of(key)
    if name in SWITCHES and value is not None:
        switched = convert(value, bool, key)
        name, value = SWITCHES[name][0], SWITCHES[name][1] if switched else None
    if not any(name in names for names in (FLAGS, OPTION_TABLES, SWITCHES, FILE_ONLY)):
        raise unknown_setting(key, name)
    if value is None:
        return name
    if name in settings:
        raise RequestError(f"{key!r} sets {name} a second time", hint=f"remove {key!r}")
    if name in FILE_ONLY:
        settings[name] = FILE_ONLY[name](value, key)
    elif name not in OPTION_TABLES:
        settings[name] = FLAGS[name].parse(name, value)
    elif isinstance(value, dict):
        settings[name] = {str(option).replace("-", "_"): each for option, each in value.items() if each is not None}
    else:
        raise RequestError(f"{key!r} must be a mapping of options", hint=f"use {key}: {{}} or {key}: {{name: value}}")
    return name


NAMED: Mapping[str, Callable[[str], Entry]] = {
    "net": find_model,
    "opt": find_optimizer,
    "aug": lambda name: lookup(AUGMENTATIONS, name, "--aug"),
}
"""Lookup of the settings that are written ``NAME:key=value``."""


def check_name(setting: str, value: object) -> None:
    """Refuse a network, optimizer, augmentation or recipe that does not exist.

    Raises:
        RequestError: the name is unknown.
    """
    if setting in NAMED and isinstance(value, str):
        NAMED[setting](split_spec(value, flag_name(setting))[0])
    elif setting == "recipe":
        lookup(RECIPES, str(value), "--recipe")


def unknown_setting(key: str, word: str) -> RequestError:
    """Return the error for an unknown setting.

    Args:
        key: the name as it was given.
        word: the name without leading hyphens, and with underscores.
    """
    if word in RUN_FLAGS:
        return RequestError(
            f"{key!r} is a flag of train, not a setting", hint=f"remove {key!r}, and give {flag_name(word)}"
        )
    return foreign_name(word, key) or RequestError(f"unknown setting {key!r}", hint=suggest_setting(word))
