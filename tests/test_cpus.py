"""The CPUs of a job: affinity and the quotas of control groups, in a fake tree and for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from vitctl import cpus, devices
from vitctl.benchmark import tune
from vitctl.cpus import available_cpus
from vitctl.process.child import job_environments

Tree = Callable[..., None]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Return a function that makes a fake tree of control groups on a machine of 16 CPUs."""
    monkeypatch.setattr(cpus, "PROC", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")

    def make(groups: str, mounts: Mapping[str, str], files: Mapping[str, str]) -> None:
        (tmp_path / "cgroup").write_text(groups)
        lines = ["22 1 0:20 / /proc rw,nosuid shared:5 - proc proc rw"]
        for point, rest in mounts.items():
            root, kind = rest.split(" ", 1)
            lines.append(f"30 23 0:26 {root} {tmp_path}/{point} rw,nosuid shared:9 master:2 - {kind}")
        (tmp_path / "mountinfo").write_text("\n".join(lines) + "\n")
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


V1 = {"cpu": "/ cgroup cgroup rw,cpu,cpuacct", "memory": "/ cgroup cgroup rw,memory"}
V2 = {"unified": "/ cgroup2 cgroup2 rw,nsdelegate"}

TREES: dict[str, tuple[str, Mapping[str, str], Mapping[str, str], int]] = {
    "v2": ("0::/job\n", V2, {"unified/job/cpu.max": "200000 100000\n"}, 2),
    "v2, one CPU": ("0::/job\n", V2, {"unified/job/cpu.max": "100000 100000\n"}, 1),
    "v2, part of a CPU": ("0::/job\n", V2, {"unified/job/cpu.max": "25000 100000\n"}, 1),
    "v2, one and a half": ("0::/job\n", V2, {"unified/job/cpu.max": "150000 100000\n"}, 2),
    "v2, max": ("0::/job\n", V2, {"unified/job/cpu.max": "max 100000\n"}, 16),
    "v2, more than the affinity": ("0::/job\n", V2, {"unified/job/cpu.max": "6400000 100000\n"}, 16),
    "v2, the outer group is narrower": (
        "0::/user.slice/job/step_0\n",
        V2,
        {
            "unified/user.slice/cpu.max": "300000 100000\n",
            "unified/user.slice/job/cpu.max": "max 100000\n",
            "unified/user.slice/job/step_0/cpu.max": "800000 100000\n",
        },
        3,
    ),
    "v2, in a container with its own namespace": ("0::/\n", V2, {"unified/cpu.max": "400000 100000\n"}, 4),
    "v2, a path outside the container": ("0::/../other\n", V2, {"unified/cpu.max": "400000 100000\n"}, 4),
    "v1": (
        "4:memory:/job\n3:cpu,cpuacct:/job\n",
        V1,
        {"cpu/job/cpu.cfs_quota_us": "200000\n", "cpu/job/cpu.cfs_period_us": "50000\n"},
        4,
    ),
    "v1, no quota": (
        "3:cpu,cpuacct:/job\n",
        V1,
        {"cpu/job/cpu.cfs_quota_us": "-1\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
        16,
    ),
    "v1, the container's group is mounted": (
        "3:cpu,cpuacct:/docker/0123/inner\n",
        {"cpu": "/docker/0123 cgroup cgroup rw,cpu,cpuacct"},
        {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        1,
    ),
    "v1 for the CPU beside an empty v2": (
        "3:cpu,cpuacct:/job\n0::/job\n",
        {**V1, **V2},
        {"cpu/job/cpu.cfs_quota_us": "100000\n", "cpu/job/cpu.cfs_period_us": "100000\n", "unified/job/x": ""},
        1,
    ),
    "mounted under a name with a space": (
        "0::/job\n",
        {"a\\040b": "/ cgroup2 cgroup2 rw"},
        {"a b/job/cpu.max": "100000 100000\n"},
        1,
    ),
    "nothing readable": ("0::/job\n", V2, {"unified/job/cpu.max": "who knows\n"}, 16),
}


@pytest.mark.parametrize("name", TREES)
def test_quotas_of_control_groups_are_known(tree: Tree, name: str) -> None:
    groups, mounts, files, expected = TREES[name]
    tree(groups, mounts, files)
    assert available_cpus() == expected


def test_without_control_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "PROC", tmp_path / "missing")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert available_cpus() == 2


def test_without_affinity_the_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert available_cpus() == 10


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace torch's number of threads, which is 8, and return the values that are set."""
    values = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: values[-1])
    monkeypatch.setattr(torch, "set_num_threads", values.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    return values


def quota(tree: Tree, count: int) -> None:
    tree("0::/job\n", V2, {"unified/job/cpu.max": f"{count}00000 100000\n"})


@pytest.mark.parametrize(("count", "set_to"), [(1, [8, 1]), (4, [8, 4]), (8, [8]), (16, [8])])
def test_threads_by_default_are_lowered_and_never_raised(
    tree: Tree, threads: list[int], count: int, set_to: list[int]
) -> None:
    quota(tree, count)
    devices.prepare(torch.device("cpu"), None)
    assert threads == set_to


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_threads_that_the_user_sets_are_kept(
    tree: Tree, threads: list[int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    quota(tree, 1)
    monkeypatch.setenv(name, "8")
    devices.prepare(torch.device("cpu"), None)
    assert threads == [8]
    devices.prepare(torch.device("cpu"), 6)
    assert threads == [8, 6]


def test_simultaneous_runs_share_the_quota(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    quota(tree, 6)
    assert job_environments(3, threads_set=False) == [{"OMP_NUM_THREADS": "2"}] * 3


def test_tuning_tries_at_most_the_quota(tree: Tree, threads: list[int]) -> None:
    from vitctl.config import resolve_config
    from vitctl.training.setup import open_session

    quota(tree, 4)
    config = resolve_config({"dataset": "digits", "net": "cct_2:embed_dim=16,depth=1,num_heads=2", "size": 8, "bs": 32})
    assert tune.values_to_try(open_session(config))["threads"] == [4, 1, 2]


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_a_process_bound_to_one_cpu_uses_one_thread(tmp_path: Path) -> None:
    program = (
        "import torch; torch.set_num_threads(2)\n"  # as with builds of torch that do not know the affinity
        "from vitctl import devices; from vitctl.cpus import available_cpus\n"
        "device = torch.device('cpu'); devices.prepare(device, None)\n"
        "print(available_cpus(), torch.get_num_threads(), devices.environment(device)['threads'])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "1 1 1\n"
