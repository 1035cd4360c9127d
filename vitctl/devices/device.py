"""Names of devices, copies, random state and settings of the process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterator
from typing import Any

import torch

from vitctl.cpus import available_cpus
from vitctl.devices.policy import policy_of
from vitctl.errors import RequestError
from vitctl.registry import or_list


def available_devices() -> list[str]:
    """Return the devices of this machine, as for ``--device``, the fastest first."""
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


class DeviceUnavailable(RequestError):
    """A known device that is not available on this machine."""


def resolve_device(name: str, what: str = "--device") -> torch.device:
    """Return the device ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:INDEX``.

    Args:
        name: the name.
        what: the flag, for error messages.

    Raises:
        DeviceUnavailable: the device is not available.
        RequestError: unknown name.
    """
    available = available_devices()
    if name == "auto":
        return torch.device(available[0])
    if name == "cuda" and "cuda:0" in available:
        name = "cuda:0"
    if name in available:
        return torch.device(name)
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise RequestError(f"unknown {what} {name!r}", hint="use auto, cpu, mps, cuda or cuda:0")
    flag = f"{what} " if what.startswith("--") else ""
    raise DeviceUnavailable(f"{what} {name} is not available on this machine", hint=f"use {flag}{or_list(available)}")


def device_label(device: torch.device) -> str:
    """Return the device's model, such as ``NVIDIA A100`` or ``Apple M3 Pro (18 GPU cores)``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{torch.backends.mps.get_name()} ({torch.backends.mps.get_core_count()} GPU cores)"
    return _cpu_label() if device.type == "cpu" else device.type


def _cpu_label() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy ``tensor`` to ``device``, asynchronously where that is safe.

    CUDA copies asynchronously only from pinned memory. On MPS, an asynchronous copy may read memory that has been reused
    in the meantime, so the copy is synchronous.
    """
    if policy_of(device).pinned_copies and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of the random number generators used in training on ``device``."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore a state from :func:`rng_state`; a device that was not in use then is left as it is."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def uses_tf32(device: torch.device, precision: str) -> bool:
    """Return whether fp32 products on ``device`` use TF32; ``precision`` is the requested one."""
    return device.type == "cuda" and precision != "fp32"


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's <malloc.h>


THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables from which torch takes its number of threads."""


def prepare(device: torch.device, threads: int | None, precision: str = "auto") -> None:
    """Configure this process for training on ``device``.

    Args:
        device: the device.
        threads: number of CPU threads; None for torch's default, but at most the CPUs of this process unless
            an environment variable sets it.
        precision: the requested precision. On CUDA, products in fp32 use TF32 unless this is ``fp32``.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    elif torch.get_num_threads() > available_cpus() and not any(name in os.environ for name in THREAD_VARIABLES):
        torch.set_num_threads(available_cpus())  # torch knows neither a quota nor, with some builds, the affinity
    if device.type == "cuda":
        tf32 = uses_tf32(device, precision)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    if device.type == "cpu" and sys.platform == "linux":
        # By default, glibc returns large blocks to the kernel, so that each step causes thousands of page faults.
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread, as sums can otherwise depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def environment(device: torch.device) -> dict[str, Any]:
    """Return the versions, device and threads on which a result depends besides the settings."""
    return {
        "vitctl": _vitctl_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": device_label(device),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def _vitctl_version() -> str:
    from vitctl import __version__

    return __version__
