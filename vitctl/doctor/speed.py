"""What makes training slow on this machine."""

from __future__ import annotations

import dataclasses
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vitctl import devices
from vitctl.benchmark.devices import generated_data
from vitctl.benchmark.tune import measure_settings
from vitctl.config import resolve_config
from vitctl.cpus import available_cpus
from vitctl.data.cache import cache_folder
from vitctl.doctor.system import existing, private
from vitctl.units import plural

NETS = ("cct_2", "vit_small")
"""Networks of the first commands in README, whose speed is compared between devices."""

PROBE = 16 << 20
"""Bytes written to measure a disk."""

SLOW_DISK = 50e6
"""Bytes per second below which a disk is slow: decoded CIFAR-10 would take four seconds."""


@dataclass(frozen=True)
class Brake:
    """Something that makes training slow.

    Attributes:
        what: what it is.
        remedy: what to do about it, or empty.
    """

    what: str
    remedy: str = ""


def find_brakes(device_name: str) -> list[Brake]:
    """Return what makes training on a device slow, in a process that has set no threads."""
    device = torch.device(device_name)
    found = _instructions() if device == torch.device("cpu") else []
    found += thread_brakes(os.environ, available_cpus(), torch.get_num_threads())
    return [*found, *disk_brakes(cache_folder(), disk_speed(cache_folder()))]


def _instructions() -> list[Brake]:
    found = []
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() in ("x86_64", "AMD64") and "AVX512" not in capability:
        found.append(Brake(f"torch uses {capability}: matrix products have half the width of AVX512"))
    if "bf16" not in devices.half_precisions(torch.device("cpu")):
        found.append(Brake("the CPU has no instructions for bf16, so training uses fp32"))
    return found


def thread_brakes(environment: Mapping[str, str], cpus: int, threads: int) -> list[Brake]:
    """Return what is wrong with the number of threads.

    Args:
        environment: environment variables.
        cpus: CPUs that this process may use.
        threads: torch's number of threads.
    """
    names = [name for name in devices.THREAD_VARIABLES if environment.get(name)]
    setting = f"{names[0]}={environment[names[0]]}" if names else plural(threads, "thread")
    remedy = f"unset {names[0]}, or set it to {cpus}" if names else f"use --threads {cpus}"
    if threads > cpus:
        return [Brake(f"{setting} exceeds the {plural(cpus, 'CPU')} of this process", remedy)] if names else []
    if 2 * threads < cpus:
        return [Brake(f"{setting} uses {threads} of {cpus} CPUs", remedy)]
    return []


def disk_speed(folder: Path) -> float | None:
    """Return the bytes per second at which a file is written to the disk of ``folder``; None if it cannot be written."""
    data = os.urandom(PROBE)
    try:
        with tempfile.TemporaryFile(dir=existing(folder)) as file:
            start = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return PROBE / (time.perf_counter() - start)
    except OSError:
        return None


def disk_brakes(folder: Path, speed: float | None) -> list[Brake]:
    """Return what is wrong with the disk of the cache, which has decoded images."""
    remedy = "set VITCTL_CACHE to a folder on a local disk"
    if speed is None:
        return [Brake(f"the cache {private(str(folder))} cannot be written", remedy)]
    if speed < SLOW_DISK:
        return [Brake(f"the cache {private(str(folder))} is written at only {speed / 1e6:.0f} MB/s", remedy)]
    return []


def training_speed(net: str, device_name: str) -> float | None:
    """Return the images per second of training ``net`` on a device, or None if memory runs out."""
    config = resolve_config({"net": net, "epochs": 1, "val": "none", "device": device_name, "pretrained": "false"})
    config = dataclasses.replace(config, limit_train=config.bs)
    return measure_settings(config, generated_data(config))


def slower_than_cpu(net: str, device_name: str, ours: float | None, cpu: float | None) -> list[Brake]:
    """Return a brake if training ``net`` on the CPU is faster; both are images per second."""
    if not ours or not cpu or cpu <= ours:
        return []
    return [
        Brake(
            f"the CPU trains {net} {cpu / ours:.1f} times as fast as {device_name}",
            f"use --device cpu with --net {net}",
        )
    ]
