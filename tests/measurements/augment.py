"""Measure the speed of augmentation: vitctl's batched operations, and PIL operations in worker processes.

    python -m tests.measurements.augment [--aug randaug:n=2,m=9] [--bs 128] [--batches 40] [--rounds 7] [--threads 2]

Four methods take turns on generated 32-px images, so that changes in the machine's speed affect all; medians are compared:

- ``pil``: RandAugment of ``torchvision.transforms`` on PIL images, in a DataLoader with one single-threaded worker process
  per thread. It returns uint8 tensors and does nothing else.
- ``grouped``: torchvision's v2 kernels on uint8 tensors, with one call for each group of images with the same operation
  and value.
- ``vitctl``: :class:`vitctl.data.augment.Augment`.
- ``crop_flip``: only vitctl's random crop and flip.

``augmentation_share`` is the policy's share of a training step of ``--net``. ``data_wait`` is the share of preparing the
batch, including crop, flip and normalisation.

``cpu`` contains the same figures in processor time of a single thread, which other work on the machine affects less. PIL
then runs in this process too, and ``vitctl_over_pil`` is the number of single-core PIL processes that match one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tests.measurements.train_step import open_on
from vitctl import devices
from vitctl.data import AUGMENTATIONS
from vitctl.data.augment import Augment
from vitctl.data.batches import crop_and_flip, draw
from vitctl.data.policies import Operation, Policy
from vitctl.registry import split_spec
from vitctl.training.loop import train_step

SIDE = 32
STEPS = 12
CPU = torch.device("cpu")


class PilImages(Dataset[Tensor]):
    """Images that a PIL operation transforms one at a time."""

    def __init__(self, images: Tensor, transform: Callable[[Image.Image], Image.Image]) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        image = self.transform(Image.fromarray(self.images[i]))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def one_thread(worker: int) -> None:
    """Limit a worker process to one core."""
    torch.set_num_threads(1)


def torchvision_kernel(images: Tensor, operation: Operation) -> Tensor:
    """Apply one operation to all images with torchvision's v2 kernels."""
    name, value = operation
    identity = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    slant = math.degrees(math.atan(value))
    match name:
        case "shear_x":
            return tv.affine(images, **{**identity, "shear": [slant, 0.0]}, center=[0, 0])
        case "shear_y":
            return tv.affine(images, **{**identity, "shear": [0.0, slant]}, center=[0, 0])
        case "translate_x":
            return tv.affine(images, **{**identity, "translate": [int(value), 0]})
        case "translate_y":
            return tv.affine(images, **{**identity, "translate": [0, int(value)]})
        case "rotate":
            return tv.rotate(images, value)
        case "brightness":
            return tv.adjust_brightness(images, value)
        case "color":
            return tv.adjust_saturation(images, value)
        case "contrast":
            return tv.adjust_contrast(images, value)
        case "sharpness":
            return tv.adjust_sharpness(images, value)
        case "posterize":
            return tv.posterize(images, int(value))
        case "solarize":
            return tv.solarize(images, value)
        case "autocontrast":
            return tv.autocontrast(images)
        case "equalize":
            return tv.equalize(images)
        case "invert":
            return tv.invert(images)
    return images


def grouped(policy: Policy, images: Tensor, seed: int) -> Tensor:
    """Apply ``policy`` with one call of torchvision's kernels for each drawn operation and value."""
    for drawn in policy.draw(len(images), torch.Generator().manual_seed(seed)):
        order = drawn.argsort()
        counts = drawn.bincount(minlength=len(policy.operations)).tolist()
        parts = images[order].split([count for count in counts if count])
        chosen = [operation for operation, count in zip(policy.operations, counts, strict=True) if count]
        images = torch.cat([torchvision_kernel(*each) for each in zip(parts, chosen, strict=True)])[order.argsort()]
    return images


Timer = Callable[[], float]


