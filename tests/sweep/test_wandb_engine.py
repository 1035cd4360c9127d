"""The W&B engine with W&B's client and a local fake of the service: uploads, and the commands that the agent runs."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.tracking.wandb_server import ENTITY, KEY, WandbServer

FILE = """
method: bayes
name: betas
project: sweeps
metric: {name: val_acc, goal: maximize, impute: worst}
program: train_cifar10.py
command: ["${env}", python3, "${program}", "${args}"]
parameters:
  lr: {min: 1e-4, max: 1e-2, distribution: log_uniform_values}
  opt: {value: adan}
  adan_beta1: {values: [0.01, 0.02]}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Isolate tests from the user's W&B account, and restore the environment that W&B's client changes."""
    for name in [*os.environ]:
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("NETRC", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def service(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """Return a fake W&B service, with the test logged in to its only account."""
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "betas.yaml"
    path.write_text(FILE)
    return path


PROGRAM = """
import sys
from wandb.wandb_agent import Agent
from vitctl.cli import main
Agent.POLL_INTERVAL = 0.2
sys.exit(main())
"""
"""vitctl with a W&B agent that polls every 0.2 s instead of every 5 s."""

Vitctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def vitctl(python: list[str], tmp_path: Path) -> Vitctl:
    """Return a function that runs vitctl in a new process, because W&B's client keeps its login per process."""

    def run(*argv: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*python, "-c", PROGRAM, *map(str, argv)],
            cwd=tmp_path,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def test_create_uploads_parsed_numbers_and_the_train_command(vitctl: Vitctl, service: WandbServer, file: Path) -> None:
    done = vitctl("sweep", "create", file, "--engine", "wandb", "--fixed", "net=cct_2", "--run-cap", 7)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{ENTITY}/sweeps/sweep0\n"
    config = service.sweeps["sweep0"].config
    assert config["command"] == ["${env}", "${interpreter}", "-m", "vitctl", "train", "${args}"]
    assert config["parameters"] == {
        "lr": {"min": 1e-4, "max": 1e-2, "distribution": "log_uniform_values"},
        "opt": {"value": "adan", "distribution": "constant"},
        "adan_beta1": {"values": [0.01, 0.02], "distribution": "categorical"},
        "net": {"value": "cct_2", "distribution": "constant"},
    }
    assert (config["method"], config["name"], config["run_cap"]) == ("bayes", "betas", 7)
    assert config["metric"]["name"] == "val_acc" and config["metric"]["impute"] == "worst"
    assert service.sweeps["sweep0"].fields["projectName"] == "sweeps"
    assert "program and command are ignored" in done.stderr and "impute is ignored" not in done.stderr
    assert KEY not in done.stderr


def test_runs_dir_is_part_of_the_uploaded_command(
    vitctl: Vitctl, service: WandbServer, file: Path, tmp_path: Path
) -> None:
    assert vitctl("sweep", "create", file, "--engine", "wandb", "--runs-dir", "else where").returncode == 0
    command = service.sweeps["sweep0"].config["command"]
    assert command[2:] == ["-m", "vitctl", "train", "--runs-dir", str(tmp_path / "else where"), "${args}"]
    given = vitctl("sweep", "agent", f"{ENTITY}/sweeps/sweep0", "--runs-dir", "else where")
    assert given.returncode == 2 and "--runs-dir cannot change an existing W&B sweep" in given.stderr


@pytest.mark.parametrize(
    ("line", "env", "place"),
    [
        ("", {}, f"{ENTITY}/vitctl"),
        ("", {"WANDB_PROJECT": "mine"}, f"{ENTITY}/mine"),
        ("project: theirs", {"WANDB_PROJECT": "mine"}, f"{ENTITY}/theirs"),
    ],
)
def test_the_id_contains_entity_and_project(
    vitctl: Vitctl, service: WandbServer, file: Path, line: str, env: dict[str, str], place: str
) -> None:
    file.write_text(FILE.replace("project: sweeps", line))
    assert vitctl("sweep", "create", file, "--engine", "wandb", **env).stdout == f"{place}/sweep0\n"


