"""Fewer CPU threads beside other processes: OpenMP's threads wait for each other, and so for those without a CPU."""

from __future__ import annotations

import copy
import dataclasses
import math

import torch

from vitctl import devices
from vitctl.cpus import usable_cpus
from vitctl.observer import Observer
from vitctl.training.budget import step_seconds
from vitctl.training.session import Session
from vitctl.units import plural

IGNORED_CPUS = 0.25
"""CPUs that others may take before fewer threads are tried: about what an idle desktop takes."""

ROUNDS = 2
"""Times that each number of threads is timed, in turns, as the load of the other processes changes."""
SECONDS = 0.4
"""Seconds for which each is timed in each round."""

GAIN = 1.2
"""Speed-up from which fewer threads are recommended; less is noise on a busy machine."""
LARGE_GAIN = 2.0
"""Speed-up that needs no second round."""


@dataclasses.dataclass(frozen=True)
class FasterThreads:
    """A number of threads that trains faster than the current one.

    Attributes:
        threads: the number.
        gain: how many times as fast.
        others: share of the CPU time that others take, 0 to 1.
    """

    threads: int
    gain: float
    others: float


def settle_threads(session: Session, watch: devices.CpuWatch, observer: Observer) -> None:
    """Recommend fewer threads if they train faster beside other processes; under ``--max-time``, use and store them.

    It costs nothing unless others take more than :data:`IGNORED_CPUS`, and changes nothing if ``--threads`` is given.

    Args:
        session: a new session.
        watch: started before the session was opened.
        observer: receives the message.
    """
    found = faster_threads(session, watch.others())
    if found is None:
        return
    busy = f"other processes use {100 * found.others:.0f} % of the CPU"
    if session.config.max_time and session.config.refits is None:  # with refits, the run is repeated to the bit
        torch.set_num_threads(found.threads)
        session.config = dataclasses.replace(session.config, threads=found.threads)
        observer.message(f"{busy}: training with {plural(found.threads, 'thread')}, {found.gain:.1f} times as fast")
    else:
        observer.message(f"warning: {busy}: --threads {found.threads} trains {found.gain:.1f} times as fast")


def faster_threads(session: Session, others: float | None) -> FasterThreads | None:
    """Return the number of threads that trains fastest if it is not the current one; the session is restored.

    Args:
        session: a new session.
        others: share of the CPU time that others take, 0 to 1; None if it is not known.
    """
    # Compiled code has the number of threads built in.
    variable = devices.policy_of(session.device).threaded and session.compile_time is None
    if others is None or session.config.threads is not None or not variable:
        return None
    current, free = torch.get_num_threads(), free_cpus(others, len(usable_cpus()))
    if free >= current:
        return None
    before = copy.deepcopy(session.checkpoint())
    seconds = dict.fromkeys((current, free, max(1, current // 2)), 0.0)
    try:
        for _ in range(ROUNDS):
            for threads in seconds:
                torch.set_num_threads(threads)
                seconds[threads] += step_seconds(session, SECONDS)
            best = min(seconds, key=lambda threads: seconds[threads])
            gain = seconds[current] / seconds[best]
            if gain >= LARGE_GAIN:
                break
    finally:
        torch.set_num_threads(current)
    session.restore(before)
    return FasterThreads(best, gain, others) if gain >= GAIN else None


def free_cpus(others: float, cpus: int) -> int:
    """Return the number of ``cpus`` that are free if others take this share of their time, at least 1."""
    return max(1, cpus - math.ceil(max(0.0, others * cpus - IGNORED_CPUS)))
