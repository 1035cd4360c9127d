"""Agents, with trials that complete, are pruned, fail or never end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from tests.sweep.conftest import sweep_text
from tests.sweep.fake import fake_trainer, make_sweep, run_agent
from vitctl.errors import RequestError, RunFailed
from vitctl.process.child import TrialRun
from vitctl.sweep import local
from vitctl.sweep.agent import Agent, StorageGone, TrialsFailed
from vitctl.sweep.optuna_parts import WandbPruner
from vitctl.sweep.storage import TrialStorage, diagnose
from vitctl.sweep.sweep import Sweep, SweepPlan, find_sweeps

pytestmark = pytest.mark.usefixtures("forked_trainers")

HOLD = """
import fcntl, os, sys, time
os.makedirs(sys.argv[1], exist_ok=True)
lock = open(sys.argv[1] + "/.lock", "a")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(2)
"""

SPACE = {
    "lr": {"distribution": "q_log_uniform_values", "min": 1e-4, "max": 2e-3, "q": 1e-4},
    "weight_decay": {"distribution": "q_uniform", "min": 0.0, "max": 0.05, "q": 0.005},
    "epochs": {"value": 3},
}


def small(runs: Path, method: str = "random", parameters: Any = SPACE, **more: Any) -> Sweep:
    return make_sweep(sweep_text(parameters, method=method, **more), runs)


def test_run_cap_limits_the_number_of_trials(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=4)
    why, recorder = run_agent(sweep)
    assert why == "finished" and [event[1] for event in recorder.events_of("ended")] == ["complete"] * 4
    rows = sweep.rows()
    assert [(row.trial, row.state, row.epochs, row.attempts) for row in rows] == [
        (n, "complete", 3, 1) for n in range(4)
    ]
    assert all(row.run is not None and (Path(row.run) / "metrics.jsonl").exists() for row in rows)
    assert sweep.best() == sweep.top(1)[0] == max(rows, key=lambda row: row.value or 0)


def test_a_grid_is_searched_once_in_order(tmp_path: Path) -> None:
    sweep = small(tmp_path, "grid", {"lr": {"values": [1e-3, 2e-3]}, "epochs": {"values": [1, 2]}})
    assert run_agent(sweep)[0] == "finished"
    assert [(row.params["epochs"], row.params["lr"]) for row in sweep.rows()] == [
        (1, 1e-3),
        (1, 2e-3),
        (2, 1e-3),
        (2, 2e-3),
    ]


def test_three_failures_in_a_row_end_an_agent_and_can_be_retried(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=3)
    with pytest.raises(TrialsFailed) as failed:
        run_agent(sweep, trainer=fake_trainer(fail=0))
    assert (failed.value.trial, failed.value.failure.kind, failed.value.failure.step) == (2, "not_finite", 1)
    assert [(row.state, row.failure_kind) for row in sweep.rows()] == [("failed", "not_finite")] * 3
    assert str(failed.value.failure.message) in (sweep.folder / "trials" / "0000.log").read_text()
    assert sweep.retry_failed() == [0, 1, 2]
    assert run_agent(sweep)[0] == "finished"
    assert [(row.trial, row.state, row.attempts) for row in sweep.rows()] == [(n, "complete", 2) for n in range(3)]


def test_killed_training_is_retried_while_it_makes_progress(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=1, parameters={**SPACE, "epochs": {"value": 8}})
    for _ in range(2):
        with pytest.raises(TrialsFailed) as failed:
            run_agent(sweep, trainer=fake_trainer(die="end"))
        assert (failed.value.failure.kind, failed.value.failure.exit_code) == ("killed", -signal.SIGKILL)
    assert run_agent(sweep, trainer=fake_trainer(die="end"))[0] == "finished"
    assert [(row.state, row.epochs, row.attempts) for row in sweep.rows()] == [("complete", 8, 9)]


def test_training_killed_repeatedly_in_the_same_epoch_fails(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=1)
    for tries in (6, 12):
        for _ in range(2):
            with pytest.raises(TrialsFailed):
                run_agent(sweep, trainer=fake_trainer(die="begin"), retries=5)
        row = sweep.rows()[0]
        assert row.failure_kind == "killed"
        assert (row.state, row.attempts, row.failure) == ("failed", tries, "killed by SIGKILL 6 times in epoch 1")
        assert sweep.retry_failed() == [0]
    assert run_agent(sweep)[0] == "finished" and sweep.rows()[0].state == "complete"


def test_a_trial_whose_run_folder_is_busy_is_retried(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=1)
    holders: list[subprocess.Popen[bytes]] = []

    def busy_at_first(trial: TrialRun) -> list[str]:
        command = fake_trainer()(trial)
        if not holders:  # another process takes the folder after the agent's check
            holders.append(subprocess.Popen([sys.executable, "-c", HOLD, str(trial.run)], stdout=subprocess.PIPE))
            assert holders[0].stdout is not None and holders[0].stdout.readline() == b"held\n"
        return command

    why, recorder = run_agent(sweep, trainer=busy_at_first)
    holders[0].communicate()
    assert why == "finished"
    assert [(state, bool(why)) for _, state, _, why in recorder.events_of("ended")] == [
        ("released", True),
        ("complete", False),
    ]
    assert [(row.state, row.attempts) for row in sweep.rows()] == [("complete", 2)]


def test_a_trial_that_records_no_metric_fails(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=1)
    run_agent(sweep, trainer=fake_trainer(silent=1))
    assert sweep.rows()[0].failure == "training recorded no val_acc"


def test_a_trial_interrupted_by_max_time_is_resumed(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=1, parameters={**SPACE, "epochs": {"value": 8}})

    def clock() -> float:
        return 9.0 * any(len(path.read_text()) > 100 for path in tmp_path.glob("*-0000/metrics.jsonl"))

    why, recorder = run_agent(sweep, trainer=fake_trainer(seconds=0.3), max_time=2.5, clock=clock)
    assert why == "time" and recorder.events_of("ended")[0][1] == "released"
    assert sweep.ledger().counts["waiting"] == 1
    assert run_agent(sweep)[0] == "finished"
    starts = [int(line) for line in next(tmp_path.glob("*-0000/starts")).read_text().split()]
    assert len(starts) == 2 and 0 < starts[1] < 8
    assert [(row.trial, row.state, row.epochs, row.attempts) for row in sweep.rows()] == [(0, "complete", 8, 2)]


def test_count_limits_the_trials_of_an_agent(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=5)
    assert run_agent(sweep, count=2)[0] == "count"
    assert len(sweep.rows()) == 2


def test_a_stopped_sweep_starts_no_trials_until_resumed(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=1)
    sweep.set_control("stopped")
    assert run_agent(sweep)[0] == "stopped" and not sweep.rows()
    sweep.set_control("running")
    assert run_agent(sweep)[0] == "finished"


def test_enqueued_parameters_are_tried_next_and_only_once(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=2)
    assert sweep.enqueue({"lr": "0.0007", "weight_decay": "0.02"}) == 0
    with pytest.raises(RequestError):  # trial 0 has these parameters
        sweep.enqueue({"lr": "7e-4", "weight_decay": 0.02})
    assert sweep.enqueue({"lr": 1e-3}) == 1
    with pytest.raises(RequestError):  # run_cap is 2
        sweep.enqueue({"lr": 1e-4})
    run_agent(sweep)
    first, second = sweep.rows()
    assert first.params == pytest.approx({"lr": 7e-4, "weight_decay": 0.02})
    assert second.params["lr"] == pytest.approx(1e-3)


def test_a_sweep_ends_when_its_target_is_reached(tmp_path: Path) -> None:
    sweep = small(tmp_path, metric={"name": "val_acc", "goal": "maximize", "target": 1})
    assert run_agent(sweep)[0] == "finished" and len(sweep.rows()) == 1


def test_trials_of_sweeps_of_earlier_versions_hold_out_images_by_position(tmp_path: Path) -> None:
    plan = make_sweep(sweep_text({"lr": {"min": 0.1, "max": 1.0}}), tmp_path).plan
    stored = plan.to_dict()
    assert SweepPlan.from_dict(stored, "here").settings({"lr": 0.1}) == {"lr": 0.1}
    earlier = SweepPlan.from_dict({**stored, "format": 1}, "here")
    assert earlier.settings({"lr": 0.1}) == {"holdout_by": "position", "value_range": "full", "net": "cct_2", "lr": 0.1}
    assert earlier.to_dict()["format"] == 1 and stored["format"] == 3


@pytest.mark.parametrize(
    "settings, net",
    [
        ({}, {"net": "cct_2"}),
        ({"net_options": {"depth": 3}}, {"net": "cct_2", "net_options": {"depth": 3}}),
        (
            {"recipe": "fast", "net_options": {"depth": 3}},
            {"net": "cct_2", "net_options": {"conv_layers": 3, "depth": 3}},
        ),
        ({"recipe": "fast", "max-time": "10m"}, {"net": "cct_4", "net_options": {"conv_layers": 3}}),
        ({"arch": "vit"}, {}),
        ({"patch": 4}, {}),
        ({"recipe": "seed"}, {}),
    ],
)
def test_sweeps_of_earlier_versions_keep_the_networks_of_their_recipes(
    settings: dict[str, Any], net: dict[str, Any], tmp_path: Path
) -> None:
    plan = make_sweep(sweep_text({"lr": {"min": 0.1, "max": 1.0}}), tmp_path).plan
    plan = dataclasses.replace(plan, format=2, fixed=settings)
    assert plan.settings({"lr": 0.1}) == {"lr": 0.1, **settings, **net}


def test_a_deleted_storage_ends_the_agent_with_an_error(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=3)

    def delete_then_train(trial: Any) -> list[str]:
        (sweep.folder / "study.db").unlink()
        return fake_trainer(seconds=3)(trial)

    with pytest.raises(StorageGone):
        run_agent(sweep, trainer=delete_then_train)


def test_a_sweep_ends_when_no_untried_values_are_found(tmp_path: Path) -> None:
    # almost only 2, 3 and 4
    few = {"epochs": {"distribution": "q_normal", "mu": 3, "sigma": 0.3, "q": 1}, "lr": {"value": 1e-3}}
    sweep = make_sweep(sweep_text(few, run_cap=20), tmp_path, format=1)
    assert sweep.left(sweep.ledger()) == 20
    assert run_agent(sweep)[0] == "finished"
    rows = sweep.rows()
    assert 2 <= len(rows) < 10 and {row.state for row in rows} == {"complete"}
    assert len({row.params["epochs"] for row in rows}) == len(rows) and sweep.left(sweep.ledger()) == 0


def test_enqueued_values_without_untried_grid_points_are_refused_or_fail(tmp_path: Path) -> None:
    grid = {"lr": {"values": [1e-3, 2e-3]}, "epochs": {"values": [1, 2]}}
    sweep = small(tmp_path, "grid", grid)
    assert run_agent(sweep, count=2)[0] == "count"  # both learning rates with epochs=1
    with pytest.raises(RequestError):  # both points with epochs=1 were tried
        sweep.enqueue({"epochs": 1})
    sweep.enqueue({"epochs": 2})
    sweep.enqueue({"epochs": 2})
    sweep.enqueue({"lr": 1e-3})  # the two before it use up all points with epochs=2
    why, recorder = run_agent(sweep)
    assert why == "finished"
    assert [row.state for row in sweep.rows()] == ["complete"] * 4 + ["failed"]
    assert "no untried parameter set has these values" in str(recorder.events_of("message"))


def test_a_grid_of_whole_steps_can_start_at_a_fraction(tmp_path: Path) -> None:
    sweep = small(tmp_path, "grid", {"mixup": {"distribution": "q_uniform", "min": 0.2, "max": 2, "q": 1}})
    assert run_agent(sweep)[0] == "finished"
    assert [row.params["mixup"] for row in sweep.rows()] == [0.2, 1.2]


def failing(words: str, times: int, code: int) -> Any:
    """Return a version of ``set_trial_state_values`` whose first calls that end a trial fail."""
    tell = TrialStorage.set_trial_state_values
    left = [times]

    def failing_tell(self: TrialStorage, trial_id: int, state: TrialState, values: Any = None) -> bool:
        if state != TrialState.RUNNING and left[0]:
            left[0] -= 1
            cause = sqlite3.OperationalError(words)
            cause.sqlite_errorcode = code
            raise StorageInternalError(words) from OperationalError("COMMIT", {}, cause)
        return tell(self, trial_id, state, values)

    return failing_tell


def test_a_full_disk_when_a_trial_ends_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = small(tmp_path, run_cap=1)
    with monkeypatch.context() as patch:
        patch.setattr(
            TrialStorage, "set_trial_state_values", failing("database or disk is full", 100, sqlite3.SQLITE_FULL)
        )
        with pytest.raises(RunFailed) as failed:
            run_agent(sweep)
        assert diagnose(failed.value).final
    with contextlib.closing(sqlite3.connect(sweep.folder / "study.db")) as storage, storage:
        storage.execute("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'")  # a heartbeat long overdue
    assert run_agent(sweep)[0] == "finished"
    assert [(row.state, row.epochs) for row in sweep.rows()] == [("complete", 3)]


def test_an_outage_when_a_trial_ends_loses_no_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = small(tmp_path, run_cap=2)
    monkeypatch.setattr(
        TrialStorage, "set_trial_state_values", failing("server closed the connection", 1, sqlite3.SQLITE_BUSY)
    )
    why, recorder = run_agent(sweep, grace=1)
    assert why == "finished" and recorder.events_of("message")
    assert [(row.state, row.epochs) for row in sweep.rows()] == [("complete", 3)] * 2


def test_a_bug_in_the_objective_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr("vitctl.sweep.agent.suggest_value", wrong)
    with pytest.raises(ValueError, match="a fault"):
        run_agent(small(tmp_path, run_cap=1))


def test_a_resumed_trial_is_not_compared_again_at_earlier_bands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []

    def prune(self: WandbPruner, study: Any, trial: Any) -> bool:
        judged.append(len(trial.intermediate_values))
        return False

    monkeypatch.setattr(WandbPruner, "prune", prune)
    parameters = {**SPACE, "epochs": {"value": 8}}
    sweep = small(tmp_path, run_cap=1, parameters=parameters, early_terminate={"type": "hyperband", "min_iter": 2})

    def clock() -> float:
        return 9.0 * (len(judged) >= 2)

    assert run_agent(sweep, trainer=fake_trainer(seconds=0.3), max_time=2.5, clock=clock)[0] == "time"
    before = max(judged)
    assert before >= 2
    judged.clear()
    assert run_agent(sweep, trainer=fake_trainer(seconds=0.1))[0] == "finished"
    assert judged and min(judged) >= before


@pytest.mark.timeout(120)
@pytest.mark.parametrize("exists", [False, True])
def test_an_agent_creates_a_sweep_in_a_given_storage(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    url = f"sqlite:///{tmp_path}/all.db"
    for name in ("a", "b"):
        Path(f"{name}.yaml").write_text(sweep_text(SPACE, method="random", run_cap=1))
    if exists:
        assert cli("sweep", "create", "b.yaml", "--storage", url).code == 0
    monkeypatch.setattr(local, "Agent", functools.partial(Agent, trainer=fake_trainer()))
    first = cli("sweep", "agent", "a.yaml", "--storage", url)
    assert first.code == 0 and ") created: " in first.err
    assert "is finished" in cli("sweep", "agent", "a.yaml", "--storage", url).err
    assert ") created: " in cli("sweep", "agent", "a.yaml", "--storage", url, "--new").err
    assert len(find_sweeps(tmp_path / "runs", url)) == 2 + exists
