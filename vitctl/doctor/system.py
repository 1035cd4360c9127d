"""Description of this machine, to paste into an issue."""

from __future__ import annotations

import importlib.metadata
import netrc
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from vitctl import __version__, devices
from vitctl.cpus import available_cpus
from vitctl.data import DATASETS, cifar, named
from vitctl.data.cache import cache_folder
from vitctl.units import format_bytes, mask_passwords, plural

PACKAGES = ("torch", "torchvision", "timm", "numpy", "adan-pytorch", "optuna", "wandb", "onnx", "onnxruntime")
"""Packages on which results or failures depend."""

PREFIXES = (
    *("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "PYTORCH_", "TORCH", "CUDA_", "CUBLAS_", "NVIDIA_", "NCCL_"),
    *("MTL_", "METAL_", "MPS_", "VITCTL_", "WANDB_", "SLURM_CPUS", "LD_PRELOAD", "MALLOC_"),
)
"""Beginnings of the names of environment variables that matter."""

_SECRET = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)


def describe(device_name: str) -> dict[str, Any]:
    """Describe the machine, in a process that may use its devices.

    Args:
        device_name: ``--device``.

    Returns:
        JSON values: ``device``, torch's name of the chosen device; ``torch``, its version; and ``system``, the rows of
        the description by name.

    Raises:
        RequestError: the device is unknown or not available.
    """
    device = devices.resolve_device(device_name)
    cpus = available_cpus()
    threads = torch.get_num_threads()
    system: dict[str, Any] = {
        "vitctl": __version__,
        **{name: version for name in PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "system": _system(),
        "cpu": f"{devices.device_label(torch.device('cpu'))}, {torch.backends.cpu.get_cpu_capability()}",
        "cpus": f"{cpus} of {os.cpu_count()} for this process",
        "threads": plural(threads, "thread"),
        "devices": [_device(name) for name in devices.available_devices()],
        "precisions": ["fp32", *devices.half_precisions(device)],
        "memory": _memory(),
        "cache": _disk(cache_folder()),
        "folder": _disk(Path.cwd()),
        "environment": _environment(),
        "w&b login": "yes" if logged_in() else "no",
        "data sets": data_sets(),
    }
    if torch.cuda.is_available():
        system["cuda"] = f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    if devices.policy_of(device).backend == "mps":  # read when torch is imported
        system["mps fallback"] = os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK", "not set")
    return {"device": str(device), "torch": torch.__version__, "system": system}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _system() -> str:
    release = platform.mac_ver()[0]
    return f"macOS {release} ({platform.machine()})" if release else platform.platform()


def _device(name: str) -> str:
    device = torch.device(name)
    label = f"{name}: {devices.device_label(device)}"
    memory = devices.own_memory(device)
    return label if memory is None else f"{label}, up to {format_bytes(memory)}"


def _memory() -> str:
    """Return the memory of the machine, and on Linux how much is free."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return "unknown"
    try:
        free = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        free = None
    return format_bytes(total) + (f", {format_bytes(int(free[1]) << 10)} free" if free else "")


def _disk(folder: Path) -> str:
    return f"{private(str(folder))}, {format_bytes(shutil.disk_usage(existing(folder)).free)} free"


def existing(folder: Path) -> Path:
    """Return ``folder``, or the closest folder above it that exists."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def private(text: str) -> str:
    """Return a text with the user's home folder replaced by ``~``."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _environment() -> list[str]:
    """Return the variables that matter as ``NAME=value``, without secrets."""
    chosen = sorted(name for name in os.environ if name.startswith(PREFIXES))
    return [f"{name}={'***' if _SECRET.search(name) else private(mask_passwords(os.environ[name]))}" for name in chosen]


def logged_in() -> bool:
    """Return whether an API key for W&B is stored; it is neither read out nor tried."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for file in files:
        try:
            if netrc.netrc(os.path.expanduser(file)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def data_sets() -> list[str]:
    """Return the data sets found without ``--data-dir``, with their places."""
    places = {each.name: cifar.locate(each) for each in (cifar.CIFAR10, cifar.CIFAR100)}
    places |= {name: named.locate(spec) for name, spec in named.NAMED.items()}
    found = {name: private(str(place)) for name in DATASETS if (place := places.get(name))}
    return ["digits: built in", *(f"{name}: {place}" for name, place in found.items())]
