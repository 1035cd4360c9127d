"""Evaluation: loss and accuracy over a set of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitctl import devices
from vitctl.data.batches import Normalize
from vitctl.data.dataset import Subset

Progress = Callable[[int, int], None]
"""Told how many pictures are done, of how many."""


@dataclass(frozen=True)
class Evaluation:
    """Figures over a set of pictures.

    Attributes:
        losses: cross entropy of each picture, without label smoothing, float64 ``[n]``, in the order of the index.
        acc: share whose greatest logit is the label's, in percent.
        mirrored: the figures by the mean of the logits of each picture and its mirror image, where asked for.
    """

    losses: Tensor
    acc: float
    mirrored: Evaluation | None = None

    @property
    def loss(self) -> float:
        """Mean over the pictures."""
        return self.losses.mean().item()

    def sum_of_means(self, batch: int) -> float:
        """Return the sum, over batches of ``batch`` pictures in order, of each batch's mean loss; the last may be smaller."""
        return sum(piece.mean().item() for piece in torch.split(self.losses, batch))


class Stopped(Exception):
    """The evaluation was asked to stop before it had seen every picture."""


class Scorer:
    """Losses and hits, on the device until they are read once, at the end.

    Args:
        device: where the logits are.
    """

    def __init__(self, device: torch.device) -> None:
        self.losses: list[Tensor] = []
        self.correct = torch.zeros((), device=device, dtype=torch.int64)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Score float ``[B, K]`` by int64 ``[B]``."""
        self.losses.append(F.cross_entropy(logits, labels, reduction="none"))
        self.correct += (logits.argmax(1) == labels).sum()

    def read(self) -> Evaluation:
        """Return the figures, waiting for the device."""
        losses = torch.cat(self.losses).cpu().double()
        return Evaluation(losses=losses, acc=100 * self.correct.item() / len(losses))


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    subset: Subset,
    normalize: Normalize,
    device: torch.device,
    batch_size: int,
    *,
    precision: str = "fp32",
    mirror: bool = False,
    stop: Callable[[], bool] = bool,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure loss and accuracy of ``model`` on ``subset``.

    Args:
        model: on ``device``.
        subset: pictures, and which of them.
        normalize: from uint8 to the network's input.
        device: where the model is.
        batch_size: pictures at once; the result does not depend on it but for rounding.
        mirror: measure also by the mean of the logits of each picture and its mirror image.
        stop: asked after every batch.
        progress: told how many pictures are done.

    Raises:
        Stopped: ``stop`` said so.
    """

    def logits_of(images: Tensor) -> Tensor:
        with devices.autocast(device, precision):
            logits: Tensor = model(normalize(images))
        return logits.float()

    was_training = model.training
    model.eval()
    plain, both = Scorer(device), Scorer(device)
    done = 0
    try:
        for chosen in torch.split(subset.index, batch_size):
            images = subset.pictures.images[chosen].to(device)
            labels = subset.pictures.labels[chosen].to(device)
            logits = logits_of(images)
            plain.add(logits, labels)
            if mirror:
                both.add((logits + logits_of(images.flip(-1))) / 2, labels)
            done += len(labels)
            if progress:
                progress(done, len(subset))
            if stop():
                raise Stopped
    finally:
        model.train(was_training)
    return replace(plain.read(), mirrored=both.read() if mirror else None)
