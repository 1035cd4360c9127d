"""Memory of a device, and running out of it."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator

import torch

from vitctl.errors import OutOfMemory
from vitctl.units import format_bytes


def fits(device: torch.device, size: int) -> bool:
    """Return whether ``size`` bytes take at most half of the free memory of ``device``."""
    if device.type == "cuda":
        return size <= torch.cuda.mem_get_info(device)[0] // 2
    if device.type == "mps":
        return size <= (torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()) // 2
    return True


def own_memory(device: torch.device) -> int | None:
    """Return the bytes that ``device`` can use, or None if it has no limit besides the memory of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return None


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
