"""Distributions and grids compared with W&B's ``sweeps`` package and scipy."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from scipy import stats

from tests.sweep.conftest import fixture
from vitctl.sweep.file import _Reader
from vitctl.sweep.space import Parameter, Space, show

TABLE = fixture("quantiles.json")


def parameter(config: dict[str, Any], name: str = "net_options.p") -> Parameter:
    """Return a parameter; the default name is not a setting of ``train``, which would be checked."""
    reader = _Reader({}, {}, "test")
    found = reader._parameter(name, config, ())
    reader.raise_mistakes()
    assert found is not None
    return found


@pytest.mark.parametrize("row", TABLE["rows"], ids=lambda row: str(row["parameter"]))
def test_quantiles_match_wandb(row: dict[str, Any]) -> None:
    found = [parameter(row["parameter"]).quantile(u) for u in TABLE["quantiles"]]
    for mine, theirs in zip(found, row["values"], strict=True):
        if isinstance(theirs, float):
            assert mine == pytest.approx(theirs, rel=1e-11, abs=1e-14)
        else:
            assert mine == theirs
        assert type(mine) is type(theirs)


VARYING = [row["parameter"] for row in TABLE["rows"] if parameter(row["parameter"]).varies]


@pytest.mark.parametrize("config", VARYING, ids=str)
def test_all_samples_are_in_optunas_range(config: dict[str, Any]) -> None:
    p = parameter(config)
    distribution = p.optuna()
    for value in [p.quantile(u) for u in (1e-9, *TABLE["quantiles"], 1 - 1e-9)]:
        assert distribution._contains(distribution.to_internal_repr(value)), value
        assert distribution.to_external_repr(distribution.to_internal_repr(value)) == value


QUANTIZED = {
    "uniform": ({"min": 0.01, "max": 0.05}, stats.uniform(0.01, 0.04), 0.005),
    "log_uniform_values": ({"min": 1e-4, "max": 2e-3}, stats.loguniform(1e-4, 2e-3), 1e-4),
    "log_uniform": ({"min": 0, "max": 3}, stats.loguniform(1, math.exp(3)), 1),
    "normal": ({"mu": 1, "sigma": 2}, stats.norm(1, 2), 0.5),
    "log_normal": ({"mu": 1, "sigma": 0.5}, stats.lognorm(0.5, scale=math.e), 0.5),
    "beta": ({"a": 2, "b": 3}, stats.beta(2, 3), 0.1),
}
CONTINUOUS = {
    **{name: (config, oracle) for name, (config, oracle, _) in QUANTIZED.items()},
    "inv_log_uniform": ({"min": -1, "max": 2}, stats.loguniform(math.exp(-2), math.exp(1))),
    "inv_log_uniform_values": ({"min": 1e-4, "max": 2e-3}, stats.loguniform(1e-4, 2e-3)),
}


def chi_square(counts: Counter[Any], expected: dict[Any, float]) -> None:
    """Compare 20,000 samples with the expected shares by a chi-square test; cells below five are merged."""
    total = sum(counts.values())
    assert total == 20_000 and set(counts) <= set(expected)
    observed, wanted, rest = [], [], [0.0, 0.0]
    for cell, share in expected.items():
        if share * total >= 5:
            observed.append(counts[cell])
            wanted.append(share * total)
        else:
            rest = [rest[0] + counts[cell], rest[1] + share * total]
    if rest[1] > 1e-6:
        observed.append(rest[0])
        wanted.append(rest[1])
    scale = sum(observed) / sum(wanted)
    assert stats.chisquare(observed, [w * scale for w in wanted]).pvalue > 1e-4


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_samples_follow_their_distribution(name: str) -> None:
    config, oracle, q = QUANTIZED[name]
    space = Space([parameter({**config, "distribution": f"q_{name}", "q": q})])
    rng = random.Random(1)
    counts = Counter(round(space.draw(rng)["net_options.p"] / q) for _ in range(20_000))
    cells = range(math.floor(oracle.ppf(1e-9) / q) - 1, math.ceil(oracle.ppf(1 - 1e-9) / q) + 2)
    chi_square(counts, {k: oracle.cdf((k + 0.5) * q) - oracle.cdf((k - 0.5) * q) for k in cells})


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_samples_follow_their_distribution(name: str) -> None:
    config, oracle = CONTINUOUS[name]
    space = Space([parameter({**config, "distribution": name})])
    rng = random.Random(2)
    shares = oracle.cdf([space.draw(rng)["net_options.p"] for _ in range(20_000)])
    counts = Counter(min(39, int(share * 40)) for share in shares)
    chi_square(counts, dict.fromkeys(range(40), 1 / 40))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"values": ["a", "b", "c"]}, dict.fromkeys("abc", 1 / 3)),
        ({"values": ["a", "b", "c"], "probabilities": [0.7, 0.1, 0.2]}, {"a": 0.7, "b": 0.1, "c": 0.2}),
        ({"min": -2, "max": 4}, dict.fromkeys(range(-2, 5), 1 / 7)),
    ],
)
def test_sampled_choices_follow_their_probabilities(config: dict[str, Any], expected: dict[Any, float]) -> None:
    space = Space([parameter(config)])
    rng = random.Random(3)
    chi_square(Counter(space.draw(rng)["net_options.p"] for _ in range(20_000)), expected)


@pytest.mark.parametrize("row", fixture("grids.json"), ids=lambda row: "-".join(row["parameters"]))
def test_grids_match_wandb_in_order_and_size(row: dict[str, Any]) -> None:
    def collect(node: dict[str, Any], prefix: str) -> list[Parameter]:
        found = []
        for key, config in node.items():
            if "parameters" in config:
                found += collect(config["parameters"], f"{prefix}{key}.")
            else:
                p = parameter(config)
                found.append(Parameter(f"{prefix}{key}", p.distribution, p.settings))
        return found

    space = Space(collect(row["parameters"], ""))
    mine = [{**space.constants, **point} for point in space.grid_points()]
    assert len(mine) == len(row["points"]) == space.grid_size
    for point, theirs in zip(mine, row["points"], strict=True):
        assert point == {name: pytest.approx(v, rel=1e-12) if isinstance(v, float) else v for name, v in theirs.items()}


def test_quantized_values_are_decimals_and_bounds_include_the_rounded_ends() -> None:
    p = parameter({"distribution": "q_uniform", "min": 0.012, "max": 0.0479, "q": 0.005})
    assert p.bounds == (0.01, 0.05)  # as in W&B, 0.012 rounds to 0.01, below the file's min
    assert p.all_values() == [0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05]
    lr = parameter({"distribution": "q_log_uniform_values", "min": 1e-4, "max": 2e-3, "q": 1e-4})
    assert lr.count == 20 and lr.all_values()[8] == 0.0009 and lr.log


def test_a_quantized_range_that_includes_zero_is_linear() -> None:
    p = parameter({"distribution": "q_log_uniform_values", "min": 0.3, "max": 20, "q": 1})
    assert not p.log and p.bounds[0] == 0
    assert p.optuna().log is False


def test_the_size_counts_different_parameter_sets() -> None:
    a = parameter({"values": [1, 1.0, 2]}, "a")
    b = parameter({"values": [1, 2, 3], "probabilities": [0.5, 0.0, 0.5]}, "b")
    assert Space([a, b]).size == 4 and len(list(Space([a, b]).all_points())) == 4
    assert Space([a, parameter({"min": 0.0, "max": 1.0}, "c")]).size is None


def test_nested_names_become_mappings() -> None:
    space = Space([parameter({"values": [1, 2]}, "net_options.depth"), parameter({"value": 3}, "bs")])
    assert space.nested({"net_options.depth": 2}) == {"bs": 3, "net_options": {"depth": 2}}


def test_numbers_are_shown_with_five_digits() -> None:
    assert [show(v) for v in (0.0009, 1e-05, True, None, 12, "x", 0.123456789)] == [
        *("0.0009", "1e-05", "true", "none", "12", "x", "0.12346"),
    ]
