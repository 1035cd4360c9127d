"""The examination as a whole: planted faults, aborts, the report, and what costs speed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import Cli
from tests.doctor.test_checks import in_fp32, one_percent
from vitctl.devices.faults import FAULTS
from vitctl.doctor import checks, examine, round_trip, speed, system
from vitctl.doctor.checks import CHECKS, Check
from vitctl.doctor.children import Children, Ended
from vitctl.doctor.examine import CheckOutcome, Examination

LINEAR = "linear, 32,766 tokens"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examine with few checks and without the round, in processes that have this one's planted faults."""
    monkeypatch.setattr(examine, "Children", lambda: Children("fork"))
    monkeypatch.setattr(examine, "training_round", lambda device, children, observer: [])
    few = {name: CHECKS[name] for name in ("copies", LINEAR, "LayerNorm", "step in fp16")}
    for module in (checks, examine):
        monkeypatch.setattr(module, "CHECKS", few)


@pytest.mark.usefixtures("quick")
def test_a_correct_machine_exits_with_0(cli: Cli) -> None:
    done = cli("doctor", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    document = done.json()
    assert document.keys() == {"ok", "off", "device", "system", "faults", "checks", "speed", "processes", "seconds"}
    assert document["ok"] and document["device"] == "cpu" and document["off"] == []
    assert {each["name"]: each["state"] for each in document["checks"]}.items() >= {
        ("copies", "correct"),
        (LINEAR, "correct"),
        ("LayerNorm", "correct"),
    }
    assert [fault["key"] for fault in document["faults"]] == [fault.key for fault in FAULTS]
    assert {fault["affects"] for fault in document["faults"]} == {"no"}
    assert {
        "vitctl",
        "torch",
        "python",
        "cpu",
        "cpus",
        "threads",
        "memory",
        "environment",
        "w&b login",
        "data sets",
    } <= (document["system"].keys())


@pytest.mark.usefixtures("quick")
def test_a_perturbed_linear_kernel_exits_with_1_and_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "linear", in_fp32(F.linear, one_percent))
    done = cli("doctor", "--device", "cpu")
    assert done.code == 1
    assert done.err.splitlines()[-2:] == [
        f"error: cpu does not train correctly: {LINEAR}",
        "hint: reinstall torch, and report the output of vitctl doctor if that does not help",
    ]
    (row,) = [line for line in done.out.splitlines() if line.startswith(LINEAR)]
    assert "wrong" in row and "output: 1.0e-02, more than 0.0001" in row
    assert sum("correct" in line for line in done.out.splitlines()) >= 2  # the others


@pytest.mark.usefixtures("quick")
def test_an_abort_is_reported_and_the_others_go_ahead(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def abort(device: torch.device) -> list[checks.Difference]:
        os.abort()

    def hang(device: torch.device) -> list[checks.Difference]:
        while True:
            pass

    few = {
        "aborting": Check(run=abort),
        "hanging": Check(run=hang, seconds=0.3),
        "copies": CHECKS["copies"],
    }
    for module in (checks, examine):
        monkeypatch.setattr(module, "CHECKS", few)
    done = cli("doctor", "--device", "cpu", "--json")
    assert done.code == 1 and "error: cpu does not train correctly: aborting; hanging" in done.err
    states = {each["name"]: (each["state"], each["detail"]) for each in done.json()["checks"]}
    assert states == {
        "aborting": ("aborted", "ended by SIGABRT"),
        "hanging": ("timed out", "no result after 0.3 s"),
        "copies": ("correct", ""),
    }


@pytest.mark.usefixtures("quick")
def test_a_missing_device_is_refused(refused: Callable[..., str]) -> None:
    assert refused("doctor", "--device", "mps") == (
        "error: --device mps is not available on this machine\nhint: use --device cpu"
    )


def mps(version: str, *outcomes: CheckOutcome) -> Examination:
    return Examination("mps", version, {"torch": version}, outcomes, [], "forkserver", 1.0)


def test_a_fault_that_vitctl_avoids_is_shown_and_not_an_error() -> None:
    avoided = CheckOutcome(
        name="convolution and pooling, channels-last", state="aborted", fault="channels-last", avoided=True
    )
    found = mps("2.14.1", avoided)
    fault = next(each for each in FAULTS if each.key == "channels-last")
    assert (found.affects(fault), found.seen(fault), found.error()) == ("yes", "aborted", None)
    wrong = mps("2.14.1", dataclasses.replace(avoided, avoided=False), CheckOutcome(name="LayerNorm", state="correct"))
    error = wrong.error()
    assert error is not None and error.hint is not None
    assert error.message == "mps does not train correctly: convolution and pooling, channels-last"
    assert error.hint.startswith("use --device cpu")
    assert mps("9.0.0").affects(fault) == "unknown"


def test_checks_of_faults_count_where_the_device_does_not_have_them() -> None:
    class Returning(Children):
        def run(self, function: Any, *args: Any, limit: float) -> Any:
            return Ended([checks.Difference("output", 1.0, 1e-4)], "", "returned", 0.1)

    def result(device: str, version: str) -> CheckOutcome:
        return examine.check(
            "convolution and pooling, channels-last", device, version, Returning("fork"), examine.SILENT
        )

    assert result("cpu", "2.14.1").off and result("cuda:0", "2.14.1").off
    assert not result("mps", "2.14.1").off and not result("mps", "9.0.0").off


def test_new_interpreters_are_used_where_a_forked_process_cannot_use_the_device() -> None:
    class Crashing(Children):
        def run(self, function: Any, *args: Any, limit: float) -> Any:
            return Ended(None, "ended by SIGSEGV", "aborted", 0.1)

    assert examine.usable(Crashing("fork"), "mps").method == "spawn"
    assert examine.usable(Crashing("fork"), "cpu").method == "fork"


@pytest.mark.parametrize("device", ["cpu"])
def test_the_round_trains_resumes_and_finds_other_weights(device: str, tmp_path: Path) -> None:
    children = Children("fork")

    def part(function: Any, *args: str) -> Ended[Any]:
        return children.run(function, str(tmp_path), *args, limit=100)

    assert not part(round_trip.train, "whole", device).value[0].wrong
    assert part(round_trip.train_until_killed, "killed", device).reason.startswith("ended by SIGKILL")
    assert not (tmp_path / "killed" / "summary.json").exists()
    (resumed,) = part(round_trip.resume, "killed", "whole", device).value
    assert (resumed.value, resumed.wrong) == (0.0, False)


def test_a_round_that_cannot_train_ends_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_trip, "train", lambda *_: 1 / 0)
    (outcome,) = examine.training_round("cpu", Children("fork"), examine.SILENT)
    assert (outcome.name, outcome.state) == ("training on digits", "failed") and "ZeroDivisionError" in outcome.detail


