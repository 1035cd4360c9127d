"""Statistics over seeds: means, standard deviations, and paired comparisons corrected for their number."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

LEVEL = 0.95
"""Joint confidence of all comparisons in one table."""

ROUNDING = 1e-9
"""Standard deviation of differences, relative to the figures, up to which the differences count as equal."""


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds.

    Attributes:
        mean: mean over the seeds.
        deviation: sample standard deviation (with ``n - 1``); None for one seed.
        count: number of seeds.
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Compute the mean and deviation of ``values``, which must not be empty."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Pair:
    """A paired comparison of two contestants over their common seeds.

    Attributes:
        first: label of the first contestant.
        second: label of the second contestant.
        seeds: the common seeds.
        difference: mean of the first minus the second; None without common seeds.
        low: lower end of the confidence interval of the difference; None if it cannot be computed.
        high: upper end of the confidence interval.
        confidence: confidence level of the interval.
        p: uncorrected p-value of the two-sided paired t-test; None if it cannot be computed.
        noise: whether the difference is within seed noise; None if it cannot be tested.
    """

    first: str
    second: str
    seeds: tuple[int, ...]
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    p: float | None = None
    noise: bool | None = None

    @property
    def verdict(self) -> str:
        """The conclusion, in words."""
        if self.noise is not None:
            return "within seed noise" if self.noise else "more than seed noise"
        if not self.seeds:
            return "no seed in common"
        return "one seed: no interval" if len(self.seeds) == 1 else "same difference for every seed: no interval"

    def reversed(self) -> Pair:
        """Return the comparison with the contestants exchanged."""

        def minus(value: float | None) -> float | None:
            return None if value is None else 0.0 - value

        return Pair(
            first=self.second,
            second=self.first,
            seeds=self.seeds,
            difference=minus(self.difference),
            low=minus(self.high),
            high=minus(self.low),
            confidence=self.confidence,
            p=self.p,
            noise=self.noise,
        )


def compare(values: Mapping[str, Mapping[int, float]], level: float = LEVEL) -> list[Pair]:
    """Compare every two contestants with paired t-tests and Holm's correction for the number of pairs.

    Each interval has the level at which Holm's step-down procedure tests its pair: it excludes zero if and only if the
    difference is more than seed noise.

    Args:
        values: a figure of each contestant, by seed.
        level: joint confidence of all tests.

    Returns:
        All pairs, in the order of ``values``.
    """
    from scipy import stats

    differences: dict[tuple[str, str], list[float]] = {}
    plain: dict[tuple[str, str], Pair] = {}
    tests: dict[tuple[str, str], float] = {}
    for pair in combinations(values, 2):
        one, two = (values[name] for name in pair)
        seeds = tuple(seed for seed in one if seed in two)
        plain[pair] = Pair(*pair, seeds=seeds)
        if not seeds:
            continue
        differences[pair] = deltas = [one[seed] - two[seed] for seed in seeds]
        mean = statistics.fmean(deltas)
        plain[pair] = Pair(*pair, seeds=seeds, difference=mean)
        if len(seeds) == 1:
            continue
        spread = statistics.stdev(deltas)
        # Accuracies are 100 k / n, rounded to binary: equal differences differ in their last bits.
        if spread <= ROUNDING * max(1.0, *map(abs, (*one.values(), *two.values()))):
            spread = 0.0
        if spread:
            t = mean / spread * math.sqrt(len(deltas))
            tests[pair] = float(2 * stats.t.sf(abs(t), len(deltas) - 1))
        elif mean == 0:  # identical figures
            tests[pair] = 1.0

    alphas = holm_levels(list(tests.values()), 1 - level)
    result = []
    for pair, found in plain.items():
        if pair not in tests:
            result.append(found)
            continue
        deltas, alpha = differences[pair], alphas[list(tests).index(pair)]
        half = float(stats.t.ppf(1 - alpha / 2, len(deltas) - 1)) * statistics.stdev(deltas) / math.sqrt(len(deltas))
        assert found.difference is not None
        low, high = found.difference - half, found.difference + half
        noise = tests[pair] >= alpha
        result.append(Pair(*pair, found.seeds, found.difference, low, high, 1 - alpha, tests[pair], noise))
    return result


def holm_levels(ps: Sequence[float], alpha: float) -> list[float]:
    """Return the level at which Holm's step-down procedure (Holm, 1979) tests each hypothesis.

    The k-th smallest of m p-values is compared with ``alpha / (m - k + 1)``. The first that is not below its level ends
    the procedure: all larger ones get the same level. A hypothesis is rejected if and only if its p-value is below its
    level.
    """
    levels = [0.0] * len(ps)
    stopped = before = None
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if stopped is not None:
            levels[i] = stopped
        elif before is not None and ps[before] == ps[i]:  # equal p-values get the same level
            levels[i] = levels[before]
        else:
            levels[i] = alpha / (len(ps) - rank)
        if stopped is None and ps[i] >= levels[i]:
            stopped = levels[i]
        before = i
    return levels
