"""Settings of a training run, and the rules that complete the given ones to a full set.

- :mod:`~vitctl.config.flag`: type, range and help of one setting;
- :mod:`~vitctl.config.settings`: every setting;
- :mod:`~vitctl.config.checks`: combinations of settings that are refused;
- :mod:`~vitctl.config.train_config`: a complete, checked set of settings;
- :mod:`~vitctl.config.keys`: flags, aliases and option names under which settings can be given;
- :mod:`~vitctl.config.names`: names of the settings in other tools;
- :mod:`~vitctl.config.warmup`: lengths of the warm-up;
- :mod:`~vitctl.config.paths`: data sets, weights and runs given by name or path;
- :mod:`~vitctl.config.resolution`: the rules of :func:`resolve_config`, which completes the given settings;
- :mod:`~vitctl.config.fitting`: batch size and epochs of small folders of images;
- :mod:`~vitctl.config.cards`: the recipe card that a run can be compared with.
"""

from __future__ import annotations

from vitctl.config.cards import find_card
from vitctl.config.checks import check_tracked, split_tags
from vitctl.config.fitting import FITTED, fit_to_images, fitting_note, free_settings
from vitctl.config.flag import Flag, flag_name
from vitctl.config.keys import (
    ADAN_BETAS,
    ADANS,
    ALIASES,
    FLAGS,
    LENGTHS,
    MAIN_FLAGS,
    MAPPINGS,
    NAMED,
    NET_FLAGS,
    OPTION_TABLES,
    normalise_keys,
    read_settings,
    setting_of,
    similar_settings,
    unknown_setting,
)
from vitctl.config.names import SWITCHES, foreign_name
from vitctl.config.paths import RUNS, find_run, is_run, resolve_dataset, resolve_labels
from vitctl.config.resolution import resolve_config
from vitctl.config.settings import HOLDOUT_RULES, ORIGINAL_BATCH, VAL_PROTOCOLS, pretrained_word
from vitctl.config.train_config import TrainConfig
from vitctl.config.warmup import WARMUP_UNITS, split_warmup

__all__ = [
    "ADAN_BETAS",
    "ADANS",
    "ALIASES",
    "FITTED",
    "FLAGS",
    "HOLDOUT_RULES",
    "LENGTHS",
    "MAIN_FLAGS",
    "MAPPINGS",
    "NAMED",
    "NET_FLAGS",
    "OPTION_TABLES",
    "ORIGINAL_BATCH",
    "RUNS",
    "SWITCHES",
    "VAL_PROTOCOLS",
    "WARMUP_UNITS",
    "Flag",
    "TrainConfig",
    "check_tracked",
    "find_card",
    "find_run",
    "fit_to_images",
    "fitting_note",
    "flag_name",
    "foreign_name",
    "free_settings",
    "is_run",
    "normalise_keys",
    "pretrained_word",
    "read_settings",
    "resolve_config",
    "resolve_dataset",
    "resolve_labels",
    "setting_of",
    "similar_settings",
    "split_tags",
    "split_warmup",
    "unknown_setting",
]
