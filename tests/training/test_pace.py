"""``--max-time`` is kept when the machine changes speed, and a run with refits is repeated and resumed to the bit."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitctl.cli.app  # noqa: F401
from tests.conftest import TINY, Cli, Clock
from tests.training.test_loop import tiny_session
from tests.training.test_resume import same
from vitctl.config import TrainConfig, read_settings, resolve_config
from vitctl.cpus import usable_cpus
from vitctl.training import budget, loop, start
from vitctl.training.budget import CLOSING_SECONDS, TimePlan
from vitctl.training.checkpoint import load_checkpoint
from vitctl.training.pace import Speed, final_test_seconds, training_seconds
from vitctl.training.run_folder import RunFolder
from vitctl.training.session import Session, mixed_steps
from vitctl.training.start import changed_config

Refused = Callable[..., str]

SPEED = Speed(step=0.05, image=1e-3, save=0.02)


class Machine:
    """A clock that a simulated run advances, on a machine whose speed changes.

    Args:
        changes: pairs of a time in seconds and the factor by which everything takes longer from then on.
    """

    def __init__(self, *changes: tuple[float, float]) -> None:
        self.now, self.changes = 0.0, changes

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        factor = 1.0
        for since, slower in self.changes:
            factor = slower if self.now >= since else factor
        self.now += factor * seconds


def simulated(machine: Machine, budget_seconds: int, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Session:
    """Simulate a run whose start takes 6 seconds, and return its session."""
    monkeypatch.setattr(budget, "clock", machine)
    monkeypatch.setattr(budget, "measure_speed", lambda *_: SPEED)
    session = tiny_session(epochs=None, max_time=f"{budget_seconds}s", **more)
    machine.now = 6.0
    plan = TimePlan(session, 0.0)
    plan.fit()
    pace, progress, said = plan.pace(), session.progress, []
    written: list[TrainConfig] = []

    class Folder:
        def write_config(self, config: TrainConfig) -> None:
            assert session.config != config  # it is written before it takes effect
            written.append(config)

    while progress.step < session.total_steps:
        machine.work(SPEED.step)
        progress.step += 1
        progress.step_in_epoch += 1
        lr = session.lr(progress.step)
        if pace.due():
            pace.refit(Folder(), said.append)  # type: ignore[arg-type]
            assert session.lr(progress.step) == lr
        if progress.step_in_epoch == session.steps_in_epoch:
            machine.work(training_seconds(session, SPEED, 0, 1))
            progress.epoch += 1
            progress.step_in_epoch = 0
    machine.work(final_test_seconds(session, SPEED))
    assert len(said) == len(written) <= 2 and all(len(line) <= 100 for line in said)
    if written:
        assert written[-1] == session.config and session.config.refits is not None
        assert session.config.refits[-1][1] == session.total_steps
    assert session.lr(session.total_steps) == pytest.approx(0, abs=1e-9)
    return session


@pytest.mark.parametrize("seconds", [30, 600])
@pytest.mark.parametrize("when", [0.0, 1 / 3, 0.5, 2 / 3])
@pytest.mark.parametrize("slower", [1.25, 1 / 1.25, 0.5, 2.0])
def test_a_run_ends_in_time_on_a_machine_that_changes_speed(
    seconds: int, when: float, slower: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine((when * seconds, slower))
    session = simulated(machine, seconds, monkeypatch, bs=8)
    assert 0.94 * seconds <= machine.now + CLOSING_SECONDS <= 1.01 * seconds
    assert session.config.refits


@pytest.mark.parametrize(
    "more", [{"bs": 8}, {"bs": 200}, {"val": "none"}, {"tta": "flip", "flip": "on"}, {"val": "test"}]
)
def test_a_machine_that_keeps_its_speed_needs_no_refit(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine((20.0, 1.01))
    assert simulated(machine, 60, monkeypatch, **more).config.refits == []
    assert 0.94 * 60 <= machine.now + CLOSING_SECONDS <= 60


def test_epochs_limit_a_faster_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "clock", machine := Machine((0.0, 0.1)))
    monkeypatch.setattr(budget, "measure_speed", lambda *_: SPEED)
    session = tiny_session(epochs=3, max_time="60s")
    plan = TimePlan(session, 0.0)
    plan.fit()
    pace = plan.pace()
    for step in range(1, 13):
        session.progress.step = step
        session.progress.epoch = step // session.steps_per_epoch
        machine.work(SPEED.step)
        if pace.due():
            pace.refit(None, print)  # type: ignore[arg-type]  # nothing is written
    assert session.total_steps == 12 and session.config.refits == []


def test_a_refit_moves_the_end_of_mixing_unless_it_has_passed() -> None:
    config = resolve_config({"epochs": None, "max_steps": 100, "mixup": 0.8, "mix_off": 0.4})
    for refits, end in (
        ([], 60), ([[40, 150]], 90), ([[40, 50]], 40), ([[70, 150]], 60), ([[40, 150], [95, 200]], 90), ([[20, 80], [40, 200]], 120),
    ):  # fmt: skip
        assert mixed_steps(dataclasses.replace(config, refits=refits), 100) == end


# Whole runs


@pytest.fixture
def slowing(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the clock: a step takes half a second, and twice as long after 8 steps."""
    clock = Clock()
    step = loop.train_step

    def train_step(session: Session) -> None:
        step(session)
        clock.now += 0.5 if session.progress.step <= 8 else 1.0

    monkeypatch.setattr(budget, "clock", clock)
    monkeypatch.setattr(budget, "measure_speed", lambda *_: Speed(step=0.5, image=0.0, save=0.0))
    monkeypatch.setattr(loop, "train_step", train_step)
    monkeypatch.setattr(sys.modules["vitctl.cli.train"], "STARTED", 0.0)
    return clock


