"""``bench-device --tune``: which batch, micro-batch, precision and threads a device is fastest with."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

from vitctl import devices
from vitctl.benchmark.devices import bench_data
from vitctl.benchmark.tables import Cell, Row, Table
from vitctl.config import TrainConfig
from vitctl.data.dataset import Dataset, LoadProgress, Splits
from vitctl.errors import RunFailed
from vitctl.training.run_folder import write_text
from vitctl.training.session import open_session

SECONDS = 2.0
"""How long a candidate is measured, at least; and at least three pieces."""

BATCHES = (0.25, 0.5, 2.0)
"""Batches tried, as shares of the one asked for."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """Settings that were tried.

    Attributes:
        settings: by flag name.
        images_per_second: that they reach; None when memory ran out.
    """

    settings: dict[str, Any]
    images_per_second: float | None


def measure_settings(config: TrainConfig, data: tuple[Dataset, Splits]) -> float | None:
    """Return the pictures a second that training with ``config`` reaches, or None when memory runs out.

    Pieces forward and backward are timed, and the optimizer's step apart, so that a long step need not be taken whole.
    """
    try:
        session = open_session(config, pretrained=False, data=data)
        session.train_mode()
        count = min(session.batches.batch_size, session.batches.count)
        start = time.perf_counter()
        images, labels = session.batches.batch(0, 0)
        devices.synchronize(session.device)
        drawn = time.perf_counter() - start
        images, labels = images[: session.micro_batch], labels[: session.micro_batch]
        pieces: list[float] = []
        updates: list[float] = []
        end = time.perf_counter() + SECONDS
        while len(pieces) < 4 or time.perf_counter() < end:
            start = time.perf_counter()
            with session.autocast():
                logits = session.forward(session.normalize(images))
            torch.autograd.backward(F.cross_entropy(logits.float(), labels))
            devices.synchronize(session.device)
            middle = time.perf_counter()
            if len(updates) < 4:
                for group in session.optimizer.param_groups:
                    group["lr"] = 0.0  # its time is the same
                session.optimizer.step()
                session.optimizer.zero_grad()
                devices.synchronize(session.device)
                updates.append(time.perf_counter() - middle)
            pieces.append(middle - start)
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        return None
    whole = statistics.median(pieces[1:]) * count / len(images) + statistics.median(updates[1:]) + drawn
    return count / whole


def candidates(config: TrainConfig, device: torch.device, batchnorm: bool) -> Iterator[tuple[str, list[Any]]]:
    """Return the settings to try one after the other, and the values of each."""
    if device.type == "cpu":
        cores = os.cpu_count() or 1
        yield "threads", sorted({1, max(1, cores // 2), cores})
    yield "precision", ["fp32", *devices.half_precisions(device)]
    if not batchnorm:
        sizes = [8, 16, 32, 64, 128, 256] if device.type == "cpu" else [config.bs // 4, config.bs // 2, config.bs]
        yield "micro_batch", [size for size in sizes if 0 < size <= config.bs]
    yield "bs", [config.bs, *[int(config.bs * share) for share in BATCHES if int(config.bs * share) > 1]]


def tune(
    config: TrainConfig,
    message: Callable[[str], None],
    decoding: LoadProgress | None = None,
    given: Collection[str] = (),
) -> list[Trial]:
    """Try settings on the device of ``config``, one after the other, each with the best of those before.

    Args:
        config: where to start from.
        message: told each result.
        decoding: told of the progress of getting data.
        given: names of settings that stay as they are.

    Returns:
        everything that was tried; the first is ``config`` itself.

    Raises:
        RunFailed: not even ``config`` fits into memory.
    """
    data = bench_data(config, decoding)
    device = devices.resolve_device(config.device)
    names = (
        ["threads", "precision", "micro_batch", "bs"] if device.type == "cpu" else ["precision", "micro_batch", "bs"]
    )
    session = open_session(config, pretrained=False, data=data)
    batchnorm = session.batches.drop_single
    started = {
        "threads": torch.get_num_threads(),
        "precision": session.precision,
        "micro_batch": session.micro_batch,
        "bs": config.bs,
    }
    del session
    best = {name: started[name] for name in names}

    def attempt(settings: dict[str, Any]) -> Trial:
        speed = measure_settings(dataclasses.replace(config, **settings), data)
        words = ", ".join(f"{name} {value}" for name, value in settings.items())
        message(f"{words}: {f'{speed:.1f} pictures/s' if speed else 'out of memory'}")
        return Trial(dict(settings), speed)

    trials = [attempt(best)]
    if trials[0].images_per_second is None:
        raise RunFailed(f"out of memory on {device} with --bs {config.bs}; try a smaller one")
    fastest = trials[0].images_per_second
    for name, values in candidates(config, device, batchnorm):
        if name in given:
            continue
        for value in values:
            settings = {**best, name: value}
            if name == "bs" and "micro_batch" in settings:
                settings["micro_batch"] = min(settings["micro_batch"], value)
            if any(trial.settings == settings for trial in trials):
                continue
            trial = attempt(settings)
            trials.append(trial)
            if trial.images_per_second is not None and trial.images_per_second > fastest:
                best, fastest = settings, trial.images_per_second
    return trials


def best_of(trials: list[Trial]) -> Trial:
    """Return the fastest."""
    return max(trials, key=lambda trial: trial.images_per_second or 0.0)


def tune_table(label: str, trials: list[Trial]) -> Table:
    """Return all trials, the fastest marked."""
    names = list(trials[0].settings)
    chosen = best_of(trials)
    rows = tuple(
        Row(
            f"{i + 1}{' (fastest)' if trial is chosen else ''}",
            (
                *[Cell(str(trial.settings[name]), str(trial.settings[name])) for name in names],
                Cell("out of memory")
                if trial.images_per_second is None
                else Cell(f"{trial.images_per_second:.1f}", trial.images_per_second),
            ),
        )
        for i, trial in enumerate(trials)
    )
    return Table(f"Tuning {label}", "trial", (*names, "pictures/s"), rows)


def write_settings(label: str, trials: list[Trial]) -> Path:
    """Write the fastest settings to ``tuned-LABEL.yaml``, which ``train --config`` takes, and return its path."""
    chosen = best_of(trials)
    path = Path(f"tuned-{label.replace(':', '-')}.yaml")
    head = f"# the fastest of {len(trials)} settings tried on {label}: {chosen.images_per_second:.1f} pictures/s\n"
    settings = {**chosen.settings, "device": label}
    write_text(path, head + yaml.safe_dump(settings, sort_keys=False))
    return path
