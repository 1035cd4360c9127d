"""An exponential moving average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages the weights and statistics of a model; what is evaluated and exported when it is kept.

    After ``t`` updates the decay is ``min(decay, (1 + t) / (10 + t))``, so that a short run is not ruled by its first
    weights (as in TensorFlow's ExponentialMovingAverage and timm's ModelEmaV3).

    Args:
        model: copied as it is now.
        decay: share of the average kept at each update, in the long run.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        averaged = {id(tensor) for tensor in self.model.parameters()} | set(map(id, _statistics(self.model)))
        tensors = [*self.model.parameters(), *self.model.buffers()]
        self._averaged = [id(tensor) in averaged and tensor.is_floating_point() for tensor in tensors]

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


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    """Yield the buffers that training moves and a checkpoint keeps, such as BatchNorm's.

    The others are constants: an attention mask's minus infinity, averaged with itself, is not a number.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and bool(buffer.isfinite().all()):
                yield buffer
