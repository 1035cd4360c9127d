"""Evaluation: logits of a set of pictures, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
        loss: mean cross entropy, without label smoothing.
        acc: share whose greatest logit is the label's, in percent.
        count: pictures.
    """

    loss: float
    acc: float
    count: int


class Stopped(Exception):
    """The evaluation was asked to stop before it had seen every picture."""


@torch.inference_mode()
def logits_of(
    model: nn.Module,
    subset: Subset,
    normalize: Normalize,
    device: torch.device,
    batch_size: int,
    precision: str = "fp32",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits, float ``[B, K]``, and labels, int64 ``[B]``, on ``device``, in the order of the index.

    Args:
        model: in eval mode, on ``device``.
        subset: pictures, and which of them.
        normalize: from uint8 to the network's input.
        device: where the model is.
        batch_size: pictures at once; the result does not depend on it but for rounding.
        precision: of the network's arithmetic.
    """
    for chosen in torch.split(subset.index, batch_size):
        images = subset.pictures.images[chosen].to(device)
        labels = subset.pictures.labels[chosen].to(device)
        with devices.autocast(device, precision):
            logits = model(normalize(images))
        yield logits.float(), labels


def evaluate(
    model: nn.Module,
    subset: Subset,
    normalize: Normalize,
    device: torch.device,
    batch_size: int,
    *,
    precision: str = "fp32",
    stop: Callable[[], bool] = bool,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure mean loss and accuracy of ``model`` on ``subset``; figures are read from the device once, at the end.

    Raises:
        Stopped: ``stop`` said so.
    """
    was_training = model.training
    model.eval()
    loss = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    done, count = 0, len(subset.index)
    try:
        for logits, labels in logits_of(model, subset, normalize, device, batch_size, precision):
            loss += F.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
            done += len(labels)
            if progress:
                progress(done, count)
            if stop():
                raise Stopped
    finally:
        model.train(was_training)
    return Evaluation(loss=loss.item() / count, acc=100 * correct.item() / count, count=count)
