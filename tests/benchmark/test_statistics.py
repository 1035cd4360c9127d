"""Comparisons match scipy's paired t-test, and Holm's procedure matches its definition."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats

from vitctl.benchmark.statistics import Spread, compare, holm_levels


def draws(seed: int, count: int, shift: float = 0.0) -> dict[int, float]:
    rng = random.Random(seed)
    return {k: 50 + shift + rng.gauss(0, 1) for k in range(count)}


@pytest.mark.parametrize("count", [2, 3, 5, 12])
def test_spread_matches_numpy(count: int) -> None:
    values = list(draws(count, count).values())
    spread = Spread.of(values)
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.deviation == pytest.approx(np.std(values, ddof=1))
    assert Spread.of(values[:1]).deviation is None


@pytest.mark.parametrize("count", [2, 3, 5, 12])
@pytest.mark.parametrize("shift", [0.0, 0.5, 4.0])
def test_one_pair_matches_scipys_paired_t_test(count: int, shift: float) -> None:
    a, b = draws(1, count, shift), draws(2, count)
    (pair,) = compare({"a": a, "b": b})
    theirs = stats.ttest_rel(list(a.values()), list(b.values()))
    interval = theirs.confidence_interval(0.95)
    assert pair.p == pytest.approx(theirs.pvalue)
    assert (pair.low, pair.high) == pytest.approx((interval.low, interval.high))
    assert pair.confidence == pytest.approx(0.95)
    assert pair.noise == (theirs.pvalue >= 0.05)


def holm_rejections(ps: list[float], alpha: float) -> list[bool]:
    """Reject hypotheses whose adjusted p-values (the running maximum of (m - rank) p) are below alpha."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    rejected, highest = [False] * len(ps), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, (len(ps) - rank) * ps[i])
        rejected[i] = highest < alpha
    return rejected


def test_holm_levels_match_adjusted_p_values() -> None:
    rng = random.Random(0)
    some = 0
    for _ in range(500):
        ps = [rng.random() ** 4 for _ in range(rng.randint(1, 10))]
        rejected = [p < level for p, level in zip(ps, holm_levels(ps, 0.05), strict=True)]
        assert rejected == holm_rejections(ps, 0.05)
        some += any(rejected) and not all(rejected)
    assert some > 50


def test_an_interval_excludes_zero_if_and_only_if_the_difference_is_more_than_noise() -> None:
    verdicts = set()
    for trial in range(60):
        groups = {str(i): draws(100 * trial + i, 4, shift=1.5 * i) for i in range(4)}
        for pair in compare(groups):
            assert pair.low is not None and pair.high is not None and pair.confidence is not None
            assert (pair.low <= 0 <= pair.high) == pair.noise
            assert pair.confidence >= 0.95
            verdicts.add(pair.verdict)
    assert verdicts == {"within seed noise", "more than seed noise"}


def test_identical_figures_differ_by_zero() -> None:
    (pair,) = compare({"a": draws(3, 3), "b": draws(3, 3)})
    assert (pair.difference, pair.low, pair.high, pair.noise) == (0.0, 0.0, 0.0, True)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ({0: 1.0}, {0: 2.0}, "one seed: no interval"),
        ({0: 1.0}, {1: 2.0}, "no seed in common"),
        ({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0}, "same difference for every seed: no interval"),
    ],
)
def test_too_few_or_equal_differences_give_no_interval(a: dict[int, float], b: dict[int, float], words: str) -> None:
    (pair,) = compare({"a": a, "b": b})
    assert pair.verdict == words and pair.low is None and pair.p is None


@pytest.mark.parametrize("hits", [((2683, 2701), (2681, 2699)), ((90, 71, 80), (83, 64, 73)), ((3, 4, 5), (1, 2, 3))])
def test_equal_differences_of_accuracies_count_as_equal(hits: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    for images in (97, 145, 359, 5000, 10_000):
        a, b = ({seed: 100 * k / images for seed, k in enumerate(each)} for each in hits)
        (pair,) = compare({"a": a, "b": b})
        assert pair.verdict == "same difference for every seed: no interval" and pair.p is None


def test_pairs_use_common_seeds() -> None:
    a, b = draws(1, 5), draws(2, 5)
    del a[1], b[3]
    (pair,) = compare({"a": a, "b": b})
    assert pair.seeds == (0, 2, 4)
    assert pair.p == pytest.approx(stats.ttest_rel([a[k] for k in pair.seeds], [b[k] for k in pair.seeds]).pvalue)


def test_a_reversed_pair_matches_the_reversed_comparison() -> None:
    groups = {"a": draws(1, 3, 2.0), "b": draws(2, 3)}
    (one,) = compare(groups)
    (other,) = compare(dict(reversed(groups.items())))
    turned = one.reversed()
    assert (turned.first, turned.second) == ("b", "a")
    assert (turned.difference, turned.low, turned.high) == pytest.approx((other.difference, other.low, other.high))
