"""What seeds say about a difference: means, deviations, and paired comparisons that mind how many are made."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

LEVEL = 0.95
"""Confidence that all statements of one table hold together."""


ROUNDING = 1e-9
"""Of the size of figures: differences that scatter by less are the same ones."""


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds.

    Attributes:
        mean: over the seeds.
        deviation: the sample's standard deviation (divided by ``n - 1``); None for one seed.
        count: how many seeds.
    """

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Pair:
    """A paired comparison of two things over the seeds that both have.

    Attributes:
        first: minus
        second: is the difference.
        seeds: that both have.
        difference: mean over the seeds; None where they have none in common.
        low: lower end of the interval of the difference; None where the seeds give none.
        high: its upper end.
        confidence: of the interval.
        p: of the paired t-test, two-sided, by itself; None where the seeds give none.
        noise: whether a difference like this is within seed noise; None where the seeds cannot tell.
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
        """What is to be thought of the difference, in words."""
        if self.noise is not None:
            return "within seed noise" if self.noise else "more than seed noise"
        if not self.seeds:
            return "no seed in common"
        return "one seed: no interval" if len(self.seeds) == 1 else "the same at every seed: no interval"

    def reversed(self) -> Pair:
        """Return the comparison of the second with the first."""

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
    """Compare every two of ``values`` by paired t-tests, with Holm's correction for the number of pairs.

    Each interval is at the level at which Holm's step-down procedure tests its pair: it excludes zero if and only if the
    difference is more than seed noise, and all such statements hold together at ``level``.

    Args:
        values: the figure of each thing compared, by seed.
        level: confidence of all statements together.

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
        # Accuracies are 100 k / n in binary: equal differences differ in their last bits.
        if spread <= ROUNDING * max(1.0, *map(abs, (*one.values(), *two.values()))):
            spread = 0.0
        if spread:
            t = mean / spread * math.sqrt(len(deltas))
            tests[pair] = float(2 * stats.t.sf(abs(t), len(deltas) - 1))
        elif mean == 0:  # the same figures throughout
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
    """Return the level at which Holm's step-down procedure (1979) tests each hypothesis.

    The k-th smallest of m values of p is held against ``alpha / (m - k + 1)``; from the first that is not below it on, all
    are held against that same level, which none of them is below: a hypothesis is rejected if and only if its p is less
    than its level.
    """
    levels = [0.0] * len(ps)
    stopped = before = None
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if stopped is not None:
            levels[i] = stopped
        elif before is not None and ps[before] == ps[i]:  # equals are treated as such
            levels[i] = levels[before]
        else:
            levels[i] = alpha / (len(ps) - rank)
        if stopped is None and ps[i] >= levels[i]:
            stopped = levels[i]
        before = i
    return levels
