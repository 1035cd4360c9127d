"""An agent that trains with fake_trainer.py; also a program, so that tests can kill it."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitctl.errors import VitctlError
from vitctl.observer import Observer
from vitctl.process.child import Trainer, TrialRun
from vitctl.sweep.agent import Agent, Snapshot, TrialsFailed
from vitctl.sweep.file import parse_sweep_file
from vitctl.sweep.ledger import AGENT
from vitctl.sweep.storage import TrialStorage, parse_url
from vitctl.sweep.sweep import Sweep, SweepPlan, find_sweep, new_id, now

TRIALS_FAILED = 3
"""Exit code of an agent that ended after three failed trials in a row."""

TRAINER = Path(__file__).with_name("fake_trainer.py")


PYTHON = [sys.executable]
"""Command that runs Python for fake_trainer.py."""


def fake_trainer(**options: object) -> Trainer:
    """Return a trainer that runs fake_trainer.py with ``options``."""

    def command(trial: TrialRun) -> list[str]:
        words = [f"{key}={value}" for key, value in options.items()]
        return [*PYTHON, str(TRAINER), str(trial.config), str(trial.run), *words]

    return command


class Recorder(Observer):
    """Records the events of an agent."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def trial_started(self, trial: int, params: dict[str, Any], run: Path, resumed: bool) -> None:
        self.events.append(("started", trial, resumed))

    def trial_reported(self, trial: int, epoch: int, value: float) -> None:
        self.events.append(("progressed", trial, epoch, value))

    def trial_ended(self, trial: int, state: str, value: float | None, why: str) -> None:
        self.events.append(("ended", trial, state, value, why))

    def message(self, text: str) -> None:
        self.events.append(("message", text))

    def sweep_changed(self, snapshot: Snapshot) -> None:
        self.events.append(("snapshot", snapshot))

    def events_of(self, kind: str) -> list[tuple[Any, ...]]:
        return [event[1:] for event in self.events if event[0] == kind]


def make_sweep(text: str, runs_dir: Path, storage: str | None = None, **more: Any) -> Sweep:
    """Create a sweep."""
    id = new_id()
    url = parse_url(storage or f"sqlite:///{runs_dir / 'sweeps' / id / 'study.db'}")
    file = parse_sweep_file(text, "test.yaml")
    settings: dict[str, Any] = {"fixed": {}, "run_cap": file.run_cap, "sampler": "tpe", "pruner": "file", "seed": 0}
    plan = SweepPlan(id, file, created=now(), storage=url.render_as_string(), **{**settings, **more})
    return Sweep.create(plan, url, runs_dir)


RunAgent = Callable[..., tuple[str, Recorder]]


def run_agent(sweep: Sweep, *, trainer: Trainer | None = None, **options: Any) -> tuple[str, Recorder]:
    """Run an agent in this process."""
    recorder = Recorder()
    options = {"heartbeat": 1, "grace": 3, "pause": 0.02, **options}
    return Agent(sweep, recorder, trainer=trainer or fake_trainer(), **options).run(), recorder


def die_before_heartbeats(share: float) -> None:
    """Kill this process with probability ``share`` after it claims a trial and before the trial's first heartbeat."""
    record = TrialStorage.record_heartbeat

    def deadly(self: TrialStorage, trial_id: int) -> None:
        if random.random() < share and AGENT not in self.get_trial(trial_id).user_attrs:
            os.kill(os.getpid(), signal.SIGKILL)
        record(self, trial_id)

    TrialStorage.record_heartbeat = deadly  # type: ignore[method-assign]


def main(runs: str, id: str, storage: str, seconds: str, jobs: str, deadly: str) -> None:
    """Run an agent and print why it ended."""
    die_before_heartbeats(float(deadly))
    try:
        sweep = find_sweep(id, Path(runs), storage or None)
        why, _ = run_agent(sweep, trainer=fake_trainer(seconds=seconds), workers=[{}] * int(jobs))
    except TrialsFailed:
        sys.exit(TRIALS_FAILED)
    except VitctlError as error:
        sys.exit(f"error: {error}")
    print(why)


if __name__ == "__main__":
    main(*sys.argv[1:])
