"""Measure for which networks ``--precision auto`` should be bf16 on this CPU.

    python -m tests.measurements.bf16 [--nets NET ...] [--rounds 3] [--threads N]

Training steps of the default recipe are timed in fp32 and bf16 in turns, on generated images, so that changes in the
machine's speed affect both. bf16 pays off if the median of the ratios is at least 1.1; the last columns show whether
it does, and whether the network's row in ``MODELS`` has it. Networks for 384-px images are left out unless ``--nets``
names them. Before a row is changed, the accuracy in bf16 must also be within the noise of seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys

import torch

from vitctl import devices
from vitctl.benchmark.devices import generated_data
from vitctl.benchmark.tune import measure_settings
from vitctl.config import resolve_config
from vitctl.models import MODELS, find_model

PAYS = 1.1
"""Ratio of speeds from which bf16 pays off; a smaller one is not worth the rounding."""

CPU = torch.device("cpu")


def speeds(net: str, rounds: int, threads: int | None) -> tuple[list[float], list[float]]:
    """Return the images per second of training ``net`` in each round, in fp32 and in bf16.

    Raises:
        MemoryError: memory ran out.
    """
    config = resolve_config({"net": net, "epochs": 1, "val": "none", "device": "cpu", "pretrained": "false"})
    config = dataclasses.replace(config, limit_train=config.bs, threads=threads)
    data = generated_data(config)
    found: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for _ in range(rounds):
        for precision, values in found.items():
            speed = measure_settings(dataclasses.replace(config, precision=precision), data)
            if speed is None:
                raise MemoryError(f"{net} does not fit into memory")
            values.append(speed)
    return found["fp32"], found["bf16"]


def main() -> int:
    """Measure the networks, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cheapest_first = sorted(MODELS, key=lambda net: MODELS[net].mflop)
    parser.add_argument("--nets", nargs="+", metavar="NET[:OPTIONS]", help="only these networks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args()
    if "bf16" not in devices.half_precisions(CPU):
        print(f"{devices.device_label(CPU)} has no instructions for bf16", file=sys.stderr)
        return 1
    environment = devices.environment(CPU)
    threads = args.threads or environment["threads"]
    print(f"{environment['device_name']}, {threads} threads, torch {environment['torch']}\n")
    print("| net | fp32 (images/s) | bf16 (images/s) | bf16 / fp32 | pays off | row |\n|---|---:|---:|---:|---|---|")
    for net in args.nets or [net for net in cheapest_first if MODELS[net].img_size < 384]:
        fp32, bf16 = speeds(net, args.rounds, args.threads)
        ratio = statistics.median(half / full for half, full in zip(bf16, fp32, strict=True))
        listed = "cpu" in find_model(net.partition(":")[0]).bf16
        medians = f"{statistics.median(fp32):,.1f} | {statistics.median(bf16):,.1f}"
        words = ["yes" if each else "no" for each in (ratio >= PAYS, listed)]
        print(f"| `{net}` | {medians} | {ratio:.2f} | {' | '.join(words)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