FLAGS = [*TINY, "--max-time", "15s", "--save-every", "5", "--mixup", "0.8", "--mix-off", "0.4", "--schedule", "cosine"]


def settings(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "config.json").read_text())["config"])


def assert_equal_runs(one: Path, other: Path) -> None:
    first, second = (load_checkpoint(run / "checkpoints/last.pt") for run in (one, other))
    for key in ("model", "optimizer", "rng", "scheduler", "step"):
        assert same(first[key], second[key]), key
    rates = [[json.loads(line)["lr"] for line in (run / "metrics.jsonl").open()] for run in (one, other)]
    assert rates[0] == rates[1]


class Killed(BaseException):
    """Ends a run as a kill does: nothing more is written."""


def test_a_run_with_refits_is_repeated_to_the_bit(
    cli: Cli, slowing: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = cli("train", *FLAGS, "--name", "timed", "--json")
    stored = settings(tmp_path / "runs/timed")
    assert 1 <= len(stored["refits"]) <= 2 and 26 < stored["max_steps"] <= 30
    assert result.json()["step"] == stored["refits"][-1][1] < 22
    assert re.search(r"images/s now: \d+ steps, not \d+, fit into --max-time 15s", result.err)
    assert 0.94 * 15 <= slowing.now + CLOSING_SECONDS <= 1.01 * 15
    monkeypatch.setattr(start, "TimePlan", None)  # a known length is not planned
    cli("train", "--config", "runs/timed", "--name", "again")
    assert_equal_runs(tmp_path / "runs/timed", tmp_path / "runs/again")
    printed = cli("train", "--config", "runs/timed", "--print-config").out
    (tmp_path / "timed.yaml").write_text(printed)
    assert read_settings(tmp_path / "timed.yaml")["refits"] == stored["refits"]


@pytest.mark.parametrize("kill", ["before the refit is written", "before it takes effect", "after it", "in the test"])
def test_a_killed_run_replays_its_refits(
    kill: str, cli: Cli, slowing: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any, **more: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        if kill == "before the refit is written":
            patch.setattr(RunFolder, "write_config", killed)
        elif kill == "before it takes effect":
            patch.setattr(Session, "refit", killed)
        elif kill == "in the test":
            patch.setattr(loop, "final_evaluations", killed)
        else:
            refit = Session.refit
            patch.setattr(Session, "refit", lambda self, config: (refit(self, config), killed()))
        with pytest.raises(Killed):
            cli("train", *FLAGS, "--name", "killed")
    refits = settings(tmp_path / "runs/killed")["refits"]
    assert bool(refits) == (kill != "before the refit is written")
    cli("train", "--config", "runs/killed", "--name", "reference")
    monkeypatch.setattr(start, "TimePlan", None)
    resumed = cli("train", "--resume", "runs/killed", "--json").json()
    assert settings(tmp_path / "runs/killed")["refits"] == refits
    assert resumed["step"] == (refits[-1][1] if refits else settings(tmp_path / "runs/killed")["max_steps"])
    assert_equal_runs(tmp_path / "runs/killed", tmp_path / "runs/reference")


def test_an_extended_run_has_no_refits(cli: Cli, slowing: Clock, tmp_path: Path) -> None:
    steps = cli("train", *FLAGS, "--name", "timed", "--json").json()["step"]
    run = tmp_path / "runs/timed"
    refused = cli("train", "--resume", run, "--max-time", "1h")
    assert refused.code == 2 and f"this run has {steps} steps" in refused.err
    same_length = cli("train", "--resume", run, "--max-steps", steps)
    assert "nothing to resume" in same_length.err and settings(run)["refits"]
    extended = cli("train", "--resume", run, "--epochs", 9, "--json")
    assert extended.json()["step"] == 36 and settings(run)["refits"] is None
    assert "the learning rate continues at" in extended.err and ", not at 0" in extended.err
    stored = TrainConfig.from_dict(
        {**settings(run), "max_time": "15s", "epochs": None, "max_steps": 30, "refits": [[9, 20]]}
    )
    for changes in ({"epochs": 5}, {"max_steps": 30}, {"epochs": 5, "max_steps": 30}):
        assert changed_config(stored, changes).refits is None
    assert changed_config(stored, {"max_steps": 20}) == stored


def test_other_settings_are_fitted_again() -> None:
    file = {"max_time": "60s", "max_steps": 90, "refits": [[30, 70]], "threads": 1}
    for flags, kept in (({}, True), ({"device": "cpu"}, True), ({"seed": 1}, False), ({"max_time": "60s"}, False)):
        config = resolve_config(flags, file)
        assert (config.max_steps, config.refits) == ((90, [[30, 70]]) if kept else (None, None))
        assert config.max_time == "60s"


@pytest.mark.slow
@pytest.mark.serial
def test_a_run_ends_in_time_beside_processes_that_take_the_cpu_from_a_third_on(tmp_path: Path) -> None:
    limit = 45
    command = [sys.executable, "-m", "vitctl", "train", *TINY, "--bs", "8", "--threads", "1", "--name", "timed"]
    busy: list[subprocess.Popen[bytes]] = []
    started = time.monotonic()
    run = subprocess.Popen([*command, "--max-time", f"{limit}s"], cwd=tmp_path, env=clean_environment())
    try:
        time.sleep(limit / 3)
        busy += [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in usable_cpus()]
        assert run.wait(2 * limit) == 0
        seconds = time.monotonic() - started
    finally:
        for process in busy:
            process.kill()
        run.kill()
    assert settings(tmp_path / "runs/timed")["refits"]
    assert 0.94 * limit <= seconds <= 1.01 * limit


def clean_environment() -> dict[str, str]:
    """Return the environment without the number of threads that the tests set."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {"PYTHONPATH": path}


@pytest.mark.parametrize(
    "text",
    ["3", "[3]", "[[3]]", "[[3, x]]", "[[9, 5]]", "[[0, 5]]", "[[5, 9], [4, 9]]", "[[2, 9], [9, 12]]", "[[8, 9]]"],
)
def test_impossible_refits_are_refused(text: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"max_steps: 8\nrefits: {text}\n")
    assert "refits" in refused("train", "--config", "run.yaml", "--print-config")
