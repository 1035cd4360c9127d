"""``bench-device --tune``: which batch, micro-batch, precision and threads a device is fastest with."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from vitctl import devices
from vitctl.benchmark.device_plan import DevicePlan
from vitctl.benchmark.devices import bench_data, run_piece
from vitctl.benchmark.tables import Cell, Row, Table
from vitctl.config import TrainConfig
from vitctl.data.dataset import Dataset, Splits
from vitctl.errors import RunFailed
from vitctl.files import write_text
from vitctl.observer import SILENT, Observer
from vitctl.training.session import Session
from vitctl.training.setup import open_session

Message = Callable[[str], None]

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
    """Return the images a second that training with ``config`` reaches, or None when memory runs out.

    Pieces forward and backward are timed, and the optimizer's step apart, so that a long step need not be taken whole.
    """
    try:
        session = open_session(dataclasses.replace(config, compile=False), pretrained=False, data=data)
        session.train_mode()
        for group in session.optimizer.param_groups:
            group["lr"] = 0.0  # its step takes the same time
        start = time.perf_counter()
        images, labels = session.batches.batch(0, 0)
        devices.synchronize(session.device)
        drawn = time.perf_counter() - start
        pieces: list[float] = []
        updates: list[float] = []
        end = time.perf_counter() + SECONDS
        while len(pieces) < 4 or time.perf_counter() < end:
            pieces.append(run_piece(session, images, labels))
            if len(updates) < 4:
                start = time.perf_counter()
                session.optimizer.step()
                session.optimizer.zero_grad()
                devices.synchronize(session.device)
                updates.append(time.perf_counter() - start)
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
        return None
    piece, update = (statistics.median(times[1:]) for times in (pieces, updates))  # the first ones allocate
    return len(images) / (piece * len(images) / min(session.micro_batch, len(images)) + update + drawn)


def candidates(session: Session) -> dict[str, list[Any]]:
    """Return the settings to try one after the other, and the values of each: first what ``session`` has."""
    config, device = session.config, session.device
    found: dict[str, list[Any]] = {}
    if device.type == "cpu":
        cores = os.cpu_count() or 1
        found["threads"] = [torch.get_num_threads(), 1, max(1, cores // 2), cores]
    found["precision"] = [session.precision, "fp32", *devices.half_precisions(device)]
    if not session.batches.drop_single:  # BatchNorm takes batches whole
        sizes = [8, 16, 32, 64, 128, 256] if device.type == "cpu" else [config.bs // 4, config.bs // 2, config.bs]
        found["micro_batch"] = [session.micro_batch, *[size for size in sizes if 0 < size <= config.bs]]
    found["bs"] = [config.bs, *[int(config.bs * share) for share in BATCHES if int(config.bs * share) > 1]]
    return {name: list(dict.fromkeys(values)) for name, values in found.items()}


def tune(config: TrainConfig, data: tuple[Dataset, Splits], given: Collection[str], message: Message) -> list[Trial]:
    """Try settings on the device of ``config``, one after the other, each with the best of those before.

    Args:
        config: where to start from.
        data: to measure on.
        given: names of settings that stay as they are.
        message: told each result.

    Returns:
        everything that was tried; the first is ``config`` itself.

    Raises:
        RunFailed: not even ``config`` fits into memory.
    """
    to_try = candidates(open_session(dataclasses.replace(config, compile=False), pretrained=False, data=data))

    def attempt(settings: dict[str, Any]) -> Trial:
        speed = measure_settings(dataclasses.replace(config, **settings), data)
        words = ", ".join(f"{name} {value}" for name, value in settings.items())
        message(f"{words}: {f'{speed:.1f} images/s' if speed else 'out of memory'}")
        return Trial(settings, speed)

    trials = [attempt({name: values[0] for name, values in to_try.items()})]
    if trials[0].images_per_second is None:
        raise RunFailed(f"out of memory on {config.device} with --bs {config.bs}; try a smaller one")
    for name, values in to_try.items():
        for value in values[1:] if name not in given else ():
            settings = {**best_of(trials).settings, name: value}
            if "micro_batch" in settings:
                settings["micro_batch"] = min(settings["micro_batch"], settings["bs"])
            if all(trial.settings != settings for trial in trials):
                trials.append(attempt(settings))
    return trials


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the fastest, the first of equals."""
    return max(trials, key=lambda trial: trial.images_per_second or 0.0)


def tune_devices(plan: DevicePlan, chosen: Mapping[str, str], observer: Observer = SILENT) -> dict[str, list[Trial]]:
    """Tune each device, write its fastest settings to ``tuned-NAME.yaml``, which ``train --config`` takes, and return all trials.

    Args:
        plan: where to start from; what was given stays.
        chosen: devices by name.
        observer: is notified of downloads and decoding.

    Raises:
        RequestError: the data cannot be had as asked.
        RunFailed: memory ran out, or a file cannot be written.
    """
    data = bench_data(plan.config, observer)
    found = {}
    for name, device in chosen.items():
        trials = found[name] = tune(dataclasses.replace(plan.config, device=device), data, plan.given, observer.message)
        best = best_of(trials)
        path = Path(f"tuned-{name.replace(':', '-')}.yaml")
        head = (
            f"# the fastest of {len(trials)} settings tried on {name} ({devices.device_label(torch.device(device))}): "
            f"{best.images_per_second:.1f} images/s\n"
        )
        # With what they were found for: another network has other fastest settings.
        tuned_for = {
            key: getattr(plan.config, key) for key in ("recipe", "net", "net_options", "size", "opt", "opt_options")
        }
        settings = {**tuned_for, **best.settings, "device": device}
        write_text(path, head + yaml.safe_dump(settings, sort_keys=False))
        observer.message(f"written: {path}")
    return found


class TuneReport:
    """All that was tried, ready to be shown.

    Args:
        config: the settings that were started from.
        trials: by device.
        environment: versions and machine, as :func:`vitctl.devices.environment` has them.
    """

    def __init__(
        self, config: TrainConfig, trials: Mapping[str, Sequence[Trial]], environment: Mapping[str, Any]
    ) -> None:
        self.config = config
        self.trials = trials
        self.environment = dict(environment)

    def tables(self) -> list[Table]:
        """Return a table for each device, its fastest settings named."""
        return [self._table(name, trials) for name, trials in self.trials.items()]

    def _table(self, name: str, trials: Sequence[Trial]) -> Table:
        fastest = best_of(trials)
        rows = []
        for i, trial in enumerate(trials, 1):
            speed = trial.images_per_second
            cells = [Cell(str(value), str(value)) for value in trial.settings.values()]
            cells.append(Cell("out of memory") if speed is None else Cell(f"{speed:.1f}", speed))
            rows.append(Row(f"{i} (fastest)" if trial is fastest else str(i), tuple(cells)))
        return Table(f"Tuning {name}", "trial", (*trials[0].settings, "images/s"), tuple(rows))

    def document(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "devices": [
                {"label": name, "trials": [vars(trial) for trial in trials]} for name, trials in self.trials.items()
            ],
            "config": self.config.to_dict(),
            "environment": self.environment,
        }

    def figures(self) -> dict[str, Any]:
        """Return no image: there is none."""
        return {}