@pytest.mark.parametrize(
    ("environment", "cpus", "threads", "what"),
    [
        ({"OMP_NUM_THREADS": "8"}, 2, 8, "OMP_NUM_THREADS=8 exceeds the 2 CPUs of this process"),
        ({"MKL_NUM_THREADS": "8"}, 1, 8, "MKL_NUM_THREADS=8 exceeds the 1 CPU of this process"),
        ({"OMP_NUM_THREADS": "1"}, 16, 1, "OMP_NUM_THREADS=1 uses 1 of 16 CPUs"),
        ({}, 2, 8, None),  # lowered in training
        ({}, 16, 8, None),  # one per core
        ({"OMP_NUM_THREADS": "2"}, 2, 2, None),
    ],
)
def test_thread_settings_are_judged(environment: dict[str, str], cpus: int, threads: int, what: str | None) -> None:
    assert [each.what for each in speed.thread_brakes(environment, cpus, threads)] == ([what] if what else [])


def test_slow_and_read_only_disks_are_named(tmp_path: Path) -> None:
    assert speed.disk_brakes(tmp_path, 1e9) == []
    assert "is written at only 3 MB/s" in speed.disk_brakes(tmp_path, 3e6)[0].what
    assert "cannot be written" in speed.disk_brakes(tmp_path, None)[0].what
    measured = speed.disk_speed(tmp_path / "missing" / "folder")
    assert measured is not None and measured > 0


def test_a_faster_cpu_is_named() -> None:
    (brake,) = speed.slower_than_cpu("cct_2", "mps", 100.0, 250.0)
    assert (brake.what, brake.remedy) == (
        "the CPU trains cct_2 2.5 times as fast as mps",
        "use --device cpu with --net cct_2",
    )
    assert speed.slower_than_cpu("cct_2", "mps", 250.0, 100.0) == []
    assert speed.slower_than_cpu("cct_2", "mps", None, 100.0) == []


def test_the_description_has_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("VITCTL_CIFAR_URL", "http://me:word@host/folder")
    monkeypatch.setenv("VITCTL_DATA", str(tmp_path / "data"))
    text = json.dumps(system.describe("cpu"))
    assert "0123456789abcdef" not in text and ":word@" not in text and str(tmp_path) not in text
    assert "WANDB_API_KEY=***" in text and "VITCTL_DATA=~/data" in text


def test_a_login_is_found_without_reading_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not system.logged_in()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    assert system.logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not system.logged_in()


def test_data_sets_are_found_where_training_finds_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITCTL_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_data_dir", lambda name: str(tmp_path / "none"))
    assert system.data_sets() == ["digits: built in"]
    batches = tmp_path / "cifar10" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    (batches / "data_batch_1").write_bytes(b"")
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{part}-ubyte").write_bytes(b"")
    assert system.data_sets() == ["digits: built in", f"cifar10: {batches}", f"mnist: {raw}"]


@pytest.mark.slow
def test_this_machine_passes_with_the_real_server(python: list[str], tmp_path: Path) -> None:
    command = [*python, "-m", "vitctl", "doctor", "--device", "cpu", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["processes"] == "forkserver"
    assert {each["state"] for each in document["checks"]} <= {"correct", "not used"}
    assert len(document["checks"]) == len(CHECKS) + 3
