"""Load of the CPU by other processes."""

from __future__ import annotations

import os


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
