"""Whatever gives logits for images, and says what it was trained on: a checkpoint's network, or an exported file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitctl import devices
from vitctl.inference.provenance import Provenance
from vitctl.inference.trained import Trained
from vitctl.models import build_model
from vitctl.training.setup import batch_pieces, make_normalize


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A trained network that can be asked about images, however it is run.

    Attributes:
        path: its file.
        net: what network it is.
        weights: ``ema`` when they are an average of weights, else ``model``.
        epoch: epochs trained.
        classes: what the K logits stand for, in order.
        channels: C of its images.
        size: side of its images in pixels.
        provenance: the training data.
        data_dir: folder of the training data, if known and not a default location.
        skip_bad_images: whether training left out images that cannot be read.
        device: where it runs.
        engine: what runs it, and its version.
        batch: images that it is best asked about at once.
        logits: uint8 ``[B, C, H, W]`` on the CPU to float32 ``[B, K]`` on the CPU; images of another size are resized.
    """

    path: Path
    net: str
    weights: str
    epoch: int
    classes: tuple[str, ...]
    channels: int
    size: int
    provenance: Provenance
    data_dir: str | None
    skip_bad_images: bool
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
        provenance=Provenance.of(config),
        data_dir=config.data_dir,
        skip_bad_images=config.skip_bad_images,
        device=device,
        engine=f"torch {torch.__version__}",
        batch=batch_pieces(config, device, build, len(trained.mean), batchnorm=False)[1],
        logits=logits,
    )
