"""Everything that differs between CPU, CUDA and MPS."""

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

from vitctl.errors import OutOfMemory, RequestError
from vitctl.registry import or_list
from vitctl.units import format_bytes


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
    """Return the device's model, such as ``NVIDIA A100``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_label() if device.type == "cpu" else f"Apple {platform.processor() or 'GPU'} (MPS)"


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
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def fits(device: torch.device, size: int) -> bool:
    """Return whether ``size`` bytes take at most half of the free memory of ``device``."""
    if device.type == "cuda":
        return size <= torch.cuda.mem_get_info(device)[0] // 2
    if device.type == "mps":
        return size <= (torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()) // 2
    return True


def has_fused_optimizers(device: torch.device) -> bool:
    """Return whether torch has fused Adam, AdamW and SGD for ``device``."""
    return device.type in ("cpu", "cuda", "mps")


def resolve_precision(asked: str, device: torch.device) -> str:
    """Return the precision of the forward pass's matrix products: ``fp32``, ``bf16`` or ``fp16``.

    ``auto`` is bf16 on CUDA devices with native bf16 and fp16 on older ones, and fp32 on CPUs and MPS. Whether half
    precision is faster on MPS depends on the chip and the version.

    Args:
        asked: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: the device that runs the network.

    Raises:
        RequestError: the device has no instructions for it; emulation would be tens of times slower than fp32
            (https://github.com/pytorch/pytorch/issues/146508).
    """
    if asked == "auto":
        if device.type != "cuda":
            return "fp32"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if asked == "fp32" or asked in half_precisions(device):
        return asked
    raise RequestError(
        f"--precision {asked} would be tens of times slower than fp32: {device_label(device)} ({device}) has no "
        f"instructions for it",
        hint=f"use --precision {or_list(['fp32', *half_precisions(device)])}",
    )


def nearest_precision(asked: str, device: torch.device) -> str:
    """Return the precision of a network trained elsewhere: ``asked``, or fp32 if ``device`` does not support it."""
    try:
        return resolve_precision(asked, device)
    except RequestError:
        return "fp32"


def half_precisions(device: torch.device) -> tuple[str, ...]:
    """Return those of ``bf16`` and ``fp16`` for which the device has instructions."""
    if device.type == "cuda":
        return ("bf16", "fp16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp16",)
    if device.type == "mps":
        return ("bf16", "fp16") if torch.backends.mps.is_macos_or_newer(14, 0) else ("fp16",)
    supported = _cpu_instructions()
    bf16 = any(value for name, value in supported.items() if name.endswith("bf16"))
    fp16 = bool(supported.get("avx512_fp16") or supported.get("amx_fp16"))
    return (*(["bf16"] if bf16 else []), *(["fp16"] if fp16 else []))


def _cpu_instructions() -> dict[str, bool]:
    if hasattr(torch.cpu, "get_capabilities"):
        return {name: value for name, value in torch.cpu.get_capabilities().items() if isinstance(value, bool)}
    return {  # torch before 2.11
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
        "amx_fp16": torch.cpu._is_amx_fp16_supported(),
    }


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context that runs the forward pass in ``precision``, a result of :func:`resolve_precision`.

    Weights and gradients stay fp32.
    """
    dtype = _DTYPES[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def make_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler | None:
    """Return a loss scaler, which keeps fp16 gradients from vanishing, or None for other precisions."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def matmul_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for matrix products that tolerate rounding, with operands of ``dtype`` on ``device``.

    It is bf16 on CUDA devices with native bf16, else ``dtype``, with fp32 in place of half precisions, as emulated bf16
    is much slower.
    """
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def peak_memory(device: torch.device) -> int:
    """Return the peak memory use so far in bytes: of the device, or of this process on CPU and MPS."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's <malloc.h>


def prepare(device: torch.device, threads: int | None, precision: str = "auto") -> None:
    """Configure this process for training on ``device``.

    Args:
        device: the device.
        threads: number of CPU threads; None for torch's default.
        precision: the requested precision. On CUDA, products in fp32 use TF32 unless this is ``fp32``.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
    if device.type == "cpu" and sys.platform == "linux":
        # By default, glibc returns large blocks to the kernel, so that each step causes thousands of page faults.
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


class CpuWatch:
    """Measures the CPU time that other processes and virtual machines take on this machine; Linux only."""

    def __init__(self) -> None:
        self._start = _cpu_seconds()

    def others(self) -> float | None:
        """Return the share, 0 to 1, of the CPU time since construction that others took; None if it is not known."""
        now = _cpu_seconds()
        if self._start is None or now is None:
            return None
        busy, total, own = (after - before for after, before in zip(now, self._start, strict=True))
        return min(1.0, max(0.0, busy - own) / total) if total > 0 else None


def _cpu_seconds() -> tuple[float, float, float] | None:
    """Return CPU seconds, summed over all CPUs: busy, total, and of this process; see proc(5)."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            words = file.readline().split()
        user, nice, system, idle, iowait, irq, softirq, steal = (int(word) for word in words[1:9])
    except (OSError, ValueError):
        return None
    tick = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq + steal
    return busy / tick, (busy + idle + iowait) / tick, sum(os.times()[:4])


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


_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` is an out-of-memory error of torch or Python, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


@contextlib.contextmanager
def memory_watched(device: torch.device, batch_size: int, micro_batch: int) -> Iterator[None]:
    """Convert an out-of-memory error to :class:`OutOfMemory`.

    Raises:
        OutOfMemory: the device is out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(device, batch_size, micro_batch) from error


def out_of_memory(device: torch.device, batch_size: int, micro_batch: int) -> OutOfMemory:
    """Return the error for a batch that does not fit into memory."""
    return OutOfMemory(
        f"out of memory on {device} with --bs {batch_size} and micro-batches of {micro_batch} "
        f"(peak {format_bytes(peak_memory(device))})",
        hint=f"use --micro-batch {micro_batch // 2} for the same result in less memory, or --bs {batch_size // 2}"
        if micro_batch > 1
        else "use a smaller network (--net) or a smaller --size",
        device=str(device),
        batch=batch_size,
    )
