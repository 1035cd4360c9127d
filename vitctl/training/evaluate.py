"""Evaluation: loss and accuracy over a set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitctl import devices
from vitctl.data.batches import Normalize
from vitctl.data.dataset import Subset

Progress = Callable[[int, int], None]
"""Told how many images are done, of how many."""


@dataclass(frozen=True)
class Evaluation:
    """Figures over a set of images.

    Attributes:
        losses: cross entropy of each image, without label smoothing, float64 ``[n]``, in the order of the index.
        acc: share whose greatest logit is the label's, in percent.
        mirrored: the figures by the mean of the logits of each image and its mirror image, where asked for.
    """

    losses: Tensor
    acc: float
    mirrored: Evaluation | None = None

    @property
    def loss(self) -> float:
        """Mean over the images."""
        return self.losses.mean().item()

    def sum_of_means(self, batch: int) -> float:
        """Return the sum, over batches of ``batch`` images in order, of each batch's mean loss; the last may be smaller."""
        return sum(piece.mean().item() for piece in torch.split(self.losses, batch))


class Stopped(Exception):
    """The evaluation was asked to stop before it had seen every image."""


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
        subset: images, and which of them.
        normalize: from uint8 to the network's input.
        device: where the model is.
        batch_size: images at once; the result does not depend on it but for rounding.
        mirror: measure also by the mean of the logits of each image and its mirror image.
        stop: asked after every batch.
        progress: told how many images are done.

    Raises:
        Stopped: ``stop`` said so.
    """

    def run(images: Tensor) -> Tensor:
        with devices.autocast(device, precision):
            logits: Tensor = model(normalize(images))
        return logits.float()

    was_training = model.training
    model.eval()
    plain, both = Scorer(device), Scorer(device)
    try:
        for logits, averaged, labels in logits_of(
            run, subset, batch_size, device=device, mirror=mirror, progress=progress
        ):
            plain.add(logits, labels)
            if averaged is not None:
                both.add(averaged, labels)
            if stop():
                raise Stopped
    finally:
        model.train(was_training)
    return replace(plain.read(), mirrored=both.read() if mirror else None)


def logits_of(
    run: Callable[[Tensor], Tensor],
    subset: Subset,
    batch_size: int,
    *,
    device: torch.device | None = None,
    mirror: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Yield the logits of a data set, batch by batch, in order.

    Args:
        run: maps images, uint8 ``[B, C, H, W]`` on ``device``, to logits, float ``[B, K]``.
        subset: the images to evaluate.
        batch_size: images per batch.
        device: device on which ``run`` expects images; the CPU by default.
        mirror: also yield the average of the logits of each image and its mirror image.
        progress: called with the number of images done and in total.

    Yields:
        logits ``[B, K]``, averaged logits ``[B, K]`` or None, and labels, int64 ``[B]`` on ``device``.
    """
    done = 0
    for chosen in torch.split(subset.index, batch_size):
        images = subset.examples.images[chosen]
        labels = subset.examples.labels[chosen]
        if device is not None:
            images, labels = images.to(device), labels.to(device)
        logits = run(images)
        averaged = (logits + run(images.flip(-1))) / 2 if mirror else None
        done += len(chosen)
        if progress:
            progress(done, len(subset))
        yield logits, averaged, labels
