"""Load of the CPU by other processes."""

from __future__ import annotations

import os

from vitctl.cpus import usable_cpus


class CpuWatch:
    """Measures the CPU time that other processes and virtual machines take on this process's CPUs; Linux only."""

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
    """Return CPU seconds, summed over the CPUs of this process: busy, total, and its own; see proc(5)."""
    ours = {f"cpu{cpu}" for cpu in usable_cpus()}
    try:
        with open("/proc/stat", encoding="ascii") as file:
            rows = [line.split()[1:9] for line in file if line.split()[0] in ours]
        sums = [sum(int(row[i]) for row in rows) for i in range(8)]
    except (OSError, ValueError, IndexError):
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = sums
    tick = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + softirq + steal
    return busy / tick, (busy + idle + iowait) / tick, sum(os.times()[:4])
