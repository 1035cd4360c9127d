"""Evaluation: loss and accuracy on a set of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitctl import devices
from vitctl.data.batches import Normalize, fill_up, reflected
from vitctl.data.dataset import Subset

Progress = Callable[[int, int], None]
"""Called with the number of images done and in total."""


UNEVEN = 1.5
"""Ratio of the largest to the smallest class above which balanced accuracy is reported too."""


class View(NamedTuple):
    """A view of an image in test-time augmentation.

    Attributes:
        weight: weight of its logits in the average; those of all views sum to 1.
        shift: pixels by which the image is moved down and to the right, and reflected at the border.
        mirror: whether it is mirrored.
    """

    weight: float
    shift: int = 0
    mirror: bool = False

    def of(self, images: Tensor) -> Tensor:
        """Return the view of images, ``[B, C, H, W]`` of any type."""
        if self.shift:
            for axis in (2, 3):
                size = images.shape[axis]
                places = torch.arange(size, device=images.device) - self.shift
                images = images.index_select(axis, reflected(places, size))
        return images.flip(-1) if self.mirror else images


PLAIN = View(1.0)
"""The image itself."""


def tta_views(tta: str, flips: bool) -> tuple[View, ...]:
    """Return the views that ``--tta`` averages over; the first is the image itself, perhaps the only one.

    ``crops`` weights its views as airbench94 does (Jordan 2024, arXiv 2404.00498): half for the image, a quarter for each
    shift by a pixel, and each with its mirror image.

    Args:
        tta: ``none``, ``flip`` or ``crops``.
        flips: whether mirrored images keep their class; if not, ``crops`` uses none.
    """
    if tta == "none":
        return (PLAIN,)
    shifts = {0: 0.5, 1: 0.25, -1: 0.25} if tta == "crops" else {0: 1.0}
    sides = (False, True) if flips else (False,)
    return tuple(View(weight / len(sides), shift, mirror) for shift, weight in shifts.items() for mirror in sides)


@dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy on a set of images.

    Attributes:
        losses: cross-entropy of each image without label smoothing, float64 ``[N]``, in the order of the subset.
        labels: true classes, int64 ``[N]``.
        predicted: predicted classes, int64 ``[N]``.
        ranks: number of classes that are more probable than the true one, int64 ``[N]``.
        probabilities: predicted probabilities, float16 ``[N, K]``; equal ones may differ before rounding.
        averaged: the same for logits averaged over several views of each image, or None.
    """

    losses: Tensor
    labels: Tensor
    predicted: Tensor
    ranks: Tensor
    probabilities: Tensor
    averaged: Evaluation | None = None

    @property
    def loss(self) -> float:
        """Mean loss per image."""
        return self.losses.mean().item()

    @property
    def acc(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * (self.predicted == self.labels).sum().item() / len(self.labels)

    @property
    def balanced_acc(self) -> float | None:
        """Mean accuracy of the classes that have images, in percent; None if the classes are about equally large."""
        return balanced_accuracy(self.labels, self.predicted) if uneven(self.labels.bincount()) else None

    def sum_of_means(self, batch: int) -> float:
        """Return the sum of the mean losses of consecutive batches of ``batch`` images; the last may be smaller."""
        return sum(piece.mean().item() for piece in torch.split(self.losses, batch))


def uneven(counts: Tensor) -> bool:
    """Return whether classes differ so much in size that accuracy hides the small ones.

    Args:
        counts: images of each class, int64 ``[K]``; classes without images are ignored.
    """
    present = counts[counts > 0]
    return bool(present.max() > UNEVEN * present.min())


def balanced_accuracy(labels: Tensor, predicted: Tensor) -> float:
    """Return the mean accuracy of the classes that have images, in percent.

    Args:
        labels: true classes, int64 ``[N]``.
        predicted: predicted classes, int64 ``[N]``.
    """
    counts = labels.bincount()
    correct = labels[labels == predicted].bincount(minlength=len(counts))
    present = counts > 0
    return 100 * (correct[present].double() / counts[present]).mean().item()


class Stopped(Exception):
    """The evaluation was stopped before it had seen all images."""


class Scorer:
    """Accumulates losses and predictions on their device, so that the CPU waits for it only once."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.predicted: list[Tensor] = []
        self.ranks: list[Tensor] = []
        self.probabilities: list[Tensor] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Score ``logits``, float ``[B, K]``, against ``labels``, int64 ``[B]``."""
        self.losses.append(F.cross_entropy(logits, labels, reduction="none"))
        self.labels.append(labels)
        self.predicted.append(logits.argmax(1))
        self.ranks.append((logits > logits.gather(1, labels[:, None])).sum(1))
        self.probabilities.append(logits.softmax(1).half())

    def read(self) -> Evaluation:
        """Wait for the device and return the result."""
        return Evaluation(
            losses=torch.cat(self.losses).cpu().double(),
            labels=torch.cat(self.labels).cpu(),
            predicted=torch.cat(self.predicted).cpu(),
            ranks=torch.cat(self.ranks).cpu(),
            probabilities=torch.cat(self.probabilities).cpu(),
        )


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    subset: Subset,
    normalize: Normalize,
    device: torch.device,
    batch_size: int,
    *,
    precision: str = "fp32",
    views: tuple[View, ...] = (PLAIN,),
    stop: Callable[[], bool] = bool,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure loss and accuracy of ``model`` on ``subset``.

    Args:
        model: network on ``device``.
        subset: the images to evaluate.
        normalize: converts uint8 images to the network's input.
        device: device of the model.
        batch_size: images per batch; affects the result only by rounding.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        views: if several, also measure with the average of their logits; the first is the image itself.
        stop: called after each batch; returns whether to stop.
        progress: called with the number of images done and in total.

    Raises:
        Stopped: ``stop`` returned true.
    """

    def run(images: Tensor) -> Tensor:
        with devices.autocast(device, precision):
            logits: Tensor = model(normalize(images))
        return logits.float()

    was_training = model.training
    model.eval()
    plain, average = Scorer(), Scorer()
    try:
        for logits, averaged, labels in logits_of(
            run, subset, batch_size, device=device, views=views, progress=progress
        ):
            plain.add(logits, labels)
            if averaged is not None:
                average.add(averaged, labels)
            if stop():
                raise Stopped
    finally:
        model.train(was_training)
    return replace(plain.read(), averaged=average.read() if len(views) > 1 else None)


def logits_of(
    run: Callable[[Tensor], Tensor],
    subset: Subset,
    batch_size: int,
    *,
    device: torch.device | None = None,
    views: tuple[View, ...] = (PLAIN,),
    progress: Progress | None = None,
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Yield the logits of a data set, batch by batch, in order.

    Args:
        run: maps images, uint8 ``[B, C, H, W]`` on ``device``, to logits, float ``[B, K]``.
        subset: the images to evaluate.
        batch_size: images per batch.
        device: device on which ``run`` expects images; the CPU by default. Where every shape costs memory, batches are
            of equal size, to which the last is filled up.
        views: if several, also yield the average of their logits; the first is the image itself.
        progress: called with the number of images done and in total.

    Yields:
        logits ``[B, K]``, averaged logits ``[B, K]`` or None, and labels, int64 ``[B]`` on ``device``.
    """
    done, filled = 0, 0
    if device is not None and devices.policy_of(device).one_shape:
        count = max(1, len(subset))
        batch_size = filled = -(-count // -(-count // batch_size))

    def logits_for(images: Tensor) -> Tensor:
        return run(fill_up(images, filled))[: len(images)]

    for chosen in torch.split(subset.index, batch_size):
        images = subset.examples.images[chosen]
        labels = subset.examples.labels[chosen]
        if device is not None:
            images, labels = images.to(device), labels.to(device)
        logits = logits_for(images)
        averaged = None
        if len(views) > 1:
            averaged = views[0].weight * logits
            for view in views[1:]:
                averaged += view.weight * logits_for(view.of(images))
        done += len(chosen)
        if progress:
            progress(done, len(subset))
        yield logits, averaged, labels
