"""No trial is lost when agents and their child processes are killed at random."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tests.sweep.conftest import sweep_text
from tests.sweep.fake import TRIALS_FAILED, make_sweep
from vitctl.sweep.ledger import FAILURE
from vitctl.sweep.storage import open_storage

SPACE = {
    "lr": {"distribution": "q_log_uniform_values", "min": 1e-4, "max": 2e-3, "q": 1e-4},
    "weight_decay": {"distribution": "q_uniform", "min": 0.0, "max": 0.05, "q": 0.0025},
    "epochs": {"value": 5},
}


def start_agent(
    python: list[str], runs: Path, id: str, storage: str, seconds: float, jobs: int, deadly: float
) -> subprocess.Popen[str]:
    words = [str(runs), id, storage, str(seconds), str(jobs), str(deadly)]
    return subprocess.Popen(
        [*python, "-m", "tests.sweep.fake", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def training(runs: Path) -> dict[int, Path]:
    """Return the ids of processes that train below ``runs``, with their run folders."""
    output = subprocess.run(["ps", "-axwwo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 1) for line in output.splitlines()]
    return {int(pid): Path(args.split()[3]) for pid, args in lines if "fake_trainer.py" in args and str(runs) in args}


@pytest.mark.parametrize(
    ("agents", "trials", "kills"),
    [(2, 6, 3), pytest.param(8, 200, 80, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])],
)
def test_each_parameter_set_ends_exactly_once(
    request: pytest.FixtureRequest, storage: str, tmp_path: Path, agents: int, trials: int, kills: int
) -> None:
    python = request.getfixturevalue("python") if trials < 100 else [sys.executable]
    sweep = make_sweep(
        sweep_text(SPACE, method="bayes", run_cap=trials, early_terminate={"type": "hyperband", "min_iter": 2}),
        tmp_path,
        storage or None,
    )
    rng = random.Random(trials)
    deadly, seconds = (0.05, 0.1) if trials > 100 else (0.1, 0.15)

    def start() -> subprocess.Popen[str]:
        return start_agent(python, tmp_path, sweep.id, storage, seconds, rng.choice([1, 1, 2]), deadly)

    running = [start() for _ in range(agents)]
    ends: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    deadline = time.monotonic() + 1200
    while running:
        assert time.monotonic() < deadline
        time.sleep(rng.uniform(0.05, 0.4))
        if killed.total() < kills and sweep_has_begun(tmp_path):
            children = training(tmp_path)
            if killed["child"] > killed["agent"]:
                kill(rng.choice(running).pid, killed, "agent")
            else:
                # Kill every other child only after its first epoch, so that there is something to resume.
                anywhere = killed["child"] % 2 == 1
                children = [pid for pid, run in children.items() if anywhere or (run / "metrics.jsonl").exists()]
                if children:
                    kill(rng.choice(children), killed, "child")
        for agent in [agent for agent in running if agent.poll() is not None]:
            running.remove(agent)
            out, err = agent.communicate()
            assert "Traceback" not in err, err
            if agent.returncode == 0:
                assert out.strip() == "finished"
            else:  # it was killed, or three trials in a row failed
                assert agent.returncode in (-signal.SIGKILL, TRIALS_FAILED), err
                running.append(start())
            ends["finished" if agent.returncode == 0 else "died"] += 1
    assert killed.total() >= kills and min(killed.values()) >= kills // 3 and ends["finished"] == agents, killed

    study = optuna.load_study(study_name=sweep.id, storage=open_storage(sweep.url))
    everything = study.get_trials()
    states = Counter(trial.state for trial in everything)
    assert set(states) <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    ended = [trial for trial in everything if trial.state != TrialState.FAIL]
    given_up = [trial.user_attrs[FAILURE] for trial in everything if FAILURE in trial.user_attrs]
    assert given_up == []
    assert len(ended) == trials, states
    assert len({tuple(sorted(trial.params.items())) for trial in ended}) == trials
    assert states[TrialState.FAIL] >= 3
    links = Counter(number for trial in ended for number in trial.system_attrs.get("retry_history", ()))
    for trial in everything:
        if trial.state == TrialState.FAIL and len(trial.params) == 2:
            assert FAILURE not in trial.user_attrs
            assert links[trial.number] == 1
    for trial in ended:
        for number in trial.system_attrs.get("retry_history", ()):
            assert everything[number].params == trial.params
    assert sweep.ledger().counts == {
        "complete": states[TrialState.COMPLETE],
        "pruned": states[TrialState.PRUNED],
        "failed": 0,
        "running": 0,
        "waiting": 0,
    }
    starts = [[int(line) for line in path.read_text().split()] for path in tmp_path.glob(f"{sweep.id}-*/starts")]
    assert len(starts) == trials  # one run folder per parameter set, whatever the number of attempts
    assert any(len(begun) > 1 and begun[-1] > 0 for begun in starts)  # resumed instead of restarted
    time.sleep(0.5)
    assert training(tmp_path) == {}


def sweep_has_begun(runs: Path) -> bool:
    return any(runs.glob("*-[0-9][0-9][0-9][0-9]"))


def kill(pid: int, killed: Counter[str], what: str) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        killed[what] += 1
    except ProcessLookupError:
        pass
