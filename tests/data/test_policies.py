"""Operations, strengths and frequencies of policies, compared with torchvision's tables."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, RandAugment, TrivialAugmentWide

from tests.data.augmenting import POLICIES, policy
from vitctl.data.policies import Operation

DRAWS = 60_000
MIN_P = 1e-4
"""Smallest p-value to accept; seeds are fixed, so that the tests are deterministic."""

NAMES = {
    "Identity": "identity", "ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x",
    "TranslateY": "translate_y", "Rotate": "rotate", "Brightness": "brightness", "Color": "color", "Contrast": "contrast",
    "Sharpness": "sharpness", "Posterize": "posterize", "Solarize": "solarize", "AutoContrast": "autocontrast",
    "Equalize": "equalize", "Invert": "invert",
}  # fmt: skip
FACTORS = ("brightness", "color", "contrast", "sharpness")


def ours(name: str, magnitude: float, negative: bool) -> Operation:
    """Convert an operation of torchvision's tables to vitctl's."""
    magnitude = -magnitude if negative else magnitude
    if name in FACTORS:
        magnitude += 1
    if name in ("translate_x", "translate_y"):
        magnitude = int(magnitude)
    return Operation(name, round(magnitude, 4) + 0.0)  # never -0.0


def drawn(name: str, count: int = DRAWS, **options: int) -> list[list[Operation]]:
    """Return the operations drawn for each position in the sequence."""
    made = policy(name, **options)
    places = made.draw(count, torch.Generator().manual_seed(7))
    assert places.shape == (made.length, count) and places.dtype == torch.int64 and places.device.type == "cpu"
    named = [Operation(op.name, round(op.value, 4) + 0.0) for op in made.operations]
    return [[named[i] for i in row] for row in places.tolist()]


def assert_as_defined(found: list[Operation], shares: Counter[Operation]) -> None:
    """Assert that operations, with strength and sign, have the expected frequencies."""
    counts = Counter(found)
    assert counts.keys() <= shares.keys(), set(counts) - set(shares)
    expected = [share * len(found) for share in shares.values()]
    assert sum(shares.values()) == pytest.approx(1) and min(expected) >= 5
    assert chisquare([counts[op] for op in shares], expected).pvalue > MIN_P


def of_table(space: dict[str, tuple[torch.Tensor, bool]], strengths: list[int]) -> Counter[Operation]:
    """Return the probability of each operation of torchvision's table, drawn uniformly with strength and sign."""
    shares: Counter[Operation] = Counter()
    for name, (magnitudes, signed) in space.items():
        for strength in strengths:
            magnitude = float(magnitudes[strength]) if magnitudes.ndim else 0.0
            for negative in (False, True):
                operation = ours(NAMES[name], magnitude, negative and signed)
                shares[operation] += 1 / len(space) / len(strengths) / 2  # type: ignore[assignment]
    return shares


@pytest.mark.parametrize("m", [0, 9, 30])
def test_randaugment_matches_torchvision(m: int) -> None:
    space = RandAugment()._augmentation_space(31, (32, 32))
    assert len(space) == 14
    turns = drawn("randaug", n=2, m=m)
    assert len(turns) == 2
    for turn in turns:
        assert_as_defined(turn, of_table(space, [m]))


def test_trivialaugment_matches_torchvision_except_translation() -> None:
    space = TrivialAugmentWide()._augmentation_space(31)
    for name in ("TranslateX", "TranslateY"):
        assert space[name][0][-1] == 32  # the full side of an image
        space[name] = (RandAugment()._augmentation_space(31, (32, 32))[name][0], True)
    (turn,) = drawn("trivialaug", 200_000)
    assert_as_defined(turn, of_table(space, list(range(31))))


