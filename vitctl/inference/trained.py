"""A trained network loaded from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitctl import devices
from vitctl.config import TrainConfig
from vitctl.data.layout import class_name
from vitctl.data.manifest import DATA_SHA256
from vitctl.errors import RequestError
from vitctl.models import build_model, find_model
from vitctl.training.checkpoint import FILE_SHA256, load_checkpoint
from vitctl.training.run_folder import BEST, RunFolder

_OTHER_VERSION = "use another checkpoint, or the version of vitctl that wrote this one"


@dataclass(frozen=True)
class Trained:
    """A model with the weights of a checkpoint, in eval mode.

    Attributes:
        model: the model, on the requested device.
        config: settings of the run.
        classes: names of the classes, in the order of the logits.
        mean: mean of each channel, for normalisation.
        std: standard deviation of each channel, for normalisation.
        path: the checkpoint.
        weights: ``ema`` for averaged weights, else ``model``.
        epoch: number of epochs trained.
        step: number of optimizer steps taken.
        history: record of each epoch.
        sha256: SHA-256 of the checkpoint.
        data_sha256: digest of the training data; empty if not recorded.
        precision: precision in which to evaluate it on that device: ``fp32``, ``bf16`` or ``fp16``.
    """

    model: nn.Module
    config: TrainConfig
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    path: Path
    weights: str
    epoch: int
    step: int
    history: list[dict[str, Any]]
    sha256: str = ""
    data_sha256: str = ""
    precision: str = "fp32"


def load_trained(path: Path, *, weights: str, device: torch.device, warn: Callable[[str], None]) -> Trained:
    """Load a trained network; averaged weights are used if the checkpoint has them.

    Args:
        path: a checkpoint or the folder of a run.
        weights: checkpoint to use from a run's folder: ``last`` or ``best``.
        device: the device for the model.
        warn: receives a warning if a damaged checkpoint is skipped.

    Raises:
        RequestError: the checkpoint is missing, damaged or not from vitctl, or its network cannot be built.
    """
    if path.is_dir():
        folder = RunFolder.open(path)
        if weights == "best":
            path = folder.checkpoints / BEST
            if not path.exists():
                raise RequestError(
                    f"{path} not found; only runs with --val holdout have a best checkpoint", hint="use --weights last"
                )
            checkpoint = load_checkpoint(path)
        else:
            found = folder.newest(warn)
            if found is None:
                raise RequestError(f"the run {path} has no checkpoint yet", hint=f"run vitctl train --resume {path}")
            path, checkpoint = found
    else:
        if weights == "best":
            raise RequestError(
                f"--weights best needs the folder of a run, but {path} is a single checkpoint", hint="remove --weights"
            )
        checkpoint = load_checkpoint(path)
    config = TrainConfig.from_dict(checkpoint["config"])
    try:
        model = build_model(
            config.net,
            find_model(config.net).resolve_options(config.net_options, f"--net {config.net}"),
            img_size=config.size,
            in_chans=len(checkpoint["mean"]),
            num_classes=len(checkpoint["classes"]),
        )
    except RequestError as error:
        raise RequestError(f"cannot build the network of {path}: {error.message}", hint=_OTHER_VERSION) from error
    kept = "ema" if checkpoint["ema"] is not None else "model"
    try:
        model.load_state_dict(checkpoint[kept])
    except RuntimeError as error:
        raise RequestError(
            f"the weights in {path} do not fit --net {config.net}: {str(error).splitlines()[-1].strip()}",
            hint=_OTHER_VERSION,
        ) from error
    return Trained(
        model=model.to(device).eval(),
        config=config,
        classes=tuple(map(class_name, checkpoint["classes"])),  # earlier versions stored the folders' names
        mean=tuple(checkpoint["mean"]),
        std=tuple(checkpoint["std"]),
        path=path,
        weights=kept,
        epoch=checkpoint["epoch"],
        step=checkpoint["step"],
        history=checkpoint["history"],
        sha256=checkpoint[FILE_SHA256],
        data_sha256=checkpoint.get(DATA_SHA256) or "",
        precision=devices.kept_precision(checkpoint, config.precision, device, find_model(config.net).bf16),
    )
