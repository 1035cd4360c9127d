"""Exponential moving average (EMA) of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """Exponential moving average of the weights and statistics of a model.

    The decay of update ``t`` is ``min(decay, (1 + t) / (10 + t))``, so that the initial weights do not dominate in
    short runs (as in TensorFlow's ExponentialMovingAverage).

    Args:
        model: copied as the initial average.
        decay: limit of the decay, such as 0.999.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        # Average parameters and running statistics, such as BatchNorm's. Other buffers are constants, which are not
        # saved or not finite: an attention mask has minus infinity, whose average with itself is NaN.
        saved = self.model.state_dict().keys()
        self._averaged = [parameter.is_floating_point() for parameter in self.model.parameters()] + [
            name in saved and buffer.is_floating_point() and bool(buffer.isfinite().all())
            for name, buffer in self.model.named_buffers()
        ]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards ``model`` after optimizer step ``step``, counted from 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averages = [*self.model.parameters(), *self.model.buffers()]
        values = [*model.parameters(), *model.buffers()]
        pairs = list(zip(averages, values, self._averaged, strict=True))
        torch._foreach_lerp_(
            [a for a, _, averaged in pairs if averaged], [v for _, v, averaged in pairs if averaged], weight
        )
        for average, value, averaged in pairs:
            if not averaged:
                average.copy_(value)
