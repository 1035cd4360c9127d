"""A common interface to checkpoints and exported files: logits for images, and the training data."""

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
    """A trained network that classifies images, independent of the engine that runs it.

    Attributes:
        path: file of the weights.
        net: name of the network.
        weights: ``ema`` for averaged weights, else ``model``.
        epoch: number of epochs trained.
        classes: names of the K classes, in the order of the logits.
        channels: number of channels C of the images.
        size: side of the images in pixels.
        provenance: the training data.
        data_dir: folder of the training data, if known and not a default location.
        skip_bad_images: whether unreadable images were skipped in training.
        device: device that runs the network.
        engine: name and version of the engine.
        batch: recommended batch size.
        logits: function from uint8 ``[B, C, H, W]`` to float32 ``[B, K]``, both on the CPU; it resizes images of other
            sizes.
        labels: file with the labels of the training data, if they come from one; relative to ``data_dir`` or absolute.
        trained: the checkpoint, or None for an exported file.
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
    labels: str | None = None
    trained: Trained | None = None


def classifier_of(trained: Trained, device: torch.device) -> Classifier:
    """Return a classifier that runs ``trained`` with PyTorch on ``device``, where its weights must already be."""
    config = trained.config
    normalize = make_normalize(config, trained.mean, trained.std, device)

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
        with devices.autocast(device, trained.precision):
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
        provenance=Provenance.of(config, trained.data_sha256),
        data_dir=config.data_dir,
        skip_bad_images=config.skip_bad_images,
        device=device,
        engine=f"torch {torch.__version__}",
        batch=batch_pieces(config, device, build, len(trained.mean), batchnorm=False)[1],
        logits=logits,
        labels=config.labels,
        trained=trained,
    )