def training_step(net: str, aug: str, bs: int, threads: int, clock: Timer) -> tuple[float, float]:
    """Return the median seconds of a training step of ``net``, and the share of preparing its batch."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (bs * STEPS, SIDE, SIDE, 3), dtype=np.uint8)
    session = open_on(
        images,
        generator.integers(0, 10, len(images)),
        {"net": net, "aug": aug, "bs": bs, "epochs": 1, "device": "cpu", "threads": threads},
    )
    session.train_mode()
    steps, shares = [], []
    for _ in range(STEPS):
        progress = session.progress
        before, start = (progress.data_seconds, progress.train_seconds), clock()
        train_step(session)
        steps.append(clock() - start)
        shares.append((progress.data_seconds - before[0]) / (progress.train_seconds - before[1]))
    return statistics.median(steps[2:]), statistics.median(shares[2:])


def compare(methods: dict[str, Callable[[int], None]], count: int, rounds: int, clock: Timer) -> dict[str, list[float]]:
    """Return the images per second of each method in each round of ``count`` images; the methods take turns."""
    speeds: dict[str, list[float]] = {method: [] for method in methods}
    for turn in range(rounds + 1):
        for method, run in methods.items():
            start = clock()
            run(turn)
            if turn:  # the first round is the warm-up
                speeds[method].append(count / (clock() - start))
    return speeds


def report(speeds: dict[str, list[float]], step: float, data_wait: float, bs: int) -> dict[str, Any]:
    """Return medians and ranges, median ratios within rounds, and shares of a training step of ``step`` seconds."""
    return {
        "images_per_second": {method: round(statistics.median(each)) for method, each in speeds.items()},
        "ranges": {method: [round(min(each)), round(max(each))] for method, each in speeds.items()},
        **{
            f"vitctl_over_{method}": round(
                statistics.median(a / b for a, b in zip(speeds["vitctl"], speeds[method], strict=True)), 2
            )
            for method in ("pil", "grouped")
        },
        "step_seconds": round(step, 4),
        "augmentation_share": round(bs / statistics.median(speeds["vitctl"]) / step, 4),
        "data_wait": round(data_wait, 4),
    }


def main() -> None:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aug", default="randaug:n=2,m=9", help="RandAugment and its options")
    parser.add_argument("--bs", type=int, default=128)
    parser.add_argument("--batches", type=int, default=40, help="batches per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2, help="vitctl's threads, and worker processes of PIL")
    parser.add_argument("--net", default="cct_2", help="network of the training step")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    name, given = split_spec(args.aug, "--aug")
    if name != "randaug":
        parser.error(f"--aug must be randaug:..., as PIL is measured with torchvision's RandAugment, not {args.aug}")
    options = AUGMENTATIONS[name].resolve_options(given, "--aug randaug")
    policy = AUGMENTATIONS[name].policy((SIDE, SIDE), options)
    count = args.bs * args.batches
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.manual_seed(0))
    batches = images.split(args.bs)
    loader = DataLoader(
        PilImages(images, transforms.RandAugment(int(options["n"]), int(options["m"]))),
        batch_size=args.bs,
        num_workers=args.threads,
        persistent_workers=True,
        worker_init_fn=one_thread,
    )
    augment = Augment(policy, (3, SIDE, SIDE), CPU)

    def pil_workers(turn: int) -> None:
        for _ in loader:
            pass

    def pil_in_process(turn: int) -> None:
        for i in range(count):
            loader.dataset[i]

    def by_group(turn: int) -> None:
        for i, batch in enumerate(batches):
            grouped(policy, batch, turn * len(batches) + i)

    def batched(turn: int) -> None:
        for i, batch in enumerate(batches):
            augment(batch, turn * len(batches) + i)

    def crop_flip(turn: int) -> None:
        for i, batch in enumerate(batches):
            crop_and_flip(batch, draw(len(batch), 4, True, 0, turn, i), 4)

    methods = {"pil": pil_workers, "grouped": by_group, "vitctl": batched, "crop_flip": crop_flip}
    speeds = compare(methods, count, args.rounds, time.perf_counter)
    wall = report(speeds, *training_step(args.net, args.aug, args.bs, args.threads, time.perf_counter), args.bs)
    torch.set_num_threads(1)
    speeds = compare({**methods, "pil": pil_in_process}, count, args.rounds, time.process_time)
    cpu = report(speeds, *training_step(args.net, args.aug, args.bs, 1, time.process_time), args.bs)
    torch.set_num_threads(args.threads)
    about = {"aug": args.aug, "net": args.net, "batch": args.bs, **devices.environment(CPU)}
    print(json.dumps({**wall, "cpu": cpu, **about}, indent=2))


if __name__ == "__main__":
    main()
