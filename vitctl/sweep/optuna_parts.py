"""Optuna's samplers and pruners, and W&B's Hyperband as an Optuna pruner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from optuna import pruners, samplers
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from vitctl.errors import RequestError
from vitctl.registry import lookup, split_spec
from vitctl.sweep import PRUNERS, SAMPLERS
from vitctl.sweep.file import SweepFile
from vitctl.sweep.hyperband import Hyperband
from vitctl.sweep.ledger import superseded
from vitctl.sweep.sampler import STARTUP
from vitctl.sweep.storage import quiet_optuna


def build_sampler(name: str, seed: int) -> BaseSampler | None:
    """Return the Optuna sampler called ``name``, or None for ``random``.

    Raises:
        RequestError: unknown sampler, or its package is not installed.
    """
    quiet_optuna()
    base: BaseSampler | None = lookup(SAMPLERS, name, "--sampler").load()(seed % 2**32)
    return base


def tpe(seed: int) -> BaseSampler:
    """Return a multivariate TPE sampler; ``constant_liar`` makes it account for trials that are still running."""
    return samplers.TPESampler(multivariate=True, constant_liar=True, n_startup_trials=STARTUP, seed=seed)


def gp(seed: int) -> BaseSampler:
    """Return a Gaussian-process sampler."""
    return samplers.GPSampler(n_startup_trials=STARTUP, seed=seed)


def cmaes(seed: int) -> BaseSampler:
    """Return a CMA-ES sampler.

    Raises:
        RequestError: the package ``cmaes`` is not installed.
    """
    try:
        import_module("cmaes")
    except ImportError as error:
        raise RequestError(
            "--sampler cmaes needs the package cmaes", hint="install it: pip install 'vitctl[cmaes]'"
        ) from error
    return samplers.CmaEsSampler(n_startup_trials=STARTUP, seed=seed, warn_independent_sampling=False)


def no_base(seed: int) -> None:
    """Return None: ``random`` needs no Optuna sampler."""


def build_pruner(spec: str, file: SweepFile) -> BasePruner:
    """Return the pruner for ``--pruner``.

    Args:
        spec: ``NAME[:key=value,...]``.
        file: the sweep file; the pruner called ``file`` uses its ``early_terminate``.

    Raises:
        RequestError: unknown pruner or option, or a bad value.
    """
    name, given = split_spec(spec, "--pruner")
    entry = lookup(PRUNERS, name, "--pruner")
    options = entry.resolve_options(given, f"--pruner {name}")
    quiet_optuna()
    pruner: BasePruner = entry.load()(file, **options)
    return pruner


def from_file(file: SweepFile) -> BasePruner:
    """Return the pruner for the file's ``early_terminate``."""
    return nop(file) if file.hyperband is None else WandbPruner(file.hyperband, file.metric.sign)


def nop(file: SweepFile) -> BasePruner:
    """Return a pruner that never prunes."""
    return pruners.NopPruner()


def median(file: SweepFile, *, startup: int, warmup: int) -> BasePruner:
    """Return Optuna's median pruner."""
    return pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)


def percentile(file: SweepFile, *, percent: float, startup: int, warmup: int) -> BasePruner:
    """Return Optuna's percentile pruner."""
    return pruners.PercentilePruner(percent, n_startup_trials=startup, n_warmup_steps=warmup)


def halving(file: SweepFile, *, min_epochs: int, factor: int) -> BasePruner:
    """Return Optuna's successive-halving pruner."""
    return pruners.SuccessiveHalvingPruner(min_resource=min_epochs, reduction_factor=factor)


def hyperband(file: SweepFile, *, min_epochs: int, max_epochs: int, factor: int) -> BasePruner:
    """Return Optuna's Hyperband pruner.

    Raises:
        RequestError: ``min_epochs`` is more than ``max_epochs``.
    """
    if min_epochs > max_epochs:
        raise RequestError(
            f"--pruner hyperband: min_epochs {min_epochs} is more than max_epochs {max_epochs}",
            hint=f"use min_epochs={max_epochs} or less, or max_epochs={min_epochs} or more",
        )
    return pruners.HyperbandPruner(min_resource=min_epochs, max_resource=max_epochs, reduction_factor=factor)


def patient(file: SweepFile, *, patience: int) -> BasePruner:
    """Return Optuna's patient pruner."""
    return pruners.PatientPruner(None, patience=patience)


def history_of(trial: FrozenTrial) -> list[float]:
    """Return the finite values that a trial has reported, in order."""
    values: dict[int, float] = trial.intermediate_values
    return [values[step] for step in sorted(values) if math.isfinite(values[step])]


class WandbPruner(BasePruner):
    """Prunes trials by W&B's rules.

    Args:
        hyperband: settings of ``early_terminate``.
        sign: factor that makes lower values better: 1 or -1.
    """

    def __init__(self, hyperband: Hyperband, sign: int) -> None:
        self._hyperband = hyperband
        self._sign = sign

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether to stop a running trial; of several attempts at a trial, only the latest counts."""
        trials: Sequence[Any] = study.get_trials(deepcopy=False)
        gone = superseded(trials)
        mine = self._signed(trial)
        others = [
            history
            for other in trials
            if other.number != trial.number and other.number not in gone and (history := self._signed(other))
        ]
        return self._hyperband.stops(mine, [mine, *others])

    def _signed(self, trial: FrozenTrial) -> list[float]:
        return [self._sign * value for value in history_of(trial)]
