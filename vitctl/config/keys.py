"""Names of settings as flags and as keys of files and sweeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vitctl.config.flag import NETWORK, OPTIMIZER, Flag
from vitctl.config.names import SYNONYMS, foreign_name
from vitctl.config.train_config import TrainConfig
from vitctl.errors import RequestError
from vitctl.registry import or_list, similar

NET_FLAGS = {"patch": "patch_size", "convkernel": "kernel_size"}
"""Flags that set an option of the network, with the name of the option."""

OPT_FLAGS = {f"adan_beta{i}": f"beta{i}" for i in (1, 2, 3)}
"""Flags that set an option of the optimizer, with the name of the option."""

ADAN_BETAS = tuple(OPT_FLAGS)
ADANS = ("adan", "adan_pytorch")
"""Optimizers that accept :data:`ADAN_BETAS`."""

INPUT_ONLY: dict[str, Flag] = {
    "patch": Flag(kind=int, help="patch size in pixels, for networks with patches", panel=NETWORK, low=1),
    "convkernel": Flag(kind=int, help="kernel size of convmixer", panel=NETWORK, low=1),
    **{
        name: Flag(kind=float, help=f"Adan's {beta} as in its paper: 1 minus the usual {beta}", panel=OPTIMIZER)
        for name, beta in OPT_FLAGS.items()
    },
}
"""Flags that are stored in ``net_options`` or ``opt_options``."""

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

OPTION_TABLES = ("net_options", "opt_options", "aug_options")
"""Settings of a file that hold options by name."""

LENGTHS = ("epochs", "max_steps", "max_time")
"""Settings that limit the length of a run. Giving one replaces all of the recipe's."""


def similar_settings(word: str) -> list[str]:
    """Return the canonical names of up to three settings that resemble ``word``, most similar first."""
    return [*dict.fromkeys(ALIASES.get(name, name) for name in similar(word, [*FLAGS, *OPTION_TABLES, *ALIASES]))]


def suggest_setting(word: str) -> str:
    """Return a hint for an unknown setting: similar ones, else how to list all."""
    near = similar_settings(word)
    return f"did you mean {or_list(near)}?" if near else "list all settings with vitctl train --help"


def normalise_keys(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return parsed settings under their canonical names.

    Args:
        values: settings of a file or a sweep; hyphens, underscores and other names such as ``n_epochs`` are accepted.
        source: name of the file or sweep, for error messages.

    Raises:
        RequestError: an unknown key, a setting given twice, or a bad value.
    """
    settings: dict[str, Any] = {}
    for key, value in values.items():
        word = key.strip().lstrip("-").replace("-", "_")
        name = ALIASES.get(word, word)
        if name not in FLAGS and name not in OPTION_TABLES:
            error = unknown_setting(key, word)
            error.add_context(source)
            raise error
        if name in settings:
            raise RequestError(f"{source}: {key!r} sets {name} a second time", hint=f"remove {key!r}")
        if name in OPTION_TABLES:
            if not isinstance(value, dict):
                raise RequestError(
                    f"{source}: {key!r} must be a mapping of options", hint=f"use {key}: {{}} or {key}: {{name: value}}"
                )
            settings[name] = value
        elif value is not None:
            settings[name] = FLAGS[name].parse(name, value)
    return settings


def unknown_setting(key: str, word: str) -> RequestError:
    """Return the error for an unknown setting ``key``, which is ``word`` without hyphens."""
    return foreign_name(word, key) or RequestError(f"unknown setting {key!r}", hint=suggest_setting(word))
