"""Learning-rate schedules, as functions of the step only.

A schedule has no state, so it can resume at any step and be plotted before a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ONECYCLE_START, ONECYCLE_END = 25, 1e4
"""A one-cycle schedule starts at 1/25 of the peak and ends at 1/10,000 of the start."""


@dataclass(frozen=True)
class Schedule:
    """A warm-up, then a constant learning rate or a decay to zero.

    Attributes:
        kind: ``constant``, ``linear``, ``cosine`` or ``onecycle``.
        total_steps: length of the run in optimizer steps.
        warmup_steps: number of steps over which the factor rises to 1.
        steps_per_epoch: steps per epoch if the factor may change only at the start of an epoch; 0 if at any step.
        warmdown_steps: number of steps, at the end of the run, over which a constant factor falls linearly to zero.
        refits: pairs of a step and the length of the run from then on, in order of the steps. From that step, the rest
            of the schedule is stretched or compressed to the new end, so that the factor has no jump.
    """

    kind: str
    total_steps: int
    warmup_steps: int = 0
    steps_per_epoch: int = 0
    warmdown_steps: int = 0
    refits: tuple[tuple[int, int], ...] = ()

    def factor(self, step: int) -> float:
        """Return the factor of the peak learning rate at ``step``, counted from 0.

        The warm-up is linear. After it, where ``t`` is the fraction of the remaining steps that are done, the factor is

        - ``cosine``: ``(1 + cos(pi t)) / 2`` (Loshchilov and Hutter 2017);
        - ``linear``: ``1 - t``;
        - ``constant``: 1, then ``1 - t`` with ``t`` over the warm-down (the trapezoid of Zhai et al. 2022, arXiv
          2106.04560).

        The last step thus still has a positive rate. ``onecycle`` rises from 1/25 to 1 and falls to 1/250,000, each
        along half a cosine (Smith and Topin 2019, arXiv 1708.07120, as in torch); the momentum is not cycled.
        """
        if self.steps_per_epoch:
            step -= step % self.steps_per_epoch
        return self._factor_at(self._position(step))

    def _position(self, step: int) -> float:
        """Return the place of ``step`` in the schedule without refits, as a step that may be fractional."""
        position, since, end = 0.0, 0, self.total_steps
        for refit, length in self.refits:
            if step < refit:
                break
            position += (refit - since) / (end - since) * (self.total_steps - position)
            since, end = refit, length
        if not since:
            return step
        return position + (step - since) / (end - since) * (self.total_steps - position)

    def _factor_at(self, step: float) -> float:
        if self.kind == "onecycle":
            top = max(0, self.warmup_steps - 1)
            if step < top:  # as in a warm-up: use the rate of the epoch's last step
                step = min(top, step + max(0, self.steps_per_epoch - 1))
            return self._onecycle(step)
        if step < self.warmup_steps:
            # If the factor changes per epoch, use that of the epoch's last step.
            return min(1.0, (step + (self.steps_per_epoch or 1)) / self.warmup_steps)
        if self.kind == "constant":
            left = self.total_steps - step
            return max(0.0, left / self.warmdown_steps) if left < self.warmdown_steps else 1.0
        t = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return (1 + math.cos(math.pi * t)) / 2 if self.kind == "cosine" else 1 - t

    def _onecycle(self, step: float) -> float:
        low, end = 1 / ONECYCLE_START, 1 / ONECYCLE_START / ONECYCLE_END
        top, last = max(0, self.warmup_steps - 1), max(1, self.total_steps - 1)
        if step < top:
            return _half_cosine(low, 1.0, step / top)
        return _half_cosine(1.0, end, min(1.0, (step - top) / max(1, last - top)))


@dataclass(frozen=True)
class RangeTest(Schedule):
    """A factor that rises exponentially over the run (Smith 2017, arXiv 1506.01186).

    Attributes:
        low: factor at the first step.
        high: factor at the last step.
    """

    low: float = 1.0
    high: float = 1.0

    def factor(self, step: int) -> float:
        """Return the factor at ``step``, counted from 0."""
        return self.low * math.pow(self.high / self.low, min(1.0, step / max(1, self.total_steps - 1)))


def _half_cosine(start: float, end: float, t: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2