def test_autoaugment_matches_torchvision() -> None:
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10)
    space = theirs._augmentation_space(10, (32, 32))
    assert len(theirs.policies) == 25
    pairs: Counter[tuple[Operation, Operation]] = Counter()
    for sequence in theirs.policies:
        ways = []
        for name, probability, strength in sequence:
            magnitudes, signed = space[name]
            magnitude = float(magnitudes[strength]) if strength is not None else 0.0
            each: Counter[Operation] = Counter({Operation("identity"): 1 - probability})
            for negative in (False, True):
                each[ours(NAMES[name], magnitude, negative and signed)] += probability / 2
            ways.append(each)
        for first, p in ways[0].items():
            for second, q in ways[1].items():
                pairs[first, second] += p * q / 25  # type: ignore[assignment]
    turns = drawn("autoaug", 300_000)
    shares = Counter({pair: share for pair, share in pairs.items() if share})
    counts = Counter(zip(*turns, strict=True))
    assert counts.keys() <= shares.keys()
    expected = [share * 300_000 for share in shares.values()]
    assert chisquare([counts[pair] for pair in shares], expected).pvalue > MIN_P


SEED = {
    "autocontrast": (0, 0, False), "equalize": (0, 0, False), "invert": (0, 0, False), "rotate": (0, 30, True),
    "posterize": (0, 4, False), "solarize": (0, 256, False), "solarize_add": (0, 110, False), "color": (0.1, 1.9, False),
    "contrast": (0.1, 1.9, False), "brightness": (0.1, 1.9, False), "sharpness": (0.1, 1.9, False),
    "shear_x": (0, 0.3, True), "shear_y": (0, 0.3, True), "cutout": (0, 40, False), "translate_x": (0, 100, True),
    "translate_y": (0, 100, True),
}  # fmt: skip
"""The original scripts' operations: smallest and largest value, and whether the sign is drawn."""


@pytest.mark.parametrize("m", [14, 7])
def test_seed_randaug_matches_the_original_scripts(m: int) -> None:
    assert len(SEED) == 16
    shares: Counter[Operation] = Counter()
    for name, (low, high, signed) in SEED.items():
        strength = low + m / 30 * (high - low)
        if name == "posterize":
            strength = max(1, int(strength))  # at least one bit
        for sign in (1, -1) if signed else (1, 1):
            shares[Operation(name, round(sign * strength, 4) + 0.0)] += 1 / 32  # type: ignore[assignment]
    turns = drawn("seed-randaug", n=2, m=m)
    assert len(turns) == 2 and policy("seed-randaug").before_crop
    for turn in turns:
        assert_as_defined(turn, shares)
    if m == 14:
        values = {operation.name: abs(operation.value) for operation in shares}
        assert values["translate_x"] == pytest.approx(46.6667, abs=1e-3) and values["posterize"] == 1
        assert values["cutout"] == pytest.approx(18.6667, abs=1e-3) and values["color"] == pytest.approx(0.94)


@pytest.mark.parametrize("name", POLICIES)
def test_operations_are_drawn_independently_with_replacement(name: str) -> None:
    turns = drawn(name)
    if len(turns) < 2 or name == "autoaug":  # autoaug's pairs are tested above
        return
    pairs = Counter((a.name, b.name) for a, b in zip(*turns, strict=True))
    names = sorted({pair[0] for pair in pairs})
    assert len(pairs) == len(names) ** 2
    # all pairs have the same probability
    assert chisquare(list(pairs.values())).pvalue > MIN_P


@pytest.mark.parametrize("name", POLICIES)
def test_draws_depend_only_on_the_generator(name: str) -> None:
    made = policy(name)
    a, b, c = (made.draw(500, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("name", ["randaug", "trivialaug", "autoaug"])
@pytest.mark.parametrize("shape", [(8, 8), (24, 40)], ids=str)
def test_translations_are_relative_to_the_side(name: str, shape: tuple[int, int]) -> None:
    options = {"m": 30} if name == "randaug" else {}
    farthest = {"translate_y": 0.0, "translate_x": 0.0}
    for operation in policy(name, shape, **options).operations:
        if operation.name in farthest:
            farthest[operation.name] = max(farthest[operation.name], abs(operation.value))
    for operation_name, side in zip(farthest, shape, strict=True):
        assert farthest[operation_name] == int(150 / 331 * side)


@pytest.mark.parametrize("n", [1, 3, 16])
@pytest.mark.parametrize("name", ["randaug", "seed-randaug"])
def test_n_is_the_number_of_operations(name: str, n: int) -> None:
    assert policy(name, n=n).length == n == len(drawn(name, 10, n=n))
