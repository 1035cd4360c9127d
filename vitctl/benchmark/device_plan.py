"""What ``bench-device`` is to measure: settings, time, and whether it really trains."""

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
"""Data sets whose images need not be there, as generated ones of their size cost the same, and their classes."""

SECONDS = "60s"
"""For which a device is measured unless ``--max-time`` says otherwise."""

_OF_RUNS = (
    *("wandb", "wandb_project", "wandb_entity", "wandb_group", "wandb_tags", "wandb_notes", "tensorboard"),
    *("save_every", "keep", "patience", "tta", "max_steps", "val", "val_fraction", "pretrained", "loss_sum"),
)
"""Settings that mean something to runs alone."""

_OF_DATA = ("data_dir", "split_seed", "skip_bad_images", "limit_test")
"""Settings that mean nothing to generated images."""


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """What is measured on each device.

    Attributes:
        config: the settings.
        given: names of the settings that somebody gave.
        seconds: how long steps are measured on a device.
        trains: whether each device then really trains.
    """

    config: TrainConfig
    given: frozenset[str]
    seconds: float
    trains: bool


def make_device_plan(
    settings: Mapping[str, Any], file: Mapping[str, Any] | None = None, *, tune: bool = False, out: Path | None = None
) -> DevicePlan:
    """Return what the arguments ask for.

    Args:
        settings: given by flag; one that would have no effect is refused.
        file: of ``--config``; what it says of runs is left out where none is made.
        tune: settings are to be tried instead.
        out: where to write.

    Raises:
        RequestError: settings that cannot be, or would do nothing.
    """
    flags, base = dict(settings), dict(file or {})
    given = frozenset({*flags, *base})
    if "device" in flags:
        raise RequestError(f"--device {flags['device']}: name devices as arguments: vitctl bench-device cpu mps")
    base.pop("device", None)
    if tune:
        for name in ("epochs", "max_time", "compile"):
            if name in flags:
                raise RequestError(
                    f"--tune times single pieces of many settings, uncompiled; {flag_name(name)} does not go with it"
                )
        if out is not None and out.suffix.lower() in (".png", ".svg"):
            raise RequestError(f"--out {out}: --tune has no image; name a folder or a .json, .csv, .md or .html file")
    asked, of_file = flags.pop("max_time", None), base.pop("max_time", None)
    seconds = parse_duration(asked or of_file or SECONDS, "--max-time")
    if trains := flags.get("epochs") is not None:
        return DevicePlan(config=_resolved(flags, base), given=given, seconds=seconds, trains=trains)
    without = [*_OF_RUNS]
    if flags.get("dataset", base.get("dataset", "cifar10")) in GENERATED:
        without += _OF_DATA
    for name in without:
        if name in flags:
            raise RequestError(
                f"{flag_name(name)} is for runs, and without --epochs none is made: generated images are measured; leave it out"
            )
        base.pop(name, None)
    # Resolved with the file's own length, as some recipes take another batch in short runs; then it does not matter.
    config = _resolved({**flags, "val": "none"}, base)
    config = dataclasses.replace(config, epochs=1, max_steps=None, max_time=None)
    return DevicePlan(config=config, given=given, seconds=seconds, trains=trains)


def _resolved(flags: Mapping[str, Any], base: Mapping[str, Any]) -> TrainConfig:
    usual = {} if "recipe" in flags or "recipe" in base else {"net": "vit_small", "bs": 512}
    return resolve_config(flags, {**usual, **base})
