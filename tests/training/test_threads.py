"""Beside other processes, ``train`` measures whether fewer threads are faster."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_loop import tiny_session
from tests.training.test_pace import clean_environment
from tests.training.test_resume import same
from vitctl import devices
from vitctl.cpus import usable_cpus
from vitctl.observer import Observer
from vitctl.training import threads
from vitctl.training.session import Session
from vitctl.training.threads import free_cpus, settle_threads


class Watch(devices.CpuWatch):
    def __init__(self, share: float | None) -> None:
        self.share = share

    def others(self) -> float | None:
        return self.share


class Heard(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


class Pool:
    """A machine with eight CPUs, and the numbers of threads with which steps were timed.

    Args:
        monkeypatch: replaces torch's threads and the timing of steps.
        seconds: seconds that a step takes with each number of threads.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> None:
        self.now, self.seconds, self.timed = 8, seconds, []  # type: ignore[var-annotated]
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.now)
        monkeypatch.setattr(torch, "set_num_threads", lambda count: setattr(self, "now", count))
        monkeypatch.setattr(threads, "usable_cpus", lambda: set(range(8)))
        real = threads.step_seconds

        def step_seconds(session: Session, wanted: float) -> float:
            real(session, 0.0)
            self.timed.append(self.now)
            return self.seconds[self.now]

        monkeypatch.setattr(threads, "step_seconds", step_seconds)


def settled(share: float | None, **more: Any) -> tuple[Session, list[str]]:
    session, heard = tiny_session(**more), Heard()
    settle_threads(session, Watch(share), heard)
    return session, heard.lines


def test_fewer_threads_are_recommended_if_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch, {8: 0.9, 6: 0.3, 4: 0.4})
    session, said = settled(0.25)
    assert said == ["warning: other processes use 25 % of the CPU: --threads 6 trains 3.0 times as fast"]
    assert pool.now == 8 and session.config.threads is None and len(said[0]) <= 100
    assert pool.timed == [8, 6, 4]
    pool.seconds, pool.timed = {8: 0.4, 6: 0.4, 4: 0.3}, []
    assert settled(0.25)[1] == ["warning: other processes use 25 % of the CPU: --threads 4 trains 1.3 times as fast"]
    assert pool.timed == 2 * [8, 6, 4]


def test_max_time_uses_and_stores_faster_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch, {8: 0.9, 6: 0.3, 4: 0.4})
    session, said = settled(0.25, max_time="60s")
    assert said == ["other processes use 25 % of the CPU: training with 6 threads, 3.0 times as fast"]
    assert pool.now == session.config.threads == 6
    pool.now = 8
    repeated, said = settled(0.25, max_time="60s", max_steps=9, refits=[])
    assert said[0].startswith("warning:") and pool.now == 8 and repeated.config.threads is None


@pytest.mark.parametrize("more", [{}, {"max_time": "60s"}])
def test_threads_that_are_not_faster_are_not_mentioned(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch, {8: 0.3, 6: 0.28, 4: 0.4})
    session, said = settled(0.25, **more)
    assert said == [] and pool.now == 8 and session.config.threads is None and pool.timed


@pytest.mark.parametrize(("share", "more"), [(0.0, {}), (0.03, {"max_time": "60s"}), (None, {}), (0.9, {"threads": 8})])
def test_no_step_is_taken_on_an_idle_machine_or_with_given_threads(
    share: float | None, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(monkeypatch, {8: 9.0, 7: 0.1, 6: 0.1, 4: 0.1})
    assert settled(share, **more)[1] == [] and pool.timed == [] and pool.now == 8


def test_timed_steps_do_not_change_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    Pool(monkeypatch, {8: 0.9, 6: 0.3, 4: 0.4})
    assert same(settled(0.25, ema=0.9)[0].checkpoint(), tiny_session(ema=0.9).checkpoint())


@pytest.mark.parametrize(
    ("others", "cpus", "free"),
    [(0.0, 2, 2), (0.1, 2, 2), (0.5, 2, 1), (0.33, 2, 1), (1.0, 2, 1), (0.125, 8, 7), (0.3, 8, 5)],
)
def test_the_cpus_that_others_leave_free_are_counted(others: float, cpus: int, free: int) -> None:
    assert free_cpus(others, cpus) == free


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.skipif(not Path("/proc/stat").exists() or len(usable_cpus()) < 2, reason="needs Linux and two CPUs")
def test_max_time_uses_one_thread_beside_a_busy_process(tmp_path: Path) -> None:
    vit = "vit_small:embed_dim=64,depth=2,num_heads=4"
    flags = ["--dataset", "digits", "--net", vit, "--size", "16", "--patch", "4", "--bs", "64", "--max-time", "20s"]
    command = [sys.executable, "-m", "vitctl", "train", *flags, "--name", "timed"]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(len(usable_cpus()) - 1)]
    try:
        run = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=True)
    finally:
        for process in busy:
            process.kill()
    stored = json.loads((tmp_path / "runs/timed/config.json").read_text())["config"]
    assert "of the CPU: training with 1 thread" in run.stderr and stored["threads"] == 1
