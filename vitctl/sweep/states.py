"""States of sweeps, trials and agents, with the names used in the storage and in JSON output."""

from __future__ import annotations

from typing import Literal, get_args

TrialState = Literal["complete", "pruned", "failed", "running", "waiting"]
TRIAL_STATES: tuple[TrialState, ...] = get_args(TrialState)

Control = Literal["running", "paused", "stopped"]
"""State of a sweep that the user requested."""

SweepState = Literal["running", "paused", "stopped", "waiting", "finished"]
"""Actual state of a sweep; ``waiting`` means that no agent is working on it."""

AgentEnd = Literal["finished", "stopped", "count", "time"]
"""Why an agent ended: the sweep is finished or stopped, or the agent reached its ``--count`` or ``--max-time``."""

TrialEnd = Literal["complete", "pruned", "failed", "killed", "released", "lost"]
"""How an attempt at a trial ended: among others, ``released`` to be retried, or ``lost`` to another agent."""