def test_the_project_of_wandbs_settings_file_is_used(
    vitctl: Vitctl, service: WandbServer, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/settings").write_text("[default]\nproject = kept\n")
    file.write_text(FILE.replace("project: sweeps", ""))
    assert vitctl("sweep", "create", file, "--engine", "wandb").stdout == f"{ENTITY}/kept/sweep0\n"


def test_an_api_key_in_netrc_is_used(vitctl: Vitctl, service: WandbServer, file: Path, home: Path) -> None:
    netrc = home / ".netrc"
    netrc.write_text(f"machine {service.url.removeprefix('http://')}\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    done = vitctl("sweep", "create", file, "--engine", "wandb", WANDB_API_KEY="")
    assert done.stdout == f"{ENTITY}/sweeps/sweep0\n", done.stderr


@pytest.mark.slow
def test_the_agent_trains_with_the_proposed_parameters(
    vitctl: Vitctl, service: WandbServer, file: Path, tmp_path: Path
) -> None:
    id = vitctl("sweep", "create", file, "--engine", "wandb").stdout.strip()
    sweep = service.sweeps["sweep0"]
    tiny = dict(zip([str(word).removeprefix("--") for word in TINY[::2]], TINY[1::2], strict=True))
    sweep.trials = [
        {**tiny, "n_epochs": 2, "opt": "adan", "adan_beta1": 0.02, "lr": 1e-3, "compile": False},
        {**tiny, "n_epochs": 1, "opt": "adan", "adan_beta1": 0.01, "lr": 2e-3},
    ]
    done = vitctl("sweep", "agent", id)
    assert done.returncode == 0, done.stderr
    assert [run for run, _ in sweep.given] == ["trial0", "trial1"]
    folders = {json.loads((path / "wandb.json").read_text())["id"]: path for path in (tmp_path / "runs").glob("*cct*")}
    for run, parameters in sweep.given:
        arrived = service.runs[run]
        assert arrived.fields["sweep"] == "sweep0" and arrived.exit_code == 0
        rows = [json.loads(line) for line in (folders[run] / "metrics.jsonl").read_text().splitlines()]
        assert arrived.curve("val_acc") == [(row["epoch"], row["val_acc"]) for row in rows]
        assert len(rows) == parameters["n_epochs"]
        assert arrived.config["lr"] == parameters["lr"]
        assert arrived.config["opt_options"]["beta1"] == parameters["adan_beta1"]


@pytest.mark.slow
def test_parameters_that_flags_cannot_express_are_passed_in_a_file(
    vitctl: Vitctl, service: WandbServer, file: Path
) -> None:
    file.write_text(FILE.replace("opt: {value: adan}", "opt: {value: adan}\n  max_steps: {values: [null, 1]}"))
    id = vitctl("sweep", "create", file, "--engine", "wandb").stdout.strip()
    sweep = service.sweeps["sweep0"]
    assert sweep.config["command"][-2:] == ["--config", "${args_json_file}"]
    tiny = dict(zip([str(word).removeprefix("--") for word in TINY[::2]], TINY[1::2], strict=True))
    sweep.trials = [{**tiny, "epochs": 1, "max_steps": None, "opt": "adan"}]
    assert vitctl("sweep", "agent", id).returncode == 0
    assert service.runs["trial0"].exit_code == 0 and service.runs["trial0"].curve("val_acc")


def test_a_file_selects_the_sweep_created_from_it(vitctl: Vitctl, service: WandbServer, file: Path, home: Path) -> None:
    assert vitctl("sweep", "create", file, "--engine", "wandb", "--run-cap", 7).returncode == 0
    same = vitctl("sweep", "agent", file, "--engine", "wandb", "--run-cap", 7)
    assert same.returncode == 0 and f"sweep {ENTITY}/sweeps/sweep0" in same.stderr, same.stderr
    other = vitctl("sweep", "agent", file, "--engine", "wandb", "--run-cap", 9)
    assert other.returncode == 2 and "--run-cap: 7 -> 9" in other.stderr
    file.write_text(FILE.replace("0.02", "0.03"))
    edited = vitctl("sweep", "agent", file, "--engine", "wandb")
    assert edited.returncode == 2 and "[0.01, 0.02] -> [0.01, 0.03]" in edited.stderr
    new = vitctl("sweep", "agent", file, "--engine", "wandb", "--new")
    assert new.returncode == 0 and list(service.sweeps) == ["sweep0", "sweep1"]


def test_failures_are_errors_without_a_traceback(vitctl: Vitctl, service: WandbServer, file: Path, home: Path) -> None:
    def error(*argv: object, code: int, **env: str) -> str:
        done = vitctl("sweep", *argv, **env)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        message, hint = done.stderr.strip().splitlines()[-2:]
        assert message.startswith("error: ") and hint.startswith("hint: "), done.stderr
        return f"{message}\n{hint}"

    create = ("create", file, "--engine", "wandb")
    no_key = error(*create, code=2, WANDB_API_KEY="")
    assert "not logged in to W&B" in no_key and "wandb login" in no_key and "--engine local" in no_key
    assert "not logged in" in error("agent", f"{ENTITY}/sweeps/sweep0", code=2, WANDB_API_KEY="")
    wrong = error(*create, code=1, WANDB_API_KEY="0" * 40)
    assert "W&B failed" in wrong and "API key" in wrong
    assert "WANDB_BASE_URL is invalid" in error(*create, code=1, WANDB_BASE_URL="nowhere")
    gone = error("agent", f"{ENTITY}/sweeps/nosuch", code=1)
    assert f"{ENTITY}/sweeps/nosuch not found" in gone
    assert "--new needs a sweep file" in error("agent", f"{ENTITY}/sweeps/x", "--new", code=2)
    assert "--run-cap cannot change an existing W&B sweep" in error(
        "agent", f"{ENTITY}/sweeps/x", "--run-cap", 3, code=2
    )
