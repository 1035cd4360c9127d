"""Measure the cost of optimizer steps compared with forward and backward: time, share, and dispatched operations.

    python -m tests.measurements.optimizer_step [--net cct_2] [--bs 128] [--steps 7] [OPT ...]

Each round runs forward and backward once on random images; then every optimizer takes a step on its own copy of the network
with the same gradients, so that changes in the machine's speed affect all alike. Prints medians over the rounds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from vitctl import devices
from vitctl.config import resolve_config
from vitctl.models import build_model
from vitctl.optim import OPTIMIZERS
from vitctl.optim.build import build_optimizer


class OperationCounter(TorchDispatchMode):
    """Counts dispatched operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("opts", nargs="*", metavar="OPT", default=list(OPTIMIZERS))
    parser.add_argument("--net", default="cct_2")
    parser.add_argument("--bs", type=int, default=128)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = devices.resolve_device(args.device)
    devices.prepare(device, None)
    config = resolve_config({"net": args.net})
    torch.manual_seed(0)
    model = build_model(config.net, config.net_options, img_size=32, in_chans=3, num_classes=10).to(device).train()
    x, y = torch.randn(args.bs, 3, 32, 32, device=device), torch.randint(0, 10, (args.bs,), device=device)
    copies = {}
    for spec in args.opts:
        each = resolve_config({"net": args.net, "opt": spec})
        own = copy.deepcopy(model)
        built = build_optimizer(each.opt, each.opt_options, own, lr=1e-6, weight_decay=each.weight_decay)
        copies[spec] = (own, built, each.opt)

    times: dict[str, list[float]] = {name: [] for name in ["forward and backward", *copies]}
    counts: dict[str, int] = {}
    for i in range(args.steps + 2):
        model.zero_grad()
        devices.synchronize(device)
        start = time.perf_counter()
        F.cross_entropy(model(x), y).backward()
        devices.synchronize(device)
        times["forward and backward"].append(time.perf_counter() - start)
        for spec, (own, optimizer, _) in copies.items():
            for p, q in zip(own.parameters(), model.parameters(), strict=True):
                p.grad = q.grad
            devices.synchronize(device)
            start = time.perf_counter()
            optimizer.step()
            devices.synchronize(device)
            times[spec].append(time.perf_counter() - start)
            if i == 1:
                with OperationCounter() as counter:
                    optimizer.step()
                counts[spec] = counter.count
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}
    passes = medians.pop("forward and backward")
    print(f"{args.net}, batch {args.bs}, {device} ({devices.device_label(device)}, {torch.get_num_threads()} threads)")
    print(f"{'forward and backward':24} {1000 * passes:9.1f} ms")
    for name, seconds in medians.items():
        print(f"{name:24} {1000 * seconds:9.1f} ms {100 * seconds / passes:6.1f} % {counts[name]:6} operations")


if __name__ == "__main__":
    main()
