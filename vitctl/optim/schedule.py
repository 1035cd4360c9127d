"""The course of the learning rate, as a function of the step alone.

Having no state of its own, it needs nothing but the step to resume, and can be drawn before a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ONECYCLE_START, ONECYCLE_END = 25, 1e4
"""A one-cycle schedule starts at the peak over the first, and ends at that over the second."""


@dataclass(frozen=True)
class Schedule:
    """Warm-up, then a way down to zero, or none.

    Attributes:
        kind: ``constant``, ``linear``, ``cosine`` or ``onecycle``.
        total_steps: length of the run in optimizer steps.
        warmup_steps: the factor rises over these, reaching 1 at the last.
        steps_per_epoch: when positive, the factor changes only at the start of an epoch of this many steps.
        warmdown_steps: a constant factor falls linearly to zero over these, the last of the run.
    """

    kind: str
    total_steps: int
    warmup_steps: int = 0
    steps_per_epoch: int = 0
    warmdown_steps: int = 0

    def factor(self, step: int) -> float:
        """Return what the peak learning rate is multiplied by at ``step``, which counts from 0.

        The warm-up is linear. The last step is still taken with a rate above zero: the way down is
        ``(1 + cos(pi t)) / 2`` (Loshchilov and Hutter 2017) or ``1 - t``, where ``t`` is the share of the steps after
        warm-up already taken. A constant rate goes down by ``1 - t`` over its warm-down, ``t`` being the share of that
        (the trapezoid of Zhai et al. 2022, arXiv 2106.04560). ``onecycle`` rises from 1/25 to 1 by half a cosine and falls to
        1/250,000 by another (Smith and Topin 2019, arXiv 1708.07120, as torch has it); the momentum does not cycle.
        """
        if self.steps_per_epoch:
            step -= step % self.steps_per_epoch
        if self.kind == "onecycle":
            top = max(0, self.warmup_steps - 1)
            if step < top:  # as in a warm-up: an epoch has the rate that its last step would have
                step = min(top, step + max(0, self.steps_per_epoch - 1))
            return self._onecycle(step)
        if step < self.warmup_steps:
            # Once an epoch: the epoch is trained with the rate that its last step would have.
            return min(1.0, (step + (self.steps_per_epoch or 1)) / self.warmup_steps)
        if self.kind == "constant":
            left = self.total_steps - step
            return max(0.0, left / self.warmdown_steps) if left < self.warmdown_steps else 1.0
        t = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return (1 + math.cos(math.pi * t)) / 2 if self.kind == "cosine" else 1 - t

    def _onecycle(self, step: int) -> float:
        low, end = 1 / ONECYCLE_START, 1 / ONECYCLE_START / ONECYCLE_END
        top, last = max(0, self.warmup_steps - 1), max(1, self.total_steps - 1)
        if step < top:
            return _half_cosine(low, 1.0, step / top)
        return _half_cosine(1.0, end, min(1.0, (step - top) / max(1, last - top)))


@dataclass(frozen=True)
class RangeTest(Schedule):
    """A factor that rises exponentially from ``low`` to ``high`` over the run (Smith 2017, arXiv 1506.01186).

    Attributes:
        low: the factor at the first step.
        high: the factor at the last.
    """

    low: float = 1.0
    high: float = 1.0

    def factor(self, step: int) -> float:
        """Return the factor at ``step``."""
        return self.low * math.pow(self.high / self.low, min(1.0, step / max(1, self.total_steps - 1)))


def _half_cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2
