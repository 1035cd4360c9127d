"""The states of sweeps, trials and agents, as the storage, the JSON and the code call them."""

from __future__ import annotations

from typing import Literal, get_args

TrialState = Literal["complete", "pruned", "failed", "running", "waiting"]
TRIAL_STATES: tuple[TrialState, ...] = get_args(TrialState)

Control = Literal["running", "paused", "stopped"]
"""What the user wants of a sweep."""

SweepState = Literal["running", "paused", "stopped", "waiting", "finished"]
"""How a sweep stands; ``waiting`` for an agent."""

AgentEnd = Literal["finished", "stopped", "count", "time"]
"""Why an agent ended: the sweep is over or was stopped, or a limit of the agent's own was reached."""

TrialEnd = Literal["complete", "pruned", "failed", "killed", "released", "lost"]
"""How an attempt at a trial ended: ``released`` to be tried again, or ``lost`` to another agent."""
