"""Measure the overhead of a sweep: the engine's time per trial with a full storage, and the time per real trial.

    python -m tests.measurements.sweep [--trials 1000] [--count 20] [--storage URL]

``engine_seconds`` is the time from a trial's end to the start of the next one's training: bookkeeping, sampling (bayes), early
termination and storage. ``end_to_end_of_a_trial_of_one_step`` is the time from the end of one ``vitctl train`` on digits to the
end of the next, in seconds: imports, data, network, one step, checkpoint and final test.
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


class TrialTimes(Recorder):
    """Records when trials start and end."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[tuple[str, float]] = []

    def started(self, *words: Any) -> None:
        self.times.append(("started", time.perf_counter()))

    def ended(self, *words: Any) -> None:
        self.times.append(("ended", time.perf_counter()))

    def gaps(self, first: str, then: str) -> list[float]:
        """Return the seconds from each event ``first`` to an event ``then`` that follows immediately."""
        marks = [(what, at) for what, at in self.times if what in (first, then)]
        pairs = itertools.pairwise(marks)
        return [after - before for (what, before), (other, after) in pairs if (what, other) == (first, then)]


def fill(study: optuna.Study, distributions: dict[str, Any], count: int) -> None:
    """Add ``count`` complete trials to ``study``."""
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
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="trials in the storage beforehand")
    parser.add_argument("--count", type=int, default=20, help="timed trials")
    parser.add_argument("--storage")
    args = parser.parse_args()
    figures: dict[str, Any] = {"trials": args.trials}
    with tempfile.TemporaryDirectory() as place:
        early = {"type": "hyperband", "min_iter": 1}
        sweep = make_sweep(
            sweep_text(SPACE, method="bayes", run_cap=args.trials + args.count, early_terminate=early),
            Path(place),
            args.storage,
        )
        with sweep.changing() as study:
            fill(study, {name: each.optuna() for name, each in sweep.file.space.varying.items()}, args.trials)
        times = TrialTimes()
        Agent(sweep, times, trainer=fake_trainer(seconds=0), count=args.count).run()
        gaps = times.gaps("ended", "started")
        figures["engine_seconds"] = {"median": round(statistics.median(gaps), 4), "worst": round(max(gaps), 4)}

        real = make_sweep(sweep_text(STEP, method="random", run_cap=5), Path(place) / "real", args.storage)
        times = TrialTimes()
        Agent(real, times, trainer=train_command, count=5).run()
        ends = [at for what, at in times.times if what == "ended"]
        turns = [after - before for before, after in itertools.pairwise(ends)]
        figures["end_to_end_of_a_trial_of_one_step"] = round(statistics.median(turns), 2)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
