"""Dropout with fast random numbers on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitctl.devices import policy_of

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """Dropout that uses 16 random bits per element on a CPU, and torch's implementation on other devices.

    On CPUs other than Intel's, torch draws elements one at a time, with two steps of the generator for each. That takes
    a tenth of a Vision Transformer's training step. Here, one step serves two elements. The rate is rounded to 1/65536,
    and the scale of the kept elements follows the rounded rate, so that the mean is preserved.

    Maps floats of any shape to floats of the same shape. Random numbers come from torch's global generator.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` with random elements set to zero in training, and unchanged in evaluation."""
        if not self.training or not policy_of(input.device).draws_slowly:
            return F.dropout(input, self.p, self.training)
        dropped = min(round(self.p * _LEVELS), _LEVELS - 1)
        if dropped == 0:
            return input
        words = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
        bits = words.view(torch.int16)[: input.numel()].view(input.shape)
        kept = (bits >= dropped - _LEVELS // 2).to(input.dtype)
        return input * kept.mul_(_LEVELS / (_LEVELS - dropped))


def replace_dropout(model: nn.Module) -> None:
    """Replace every ``nn.Dropout`` of ``model`` that has a rate above 0 with :class:`Dropout`, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout and child.p > 0:
                setattr(module, name, Dropout(child.p))
