"""A trained network, from a checkpoint that describes itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitctl.config import TrainConfig
from vitctl.errors import RequestError
from vitctl.models import build_model, find_model
from vitctl.training.checkpoint import FILE_SHA256, load_checkpoint
from vitctl.training.run_folder import BEST, RunFolder


@dataclass(frozen=True)
class Trained:
    """A network with the weights of a checkpoint, in eval mode.

    Attributes:
        model: on the device asked for.
        config: the settings that it was trained with.
        classes: what its logits stand for, in order.
        mean: what its input was normalised with, per channel.
        std: likewise.
        path: the checkpoint's file.
        weights: ``ema`` when they are an average of weights, else ``model``.
        epoch: epochs trained.
        step: optimizer steps taken.
        history: a record per epoch.
        sha256: of the checkpoint's file.
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


def load_trained(path: Path, *, weights: str, device: torch.device, warn: Callable[[str], None]) -> Trained:
    """Load a checkpoint's network, from the checkpoint alone.

    Args:
        path: a checkpoint, or a run's folder.
        weights: of a run's folder, ``last`` or ``best``. The average is taken where one was kept.
        device: where the network is wanted.
        warn: told when a damaged checkpoint was passed over.

    Raises:
        RequestError: no checkpoint there, a damaged or foreign one, or one of a network that is not registered.
    """
    if path.is_dir():
        folder = RunFolder.open(path)
        if weights == "best":
            path = folder.checkpoints / BEST
            if not path.exists():
                raise RequestError(
                    f"{path} is not there: only runs with held-out images (--val holdout) have a best checkpoint; take "
                    f"--weights last"
                )
            checkpoint = load_checkpoint(path)
        else:
            found = folder.newest(warn)
            if found is None:
                raise RequestError(
                    f"the run {path} has saved no checkpoint yet; go on with it by vitctl train --resume"
                )
            path, checkpoint = found
    else:
        if weights == "best":
            raise RequestError(f"--weights best chooses within a run's folder, and {path} is a single checkpoint")
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
        raise RequestError(f"{path} is of a network that this vitctl cannot build: {error}") from error
    kept = "ema" if checkpoint["ema"] is not None else "model"
    try:
        model.load_state_dict(checkpoint[kept])
    except RuntimeError as error:
        raise RequestError(
            f"{path} does not hold the weights of --net {config.net} as this version builds it: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    return Trained(
        model=model.to(device).eval(),
        config=config,
        classes=tuple(checkpoint["classes"]),
        mean=tuple(checkpoint["mean"]),
        std=tuple(checkpoint["std"]),
        path=path,
        weights=kept,
        epoch=checkpoint["epoch"],
        step=checkpoint["step"],
        history=checkpoint["history"],
        sha256=checkpoint[FILE_SHA256],
    )
