"""What a sweep's engine costs: time per trial with many trials in the storage, and from a trial's end to the next one's steps.

    python -m tests.measurements.sweep [--trials 1000] [--count 20] [--storage URL]

The engine's time is that from a trial's end to the start of the next one's training: bookkeeping, sampling (bayes), early
termination, storage. The other figure is of real ``vitctl train`` trials on digits of one step each, from the end of one to the end
of the next: imports, data, network, the step, checkpoint and final test, so more than the time until the first step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna

from tests.sweep.conftest import sweep_text
from tests.sweep.fake import Recorder, fake_trainer, make_sweep
from vitctl.process.child import train_command
from vitctl.sweep.agent import Agent
from vitctl.sweep.ledger import RUN

SPACE = {
    "lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1},
    "weight_decay": {"min": 0.0, "max": 0.05},
    "epochs": {"value": 1},
}
STEP = {
    "lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3},
    "dataset": {"value": "digits"},
    "max_steps": {"value": 1},
    "limit_test": {"value": 100},
}


class Clock(Recorder):
    """Notes when trials start and end."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[str, float]] = []

    def started(self, *words: Any) -> None:
        self.times.append(("started", time.perf_counter()))

    def ended(self, *words: Any) -> None:
        self.times.append(("ended", time.perf_counter()))

    def gaps(self, first: str, then: str) -> list[float]:
        """Return the seconds from each ``first`` to the ``then`` that follows it."""
        marks = [(what, at) for what, at in self.times if what in (first, then)]
        pairs = itertools.pairwise(marks)
        return [after - before for (what, before), (other, after) in pairs if (what, other) == (first, then)]


def fill(study: optuna.Study, distributions: dict[str, Any], count: int) -> None:
    """Put ``count`` trials that are complete into ``study``."""
    rng = random.Random(0)
    for number in range(count):
        params = {"lr": 10 ** rng.uniform(-5, -1), "weight_decay": rng.uniform(0, 0.05)}
        study.add_trial(
            optuna.create_trial(
                params=params,
                distributions=distributions,
                value=rng.uniform(30, 60),
                intermediate_values={1: rng.uniform(30, 60)},
                user_attrs={RUN: f"runs/{number:04d}"},
            )
        )


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="in the storage beforehand")
    parser.add_argument("--count", type=int, default=20, help="trials that are timed")
    parser.add_argument("--storage")
    asked = parser.parse_args()
    figures: dict[str, Any] = {"trials": asked.trials}
    with tempfile.TemporaryDirectory() as place:
        early = {"type": "hyperband", "min_iter": 1}
        sweep = make_sweep(
            sweep_text(SPACE, method="bayes", run_cap=asked.trials + asked.count, early_terminate=early),
            Path(place),
            asked.storage,
        )
        with sweep.changing() as study:
            fill(study, {name: each.optuna() for name, each in sweep.file.space.varying.items()}, asked.trials)
        clock = Clock()
        Agent(sweep, clock, trainer=fake_trainer(seconds=0), count=asked.count).run()
        gaps = clock.gaps("ended", "started")
        figures["engine_seconds"] = {"median": round(statistics.median(gaps), 4), "worst": round(max(gaps), 4)}

        real = make_sweep(sweep_text(STEP, method="random", run_cap=5), Path(place) / "real", asked.storage)
        clock = Clock()
        Agent(real, clock, trainer=train_command, count=5).run()
        ends = [at for what, at in clock.times if what == "ended"]
        turns = [after - before for before, after in itertools.pairwise(ends)]
        figures["end_to_end_of_a_trial_of_one_step"] = round(statistics.median(turns), 2)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
