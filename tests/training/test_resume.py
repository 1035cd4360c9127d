"""Interrupted runs: a resumed run must be bit-identical to an uninterrupted one, however it was stopped."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY, TINY_NET, Cli
from vitctl.recipes import RECIPES
from vitctl.training.checkpoint import load_checkpoint

TIMES = ("epoch_time", "eval_time", "seconds", "images_per_second", "data_wait", "overhead")
DROPOUT = f"{TINY_NET},dropout=0.1,attn_dropout=0.1,drop_path_rate=0.1"
RUN = [
    *TINY[:2], "--net", DROPOUT, "--size", "8", "--limit-train", "200", "--limit-test", "100", "--bs", "32",
    "--accumulate", "2", "--micro-batch", "16", "--ema", "0.9", "--epochs", "3", "--save-every", "2",
    "--aug", "randaug", "--erase", "0.5", "--mixup", "0.8", "--cutmix", "1", "--mix-off", "0.4", "--seed", "5",
]  # fmt: skip
"""12 steps, 4 per epoch, with everything that has a state or is random."""


def result(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what must be equal: the states in the last checkpoint, and the metrics without times."""
    checkpoint = load_checkpoint(run / "checkpoints" / "last.pt")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    for row in [*rows, *checkpoint["history"]]:
        for key in TIMES:
            row.pop(key, None)
    assert rows == checkpoint["history"]
    states = {key: checkpoint[key] for key in ("model", "ema", "optimizer", "rng", "epoch", "step")}
    return states, rows


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def assert_same(run: Path, reference: Path) -> None:
    (states, rows), (expected_states, expected_rows) = result(run), result(reference)
    assert rows == expected_rows
    for key, value in states.items():
        assert same(value, expected_states[key]), key
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (run, reference))
    assert (ours["test_loss"], ours["test_acc"]) == (theirs["test_loss"], theirs["test_acc"])


