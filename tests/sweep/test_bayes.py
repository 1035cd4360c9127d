"""``method: bayes`` finds better parameters than random search."""

from __future__ import annotations

import math
import statistics

import optuna
import pytest
from optuna.study import Study
from optuna.trial import Trial

from tests.sweep.conftest import sweep_file
from vitctl.sweep.agent import suggest_value
from vitctl.sweep.file import SweepFile
from vitctl.sweep.optuna_parts import build_sampler
from vitctl.sweep.sampler import SpaceSampler

SEEDS, TRIALS = 20, 30

SPACE = {
    "lr": {"distribution": "q_log_uniform_values", "min": 1e-5, "max": 1e-1, "q": 1e-5},
    "weight_decay": {"distribution": "q_uniform", "min": 0.0, "max": 0.5, "q": 0.005},
    "label_smoothing": {"min": 0.0, "max": 0.3},
    "warmup": {"min": 0.0, "max": 0.4},
}


def accuracy(trial: Trial, file: SweepFile) -> float:
    """Return a percentage with a single maximum, in which lr and weight decay interact as they do in training."""
    values = {name: suggest_value(trial, name, each.optuna()) for name, each in file.space.varying.items()}
    lr, decay = math.log10(values["lr"] / 2e-3), (values["weight_decay"] - 0.1) / 0.2
    smoothing, warmup = (values["label_smoothing"] - 0.1) / 0.15, (values["warmup"] - 0.1) / 0.2
    return 90 - 8 * lr**2 - 5 * (decay + 0.5 * lr) ** 2 - 4 * smoothing**2 - 4 * warmup**2


def best(file: SweepFile, base: str | None, seed: int) -> float:
    """Return the best value of a sweep in memory."""
    later: list[Study] = []
    sampler = SpaceSampler(
        file.space,
        "bayes" if base else "random",
        seed,
        build_sampler(base, seed) if base else None,
        lambda: later[0].get_trials(deepcopy=False),
    )
    later.append(optuna.create_study(direction="maximize", sampler=sampler))
    later[0].optimize(lambda trial: accuracy(trial, file), n_trials=TRIALS)
    return float(later[0].best_value)


@pytest.mark.parametrize("base", ["tpe"])
def test_bayes_beats_random(base: str) -> None:
    file = sweep_file(SPACE, "bayes")
    bayes, drawn = ([best(file, each, seed) for seed in range(SEEDS)] for each in (base, None))
    assert statistics.median(bayes) > statistics.median(drawn) + 0.5
    assert sum(mine > theirs for mine, theirs in zip(bayes, drawn, strict=True)) >= 14  # 6 % by chance
