"""Whatever gives logits for pictures, and says what it was trained on: a checkpoint's network, or an exported file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitctl import devices
from vitctl.inference.trained import Trained
from vitctl.models import build_model
from vitctl.training.setup import batch_pieces, make_normalize


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained network that can be asked about pictures, however it is run.

    Attributes:
        path: its file.
        net: what network it is.
        weights: ``ema`` when they are an average of weights, else ``model``.
        epoch: epochs trained.
        classes: what the K logits stand for, in order.
        channels: C of its pictures.
        size: side of its pictures in pixels.
        dataset: what it was trained on.
        data_dir: where that lies, if known and not in the usual places.
        val: what was held out, as ``--val``.
        val_fraction: likewise.
        split_seed: likewise.
        skip_bad_images: pictures that cannot be read were left out.
        limit_train: it was trained on that many pictures of its training part; None is all.
        flips: mirrored pictures of that data set are of their class.
        device: where it runs.
        engine: what runs it, and its version.
        batch: pictures that it is best asked about at once.
        logits: uint8 ``[B, C, H, W]`` on the CPU to float32 ``[B, K]`` on the CPU; pictures of another size are resized.
    """

    path: Path
    net: str
    weights: str
    epoch: int
    classes: tuple[str, ...]
    channels: int
    size: int
    dataset: str
    data_dir: str | None
    val: str
    val_fraction: float
    split_seed: int
    skip_bad_images: bool
    limit_train: int | None
    flips: bool
    device: torch.device
    engine: str
    batch: int
    logits: Callable[[Tensor], Tensor]


def classifier_of(trained: Trained, device: torch.device) -> Classifier:
    """Return ``trained``, which is on ``device``, as a classifier that PyTorch runs."""
    config = trained.config
    normalize = make_normalize(config, trained.mean, trained.std, device)
    precision = devices.nearest_precision(config.precision, device)

    def build() -> torch.nn.Module:
        return build_model(
            config.net,
            config.net_options,
            img_size=config.size,
            in_chans=len(trained.mean),
            num_classes=len(trained.classes),
        )

    @torch.inference_mode()
    def logits(images: Tensor) -> Tensor:
        with devices.autocast(device, precision):
            outputs: Tensor = trained.model(normalize(images.to(device)))
        return outputs.float().cpu()

    return Classifier(
        path=trained.path,
        net=config.net,
        weights=trained.weights,
        epoch=trained.epoch,
        classes=trained.classes,
        channels=len(trained.mean),
        size=config.size,
        dataset=config.dataset,
        data_dir=config.data_dir,
        val=config.val,
        val_fraction=config.val_fraction,
        split_seed=config.split_seed,
        skip_bad_images=config.skip_bad_images,
        limit_train=config.limit_train,
        flips=config.flips,
        device=device,
        engine=f"torch {torch.__version__}",
        batch=batch_pieces(config, device, build, len(trained.mean), batchnorm=False)[1],
        logits=logits,
    )
