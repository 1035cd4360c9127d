"""Sampling of parameter sets: W&B's grid and random search, or an Optuna sampler.

Proposed values are rounded to the quantized distributions of the file before they are stored, so the stored values are
those that trials use. A parameter set is not proposed twice, except by ``method: random``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from vitctl.sweep.ledger import FIXED, params_of
from vitctl.sweep.space import Params, Space, Value

STARTUP = 10
"""Number of random trials before an Optuna sampler proposes parameters."""

_PROPOSALS, _DRAWS, _ENUMERABLE = 10, 1000, 100_000


class Exhausted(Exception):
    """No untried parameter set is left."""


class SpaceSampler(BaseSampler):
    """Proposes parameter sets of a :class:`~vitctl.sweep.space.Space`.

    Args:
        space: search space of the sweep.
        method: ``grid`` enumerates the grid; any other method samples at random, as W&B's ``random`` does.
        seed: seeds the random samples, which depend on the seed and the trial's number only.
        base: an Optuna sampler that takes over after :data:`STARTUP` trials, or None.
        trials: returns all trials of the sweep.
        replacement: whether a parameter set can be proposed again, as by W&B's ``random``.
    """

    def __init__(
        self,
        space: Space,
        method: str,
        seed: int,
        base: BaseSampler | None = None,
        trials: Callable[[], Iterable[FrozenTrial]] = tuple,
        *,
        replacement: bool = False,
    ) -> None:
        self._space = space
        self._method = method
        self._seed = seed
        self._base = base
        self._trials = trials
        self._replacement = replacement
        self._distributions = {name: parameter.optuna() for name, parameter in space.varying.items()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions of all parameters, which are proposed together."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return a trial's parameter set, which contains its enqueued values; empty if all values are enqueued.

        Raises:
            Exhausted: no untried parameter set is left.
        """
        fixed: Params = dict(trial.system_attrs.get(FIXED, {}))
        if set(fixed) >= set(self._space.varying):
            return {}
        return self.propose(study, trial, fixed)

    def propose(self, study: Study, trial: FrozenTrial, fixed: Params) -> Params:
        """Return a parameter set that contains ``fixed``, untried unless sets are drawn with replacement.

        Raises:
            Exhausted: none is left.
        """
        if self._replacement:
            return self._draw(trial.number, 0) | fixed
        others = [other for other in self._trials() if other.number != trial.number]
        seen = {
            self._space.key(known)
            for other in others
            if (known := params_of(other)).keys() >= self._space.varying.keys()
        }

        def is_new(params: Params) -> bool:
            return self._space.key(params) not in seen

        if self._method == "grid":
            for point in self._space.grid_points():
                if is_new(point) and all(point[name] == value for name, value in fixed.items()):
                    return point
            raise Exhausted
        learned = sum(other.state in (TrialState.COMPLETE, TrialState.PRUNED) for other in others)
        if self._base is not None and learned >= STARTUP:
            for _ in range(_PROPOSALS):
                params = self._learned(self._base, study, trial) | fixed
                if is_new(params):
                    return params
        for attempt in range(_DRAWS):
            params = self._draw(trial.number, attempt) | fixed
            if is_new(params):
                return params
        size = self._space.size
        if size is not None and size <= _ENUMERABLE:
            left = [p for p in self._space.all_points() if is_new(p) and all(p[name] == fixed[name] for name in fixed)]
            if left:
                return random.Random(f"{self._seed}:{trial.number}").choice(left)
        raise Exhausted

    def _draw(self, number: int, attempt: int) -> Params:
        return self._space.draw(random.Random(f"{self._seed}:{number}:{attempt}"))

    def _learned(self, base: BaseSampler, study: Study, trial: FrozenTrial) -> Params:
        space = base.infer_relative_search_space(study, trial)
        params = base.sample_relative(study, trial, space)
        drawn = random.Random(f"{self._seed}:{trial.number}:{params}")
        filler = self._space.draw(drawn)
        return {
            name: self._rounded(name, params[name]) if name in params else filler[name] for name in self._space.varying
        }

    def _rounded(self, name: str, value: Value) -> Value:
        parameter = self._space.varying[name]
        if parameter.step is None or not isinstance(value, (int, float)):
            return value
        return parameter.snap(value)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never called, because :meth:`sample_relative` returns every parameter."""
        raise AssertionError(f"{param_name} was not proposed with the others")

    def reseed_rng(self) -> None:
        """Do nothing: samples depend on the seed and the trial only."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Forward to the base sampler."""
        if self._base is not None:
            self._base.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Forward to the base sampler."""
        if self._base is not None:
            self._base.after_trial(study, trial, state, values)
