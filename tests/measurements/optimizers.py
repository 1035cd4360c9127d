"""Find the learning rate and weight decay of each optimizer by the held-out accuracy of short runs.

    python -m tests.measurements.optimizers [SPEC ...] [--net cct_2] [--epochs 1] [--seeds 0] [--json FILE]

Without SPECs it tries :data:`GRID`. A SPEC is a value of ``--opt``; options that it omits are the optimizer's defaults, not
the recipe's. Other settings are those of the recipe ``fast``. Runs are compared by the accuracy on the held-out tenth of the
training images, without the test set. Each row is printed when its runs end, and all rows at the end, best last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from typing import Any

from vitctl.config import TrainConfig, resolve_config
from vitctl.errors import VitctlError
from vitctl.optim import find_optimizer
from vitctl.registry import split_spec
from vitctl.training.evaluate import evaluate
from vitctl.training.loop import train_step
from vitctl.training.setup import open_session

GRID = [
    *(f"adam:lr={lr}" for lr in (5e-4, 1e-3, 2e-3, 4e-3)),
    *(f"adamw:lr={lr}" for lr in (1e-3, 2e-3, 3e-3, 5e-3)),
    *(f"adamw:lr=2e-3,beta2={beta2}" for beta2 in (0.95, 0.99)),
    *(f"sgd:lr={lr}" for lr in (0.02, 0.05, 0.1, 0.2)),
    *(f"adan:lr={lr}" for lr in (5e-4, 1e-3, 2e-3, 4e-3)),
    *(f"adan_official:lr={lr}" for lr in (1e-3, 2e-3, 4e-3, 8e-3)),
    *(f"muon:lr={lr}" for lr in (0.01, 0.02, 0.03, 0.05)),
    *(f"muon:adamw_lr={lr}" for lr in (1e-3, 6e-3)),
    *(f"muon:beta2={beta2}" for beta2 in (0.95, 0.999)),
    *(f"muon:weight_decay={decay}" for decay in (0, 0.05)),
    *(f"lion:lr={lr}" for lr in (1e-4, 3e-4, 6e-4)),
    *(f"lion:weight_decay={decay}" for decay in (0.05, 1.0)),
]
"""Default SPECs: each changes one or two values of the optimizer's defaults."""


def with_defaults(spec: str) -> str:
    """Return a SPEC with all options, using the optimizer's defaults for those that it omits."""
    name, given = split_spec(spec, "SPEC")
    entry = find_optimizer(name)
    values: dict[str, object] = {"lr": entry.lr, "weight_decay": entry.weight_decay}
    values |= {option: entry.options[option].default for option in entry.options}
    return f"{name}:{','.join(f'{key}={value}' for key, value in (values | given).items())}"


def held_out(config: TrainConfig) -> dict[str, Any]:
    """Train without saving, and return held-out accuracy and loss, and the seconds of training."""
    session = open_session(config)
    session.model.train()
    start = time.perf_counter()
    while session.progress.step < session.total_steps:
        train_step(session)
        if session.progress.step_in_epoch == session.steps_per_epoch:
            session.progress.epoch += 1
            session.progress.begin_epoch()
    seconds = time.perf_counter() - start
    assert session.splits.val is not None
    result = evaluate(
        session.evaluated_model, session.splits.val, session.normalize, session.device, session.eval_batch
    )
    return {"val_acc": result.acc, "val_loss": result.loss, "seconds": seconds}


def main() -> None:
    """Run the search and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", metavar="SPEC")
    parser.add_argument("--net", default="cct_2")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit-train", type=int)
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    flags: dict[str, Any] = {"net": args.net, "dataset": args.dataset, "recipe": args.recipe, "epochs": args.epochs}
    if args.limit_train:
        flags["limit_train"] = args.limit_train
    configs = {
        spec: resolve_config({**flags, "opt": with_defaults(spec)}) for spec in args.specs or GRID
    }  # errors in SPECs appear before any training
    rows = []
    for spec, config in configs.items():
        runs = []
        for seed in args.seeds:
            try:
                runs.append(held_out(dataclasses.replace(config, seed=seed)))
            except VitctlError as error:  # the run diverged
                print(f"{spec} seed {seed}: {error.message}", file=sys.stderr, flush=True)
        if not runs:
            continue
        accuracies = [run["val_acc"] for run in runs]
        row = {
            "opt": spec,
            "val_acc": round(statistics.mean(accuracies), 2),
            "deviation": round(statistics.stdev(accuracies), 2) if len(runs) > 1 else 0.0,
            "val_loss": round(statistics.mean(run["val_loss"] for run in runs), 4),
            "seconds": round(statistics.median(run["seconds"] for run in runs), 1),
            "lr": config.lr,
            "weight_decay": config.weight_decay,
            "options": config.opt_options,
            "seeds": args.seeds,
        }
        rows.append(row)
        print(f"{row['val_acc']:6.2f} ± {row['deviation']:4.2f} %  {row['seconds']:7.1f} s  {spec}", flush=True)
    print("\nbest last:")
    for row in sorted(rows, key=lambda row: row["val_acc"]):
        print(f"{row['val_acc']:6.2f} ± {row['deviation']:4.2f} %  {row['seconds']:7.1f} s  {row['opt']}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=2)


if __name__ == "__main__":
    main()
