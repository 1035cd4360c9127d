"""W&B's early termination: which of the running trials to stop.

At each band, a number of reported values, a trial must be among the best ``1/eta`` of all that got so far. The
comparison is made anew whenever one looks, at the latest band that a trial has reached, so that good newcomers stop
trials that passed earlier. The rules are those of ``hyperband_stop_runs`` of W&B's ``sweeps`` package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LAST_BAND = 1e15
"""No trial reports as often."""


@dataclass(frozen=True)
class Hyperband:
    """The settings of ``early_terminate``.

    Attributes:
        bands: after how many values trials are compared, ascending.
        eta: the best ``1/eta`` go on.
        strict: compare the value at the band; otherwise the best value so far, which stops fewer.
    """

    bands: tuple[int, ...]
    eta: float = 3
    strict: bool = True

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Hyperband:
        """Build it from the file's ``early_terminate``; ``max_iter`` and ``s`` win over ``min_iter``, as W&B's do."""
        eta = settings.get("eta", 3)
        bands: list[int] = []
        if "max_iter" in settings:
            band = settings["max_iter"]
            for _ in range(settings["s"]):
                band /= eta
                if band < 1:
                    break
                bands.append(int(band))
        else:
            band = settings["min_iter"]
            for _ in range(100):
                bands.append(int(band))
                band *= eta
                if band > LAST_BAND:
                    break
        return cls(tuple(sorted(bands)), eta, settings.get("strict", True))

    def threshold(self, band: int, histories: Sequence[Sequence[float]]) -> float:
        """Return the worst value that goes on past ``band``, when less is better.

        ``floor(n / eta) + 1`` of the ``n`` trials that got there are at least as good, so a lone one always goes on.
        """
        values = sorted(history[band - 1] for history in histories if len(history) >= band)
        return values[int(1.0 / self.eta * len(values))] if values else math.inf

    def stops(self, history: Sequence[float], histories: Sequence[Sequence[float]]) -> bool:
        """Whether a running trial is to be stopped.

        Args:
            history: its finite values, in order; less is better.
            histories: those of all trials, this one included, whatever became of them.
        """
        reached = [band for band in self.bands if band <= len(history)]
        if not reached:
            return False
        value = history[reached[-1] - 1] if self.strict else min(history)
        return value > self.threshold(reached[-1], histories)
