"""Exponential moving average (EMA) of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vitctl.optim.flat import FlatParameters, flatten


class WeightAverage:
    """Exponential moving average of the weights and statistics of a model.

    The decay of update ``t`` is ``min(decay, (1 + t) / (10 + t))``, so that the initial weights do not dominate in
    short runs (as in TensorFlow's ExponentialMovingAverage).

    Args:
        model: copied as the initial average.
        decay: limit of the decay, such as 0.999.
        flat: the model's trained parameters in one buffer, or None; the average and all buffers then follow.
    """

    def __init__(self, model: nn.Module, decay: float, flat: FlatParameters | None = None) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        # Average parameters and running statistics, such as BatchNorm's. Other buffers are constants, which are not
        # saved or not finite: an attention mask has minus infinity, whose average with itself is NaN.
        saved = self.model.state_dict().keys()
        self._averaged = [parameter.is_floating_point() for parameter in self.model.parameters()] + [
            name in saved and buffer.is_floating_point() and bool(buffer.isfinite().all())
            for name, buffer in self.model.named_buffers()
        ]
        self._flat = self._flattened(model, flat) if flat is not None else None

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor, bool]]:
        """Return each tensor of the average, the model's, and whether it is averaged."""
        averages = [*self.model.parameters(), *self.model.buffers()]
        return list(zip(averages, [*model.parameters(), *model.buffers()], self._averaged, strict=True))

    def _flattened(self, model: nn.Module, flat: FlatParameters) -> list[tuple[Tensor, Tensor, bool]]:
        """Move the tensors of both models into few buffers, and return those as pairs.

        Frozen parameters are left out, as they do not change.
        """
        pairs = self._pairs(model)
        average_of = {value: average for average, value, _ in pairs}
        flat_pairs = [(flatten([average_of[p] for p in flat.parameters]), flat.values, True)]
        by_kind: dict[tuple[torch.dtype, bool], list[tuple[Tensor, Tensor]]] = {}
        for average, value, averaged in pairs:
            if not isinstance(value, nn.Parameter):
                by_kind.setdefault((value.dtype, averaged), []).append((average, value))
        for (_, averaged), members in by_kind.items():
            flat_pairs.append((flatten([a for a, _ in members]), flatten([v for _, v in members]), averaged))
        return flat_pairs

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards ``model`` after optimizer step ``step``, counted from 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        pairs = self._flat or self._pairs(model)
        torch._foreach_lerp_(
            [a for a, _, averaged in pairs if averaged], [v for _, v, averaged in pairs if averaged], weight
        )
        for average, value, averaged in pairs:
            if not averaged:
                average.copy_(value)
