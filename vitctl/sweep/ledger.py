"""What has become of a sweep's trials.

An attempt that ended with its agent, or that a signal killed, is FAIL in the storage and is tried again by a new trial
with the same parameters, which names the attempts before it under Optuna's ``retry_history``. Here the two are one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from vitctl.sweep import states
from vitctl.sweep.space import Params, Space

FAILURE, FAILURE_KIND, RUN, AGENT, FIXED = "failure", "failure_kind", "run", "agent", "fixed_params"
"""Attributes of a trial: message and kind (:data:`vitctl.errors.Kind`) of its failure, run folder, agent, and enqueued
parameters (Optuna's own)."""

HISTORY, ORIGINAL = "retry_history", "failed_trial"
"""Optuna's attributes of a trial that is another's retry."""

MOST_RETRIES = 20
"""How often a parameter set is tried again when a signal kills its training in the same epoch; those that get further
begin to count anew, and the loss of an agent does not count. Many, as it says nothing about the parameters when a machine
is short of memory; where they are the cause, an agent ends long before, after three failures in a row."""

KILLS = "kills"
"""Attribute of an attempt whose training was killed by a signal that its agent did not send: ``[epochs, kills]``, the epochs
that were done by then, and how many attempts in a row ended so with as many."""

EXHAUSTED = "exhausted"
"""Attribute of an attempt that found no parameter set which the sweep has not seen."""

_WORDS: dict[TrialState, states.TrialState] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def superseded(trials: Iterable[FrozenTrial]) -> set[int]:
    """Return the numbers of the attempts that another trial goes on with."""
    return {number for trial in trials for number in trial.system_attrs.get(HISTORY, ())}


def root_of(trial: FrozenTrial) -> int:
    """Return the number of a trial's first attempt, by which it is called."""
    return int(trial.system_attrs.get(ORIGINAL, trial.number))


@dataclass(frozen=True)
class Ledger:
    """The trials of a sweep, an entry per parameter set.

    Attributes:
        space: of the sweep.
        trials: the latest attempt at each parameter set, by number.
        lost: those of them that must be tried again, as their attempt ended without a verdict.
        seen: how many different parameter sets there are.
        exhausted: an attempt found that there are no others.
    """

    space: Space
    trials: tuple[FrozenTrial, ...]
    lost: tuple[FrozenTrial, ...]
    seen: int
    exhausted: bool = False

    @classmethod
    def of(cls, trials: list[FrozenTrial], space: Space) -> Ledger:
        """Sort out all trials of a study."""
        gone = superseded(trials)
        current, lost = [], []
        keys = set()
        for trial in trials:
            whole = trial.params.keys() >= space.varying.keys()
            if (known := params_of(trial)).keys() >= space.varying.keys():
                keys.add(space.key(known))
            if trial.number in gone:
                continue
            if trial.state == TrialState.FAIL and FAILURE not in trial.user_attrs:
                if not whole and FIXED not in trial.system_attrs:
                    continue  # its agent died before it had all parameters: nothing was begun
                lost.append(trial)
            current.append(trial)
        exhausted = any(EXHAUSTED in trial.user_attrs for trial in trials)
        return cls(space, tuple(current), tuple(lost), len(keys), exhausted)

    def count(self, *states: str) -> int:
        """Return how many trials are in one of ``states``; lost ones wait."""
        return sum(self.state(trial) in states for trial in self.trials)

    def state(self, trial: FrozenTrial) -> states.TrialState:
        """Return ``complete``, ``pruned``, ``failed``, ``running`` or ``waiting``."""
        if any(trial.number == other.number for other in self.lost):
            return "waiting"
        return _WORDS[trial.state]

    @property
    def counts(self) -> dict[states.TrialState, int]:
        """How many trials are in each state."""
        return {state: self.count(state) for state in states.TRIAL_STATES}


def retry_attributes(trial: FrozenTrial) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the user and system attributes of the trial that tries ``trial`` again."""
    system = {key: value for key, value in trial.system_attrs.items() if key in (FIXED, ORIGINAL, HISTORY)}
    system.setdefault(ORIGINAL, trial.number)
    system[HISTORY] = [*system.get(HISTORY, []), trial.number]
    kept = (RUN,) if FAILURE in trial.user_attrs else (RUN, KILLS)  # one that was given up has all its chances again
    return {key: trial.user_attrs[key] for key in kept if key in trial.user_attrs}, system


def params_of(trial: FrozenTrial) -> Params:
    """Return a trial's parameters, or of one that waits those that were enqueued."""
    return {**trial.system_attrs.get(FIXED, {}), **trial.params}
