"""The state of a sweep's trials, with all attempts at a parameter set merged into one.

An attempt whose agent died, or whose training was killed by a signal, has the state FAIL in the storage. It is retried
by a new Optuna trial with the same parameters, which lists the earlier attempts in Optuna's ``retry_history``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from vitctl.sweep import states
from vitctl.sweep.space import Params, Space

FAILURE, FAILURE_KIND, RUN, AGENT, FIXED = "failure", "failure_kind", "run", "agent", "fixed_params"
"""Attributes of a trial: message and kind (:data:`vitctl.errors.Kind`) of its failure, run folder, agent, and the
enqueued parameters (an attribute of Optuna)."""

HISTORY, ORIGINAL = "retry_history", "failed_trial"
"""Optuna's attributes of a trial that retries another."""

MAX_RETRIES = 20
"""Retries of a parameter set whose training is killed by a signal in the same epoch each time.

An attempt that gets further resets the count, and the death of an agent does not count. The limit is high because a
machine short of memory says nothing about the parameters. If they are the cause, the agent ends much earlier, after
three failures in a row."""

KILLS = "kills"
"""Attribute of an attempt whose training was killed by a signal that its agent did not send: ``[epochs, kills]``, the
number of finished epochs, and the number of consecutive attempts that were killed at that epoch."""

IMAGES = "images"
"""Attribute of a trial: see :func:`vitctl.sweep.images.images_of`."""

EXHAUSTED = "exhausted"
"""Attribute of an attempt that found no untried parameter set."""

_WORDS: dict[TrialState, states.TrialState] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def superseded(trials: Iterable[FrozenTrial]) -> set[int]:
    """Return the numbers of the attempts that another trial retries."""
    return {number for trial in trials for number in trial.system_attrs.get(HISTORY, ())}


def root_of(trial: FrozenTrial) -> int:
    """Return the number of a trial's first attempt, which identifies the trial."""
    return int(trial.system_attrs.get(ORIGINAL, trial.number))


@dataclass(frozen=True)
class Ledger:
    """The trials of a sweep, one entry per parameter set.

    Attributes:
        space: search space of the sweep.
        trials: the latest attempt at each parameter set, by number.
        lost: those of ``trials`` that must be retried because the attempt ended without a result.
        seen: number of different parameter sets.
        exhausted: whether an attempt found no untried parameter set.
    """

    space: Space
    trials: tuple[FrozenTrial, ...]
    lost: tuple[FrozenTrial, ...]
    seen: int
    exhausted: bool = False

    @classmethod
    def of(cls, trials: list[FrozenTrial], space: Space) -> Ledger:
        """Build the ledger from all trials of a study."""
        gone = superseded(trials)
        current, lost = [], []
        keys = set()
        for trial in trials:
            complete = trial.params.keys() >= space.varying.keys()
            if (known := params_of(trial)).keys() >= space.varying.keys():
                keys.add(space.key(known))
            if trial.number in gone:
                continue
            if trial.state == TrialState.FAIL and FAILURE not in trial.user_attrs:
                if not complete and FIXED not in trial.system_attrs:
                    continue  # its agent died before all parameters were set, so training never started
                lost.append(trial)
            current.append(trial)
        exhausted = any(EXHAUSTED in trial.user_attrs for trial in trials)
        return cls(space, tuple(current), tuple(lost), len(keys), exhausted)

    def count(self, *states: str) -> int:
        """Return the number of trials in any of ``states``; lost trials count as waiting."""
        return sum(self.state(trial) in states for trial in self.trials)

    def state(self, trial: FrozenTrial) -> states.TrialState:
        """Return the state of a trial; lost trials are ``waiting``."""
        if any(trial.number == other.number for other in self.lost):
            return "waiting"
        return _WORDS[trial.state]

    @property
    def counts(self) -> dict[states.TrialState, int]:
        """Number of trials in each state."""
        return {state: self.count(state) for state in states.TRIAL_STATES}


def retry_attributes(trial: FrozenTrial) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the user and system attributes of the trial that retries ``trial``."""
    system = {key: value for key, value in trial.system_attrs.items() if key in (FIXED, ORIGINAL, HISTORY)}
    system.setdefault(ORIGINAL, trial.number)
    system[HISTORY] = [*system.get(HISTORY, []), trial.number]
    kept = (RUN,) if FAILURE in trial.user_attrs else (RUN, KILLS)  # retrying a failed trial resets its count of kills
    return {key: trial.user_attrs[key] for key in kept if key in trial.user_attrs}, system


def params_of(trial: FrozenTrial) -> Params:
    """Return a trial's parameters, including enqueued ones that Optuna has not set yet."""
    return {**trial.system_attrs.get(FIXED, {}), **trial.params}
