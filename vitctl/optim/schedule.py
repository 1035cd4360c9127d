"""The course of the learning rate, as a function of the step alone.

Having no state of its own, it needs nothing but the step to resume, and can be drawn before a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then a way down to zero.

    Attributes:
        kind: ``cosine``, ``linear`` or ``constant``.
        total_steps: length of the run in optimizer steps.
        warmup_steps: the factor rises linearly over these, reaching 1 at the last.
        steps_per_epoch: when positive, the factor changes only at the start of an epoch of this many steps.
    """

    kind: str
    total_steps: int
    warmup_steps: int = 0
    steps_per_epoch: int = 0

    def factor(self, step: int) -> float:
        """Return what the peak learning rate is multiplied by at ``step``, which counts from 0.

        The last step is still taken with a rate above zero: the way down is ``(1 + cos(pi t)) / 2`` (Loshchilov and
        Hutter 2017) or ``1 - t``, where ``t`` is the share of the steps after warm-up already taken.
        """
        if self.steps_per_epoch:
            step -= step % self.steps_per_epoch
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        t = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return (1 + math.cos(math.pi * t)) / 2 if self.kind == "cosine" else 1 - t
