"""An exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """Averages the weights and buffers of a model; what is evaluated and exported when it is kept.

    After ``t`` updates the decay is ``min(decay, (1 + t) / (10 + t))``, so that a short run is not ruled by its first
    weights (as in TensorFlow's ExponentialMovingAverage and timm's ModelEmaV3).

    Args:
        model: copied as it is now.
        decay: share of the average kept at each update, in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards ``model`` after the step that brought the count of steps to ``step``."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averages = [*self.model.parameters(), *self.model.buffers()]
        values = [*model.parameters(), *model.buffers()]
        smooth = [pair for pair in zip(averages, values, strict=True) if pair[0].is_floating_point()]
        torch._foreach_lerp_([a for a, _ in smooth], [v for _, v in smooth], weight)
        for average, value in zip(averages, values, strict=True):
            if not average.is_floating_point():
                average.copy_(value)
