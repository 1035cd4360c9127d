"""``--max-time``: the number of steps is fixed at the start, and the run is the same as with ``--max-steps``."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import vitctl.cli.app  # noqa: F401
from tests.conftest import TINY, Cli, Clock
from tests.training.test_loop import tiny_session
from tests.training.test_resume import same
from vitctl.config import resolve_config
from vitctl.optim import OPTIMIZERS
from vitctl.tracking.wandb import WandbRun
from vitctl.training import budget, loop, pace, start
from vitctl.training.budget import TimePlan, measure_speed
from vitctl.training.checkpoint import load_checkpoint
from vitctl.training.pace import Speed, fitting_steps, run_seconds
from vitctl.training.session import Session, Tally


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MEASURED_SECONDS", (0.01, 0.01))


@pytest.fixture
def just_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the time limit from the start of the test instead of the test process."""
    monkeypatch.setattr(sys.modules["vitctl.cli.train"], "STARTED", time.monotonic())


def parts(
    val: int | None, test: int, val_split: str = "holdout", tta: str = "none", save_every: str | None = None
) -> Session:
    splits = SimpleNamespace(
        val=None if val is None else SimpleNamespace(index=range(val)),
        test=SimpleNamespace(index=range(test)),
        val_split=val_split,
    )
    config = SimpleNamespace(tta=tta, flips=True, save_every=save_every)
    return cast(Session, SimpleNamespace(steps_per_epoch=100, splits=splits, config=config))


@pytest.mark.parametrize("limit", [None, 40, 100_000])
@pytest.mark.parametrize("seconds", [0.5, 3.0, 12.0, 60.0, 3600.0])
@pytest.mark.parametrize("session", [parts(5000, 10_000), parts(None, 100), parts(10_000, 10_000, "test")])
def test_the_largest_number_of_steps_that_fits_is_chosen(session: Session, seconds: float, limit: int | None) -> None:
    speed = Speed(step=0.1, image=1e-4, save=0.05)
    steps = fitting_steps(session, speed, seconds, limit)
    if steps:
        assert run_seconds(session, speed, steps) <= seconds
    assert steps == limit or run_seconds(session, speed, steps + 1) > seconds


def test_the_time_of_a_run_includes_evaluations_and_checkpoints() -> None:
    speed = Speed(step=2.0, image=0.001, save=0.5, call=0.1)
    assert run_seconds(parts(5000, 10_000), speed, 150) == pytest.approx(300 + 2 * (0.1 + 5 + 1) + 0.1 + 10)
    assert run_seconds(parts(10_000, 10_000, "test"), speed, 150) == pytest.approx(300 + 2 * (0.1 + 10 + 0.5))
    assert run_seconds(parts(None, 10_000, "none", tta="flip"), speed, 150) == pytest.approx(300 + 2 * 0.5 + 0.1 + 20)
    assert run_seconds(parts(None, 10_000, "none"), speed, 150) == pytest.approx(300 + 2 * 0.5 + 0.1 + 10)
    assert run_seconds(parts(None, 10_000, "none", tta="crops"), speed, 150) == pytest.approx(300 + 2 * 0.5 + 0.1 + 60)
    # --tta tests every view, even if plain images were evaluated after the last epoch
    assert run_seconds(parts(10_000, 10_000, "test", "flip"), speed, 150) == pytest.approx(
        300 + 2 * (0.1 + 10 + 0.5) + 0.1 + 20
    )
    assert run_seconds(parts(None, 10, "none", save_every="40"), speed, 150) == pytest.approx(
        300 + 3 * 0.5 + 2 * 0.5 + 0.1 + 0.01
    )
    assert run_seconds(parts(None, 10, "none", save_every="30s"), speed, 150) == pytest.approx(
        300 + 10 * 0.5 + 2 * 0.5 + 0.1 + 0.01
    )


