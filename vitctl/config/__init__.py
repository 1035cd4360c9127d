"""What a training run is to do: its settings, how each is typed, and how a few of them become a full set.

- :mod:`~vitctl.config.flag`: type, range and help of one setting;
- :mod:`~vitctl.config.settings`: each setting; :mod:`~vitctl.config.train_config`: all of them together, held to :mod:`~vitctl.config.checks`;
- :mod:`~vitctl.config.keys`: the names under which settings can be given;
- :mod:`~vitctl.config.paths`: data sets and weights that are given by path;
- :mod:`~vitctl.config.resolution`: the rules by which :func:`resolve_config` completes what was given;
- :mod:`~vitctl.config.cards`: the measurement that a run with these settings can be compared with.
"""

from __future__ import annotations

from vitctl.config.cards import find_card
from vitctl.config.checks import check_tracked, split_tags
from vitctl.config.flag import Flag, flag_name
from vitctl.config.keys import ADAN_BETAS, ADANS, ALIASES, FLAGS, LENGTHS, OPTION_TABLES, normalise_keys
from vitctl.config.paths import resolve_dataset
from vitctl.config.resolution import resolve_config
from vitctl.config.settings import PREDECESSOR_BATCH, VAL_PROTOCOLS, pretrained_word
from vitctl.config.train_config import TrainConfig

__all__ = [
    "ADAN_BETAS",
    "ADANS",
    "ALIASES",
    "FLAGS",
    "LENGTHS",
    "OPTION_TABLES",
    "PREDECESSOR_BATCH",
    "VAL_PROTOCOLS",
    "Flag",
    "TrainConfig",
    "check_tracked",
    "find_card",
    "flag_name",
    "normalise_keys",
    "pretrained_word",
    "resolve_config",
    "resolve_dataset",
    "split_tags",
]
