"""Plan of a ``bench-device`` measurement, from its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitctl.config import TrainConfig, flag_name, resolve_config
from vitctl.errors import RequestError
from vitctl.units import parse_duration

GENERATED = {"cifar10": 10, "cifar100": 100}
"""Data sets that generated images replace, with their number of classes; images of one size cost the same."""

SECONDS = "60s"
"""Default of ``--max-time``: how long each device is measured."""

_RUN_ONLY = (
    *("wandb", "wandb_project", "wandb_entity", "wandb_group", "wandb_tags", "wandb_notes", "tensorboard"),
    *("save_every", "keep", "patience", "tta", "max_steps", "val", "val_fraction", "pretrained", "loss_sum"),
)
"""Settings that only affect training runs."""

_DATA_ONLY = (
    "data_dir", "labels", "split_seed", "holdout_by", "test_fraction", "skip_bad_images", "strict_data", "fit", "value_range",
    "limit_test",
)  # fmt: skip
"""Settings of real data, which do not affect generated images."""


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """What to measure on each device.

    Attributes:
        config: settings of the measured steps.
        given: names of the settings given by flag or in a file.
        seconds: how long steps are measured on a device.
        trains: whether to train a run on each device after the measurement.
    """

    config: TrainConfig
    given: frozenset[str]
    seconds: float
    trains: bool


def make_device_plan(
    settings: Mapping[str, Any], file: Mapping[str, Any] | None = None, *, tune: bool = False, out: Path | None = None
) -> DevicePlan:
    """Make the plan for the arguments of ``bench-device``.

    Args:
        settings: settings given by flag; those without effect are refused.
        file: settings of ``--config``; those without effect are ignored.
        tune: the arguments include ``--tune``.
        out: path of ``--out``.

    Raises:
        RequestError: an invalid setting, or a flag without effect.
    """
    flags, base = dict(settings), dict(file or {})
    given = frozenset({*flags, *base})
    if "device" in flags:
        raise RequestError(
            f"bench-device takes devices as arguments, not --device {flags['device']}",
            hint=f"run vitctl bench-device {flags['device']}",
        )
    base.pop("device", None)
    if tune:
        for name in ("epochs", "max_time", "compile"):
            if name in flags:
                raise RequestError(f"{flag_name(name)} does nothing with --tune", hint=f"remove {flag_name(name)}")
        if out is not None and out.suffix.lower() in (".png", ".svg"):
            raise RequestError(
                f"--out {out}: --tune draws no plots",
                hint="use --out with a folder, or with a name that ends in .json, .csv, .md or .html",
            )
    from_flag, from_file = flags.pop("max_time", None), base.pop("max_time", None)
    seconds = parse_duration(from_flag or from_file or SECONDS, "--max-time")
    if trains := flags.get("epochs") is not None:
        return DevicePlan(config=_resolved(flags, base), given=given, seconds=seconds, trains=trains)
    unused = [*_RUN_ONLY]
    if flags.get("dataset", base.get("dataset", "cifar10")) in GENERATED:
        unused += _DATA_ONLY
    for name in unused:
        if name in flags:
            alternative = "" if tune else ", or add --epochs 1 to train a run on each device"
            raise RequestError(
                f"{flag_name(name)} does nothing without --epochs", hint=f"remove {flag_name(name)}{alternative}"
            )
        base.pop(name, None)
    # Resolved with the length from the file, as some recipes use another batch size in short runs.
    config = _resolved({**flags, "val": "none"}, base)
    # A warm-up in epochs or steps may be longer than this length, and costs nothing.
    warmup = 0.0 if isinstance(config.warmup, str) else config.warmup
    config = dataclasses.replace(config, epochs=1, max_steps=None, max_time=None, refits=None, warmup=warmup)
    return DevicePlan(config=config, given=given, seconds=seconds, trains=trains)


def _resolved(flags: Mapping[str, Any], base: Mapping[str, Any]) -> TrainConfig:
    defaults = {} if "recipe" in flags or "recipe" in base else {"net": "vit_small", "bs": 512}
    return resolve_config(flags, {**defaults, **base})
