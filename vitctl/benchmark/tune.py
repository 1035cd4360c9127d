"""Search for the fastest threads, precision, micro-batch and batch size of a device (``bench-device --tune``)."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from vitctl import devices
from vitctl.benchmark.device_plan import DevicePlan
from vitctl.benchmark.devices import bench_data, run_micro_batch
from vitctl.config import TrainConfig, flag_name
from vitctl.cpus import available_cpus
from vitctl.data.dataset import Dataset, Splits
from vitctl.errors import RunFailed
from vitctl.files import write_text
from vitctl.observer import SILENT, Observer
from vitctl.report.rendering import Section
from vitctl.report.tables import Cell, Row, Table
from vitctl.training.session import Session
from vitctl.training.setup import open_session
from vitctl.units import plural

Message = Callable[[str], None]

SECONDS = 2.0
"""Minimum seconds to measure a candidate."""

BATCHES = (0.25, 0.5, 2.0)
"""Batch sizes to try, as multiples of the requested one."""

HEADINGS = {
    "threads": "CPU threads",
    "precision": "precision",
    "micro_batch": "micro-batch (images)",
    "bs": "batch (images)",
}
"""Column headings of the tuned settings."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A measured combination of settings.

    Attributes:
        settings: values by setting, such as ``micro_batch``.
        images_per_second: training speed, or None if memory ran out.
    """

    settings: dict[str, Any]
    images_per_second: float | None


def measure_settings(config: TrainConfig, data: tuple[Dataset, Splits]) -> float | None:
    """Return the images per second of training with ``config``, or None if memory runs out.

    Micro-batches and the optimizer's step are timed separately, so that no complete step is needed.
    """
    try:
        session = open_session(dataclasses.replace(config, compile=False), pretrained=False, data=data)
        session.train_mode()
        for group in session.optimizer.param_groups:
            group["lr"] = 0.0  # the time of a step does not depend on it
        start = time.perf_counter()
        images, labels = session.batches.batch(0, 0)
        devices.synchronize(session.device)
        data_time = time.perf_counter() - start
        passes: list[float] = []
        updates: list[float] = []
        end = time.perf_counter() + SECONDS
        while len(passes) < 4 or time.perf_counter() < end:
            passes.append(run_micro_batch(session, images, labels))
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
    one, update = (statistics.median(times[1:]) for times in (passes, updates))  # the first ones allocate memory
    return len(images) / (one * len(images) / min(session.micro_batch, len(images)) + update + data_time)


def values_to_try(session: Session) -> dict[str, list[Any]]:
    """Return the settings to tune, in order, and the values to try, beginning with the session's own."""
    config, device = session.config, session.device
    one_pass = devices.policy_of(device).one_pass
    found: dict[str, list[Any]] = {}
    if not one_pass:
        cores = available_cpus()
        found["threads"] = [torch.get_num_threads(), 1, max(1, cores // 2), cores]
    found["precision"] = [session.precision, "fp32", *devices.half_precisions(device)]
    if not session.batches.drop_single:  # BatchNorm needs complete batches
        sizes = [config.bs // 4, config.bs // 2, config.bs] if one_pass else [8, 16, 32, 64, 128, 256]
        found["micro_batch"] = [session.micro_batch, *[size for size in sizes if 0 < size <= config.bs]]
    found["bs"] = [config.bs, *[int(config.bs * share) for share in BATCHES if int(config.bs * share) > 1]]
    return {name: list(dict.fromkeys(values)) for name, values in found.items()}


def tune(
    config: TrainConfig, data: tuple[Dataset, Splits], given: Collection[str], message: Message
) -> list[Candidate]:
    """Tune one setting after the other on the device of ``config``, keeping the fastest values so far.

    Args:
        config: settings to start from.
        data: data to measure on.
        given: names of settings that are not tuned.
        message: receives each result.

    Returns:
        All candidates; the first one is ``config`` itself.

    Raises:
        RunFailed: ``config`` does not fit into memory.
    """
    to_try = values_to_try(open_session(dataclasses.replace(config, compile=False), pretrained=False, data=data))

    def attempt(settings: dict[str, Any]) -> Candidate:
        speed = measure_settings(dataclasses.replace(config, **settings), data)
        flags = " ".join(f"{flag_name(name)} {value}" for name, value in settings.items())
        message(f"{flags}: {f'{speed:.1f} images/s' if speed else 'out of memory'}")
        return Candidate(settings, speed)

    candidates = [attempt({name: values[0] for name, values in to_try.items()})]
    if candidates[0].images_per_second is None:
        raise RunFailed(
            f"out of memory on {config.device} with --bs {config.bs}", hint=f"use --bs {max(1, config.bs // 2)} or less"
        )
    for name, values in to_try.items():
        for value in values[1:] if name not in given else ():
            settings = {**best_of(candidates).settings, name: value}
            if "micro_batch" in settings:
                settings["micro_batch"] = min(settings["micro_batch"], settings["bs"])
            if all(candidate.settings != settings for candidate in candidates):
                candidates.append(attempt(settings))
    return candidates


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """Return the fastest candidate, the first one of equals."""
    return max(candidates, key=lambda candidate: candidate.images_per_second or 0.0)


def tune_devices(
    plan: DevicePlan, chosen: Mapping[str, str], observer: Observer = SILENT
) -> dict[str, list[Candidate]]:
    """Tune each device and return all candidates by device.

    The fastest settings of each device are written to ``tuned-NAME.yaml``, a file for ``train --config``.

    Args:
        plan: settings to start from; given ones are not tuned.
        chosen: devices by name.
        observer: receives download and decoding progress.

    Raises:
        RequestError: the data is not available.
        RunFailed: memory ran out, or a file cannot be written.
    """
    data = bench_data(plan.config, observer)
    found = {}
    for name, device in chosen.items():
        candidates = found[name] = tune(
            dataclasses.replace(plan.config, device=device), data, plan.given, observer.message
        )
        best = best_of(candidates)
        path = Path(f"tuned-{name.replace(':', '-')}.yaml")
        head = (
            f"# fastest of {plural(len(candidates), 'combination')} tried on {name} ({devices.device_label(torch.device(device))}): "
            f"{best.images_per_second:.1f} images/s\n"
        )
        # The file also holds the settings it was tuned for, as they determine which values are fastest.
        tuned_for = {
            key: getattr(plan.config, key) for key in ("recipe", "net", "net_options", "size", "opt", "opt_options")
        }
        settings = {**tuned_for, **best.settings, "device": device}
        write_text(path, head + yaml.safe_dump(settings, sort_keys=False))
        observer.message(f"wrote {path}")
    return found


class TuneReport:
    """Tables and JSON document of a search for the fastest settings.

    Args:
        config: settings that the search started from.
        candidates: result of :func:`tune_devices`.
        environment: versions and machine, from :func:`vitctl.devices.environment`.
    """

    def __init__(
        self, config: TrainConfig, candidates: Mapping[str, Sequence[Candidate]], environment: Mapping[str, Any]
    ) -> None:
        self.config = config
        self.candidates = candidates
        self.environment = dict(environment)

    def tables(self) -> list[Table]:
        """Return a table of the candidates on each device."""
        return [self._table(name, candidates) for name, candidates in self.candidates.items()]

    def _table(self, name: str, candidates: Sequence[Candidate]) -> Table:
        fastest = best_of(candidates)
        rows = []
        for i, candidate in enumerate(candidates, 1):
            speed = candidate.images_per_second
            cells = [Cell(str(value), str(value)) for value in candidate.settings.values()]
            cells.append(Cell("out of memory") if speed is None else Cell(f"{speed:.1f}", speed))
            rows.append(Row(f"{i} (fastest)" if candidate is fastest else str(i), tuple(cells)))
        headings = (*(HEADINGS[setting] for setting in candidates[0].settings), "training speed (images/s)")
        return Table(f"Settings tried on {name}", "Candidate", headings, tuple(rows))

    def document(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "devices": [
                {"label": name, "trials": [vars(candidate) for candidate in candidates]}
                for name, candidates in self.candidates.items()
            ],
            "config": self.config.to_dict(),
            "environment": self.environment,
        }

    @property
    def verdict(self) -> str:
        """The fastest settings of each device."""
        found = []
        for name, candidates in self.candidates.items():
            fastest = best_of(candidates)
            settings = ", ".join(f"{flag_name(key)} {value}" for key, value in fastest.settings.items())
            found.append(f"{name} is fastest with {settings}: {fastest.images_per_second or 0:,.1f} images/s.")
        return " ".join(found)

    def plots(self) -> list[Section]:
        """Return no charts."""
        return []
