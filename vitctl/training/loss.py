"""Weights of the classes in the training loss."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Return the weight of each class, inversely proportional to its number of images, float32 ``[classes]``.

    As in scikit-learn's ``class_weight="balanced"``, the weights of all images average 1. A class without images has
    weight 0.

    Args:
        labels: classes of the training images, int64 ``[n]``.
        classes: number of classes.
    """
    counts = labels.bincount(minlength=classes).double()
    present = counts > 0
    weights = len(labels) / (present.sum() * counts)
    return torch.where(present, weights, 0.0).float()


def total_weight(labels: Tensor, weights: Tensor | None) -> Tensor | int:
    """Return the sum of the weights of a batch's labels, by which the sum of its losses is divided.

    With ``weights``, the loss of a step is then the weighted mean of torch's ``cross_entropy(weight=...)``, whatever
    the size of the micro-batches. For mixed labels, torch divides by the number of images instead. Here, a mixed label
    has the mean weight of its classes, so that an unmixed image has the same loss in both forms.

    Args:
        labels: int64 ``[B]``, or for mixed images the share of each class, float32 ``[B, K]``.
        weights: weight of each class, float32 ``[K]``; None for equal weights.
    """
    if weights is None:
        return len(labels)
    return weights[labels].sum() if labels.ndim == 1 else (labels @ weights).sum()
