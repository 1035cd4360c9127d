"""Search spaces: W&B's distributions, sampled, quantized and enumerated as W&B does.

A sample is ``quantile(u)`` of a uniform ``u``, as in W&B's ``sweeps`` package, and agrees with W&B's to a relative
difference of 1e-11. A quantized value is ``k * q`` computed in decimal, such as 0.0009; W&B computes it in binary, with a
rounding error: 0.0009000000000000001.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = bool | int | float | str | None
Params = dict[str, Value]
"""Values of the varied parameters by name; a nested parameter has a dot in its name."""

TAIL = 1e-9
"""Samples of ``u`` stay this far from 0 and 1, where the quantile of a normal distribution is infinite."""

CHOICES = ("constant", "categorical", "categorical_w_probabilities")
EXPONENTS = ("log_uniform", "inv_log_uniform", "q_log_uniform")
"""Distributions whose ``min`` and ``max`` are exponents of e."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a sweep.

    Attributes:
        name: name in the file; a nested parameter has a dot in its name.
        distribution: W&B's name of the distribution.
        settings: the distribution's settings, such as ``min``, ``max`` and ``q``, with W&B's defaults filled in.
        int_only: whether ``train`` accepts only whole numbers.
    """

    name: str
    distribution: str
    settings: Mapping[str, Any]
    int_only: bool = False

    @property
    def varies(self) -> bool:
        """Whether the parameter is not a constant."""
        return self.distribution != "constant"

    @property
    def step(self) -> float | None:
        """Distance between neighbouring values of a quantized distribution; None for a continuous one."""
        if self.distribution == "int_uniform":
            return 1
        return float(self.settings["q"]) if self.distribution.startswith("q_") else None

    @property
    def integer(self) -> bool:
        """Whether all values are whole numbers; as in W&B, those of a quantized distribution are if ``q`` is an int."""
        return self.distribution == "int_uniform" or (
            self.distribution.startswith("q_") and (isinstance(self.settings["q"], int) or self.int_only)
        )

    # -- sampling ----------------------------------------------------------------------------------------------------

    def quantile(self, u: float) -> Value:
        """Return the quantile at ``u``, a number in (0, 1)."""
        s = self.settings
        if self.distribution == "constant":
            value: Value = s["value"]
            return value
        if self.distribution == "categorical":
            value = s["values"][_randint_quantile(u, len(s["values"]))]
            return value
        if self.distribution == "categorical_w_probabilities":
            total = 0.0
            for choice, probability in zip(s["values"], s["probabilities"], strict=True):
                total += probability
                if u < total:
                    value = choice
                    return value
            value = next(c for c, p in zip(s["values"][::-1], s["probabilities"][::-1], strict=True) if p)
            return value
        if self.distribution == "int_uniform":
            return int(s["min"]) + _randint_quantile(u, s["max"] - s["min"] + 1)
        raw = self._continuous_quantile(u)
        if self.step is not None:
            return self.snap(raw)
        low, high = self.bounds
        return min(max(raw, low), high)  # exp(log(max)) may exceed max by rounding

    def _continuous_quantile(self, u: float) -> float:
        s, kind = self.settings, self.distribution.removeprefix("q_")
        if kind == "uniform":
            return float(u * (s["max"] - s["min"]) + s["min"])
        if kind in ("log_uniform", "log_uniform_values", "inv_log_uniform_values"):
            low, high = (s["min"], s["max"]) if kind == "log_uniform" else (math.log(s["min"]), math.log(s["max"]))
            return math.exp(u * (high - low) + low)
        if kind == "inv_log_uniform":
            return math.exp(-((1 - u) * (s["max"] - s["min"]) + s["min"]))
        if kind in ("normal", "log_normal"):
            x = statistics.NormalDist(s["mu"], s["sigma"]).inv_cdf(u)
            return x if kind == "normal" else math.exp(x)
        assert kind == "beta", kind
        from scipy.special import betaincinv

        return float(betaincinv(s["a"], s["b"], u))

    def snap(self, x: float) -> int | float:
        """Round ``x`` to a value of the quantized distribution; as in W&B, these are multiples of ``q``."""
        if self.distribution == "int_uniform":
            return min(max(round(x), int(self.settings["min"])), int(self.settings["max"]))
        q = self.settings["q"]
        exact = round(x / q) * Decimal(repr(q))
        return int(exact) if self.integer else float(exact)

    # -- the range ---------------------------------------------------------------------------------------------------

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value; quantized distributions include the values that ``min`` and ``max`` round to.

        Normal distributions are unbounded, so their bounds are the quantiles at :data:`TAIL`, six standard deviations
        from the mean.
        """
        s, kind = self.settings, self.distribution.removeprefix("q_")
        if self.distribution == "int_uniform":
            return s["min"], s["max"]
        if kind in ("uniform", "log_uniform_values", "inv_log_uniform_values"):
            low, high = s["min"], s["max"]
        elif kind == "log_uniform":
            low, high = math.exp(s["min"]), math.exp(s["max"])
        elif kind == "inv_log_uniform":
            low, high = math.exp(-s["max"]), math.exp(-s["min"])
        elif kind == "beta":
            low, high = 0.0, 1.0
        else:
            low, high = self._continuous_quantile(TAIL), self._continuous_quantile(1 - TAIL)
        if self.step is None:
            return float(low), float(high)
        first, last = self.snap(low), self.snap(high)
        if self.integer:
            return min(math.ceil(low), first), max(math.floor(high), last)
        return min(float(low), first), max(float(high), last)

    @property
    def log(self) -> bool:
        """Whether the scale is logarithmic; a quantized range that includes 0 is linear."""
        return "log_" in self.distribution and self.bounds[0] > 0

    @property
    def count(self) -> int | None:
        """Number of different values; None if unlimited."""
        if not self.varies:
            return 1
        if self.distribution in CHOICES:
            return len(self.choices)
        if self.distribution == "int_uniform":
            return int(self.settings["max"] - self.settings["min"] + 1)
        if self.step is None or self.distribution in ("q_normal", "q_log_normal"):
            return None
        low, high = self._ends()
        return round(high / self.step) - round(low / self.step) + 1

    def _ends(self) -> tuple[float, float]:
        return self._continuous_quantile(0.0), self._continuous_quantile(1.0)

    @property
    def choices(self) -> list[Value]:
        """Different values of a categorical distribution that have a probability above 0."""
        weights = self.settings.get("probabilities", [1] * len(self.settings["values"]))
        found: list[Value] = []
        for value, weight in zip(self.settings["values"], weights, strict=True):
            if weight and value not in found:
                found.append(value)
        return found

    def all_values(self) -> list[Value]:
        """Return every value, in order; :attr:`count` must not be None."""
        if not self.varies:
            return [self.settings["value"]]
        if self.distribution in CHOICES:
            return self.choices
        if self.distribution == "int_uniform":
            return list(range(self.settings["min"], self.settings["max"] + 1))
        low, high = self._ends()
        q = self.settings["q"]
        return [self.snap(k * q) for k in range(round(low / q), round(high / q) + 1)]

    # -- the grid ----------------------------------------------------------------------------------------------------

    @property
    def on_a_grid(self) -> bool:
        """Whether ``method: grid`` supports the distribution."""
        return self.distribution in ("constant", "categorical", "int_uniform", "q_uniform")

    @property
    def grid_count(self) -> int:
        """Number of values in :meth:`grid`."""
        if self.distribution != "q_uniform":
            return self.count or 0
        low, high, q = (float(self.settings[key]) for key in ("min", "max", "q"))
        return math.ceil((high - low) / q)  # the length of np.arange(low, high, q)

    def grid(self) -> list[Value]:
        """Return the values for ``method: grid``; as in W&B, ``q_uniform`` starts at ``min`` and excludes ``max``."""
        if self.distribution != "q_uniform":
            return self.all_values()
        low, high, q = (self.settings[key] for key in ("min", "max", "q"))
        exact = [Decimal(repr(low)) + i * Decimal(repr(q)) for i in range(self.grid_count)]
        integral = self.int_only or (isinstance(low, int) and isinstance(high, int) and isinstance(q, int))
        return [int(value) if integral and value == int(value) else float(value) for value in exact]

    # -- conversion --------------------------------------------------------------------------------------------------

    def optuna(self) -> BaseDistribution:
        """Return Optuna's distribution over the same range."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.distribution in CHOICES:
            return CategoricalDistribution(self.choices)
        low, high = self.bounds
        if self.integer and not self._starts_at_fraction:
            return IntDistribution(int(low), int(high), log=self.log)
        return FloatDistribution(low, high, log=self.log)

    @property
    def _starts_at_fraction(self) -> bool:
        """Whether a ``q_uniform`` grid starts at a fraction, so that its values are fractions."""
        return self.distribution == "q_uniform" and not float(self.settings["min"]).is_integer()

    def read(self, value: Value) -> Value:
        """Convert a value of :meth:`optuna`'s distribution to an int where W&B samples whole numbers."""
        if self.integer and isinstance(value, float) and value.is_integer():
            return int(value)
        return value

    def describe(self) -> str:
        """Describe the distribution, for example ``q_uniform 0.01 to 0.05 by 0.005``."""
        s = self.settings
        if self.distribution == "constant":
            return show(s["value"])
        if self.distribution in CHOICES:
            return " | ".join(show(value) for value in s["values"])
        parts = [self.distribution]
        if "min" in s:
            parts.append(f"{show(s['min'])} to {show(s['max'])}")
        parts += [f"{key} {show(s[key])}" for key in ("mu", "sigma", "a", "b") if key in s]
        if "q" in s:
            parts.append(f"by {show(s['q'])}")
        return " ".join(parts)


