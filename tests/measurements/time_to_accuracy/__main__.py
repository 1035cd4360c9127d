"""Compare accuracy against wall time and operations on CIFAR-10: vitctl's recipes, plain PyTorch loops, and timm.

    python -m tests.measurements.time_to_accuracy [--budgets 60 600 3600] [--seeds 0] [--only NAME ...]
        [--out time_to_accuracy.json] [--plot time_to_accuracy.svg]

Runs are processes of their own, one after the other, and their wall time is that of the complete command with start-up
and test. Runs of ``fast``, ``fast-airbench94`` (the records' CNN in vitctl), ``records-cnn`` (the same in a plain loop)
and ``timm-...`` train as long as fits into each budget; other recipes have their own lengths. ``original`` is an epoch
of the original scripts' protocol in vitctl's loop, which is faster than the scripts'. Accuracy is that of the last
weights on the test set, without and with mirror images (TTA). PFLOP are three forward passes for each training image.
Finished runs in ``--out`` are not repeated, so the same command resumes an interrupted comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tests.measurements.time_to_accuracy.plain import CONTESTANTS
from tests.measurements.time_to_accuracy.report import plot, table
from tests.measurements.time_to_accuracy.result import Result
from vitctl import devices
from vitctl.config import TrainConfig
from vitctl.files import write_text
from vitctl.models import build_model
from vitctl.models.count import forward_cost

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1)}
"""Variables with which glibc keeps freed memory, as vitctl does; otherwise, plain loops spend time on page faults."""


@dataclass(frozen=True)
class Entry:
    """A row of the comparison.

    Attributes:
        run: function from budget in seconds and seed to a result.
        timed: whether the run fits itself to the budget.
    """

    run: Callable[[float, int], Result]
    timed: bool


def recipe(name: str, *flags: str, timed: bool = False) -> Entry:
    """Return the row of ``vitctl train`` with these flags."""

    def run(budget: float, seed: int) -> Result:
        length = ["--max-time", f"{budget:g}s"] if timed else []
        with tempfile.TemporaryDirectory() as runs:
            command = ["vitctl", "train", *flags, *length, "--dataset", "cifar10", "--tta", "flip", "--seed", str(seed)]
            summary, wall = timed_output([*command, "--runs-dir", runs, "--name", "run", "--json"])
            document = json.loads((Path(runs) / "run" / "config.json").read_text(encoding="utf-8"))
        config = TrainConfig.from_dict(document["config"])
        return Result(
            name=name,
            budget=budget if timed else None,
            seed=seed,
            seconds=wall,
            test_acc=summary["test_acc"],
            test_acc_tta=summary["test_acc_tta"],
            images=seen_images(summary, config.bs * config.accumulate),
            mflop=recipe_mflop(config),
            precision=summary["precision"],
            threads=summary["threads"],
        )

    return Entry(run, timed)


def seen_images(summary: dict[str, Any], batch: int) -> int:
    """Return the number of training images that a run saw, counted in each epoch."""
    epochs, rest = divmod(summary["step"], summary["steps_per_epoch"])
    return int(epochs * summary["train_images"] + rest * batch)


def recipe_mflop(config: TrainConfig) -> float:
    """Return the cost of a forward pass of the network of a run on CIFAR-10, in 10^6 operations."""

    def build() -> torch.nn.Module:
        return build_model(config.net, config.net_options, img_size=config.size, in_chans=3, num_classes=10)

    return forward_cost(build, 3, config.size).mflop


def plain(name: str) -> Entry:
    """Return the row of a plain PyTorch loop."""

    def run(budget: float, seed: int) -> Result:
        module = "tests.measurements.time_to_accuracy.plain"
        found, wall = timed_output([module, name, "--budget", str(budget), "--seed", str(seed)], KEEP_MEMORY)
        return Result(
            name=name,
            budget=budget,
            seed=seed,
            seconds=wall,
            mflop=forward_cost(CONTESTANTS[name].build, 3, 32).mflop,
            **{key: found[key] for key in ("test_acc", "test_acc_tta", "images", "precision", "threads")},
        )

    return Entry(run, timed=True)


def timed_output(command: Sequence[str], environment: dict[str, str] | None = None) -> tuple[dict[str, Any], float]:
    """Return the JSON document that ``python -m COMMAND`` prints, and its wall time in seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **(environment or {})},
    )
    return json.loads(done.stdout), time.perf_counter() - start


ENTRIES = {
    "fast": recipe("fast", "--recipe", "fast", timed=True),
    "fast-airbench94": recipe("fast-airbench94", "--recipe", "fast", "--net", "airbench94", timed=True),
    "sprint": recipe("sprint", "--recipe", "sprint"),
    "default": recipe("default"),
    "vit_small": recipe("vit_small", "--recipe", "vit_small", "--epochs", "1"),
    "original": recipe("original", "--recipe", "seed", "--net", "vit_small", "--epochs", "1"),
    **{name: plain(name) for name in CONTESTANTS},
}


def main() -> None:
    """Run what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[60, 600, 3600], help="seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of each run")
    parser.add_argument("--only", nargs="+", choices=list(ENTRIES), default=list(ENTRIES), metavar="NAME", help="runs")
    parser.add_argument("--out", type=Path, default=Path("time_to_accuracy.json"), help="results, as JSON")
    parser.add_argument("--plot", type=Path, help="plot, as SVG or PNG")
    args = parser.parse_args()
    results: list[Result] = []
    if args.out.exists():
        results = [Result(**row) for row in json.loads(args.out.read_text(encoding="utf-8"))["results"]]
    environment = devices.environment(torch.device("cpu"))
    wanted = [
        (name, budget, seed)
        for budget in sorted(args.budgets)
        for name in args.only
        for seed in args.seeds
        if ENTRIES[name].timed or budget == min(args.budgets)
    ]
    for name, budget, seed in wanted:
        key = (name, budget if ENTRIES[name].timed else None, seed)
        if any((each.name, each.budget, each.seed) == key for each in results):
            continue
        results.append(ENTRIES[name].run(budget, seed))
        print(json.dumps(asdict(results[-1])), file=sys.stderr, flush=True)
        rows = [asdict(each) for each in results]
        write_text(args.out, json.dumps({"environment": environment, "results": rows}, indent=2) + "\n")
    print(f"{environment['device_name']}, torch {environment['torch']}\n\n{table(results)}")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
