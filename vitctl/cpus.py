"""The CPUs that this process may use, under the affinity and the CPU quota of its job or container."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")
"""Folder that describes this process on Linux; tests replace it."""


def available_cpus() -> int:
    """Return the number of CPUs that this process may use, at least 1.

    It is the smallest of the machine's CPUs, the affinity (``taskset``, SLURM) and the quotas of all control groups that
    contain the process (``docker --cpus``, Kubernetes). Part of a CPU counts as one.
    """
    limits = [float(len(usable_cpus()))]
    if sys.platform == "linux":
        limits += _quotas()
    return max(1, math.ceil(min(limits)))


def usable_cpus() -> set[int]:
    """Return the numbers of the CPUs that the affinity of this process allows."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quotas() -> Iterator[float]:
    """Yield the quota, in CPUs, of each control group that contains this process and has one."""
    try:
        groups = (PROC / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (PROC / "mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        root, point = (_unescaped(word) for word in before.split(" ")[3:5])
        kind, _, options = after.split(" ")[:3]
        controllers = options.split(",") if kind == "cgroup" else [""] if kind == "cgroup2" else []
        for group in groups:
            _, names, path = group.split(":", 2)
            # Version 1 has a hierarchy with the controller "cpu", version 2 one without names.
            if ("cpu" in names.split(",") and "cpu" in controllers) or (names == "" and controllers == [""]):
                for folder in _folders(Path(point), root, path):
                    quota = _quota(folder)
                    if quota:
                        yield quota


def _folders(point: Path, root: str, path: str) -> Iterator[Path]:
    """Yield the folders of a control group and of those around it.

    Args:
        point: where the hierarchy is mounted.
        root: the group that is mounted there; in a container, it may be the container's own.
        path: the group.
    """
    group = PurePosixPath(path)
    # In a container, the path may be one of the host that is not visible here; the mounted group is then the process's.
    inner = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
    for part in (inner, *inner.parents):
        yield point / part


def _quota(folder: Path) -> float | None:
    """Return the quota of one control group, in CPUs, or None."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _unescaped(word: str) -> str:
    """Return a path of ``mountinfo``, which has octal codes in place of white space."""
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        word = word.replace(code, letter)
    return word
