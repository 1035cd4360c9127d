"""Check that every network learns: short ``vitctl train`` runs on CIFAR-10, cheapest network first.

    python -m tests.measurements.zoo [--nets NET ...] [--epochs 3] [--limit-train 2000] [--limit-test 1000]
                                   [--threads N] [--out zoo.json]

Each network is trained with ``vitctl train --json`` in a process of its own, with the default recipe. Networks for 384-px
images are left out unless ``--nets`` names them. Networks that are already in ``--out`` are not trained again, so the same
command resumes an interrupted measurement. Prints a Markdown table; if other programs run at the same time, its CPU seconds
(of all threads) are more reliable than images/s. The exit status is 1 if a run failed or did no better than guessing.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vitctl.models import MODELS

CHANCE = 0.1
"""Accuracy of guessing among ten equally frequent classes, as a share."""

LUCK = 1e-4
"""An accuracy beats chance if guessing reaches it with a lower probability than this."""


def beats_chance(acc: float, images: int, chance: float = CHANCE) -> bool:
    """Return whether guessing is unlikely to reach an accuracy, by the tail of the binomial distribution.

    Args:
        acc: accuracy in percent.
        images: number of classified images.
        chance: probability that a guess is correct.
    """
    hits = round(acc / 100 * images)
    tail = sum(
        math.comb(images, count) * chance**count * (1 - chance) ** (images - count) for count in range(hits, images + 1)
    )
    return tail < LUCK


def train(net: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train ``net`` in a child process and return its row; the row of a failed run has an ``error`` and no figures."""
    command = [sys.executable, "-m", "vitctl", "train", "--net", net, "--epochs", str(args.epochs), "--json"]
    command += ["--limit-train", str(args.limit_train), "--limit-test", str(args.limit_test)]
    command += ["--threads", str(args.threads)] if args.threads else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as runs:
        command += ["--runs-dir", runs, "--name", "run"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # a failed run has a row too
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    entry = MODELS[net]
    row: dict[str, Any] = {"net": net, "params": entry.params, "mflop": entry.mflop, "cpu_seconds": round(busy, 1)}
    if done.returncode:
        return {**row, "error": f"exit status {done.returncode}"}
    summary = json.loads(done.stdout)
    kept = ("test_acc", "val_acc", "train_acc", "images_per_second", "seconds", "test_images", "train_images")
    kept += ("epoch", "recipe", "seed", "opt", "micro_batch", "device", "device_name", "threads", "torch", "vitctl")
    return {**row, **{name: summary[name] for name in kept}}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| net | parameters | forward (MFLOP/image) | training (images/s) | test accuracy | seconds | CPU seconds | beats chance |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        cost = f"| `{row['net']}` | {row['params']:,} | {row['mflop']:,.1f} |"
        if "error" in row:
            lines.append(f"{cost} | | | | {row['error']} |")
            continue
        beats = "yes" if beats_chance(row["test_acc"], row["test_images"]) else "no"
        figures = f"{row['images_per_second']:,.1f} | {row['test_acc']:.1f} % | {row['seconds']:,.0f}"
        lines.append(f"{cost} {figures} | {row['cpu_seconds']:,.0f} | {beats} |")
    return "\n".join(lines)


def main() -> int:
    """Train the networks without a row, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cheapest_first = sorted(MODELS, key=lambda net: MODELS[net].mflop)
    parser.add_argument("--nets", nargs="+", metavar="NET", choices=list(MODELS), help="only these networks")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit-train", type=int, default=2000)
    parser.add_argument("--limit-test", type=int, default=1000)
    parser.add_argument("--threads", type=int, help="CPU threads of each run")
    parser.add_argument("--out", type=Path, default=Path("zoo.json"), help="file of the rows")
    args = parser.parse_args()
    wanted = args.nets or [net for net in cheapest_first if MODELS[net].img_size < 384]
    rows: dict[str, dict[str, Any]] = {}
    if args.out.exists():
        rows = {row["net"]: row for row in json.loads(args.out.read_text(encoding="utf-8"))}
    for net in wanted:
        if net in rows and "error" not in rows[net]:
            continue
        rows[net] = train(net, args)
        print(json.dumps(rows[net]), file=sys.stderr, flush=True)
        ordered = [rows[name] for name in cheapest_first if name in rows]
        scratch = args.out.with_suffix(".tmp")
        scratch.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")
        scratch.replace(args.out)
    shown = [rows[net] for net in wanted]
    print(table(shown))
    return int(not all("error" not in row and beats_chance(row["test_acc"], row["test_images"]) for row in shown))


if __name__ == "__main__":
    sys.exit(main())
