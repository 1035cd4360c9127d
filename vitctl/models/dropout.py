"""Dropout whose random numbers cost a CPU little."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """Dropout that draws 16 random bits for each element on a CPU, and is torch's own elsewhere.

    torch draws the elements' fates one after the other, from two steps of the generator each, unless the processor is
    Intel's; in a Vision Transformer that is a tenth of a training step. Here one step serves two elements. The rate is
    that asked for, rounded to 1/65536, and what is kept is scaled up by the rounded rate, so that the mean stays.

    Maps floats of any shape to floats of the same shape. The draws come from torch's global generator.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` with elements zeroed at random while training, and as it is otherwise."""
        if not self.training or input.device.type != "cpu":
            return F.dropout(input, self.p, self.training)
        dropped = min(round(self.p * _LEVELS), _LEVELS - 1)
        if dropped == 0:
            return input
        words = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
        bits = words.view(torch.int16)[: input.numel()].view(input.shape)
        kept = (bits >= dropped - _LEVELS // 2).to(input.dtype)
        return input * kept.mul_(_LEVELS / (_LEVELS - dropped))


def replace_dropout(model: nn.Module) -> None:
    """Put :class:`Dropout` wherever ``model`` has torch's with a rate above 0."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout and child.p > 0:
                setattr(module, name, Dropout(child.p))