@pytest.mark.parametrize("opt", [name for name in OPTIMIZERS if not name.startswith("timm/")])
def test_measuring_does_not_change_the_session(opt: str, briefly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, real = Clock(), budget.evaluate

    def evaluate(model: Any, subset: Any, *args: Any, **more: Any) -> Any:
        clock.now += 0.01 * len(subset.index)
        return real(model, subset, *args, **more)

    monkeypatch.setattr(budget, "clock", clock)
    monkeypatch.setattr(budget, "evaluate", evaluate)
    measured, fresh = (tiny_session(opt=opt, ema=0.9, epochs=1) for _ in range(2))
    speed = measure_speed(measured, 60)
    assert min(speed.step, speed.save) > 0 and speed.image == pytest.approx(0.01)
    assert same(measured.checkpoint(), fresh.checkpoint())
    for session in (measured, fresh):
        for _ in range(2):
            loop.train_step(session)
    first, second = (
        {key: session.checkpoint()[key] for key in ("model", "ema", "optimizer", "rng")}
        for session in (measured, fresh)
    )
    assert same(first, second)


def test_sums_that_were_not_yet_read_from_the_device_are_dropped(
    briefly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerators are read only every :data:`loop.READ_EVERY` steps."""
    measured, fresh = (tiny_session(epochs=1) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(Tally, "read", lambda *_: None)
        measure_speed(measured, 60)
    for session in (measured, fresh):
        loop.train_step(session)
    sums, expected = (
        (session.progress.seen, session.progress.correct, session.progress.loss_sum) for session in (measured, fresh)
    )
    assert sums == expected and sums[0] > 0


def test_measuring_restores_batchnorm_statistics(briefly: None) -> None:
    measured, fresh = (tiny_session(net="res18:width=8", bs=8, epochs=1) for _ in range(2))
    measure_speed(measured, 60)
    assert same(measured.model.state_dict(), fresh.model.state_dict())


def test_time_for_checkpoints_and_the_fixed_cost_of_evaluations_counts(
    briefly: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    evaluate, save = budget.evaluate, budget.save_checkpoint

    def recording(checkpoint: Any, path: Path) -> None:
        written.append(path)
        save(checkpoint, path)

    clock = Clock()
    monkeypatch.setattr(budget, "clock", clock)
    monkeypatch.setattr(budget, "save_checkpoint", clock.slowed(recording, 0.2))
    monkeypatch.setattr(budget, "evaluate", clock.slowed(evaluate, 0.1))
    session = tiny_session(epochs=None, max_time="20s", limit_train=32, bs=32)
    assert session.steps_per_epoch == 1
    speed = measure_speed(session, 20, tmp_path / "runs")
    assert speed.save >= 0.2 and speed.call >= 0.1
    assert all(path.is_relative_to(tmp_path) for path in written) and list(tmp_path.iterdir()) == []
    assert run_seconds(session, speed, 10) >= 10 * (0.2 + 0.1)


def test_the_schedule_ends_with_the_last_step(briefly: None) -> None:
    session = tiny_session(max_time="1h", epochs=3)
    message = TimePlan(session, time.monotonic()).fit()
    assert session.total_steps == session.config.max_steps == 3 * session.steps_per_epoch
    assert session.lr(session.total_steps - 1) < 0.3 * session.config.lr
    assert f"{session.total_steps} steps (3.00 epochs) fit into --max-time 1h with" in message and "to spare" in message


def test_the_number_of_steps_grows_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "measure_speed", lambda *_: Speed(step=0.5, image=1e-4, save=0.01))
    monkeypatch.setattr(budget, "clock", lambda: 5.0)
    lengths = {}
    for text in ("20s", "1m", "10m"):
        session = tiny_session(max_time=text, epochs=None)
        TimePlan(session, 0.0).fit()  # loading took 5 seconds
        lengths[text] = session.total_steps
    assert 22 <= lengths["20s"] <= 29 and 98 <= lengths["1m"] <= 107 and 1100 <= lengths["10m"] <= 1160


def test_the_startup_time_of_wandb_counts(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = 0.0
    started = time.monotonic()

    def slow(tracker: WandbRun, session: Session) -> None:
        nonlocal late
        late = 12.0

    monkeypatch.setattr(budget, "measure_speed", lambda *_: Speed(step=0.5, image=0.0, save=0.0))
    monkeypatch.setattr(budget, "clock", lambda: started + late)
    monkeypatch.setattr(sys.modules["vitctl.cli.train"], "STARTED", started)
    monkeypatch.setattr(WandbRun, "open", slow)
    monkeypatch.setattr(pace, "REFITS", ())  # this clock does not advance
    steps = {}
    for mode in ("disabled", "offline"):
        late = 0.0
        steps[mode] = cli("train", *TINY, "--max-time", "20s", "--wandb", mode, "--name", mode, "--json").json()["step"]
        stored = json.loads((tmp_path / f"runs/{mode}/config.json").read_text())["config"]
        assert stored["max_steps"] == steps[mode]
    assert 22 <= steps["disabled"] - steps["offline"] <= 32


def test_max_time_and_max_steps_give_the_same_bits(cli: Cli, briefly: None, just_started: None, tmp_path: Path) -> None:
    summary = cli("train", *TINY, "--max-time", "1h", "--epochs", 2, "--name", "timed", "--json").json()
    stored = json.loads((tmp_path / "runs/timed/config.json").read_text())["config"]
    assert stored["max_steps"] == summary["step"] == 8 and stored["max_time"] == "1h"
    cli("train", *TINY, "--max-steps", summary["step"], "--name", "counted")
    timed, counted = (load_checkpoint(tmp_path / f"runs/{name}/checkpoints/last.pt") for name in ("timed", "counted"))
    for key in ("model", "optimizer", "rng", "scheduler"):
        assert same(timed[key], counted[key]), key


def test_resume_keeps_the_number_of_steps(
    cli: Cli, briefly: None, just_started: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("train", *TINY, "--max-time", "1h", "--epochs", 2, "--name", "timed")
    run_folder = tmp_path / "runs/timed"
    steps = json.loads((run_folder / "config.json").read_text())["config"]["max_steps"]
    (run_folder / "summary.json").unlink()

    def never(*args: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(start, "TimePlan", never)
    other = cli("train", "--resume", run_folder, "--max-time", "2h")
    assert other.code == 2 and f"this run has {steps} steps" in other.err and "use --max-steps or --epochs" in other.err
    resumed = cli("train", "--resume", run_folder, "--json").json()
    assert resumed["step"] == steps
    assert cli("train", "--resume", run_folder, "--max-steps", steps + 2, "--json").json()["step"] == steps + 2


@pytest.mark.parametrize("text", ["0", "soon", "-5s", "10x", ""])
def test_an_invalid_time_is_refused(text: str, refused: Callable[..., str]) -> None:
    assert "--max-time" in refused("train", *TINY, f"--max-time={text}")


def test_a_time_too_short_for_one_step_is_refused(refused: Callable[..., str], briefly: None, tmp_path: Path) -> None:
    sentence = refused("train", *TINY, "--max-time", "0.01s")
    assert "--max-time 0.01s is too short" in sentence and re.search(r"hint: use --max-time \d+s or more", sentence)
    assert not (tmp_path / "runs").exists()


def test_max_time_replaces_the_epochs_of_a_recipe() -> None:
    assert resolve_config({"max_time": "1h"}).epochs is None
    assert resolve_config({"max_time": "1h", "epochs": 2}).epochs == 2
    assert resolve_config({"max_time": "1h"}, {"epochs": 7}).epochs is None
    assert resolve_config({"epochs": 2}, {"max_time": "1h"}).max_time is None


def test_a_dry_run_reports_the_fitted_length(cli: Cli, briefly: None) -> None:
    cost = cli("train", *TINY, "--max-time", "1h", "--epochs", 3, "--dry-run", "--json").json()
    assert cost["total_steps"] == 12
