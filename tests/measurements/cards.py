"""Measure the card of a recipe: complete ``vitctl train`` runs, one after the other, with a seed each.

    python -m tests.measurements.cards RECIPE [--net NET] [--opt SPEC] [--dataset cifar10] [--epochs N | --max-time 60s] [--seeds 0 1 2]
        [--runs-dir DIR]

The network and the number of epochs are the recipe's unless given.

Each run is ``vitctl train --recipe RECIPE --seed S`` in a process of its own; the seconds are those of the complete command.
Prints the ``Card(...)`` for ``vitctl/recipes.py``. Finished runs are not repeated, so the same command resumes an interrupted
measurement.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vitctl.config import resolve_config
from vitctl.recipes import Band, Card


def band(values: list[float]) -> Band:
    """Return the mean and the sample standard deviation of accuracies, rounded to 0.01; None for one accuracy."""
    return Band(round(statistics.mean(values), 2), round(statistics.stdev(values), 2) if len(values) > 1 else None)


def measure(command: list[str], run: Path) -> dict[str, Any]:
    """Return the summary, the metrics and the seconds of the run in the folder ``run``; train it unless finished."""
    timing = run.with_suffix(".seconds.json")
    if not (run / "summary.json").exists() or not timing.exists():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vitctl", *command], check=True, stdout=subprocess.DEVNULL)
        timing.write_text(json.dumps(time.perf_counter() - start))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    return {"summary": summary, "rows": rows, "seconds": json.loads(timing.read_text())}


def main() -> None:
    """Train the runs and print the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--net")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--opt", help="optimizer if not the recipe's, such as adan:lr=1e-3")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--max-time", help="such as 60s; the number of steps depends on the machine")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/cards"))
    args = parser.parse_args()
    flags = {name: getattr(args, name) for name in ("recipe", "net", "opt", "dataset", "epochs", "max_time")}
    config = resolve_config({name: value for name, value in flags.items() if value is not None})
    args.runs_dir.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in args.seeds:
        length = "-".join(str(each) for each in (config.epochs, config.max_steps, config.max_time) if each is not None)
        opt = f"-{args.opt.replace('/', '-').replace(':', '-')}" if args.opt else ""
        name = f"{args.recipe}-{config.net.replace('/', '-')}{opt}-{config.dataset}-{length}-{seed}"
        command = ["train", "--recipe", args.recipe, "--dataset", config.dataset, "--seed", str(seed)]
        command += ["--net", args.net] if args.net else []
        command += ["--opt", args.opt] if args.opt else []
        command += ["--epochs", str(args.epochs)] if args.epochs else []
        command += ["--max-time", args.max_time] if args.max_time else []
        command += ["--runs-dir", str(args.runs_dir), "--name", name]
        runs.append(measure(command, args.runs_dir / name))
        last = runs[-1]
        print(f"seed {seed}: {last['summary']['test_acc']:.2f} % in {last['seconds']:.1f} s", file=sys.stderr)
    summary, rows = runs[0]["summary"], [run["rows"] for run in runs]
    (precision,) = {run["summary"]["precision"] for run in runs}
    print(
        Card(
            net=config.net,
            dataset=config.dataset,
            epochs=summary["epoch"],
            val_acc=tuple(band([each["val_acc"] for each in epoch]) for epoch in zip(*rows, strict=True))
            if "val_acc" in rows[0][0] and not args.max_time
            else (),
            test_acc=band([run["summary"]["test_acc"] for run in runs]),
            seeds=tuple(args.seeds),
            seconds=round(statistics.median(run["seconds"] for run in runs), 1),
            machine=f"{summary['device']} ({summary['device_name']}, {summary['threads']} threads)",
            max_steps=round(statistics.median(run["summary"]["step"] for run in runs))
            if args.max_time
            else config.max_steps,
            max_time=args.max_time,
            opt=args.opt,
            precision=precision,
            versions=f"torch {summary['torch']}, vitctl {summary['vitctl']}",
        )
    )


if __name__ == "__main__":
    main()
