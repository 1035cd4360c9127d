"""Hyper-parameter sweeps: W&B sweep files, run locally by Optuna or by W&B."""

from __future__ import annotations

from vitctl.registry import Entry, Option
from vitctl.sweep.engine import EngineEntry

ENGINES: dict[str, EngineEntry] = {
    "local": EngineEntry(
        target="vitctl.sweep.local:LocalEngine",
        summary="Optuna, on this machine or several, without an account",
    ),
    "wandb": EngineEntry(
        target="vitctl.sweep.wandb:WandbEngine",
        summary="the W&B service; needs an account",
        ids=r"[^/\s]+/[^/\s]+/[^/\s.]+",
        lacks=("dry_run", "storage", "sampler", "pruner", "seed", "jobs", "gpus", "max_time", "json"),
        page="https://wandb.ai/{0}/{1}/sweeps/{2}",
    ),
}
"""Values of ``--engine``."""

SAMPLERS: dict[str, Entry] = {
    "tpe": Entry(
        target="vitctl.sweep.optuna_parts:tpe",
        summary="multivariate tree-structured Parzen estimator",
    ),
    "gp": Entry(
        target="vitctl.sweep.optuna_parts:gp",
        summary="Gaussian process; slower, and ignores pruned trials",
    ),
    "cmaes": Entry(
        target="vitctl.sweep.optuna_parts:cmaes",
        summary="CMA-ES; categories at random; needs vitctl[cmaes]",
    ),
    "random": Entry(target="vitctl.sweep.optuna_parts:no_base", summary="random search, as with method: random"),
}
"""Values of ``--sampler``, for ``method: bayes``."""

PRUNERS: dict[str, Entry] = {
    "file": Entry(target="vitctl.sweep.optuna_parts:from_file", summary="the file's early_terminate, by W&B's rules"),
    "none": Entry(target="vitctl.sweep.optuna_parts:nop", summary="no pruning"),
    "median": Entry(
        target="vitctl.sweep.optuna_parts:median",
        summary="trials worse than the median at the same epoch",
        options={
            "startup": Option(5, "complete trials before pruning starts", low=0),
            "warmup": Option(0, "first epochs of a trial without pruning", low=0),
        },
    ),
    "percentile": Entry(
        target="vitctl.sweep.optuna_parts:percentile",
        summary="trials outside the best percent at the same epoch",
        options={
            "percent": Option(25.0, "percentage of trials that continue", low=0, high=100),
            "startup": Option(5, "complete trials before pruning starts", low=0),
            "warmup": Option(0, "first epochs of a trial without pruning", low=0),
        },
    ),
    "halving": Entry(
        target="vitctl.sweep.optuna_parts:halving",
        summary="asynchronous successive halving",
        options={
            "min_epochs": Option(1, "epochs before the first comparison", low=1),
            "factor": Option(4, "reduction factor: 1 of this many trials continues", low=2),
        },
    ),
    "hyperband": Entry(
        target="vitctl.sweep.optuna_parts:hyperband",
        summary="Optuna's Hyperband: parallel successive halvings",
        options={
            "min_epochs": Option(1, "epochs before the first comparison", low=1),
            "max_epochs": Option(27, "epochs of a full trial", low=2),
            "factor": Option(3, "reduction factor: 1 of this many trials continues", low=2),
        },
    ),
    "patient": Entry(
        target="vitctl.sweep.optuna_parts:patient",
        summary="trials that no longer improve",
        options={"patience": Option(3, "epochs without improvement", low=0)},
    ),
}
"""Values of ``--pruner``."""
