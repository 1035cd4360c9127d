"""An exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """Averages the weights and statistics of a model; what is evaluated and exported when it is kept.

    After ``t`` updates the decay is ``min(decay, (1 + t) / (10 + t))``, so that a short run is not ruled by its first
    weights (as in TensorFlow's ExponentialMovingAverage).

    Args:
        model: copied as it is now.
        decay: share of the average kept at each update, in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        # Parameters, and the statistics that training moves, such as BatchNorm's. Other buffers are constants, which are
        # not saved or not finite: an attention mask's minus infinity, averaged with itself, is not a number.
        saved = self.model.state_dict().keys()
        self._averaged = [parameter.is_floating_point() for parameter in self.model.parameters()] + [
            name in saved and buffer.is_floating_point() and bool(buffer.isfinite().all())
            for name, buffer in self.model.named_buffers()
        ]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards ``model`` after the step that brought the count of steps to ``step``."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averages = [*self.model.parameters(), *self.model.buffers()]
        values = [*model.parameters(), *model.buffers()]
        pairs = list(zip(averages, values, self._averaged, strict=True))
        torch._foreach_lerp_([a for a, _, smooth in pairs if smooth], [v for _, v, smooth in pairs if smooth], weight)
        for average, value, smooth in pairs:
            if not smooth:
                average.copy_(value)