@pytest.fixture(scope="module")
def reference(python: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference")
    command = [*python, "-m", "vitctl", "train", *RUN, "--runs-dir", str(folder), "--name", "r"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "r"


def test_the_same_seed_gives_the_same_run_and_another_does_not(cli: Cli, reference: Path, tmp_path: Path) -> None:
    assert cli("train", *RUN, "--name", "again").code == 0
    assert_same(tmp_path / "runs" / "again", reference)
    cli("train", *RUN[:-1], 6, "--name", "other")
    assert result(tmp_path / "runs" / "other")[1] != result(reference)[1]


class Killer:
    """Kills this process with SIGKILL just before or after the ``count``-th call of ``module.name``."""

    def __init__(self, module: Any, name: str, count: int, after: bool) -> None:
        self.real, self.count, self.after = getattr(module, name), count, after
        setattr(module, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count -= 1
        if self.count == 0 and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        value = self.real(*args, **kwargs)
        if self.count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return value


def child(argv: list[str], trap: tuple[str, str, int, bool] | None) -> None:
    """Run vitctl in this process, with a :class:`Killer` if ``trap`` describes one."""
    import importlib

    from vitctl.cli import main

    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if trap is not None:
        module, name, count, after = trap
        Killer(importlib.import_module(module), name, count, after)
    os._exit(main(argv))


TRAPS = [
    (module, name, count, after)
    for module, name, counts in (
        ("os", "rename", (1,)),  # the run folder appears
        ("vitctl.training.loop", "train_step", (1, 3, 4, 7, 12)),
        ("vitctl.training.loop", "evaluate", (1, 2, 3, 4)),
        ("os", "fsync", (2, 4, 6, 9, 14, 17, 25)),
        ("os", "replace", (1, 3, 5, 8, 11, 14)),
        ("os", "link", (1, 3)),
    )
    for count in counts
    for after in (False, True)
]
KILLS = 50
"""Kills that must hit a run. A trap may never be reached, and a random moment may come after the run's end."""


def run_until_done(start: Callable[[list[str], Any], int], run: Path, kills: list[Any]) -> int:
    """Start and resume the run until it succeeds, with one of the kills at each start; return how many hit."""
    hits = 0
    for attempt in range(len(kills) + 3):
        exists = (run / "config.json").exists()
        argv = (
            ["train", "--resume", str(run)]
            if exists
            else ["train", *RUN, "--runs-dir", str(run.parent), "--name", run.name]
        )
        code = start(argv, kills[attempt] if attempt < len(kills) else None)
        hits += code == -signal.SIGKILL
        if code == 0:
            return hits
        assert code == -signal.SIGKILL, code
    raise AssertionError("the run did not end")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_run_killed_at_any_moment_resumes_to_the_same_result(reference: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")  # imports torch only once
    context.set_forkserver_preload(
        ["vitctl.training.start", "vitctl.cli.app", "vitctl.data.digits", "sklearn.datasets"]
    )

    def start(argv: list[str], kill: Any) -> int:
        trap = kill if isinstance(kill, tuple) else None
        process = context.Process(target=child, args=(argv, trap))
        process.start()
        if isinstance(kill, float):
            process.join(kill)
            process.kill()
        process.join(120)
        assert process.exitcode is not None
        return process.exitcode

    assert run_until_done(start, tmp_path / "first", []) == 0  # starts the fork server, outside of the timing
    begin = time.monotonic()
    assert run_until_done(start, tmp_path / "timing", []) == 0
    duration = time.monotonic() - begin
    chance = random.Random(1)
    hits = 0
    for i, trap in enumerate(TRAPS):
        hits += run_until_done(start, tmp_path / f"trap{i}", [trap])
        assert_same(tmp_path / f"trap{i}", reference)
    assert hits >= 40, "too few traps were reached"
    for i in itertools.count():
        if hits >= KILLS:
            break
        assert i < KILLS, "too few random kills hit"
        hits += run_until_done(start, tmp_path / f"random{i}", [chance.uniform(0.01, duration) for _ in range(3)])
        assert_same(tmp_path / f"random{i}", reference)
    leftovers = [path for path in tmp_path.rglob("*.tmp-*") if not path.name.startswith(".")]
    assert not leftovers


def test_a_killed_run_resumes_to_the_same_result(python: list[str], reference: Path, tmp_path: Path) -> None:
    """A quick version of the test above."""
    program = "import json, sys; from tests.training.test_resume import child; child(*json.loads(sys.argv[1]))"

    def start(argv: list[str], trap: Any) -> int:
        return subprocess.run([*python, "-c", program, json.dumps([argv, trap])], check=False).returncode

    assert run_until_done(start, tmp_path / "r", [("vitctl.training.loop", "train_step", 7, False)]) == 1
    assert_same(tmp_path / "r", reference)


LONG = [
    "--dataset", "digits", "--net", DROPOUT, "--size", "8", "--limit-train", "640", "--bs", "16", "--max-steps", "120",
    "--ema", "0.9",
]  # fmt: skip
"""Long enough to be interrupted; without --save-every, so that only the signal causes a save."""


@pytest.fixture(scope="module")
def straight(python: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a long run that was not interrupted."""
    folder = tmp_path_factory.mktemp("long")
    command = [*python, "-m", "vitctl", "train", *LONG, "--runs-dir", str(folder), "--name", "straight"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "straight"


PAUSED = """
import sys
from vitctl.training import loop

take_step, steps = loop.train_step, 0

def train_step(*args, **more):
    global steps
    steps += 1
    if steps == 50:
        print("paused", flush=True)
        sys.stdin.readline()
    return take_step(*args, **more)

loop.train_step = train_step
from vitctl.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""``vitctl``, which waits for a line on stdin before step 50."""


@pytest.fixture
def paused(python: list[str], tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Return a run that waits before step 50."""
    command = [*python, "-c", PAUSED, "train", *LONG, "--runs-dir", str(tmp_path), "--name", "r"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "paused\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2], ids=lambda each: each.name
)
def test_a_signal_saves_a_checkpoint_to_resume_from(
    python: list[str], paused: "subprocess.Popen[str]", straight: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    paused.send_signal(signum)
    time.sleep(0.1)
    if signum != signal.SIGINT:  # a second Ctrl-C quits; see below
        for more in (signum, signal.SIGHUP):
            paused.send_signal(more)
            time.sleep(0.05)
    _, err = paused.communicate("go\n", timeout=60)
    assert paused.returncode == -signum, err
    assert "Traceback" not in err
    assert load_checkpoint(tmp_path / "r" / "checkpoints" / "last.pt")["step"] == 50
    resumed = subprocess.run(
        [*python, "-m", "vitctl", "train", "--resume", str(tmp_path / "r")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_same(tmp_path / "r", straight)


SLOWED = """
import sys, time
from vitctl.training import loop

take_step = loop.train_step

def train_step(*args, **more):
    time.sleep(0.1)
    return take_step(*args, **more)

loop.train_step = train_step
from vitctl.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""``vitctl`` with steps that take a tenth of a second."""


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["terminal", "pipe"])
def test_a_run_whose_messages_lose_their_reader_is_saved(
    python: list[str], straight: Path, tmp_path: Path, reader: str
) -> None:
    reading, writing = os.openpty() if reader == "terminal" else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWED, "train", *LONG, "--runs-dir", str(tmp_path), "--name", "r"],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=writing,
        start_new_session=True,
    )
    os.close(writing)
    shown = b""
    while b"epoch 1/" not in shown:
        shown += os.read(reading, 1000)
    os.close(reading)
    try:
        assert process.wait(timeout=60) == -signal.SIGHUP
    finally:
        process.kill()
    assert 40 <= load_checkpoint(tmp_path / "r" / "checkpoints" / "last.pt")["step"] < 120
    resumed = subprocess.run([*python, "-m", "vitctl", "train", "--resume", str(tmp_path / "r")], check=False)
    assert resumed.returncode == 0
    assert_same(tmp_path / "r", straight)


def test_a_second_signal_quits_immediately(paused: "subprocess.Popen[str]", tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r" / "checkpoints").iterdir()}
    paused.send_signal(signal.SIGINT)
    assert paused.stderr is not None
    assert any("press Ctrl-C again to quit immediately" in line for line in paused.stderr)
    paused.send_signal(signal.SIGINT)
    assert paused.wait(timeout=60) == -signal.SIGINT  # it still waited for stdin
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "r" / "checkpoints").iterdir()} == before


def test_a_finished_run_can_only_be_extended(cli: Cli, tmp_path: Path) -> None:
    first = cli("train", *TINY, "--epochs", 2, "--name", "r", "--json").json()
    again = cli("train", "--resume", "runs/r", "--json")
    assert again.code == 0 and "nothing to resume" in again.err and again.json() == first
    idle = cli("train", "--resume", "runs/r", "--wandb", "offline", "--keep", 1)
    assert "nothing to resume: run runs/r finished at step 8; ignored: --wandb offline\nto extend it:" in idle.err
    assert not (tmp_path / "runs/r/wandb").exists()
    shorter = cli("train", "--resume", "runs/r", "--epochs", 1)
    assert shorter.code == 2
    longer = cli("train", "--resume", "runs/r", "--epochs", 4, "--json")
    assert longer.code == 0 and "the learning rate continues at" in longer.err
    rows = [json.loads(line) for line in (tmp_path / "runs" / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 12, 16] and longer.json()["step"] == 16
    document = json.loads((tmp_path / "runs" / "r" / "config.json").read_text())
    assert document["config"]["epochs"] == 4 and [s["step"] for s in document["sessions"]] == [0, 8]


def test_an_extended_run_reports_what_it_keeps_of_its_recipe(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dataclasses.replace(RECIPES["default"], by_dataset={}, by_epochs={1: {"bs": 64, "aug": "none"}})
    monkeypatch.setitem(RECIPES, "mine", mine)
    argv = [*TINY[: TINY.index("--bs")], "--recipe", "mine"]
    cli("train", *argv, "--epochs", 1, "--name", "r")
    longer = cli("train", "--resume", "runs/r", "--epochs", 2)
    assert "the run keeps --bs 64 and --aug none, which recipe mine sets for 1 epoch" in " ".join(longer.err.split())
    cli("train", *argv, "--epochs", 1, "--aug", "basic", "--name", "s")
    assert "the run keeps --bs 64, which" in " ".join(cli("train", "--resume", "runs/s", "--epochs", 2).err.split())
    assert "the run keeps" not in cli("train", "--resume", "runs/s", "--epochs", 3).err


def test_a_run_can_be_extended_within_an_epoch(cli: Cli, tmp_path: Path) -> None:
    cli("train", *TINY, "--schedule", "constant", "--max-steps", 6, "--name", "r")
    assert cli("train", "--resume", "runs/r", "--max-steps", 10).code == 0
    cli("train", *TINY, "--schedule", "constant", "--max-steps", 10, "--name", "straight")
    straight, extended = (result(tmp_path / "runs" / name) for name in ("straight", "r"))
    assert extended[1][:2] == straight[1][:2] and [row["step"] for row in extended[1]] == [4, 8, 10]
    # The warm-up is a share of the run, so its length differs; after it, the learning rates are the same.


def test_only_resumable_settings_can_change(cli: Cli, refused: Callable[..., str], tmp_path: Path) -> None:
    cli("train", *TINY, "--epochs", 1, "--name", "r")
    refused("train", "--resume", "runs/r", "--lr", 0.5, "--net", "vit", "--epochs", 2)
    same_again = cli("train", "--resume", "runs/r", *TINY, "--epochs", 2, "--micro-batch", 8, "--keep", 0)
    assert same_again.code == 0, same_again.err
    assert "micro_batch 64 -> 8: the last bits of the result may differ" in same_again.err
    assert "threads" in cli("train", "--resume", "runs/r", "--epochs", 3, "--threads", 3).err


def test_a_folder_with_only_its_config_resumes_at_step_0(cli: Cli, tmp_path: Path) -> None:
    cli("train", *TINY, "--epochs", 1, "--name", "straight")
    cli("train", *TINY, "--epochs", 1, "--name", "r")
    for path in (tmp_path / "runs" / "r").rglob("*"):
        if path.is_file() and path.name != "config.json":
            path.unlink()
    assert cli("train", "--resume", "runs/r").code == 0
    assert_same(tmp_path / "runs" / "r", tmp_path / "runs" / "straight")


def test_a_run_with_a_damaged_last_checkpoint_resumes_from_the_previous_one(
    cli: Cli, reference: Path, tmp_path: Path
) -> None:
    cli("train", *RUN, "--name", "r")
    run = tmp_path / "runs" / "r"
    (run / "summary.json").unlink()
    os.truncate(run / "checkpoints" / "last.pt", 1000)
    resumed = cli("train", "--resume", run)
    assert resumed.code == 0 and "using kept-" in resumed.err
    assert_same(run, reference)