def show(value: Value) -> str:
    """Format a value for display; floats get at most five significant digits."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.5g}" if isinstance(value, float) else "none" if value is None else str(value)


def show_params(params: Mapping[str, Value]) -> str:
    """Format parameters as ``lr=0.0009 weight_decay=0.02``."""
    return " ".join(f"{name}={show(value)}" for name, value in params.items())


def _randint_quantile(u: float, n: int) -> int:
    """Return the quantile at ``u`` of the uniform distribution over 0 to n-1, as ``scipy.stats.randint`` does."""
    index = math.ceil(u * n) - 1
    below = max(index - 1, 0)
    return below if (below + 1) / n >= u else min(max(index, 0), n - 1)


class Space:
    """The parameters of a sweep, sorted by name; samples and grids follow that order."""

    def __init__(self, parameters: list[Parameter]) -> None:
        self.parameters = {p.name: p for p in sorted(parameters, key=lambda p: tuple(p.name.split(".")))}
        self.varying = {name: p for name, p in self.parameters.items() if p.varies}
        self.constants: Params = {name: p.settings["value"] for name, p in self.parameters.items() if not p.varies}

    def draw(self, rng: random.Random) -> Params:
        """Sample all varied parameters as W&B's ``method: random`` does."""
        return {
            name: parameter.quantile(min(max(rng.random(), TAIL), 1 - TAIL)) for name, parameter in self.varying.items()
        }

    @property
    def size(self) -> int | None:
        """Number of different parameter sets; None if unlimited."""
        total = 1
        for parameter in self.varying.values():
            if parameter.count is None:
                return None
            total *= parameter.count
        return total

    def all_points(self) -> Iterator[Params]:
        """Iterate over all parameter sets; :attr:`size` must not be None."""
        return self._product([parameter.all_values() for parameter in self.varying.values()])

    @property
    def grid_size(self) -> int:
        """Number of points of ``method: grid``."""
        return math.prod(parameter.grid_count for parameter in self.varying.values())

    def grid_points(self) -> Iterator[Params]:
        """Iterate over the points of ``method: grid``; the last parameter by name varies fastest."""
        return self._product([parameter.grid() for parameter in self.varying.values()])

    def _product(self, values: list[list[Value]]) -> Iterator[Params]:
        for point in itertools.product(*values):
            yield dict(zip(self.varying, point, strict=True))

    def key(self, params: Mapping[str, Value]) -> tuple[Value, ...]:
        """Return a hashable key that identifies a parameter set."""
        return tuple(params[name] for name in self.varying)

    def nested(self, params: Mapping[str, Value]) -> dict[str, Any]:
        """Return ``params`` and the constants as nested mappings, as in a ``--config`` file."""
        settings: dict[str, Any] = {}
        for name, value in {**self.constants, **params}.items():
            *groups, last = name.split(".")
            target = settings
            for group in groups:
                target = target.setdefault(group, {})
            target[last] = value
        return settings
