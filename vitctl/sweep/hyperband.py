"""W&B's Hyperband early termination.

A band is a number of reported values. At its latest band, a trial must be among the best ``1/eta`` of all trials that
reached that band. The comparison is repeated at every call, so that better new trials can stop a trial that passed
before. The rules are those of ``hyperband_stop_runs`` in W&B's ``sweeps`` package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LAST_BAND = 1e15
"""Upper limit of the bands, which no trial reaches."""


@dataclass(frozen=True)
class Hyperband:
    """Settings of ``early_terminate``.

    Attributes:
        bands: numbers of values after which trials are compared, ascending.
        eta: the best ``1/eta`` of the trials continue.
        strict: judge a trial by its value at the band; if False, by its best value so far, which stops fewer trials.
    """

    bands: tuple[int, ...]
    eta: float = 3
    strict: bool = True

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Hyperband:
        """Return the settings of a file's ``early_terminate``; as in W&B, ``max_iter`` and ``s`` override ``min_iter``."""
        eta = settings.get("eta", cls.eta)
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
        """Return the worst value that passes ``band``; lower values are better.

        Of ``n`` trials that reached the band, ``floor(n / eta) + 1`` pass, so a single trial always passes.
        """
        values = sorted(history[band - 1] for history in histories if len(history) >= band)
        return values[int(1.0 / self.eta * len(values))] if values else math.inf

    def stops(self, history: Sequence[float], histories: Sequence[Sequence[float]]) -> bool:
        """Return whether to stop a running trial.

        Args:
            history: the trial's finite values, in order; lower is better.
            histories: values of all trials in any state, including this one.
        """
        reached = [band for band in self.bands if band <= len(history)]
        if not reached:
            return False
        value = history[reached[-1] - 1] if self.strict else min(history)
        return value > self.threshold(reached[-1], histories)
