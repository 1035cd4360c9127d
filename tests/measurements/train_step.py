"""Measure the training speed of ``vit_small`` with vitctl and with a plain PyTorch loop.

    python -m tests.measurements.train_step [--steps 3] [--bs 512] [--device auto]

The plain loop is a typical one: vit-pytorch's ``vit_for_small_dataset.ViT``, a DataLoader with 8 worker processes and PIL
transforms (random crop, flip, normalisation), and Adam. Both train on the same generated images at the same batch size, in
fp32. They take turns, so that changes in the machine's speed affect both; medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from vitctl import devices
from vitctl.benchmark.devices import dataset_of
from vitctl.config import resolve_config
from vitctl.data import dataset as data
from vitctl.training.loop import train_step
from vitctl.training.session import Session
from vitctl.training.setup import open_session

WORKERS = 8
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class LabelledPilImages(Dataset[tuple[Tensor, int]]):
    """Labelled images that PIL transforms change one at a time."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


def plain_step(images: np.ndarray, labels: np.ndarray, bs: int, device: torch.device) -> Callable[[], None]:
    """Return a function that takes one step of the plain loop."""
    from vit_pytorch.vit_for_small_dataset import ViT

    torch.manual_seed(0)
    model = ViT(
        image_size=32,
        patch_size=4,
        num_classes=10,
        dim=512,
        depth=6,
        heads=8,
        mlp_dim=512,
        dropout=0.1,
        emb_dropout=0.1,
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(
        LabelledPilImages(images, labels), batch_size=bs, shuffle=True, num_workers=WORKERS, drop_last=True
    )

    def endless() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def step() -> None:
        x, y = next(batches)
        x, y = x.to(device), y.to(device)
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def open_on(images: np.ndarray, labels: np.ndarray, settings: dict[str, Any]) -> Session:
    """Open a session with ``settings`` in which ``images``, uint8 ``[n, 32, 32, 3]``, replace CIFAR-10."""
    examples = data.Examples(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels))
    generated = dataset_of("cifar10", 10, examples, examples)
    return open_session(resolve_config({"val": "none", **settings}), data=generated)


def vitctl_step(images: np.ndarray, labels: np.ndarray, bs: int, device: str) -> tuple[Callable[[], None], Session]:
    """Return a function that takes one step of ``vitctl train --net vit_small``, and its session."""
    session = open_on(
        images, labels, {"net": "vit_small", "opt": "adam", "lr": 1e-4, "bs": bs, "epochs": 1000, "device": device}
    )
    session.model.train()

    def step() -> None:
        train_step(session)
        if session.progress.step_in_epoch == session.steps_per_epoch:
            session.progress.epoch += 1
            session.progress.begin_epoch()

    return step, session


def main() -> None:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each loop")
    parser.add_argument("--bs", type=int, default=512)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = devices.resolve_device(args.device)
    generator = np.random.default_rng(0)
    count = args.bs * 40
    images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, 10, count)

    plain = plain_step(images, labels, args.bs, device)
    ours, session = vitctl_step(images, labels, args.bs, args.device)
    times: dict[str, list[float]] = {"plain": [], "vitctl": []}
    for i in range(args.steps + 1):
        for name, step in (("plain", plain), ("vitctl", ours)):
            time.sleep(2)  # lets the loader's workers fill their queue, so that they do not slow vitctl's step
            start = time.perf_counter()
            step()
            devices.synchronize(device)
            if i:  # the first step of each is the warm-up
                times[name].append(time.perf_counter() - start)
    speeds = {name: args.bs / statistics.median(seconds) for name, seconds in times.items()}
    print(
        json.dumps(
            {
                "images_per_second": {name: round(speed, 2) for name, speed in speeds.items()},
                "ratio": round(speeds["vitctl"] / speeds["plain"], 3),
                "step_seconds": {name: [round(second, 3) for second in seconds] for name, seconds in times.items()},
                "batch": args.bs,
                "micro_batch": session.micro_batch,
                **devices.environment(device),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
