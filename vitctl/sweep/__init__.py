"""Sweeps: W&B's sweep files, run by Optuna on this machine or several, or by W&B."""

from __future__ import annotations

from vitctl.registry import Entry, Option
from vitctl.sweep.engine import EngineEntry

ENGINES: dict[str, EngineEntry] = {
    "local": EngineEntry(
        target="vitctl.sweep.local:LocalEngine",
        summary="Optuna on this machine, or on several over PostgreSQL; no account, no network",
    ),
    "wandb": EngineEntry(
        target="vitctl.sweep.wandb:WandbEngine",
        summary="the W&B service; needs an account",
        ids=r"[^/\s]+/[^/\s]+/[^/\s.]+",
        lacks=("dry_run", "storage", "sampler", "pruner", "seed", "jobs", "gpus", "max_time", "json"),
        page="https://wandb.ai/{0}/{1}/sweeps/{2}",
    ),
}
"""Every engine that ``--engine`` takes."""

SAMPLERS: dict[str, Entry] = {
    "tpe": Entry(
        target="vitctl.sweep.optuna_parts:tpe",
        summary="tree-structured Parzen estimator, of all parameters together, minding what runs elsewhere",
    ),
    "gp": Entry(
        target="vitctl.sweep.optuna_parts:gp",
        summary="Gaussian process; learns nothing from stopped trials, and its proposals cost more",
    ),
    "cmaes": Entry(
        target="vitctl.sweep.optuna_parts:cmaes",
        summary="evolution strategy for numbers; names are drawn at random (needs vitctl[cmaes])",
    ),
    "random": Entry(target="vitctl.sweep.optuna_parts:no_base", summary="draws as method: random does"),
}
"""Every sampler that ``--sampler`` takes for ``method: bayes``."""

PRUNERS: dict[str, Entry] = {
    "file": Entry(target="vitctl.sweep.optuna_parts:from_file", summary="the file's early_terminate, by W&B's rules"),
    "none": Entry(target="vitctl.sweep.optuna_parts:nop", summary="no trial is stopped early"),
    "median": Entry(
        target="vitctl.sweep.optuna_parts:median",
        summary="stops what is behind the median of earlier trials at the same epoch",
        options={
            "startup": Option(5, "trials that are never stopped", low=0),
            "warmup": Option(0, "epochs that are never stopped in", low=0),
        },
    ),
    "percentile": Entry(
        target="vitctl.sweep.optuna_parts:percentile",
        summary="stops what is not among the best percent at the same epoch",
        options={
            "percent": Option(25.0, "the share that goes on", low=0, high=100),
            "startup": Option(5, "trials that are never stopped", low=0),
            "warmup": Option(0, "epochs that are never stopped in", low=0),
        },
    ),
    "halving": Entry(
        target="vitctl.sweep.optuna_parts:halving",
        summary="asynchronous successive halving",
        options={
            "min_epochs": Option(1, "epochs before the first comparison", low=1),
            "factor": Option(4, "one in so many goes on", low=2),
        },
    ),
    "hyperband": Entry(
        target="vitctl.sweep.optuna_parts:hyperband",
        summary="Optuna's Hyperband: several successive halvings side by side",
        options={
            "min_epochs": Option(1, "epochs before the first comparison", low=1),
            "max_epochs": Option(27, "epochs of a whole trial", low=2),
            "factor": Option(3, "one in so many goes on", low=2),
        },
    ),
    "patient": Entry(
        target="vitctl.sweep.optuna_parts:patient",
        summary="stops a trial that has not got better for some epochs",
        options={"patience": Option(3, "epochs", low=0)},
    ),
}
"""Every pruner that ``--pruner`` takes."""
