"""Train a network in a plain PyTorch loop within a number of seconds, and print its result as JSON.

    python -m tests.measurements.time_to_accuracy.plain NAME --budget SECONDS [--seed 0]

The seconds count from the start of the program and include the test. A few steps are timed first, in fp32 and, if
torch has kernels for it, in bf16; they determine the precision and the number of steps. Of vitctl, only the decoded
images are used.
"""

from __future__ import annotations

import time

STARTED = time.monotonic()

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tests.measurements.time_to_accuracy import records_cnn, timm_loop

MARGIN = 0.98
"""Share of the remaining time that is planned for."""

TESTED = 500
"""Images per forward pass in the test."""


class Loop(Protocol):
    """A run, before or after any of its steps."""

    model: nn.Module

    def step(self) -> None:
        """Take a step."""

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of uint8 images ``[B, 3, 32, 32]``."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A network with its loop.

    Attributes:
        build: builds the network, for counting its operations.
        prepare: converts training images and labels for the loop.
        make: makes a :class:`Loop` from prepared data, ``seed``, ``precision``, ``batch`` and ``steps``.
        batches: batch sizes, ascending.
        least_steps: minimum number of steps; the batch size is the largest that allows as many, or else the smallest.
    """

    build: Callable[[], nn.Module]
    prepare: Callable[[Tensor, Tensor], Any]
    make: Callable[..., Loop]
    batches: tuple[int, ...]
    least_steps: int = 0


def _records(*widths: int) -> Contestant:
    return Contestant(
        build=functools.partial(records_cnn.RecordsCnn, widths),
        prepare=records_cnn.RecordsData,
        make=functools.partial(records_cnn.RecordsLoop, widths=widths),
        batches=records_cnn.BATCHES,
        least_steps=records_cnn.LEAST_STEPS,
    )


def _timm(net: str) -> Contestant:
    return Contestant(
        build=functools.partial(timm_loop.build, net),
        prepare=timm_loop.TimmData,
        make=functools.partial(timm_loop.TimmLoop, net=net),
        batches=timm_loop.BATCHES,
    )


CONTESTANTS = {
    "records-cnn": _records(64, 256, 256),
    "records-cnn-narrow": _records(64, 128, 128),
    "timm-resnet18": _timm("resnet18"),
    "timm-resnet18-3x3": _timm("resnet18-3x3"),
    "timm-vit_tiny": _timm("vit_tiny"),
}


def step_seconds(loop: Loop, least: float) -> float:
    """Return the median time of a step, over at least two steps and ``least`` seconds."""
    loop.model.train()
    loop.step()  # allocates memory
    times: list[float] = []
    while len(times) < 2 or sum(times) < least:
        start = time.perf_counter()
        loop.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def accuracies(loop: Loop, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the accuracy in percent, and that of the mean of the logits of an image and its mirror image."""
    loop.model.eval()
    hits = torch.zeros(2)
    with torch.inference_mode():
        for some, expected in zip(images.split(TESTED), labels.split(TESTED), strict=True):
            logits = loop.logits(some)
            both = logits + loop.logits(some.flip(-1))
            hits += torch.stack([(each.argmax(1) == expected).sum() for each in (logits, both)])
    plain, mirrored = (100 * hits / len(labels)).tolist()
    return plain, mirrored


def fastest(contestant: Contestant, data: Any, batch: int, least: float) -> tuple[str, float]:
    """Return the faster precision, and the seconds that its steps take."""
    make = functools.partial(contestant.make, data, seed=0, batch=batch, steps=1_000_000)
    precisions = ["fp32", *(["bf16"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else [])]
    times = {each: step_seconds(make(precision=each), least) for each in precisions}
    best = min(times, key=times.__getitem__)
    return best, times[best]


def train(
    contestant: Contestant, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], deadline: float, seed: int
) -> dict[str, Any]:
    """Train and test a network until ``deadline``.

    Args:
        contestant: network and loop.
        train: training images, uint8 ``[N, 3, 32, 32]``, and labels, int64 ``[N]``.
        test: test images and labels.
        deadline: end of the test, as :func:`time.monotonic` counts.
        seed: seed of the run.

    Returns:
        ``test_acc`` and ``test_acc_tta`` in percent, ``images`` (training images seen, counted in each epoch),
        ``images_per_second``, ``precision``, ``batch``, ``steps`` and ``threads``.
    """
    data = contestant.prepare(*train)
    batches = [size for size in contestant.batches if size <= len(train[1])] or [len(train[1])]
    least = 0.01 * (deadline - time.monotonic())
    precision, seconds = fastest(contestant, data, batches[0], least)
    images = (deadline - time.monotonic()) * batches[0] / seconds
    batch = max((size for size in batches if images / size >= contestant.least_steps), default=batches[0])
    timed = contestant.make(data, seed=seed, precision=precision, batch=batch, steps=1_000_000)
    seconds = step_seconds(timed, least)
    start = time.monotonic()
    accuracies(timed, test[0][:TESTED], test[1][:TESTED])
    test_seconds = (time.monotonic() - start) * len(test[1]) / min(TESTED, len(test[1]))
    steps = max(1, int(MARGIN * (deadline - time.monotonic() - test_seconds) / seconds))

    loop = contestant.make(data, seed=seed, precision=precision, batch=batch, steps=steps)
    loop.model.train()
    start = time.monotonic()
    for _ in range(steps):
        loop.step()
    trained = time.monotonic() - start
    plain, mirrored = accuracies(loop, *test)
    return {
        "test_acc": round(plain, 2),
        "test_acc_tta": round(mirrored, 2),
        "images": steps * batch,
        "images_per_second": round(steps * batch / trained, 1),
        "precision": precision,
        "batch": batch,
        "steps": steps,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Train on CIFAR-10 and print the result."""
    from vitctl.data.dataset import load_dataset

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(CONTESTANTS))
    parser.add_argument("--budget", type=float, required=True, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dataset = load_dataset("cifar10", data_dir=None, size=32, skip_bad_images=False)
    parts = [(part.images, part.labels) for part in (dataset.train, dataset.test)]
    print(json.dumps(train(CONTESTANTS[args.name], parts[0], parts[1], STARTED + args.budget, args.seed)))


if __name__ == "__main__":
    main()
