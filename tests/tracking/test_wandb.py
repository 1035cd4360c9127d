"""W&B's own client with a service on loopback: data that arrive there, and what failures cost the run."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vitctl
from tests.conftest import TINY, Cli
from tests.tracking.wandb_server import KEY, Run, WandbServer
from tests.training.test_resume import assert_same
from vitctl.cli.progress import ProgressLines
from vitctl.config import resolve_config
from vitctl.errors import Interrupted, RequestError, RunFailed
from vitctl.tracking import wandb
from vitctl.tracking.trackers import Tracked
from vitctl.training.start import resume_run, start_run

RUN = [*TINY, "--epochs", "2"]
SETTINGS = {
    "dataset": "digits", "net": TINY[3], "size": 8, "limit_train": 200, "limit_test": 100, "bs": 64, "epochs": 2,
}  # fmt: skip
LOST_SECONDS = 20
WAITS = wandb.INIT_SECONDS + wandb.FINISH_SECONDS


def saved_seconds() -> float:
    """Return the number of seconds by which a test has shortened the time limits of the client."""
    return WAITS - wandb.INIT_SECONDS - wandb.FINISH_SECONDS


@pytest.fixture(autouse=True)
def own_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Isolate tests from the user's account, settings and caches."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NETRC", raising=False)
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """Return a service with one account, to which this test is logged in."""
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield server


@pytest.fixture(autouse=True)
def forked_client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start W&B's client in a process that has already imported it, except in tests marked slow."""
    if not request.node.get_closest_marker("slow"):
        python: list[str] = request.getfixturevalue("python")
        monkeypatch.setattr(wandb, "COMMAND", (*python, "-P", "-c", wandb.PROGRAM))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow more time for a service that responds, as the machine may be busy."""
    monkeypatch.setattr(wandb, "INIT_SECONDS", 60.0)
    monkeypatch.setattr(wandb, "FINISH_SECONDS", 60.0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run without W&B."""
    runs = tmp_path_factory.mktemp("plain")
    start_run(resolve_config(SETTINGS), runs, "plain", ProgressLines())
    return runs / "plain"


class Watcher(ProgressLines):
    """Stores the messages, and calls a function after each epoch."""

    def __init__(self, then: Callable[[int], None] = lambda epoch: None) -> None:
        super().__init__()
        self.said: list[str] = []
        self._then = then

    def print(self, text: str) -> None:
        self.said.append(text)

    def epoch_done(self, record: dict[str, Any]) -> None:
        self._then(record["epoch"])

    @property
    def warnings(self) -> list[str]:
        """The messages about W&B, without that of its address."""
        return [line for line in self.said if "W&B" in line and not line.startswith("W&B: http")]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_arrived(arrived: Run, folder: Path) -> None:
    """Compare the metrics at the service with those in the run's folder."""
    expected = rows(folder)
    for name in ("train_loss", "train_acc", "val_loss", "val_acc", "lr", "step", "epoch_time", "images_per_second",
                 "data_wait", "seconds"):  # fmt: skip
        assert arrived.curve(name) == [(row["epoch"], row[name]) for row in expected], name
    summary = json.loads((folder / "summary.json").read_text())
    assert arrived.curve("test_acc")[-1] == (summary["epoch"], summary["test_acc"])
    for name in ("val_acc", "best_val_acc", "best_epoch", "test_acc", "test_loss", "params", "epoch"):
        assert arrived.summary[name] == summary[name], name
    steps = [row["_step"] for row in arrived.history]
    assert steps == sorted(set(steps))
    metrics = {node.get("1") or node.get("2"): node for node in arrived.config["_wandb"]["m"]}
    assert metrics.keys() == {"epoch", "*"}
    assert metrics["*"]["5"] == 1  # plotted over the first metric, epoch


def sync(python: list[str], said: str, place: Path, service: WandbServer) -> Run:
    """Run the ``wandb sync`` command at the end of a message, and return the only run that the service then has."""
    program, _, words = said.strip().rpartition(": ")[2].partition(" ")
    assert program == "wandb" and words.startswith("sync ")
    command = f"{shlex.join([*python, '-m', 'wandb'])} {words}"
    environment = {**os.environ, "WANDB_BASE_URL": service.url, "WANDB_API_KEY": KEY}
    subprocess.run(command, shell=True, check=True, capture_output=True, cwd=place, env=environment)
    (arrived,) = service.runs.values()
    return arrived


def assert_keyless(*places: Path | str) -> None:
    """Check that the API key is in no file below the folders, and in none of the texts."""
    files = [file for place in places if isinstance(place, Path) for file in place.rglob("*") if file.is_file()]
    assert any(file.name.endswith(".wandb") for file in files) and any(file.suffix == ".log" for file in files)
    for text in [file.read_bytes() for file in files] + [place.encode() for place in places if isinstance(place, str)]:
        assert KEY.encode() not in text


@pytest.mark.usefixtures("patient")
def test_a_resumed_run_continues_the_same_wandb_run(
    cli: Cli, service: WandbServer, plain: Path, tmp_path: Path, own_account: Path
) -> None:
    first = cli(
        "train", *RUN, "--name", "a", "--wandb=online", "--wandb_project=digits", "--wandb-entity", "tester",
        "--wandb-group", "few", "--wandb-tags", "small, quick", "--wandb-notes", "two epochs", "--json",
    )  # fmt: skip
    assert first.code == 0 and first.json()["epoch"] == 2
    ((id, arrived),) = service.runs.items()
    assert f"W&B: {service.url}/tester/digits/runs/{id}" in first.err and "warning: W&B" not in first.err
    fields = {
        "displayName": "a", "project": "digits", "entity": "tester", "groupName": "few", "notes": "two epochs",
        "tags": ["small", "quick"],
    }  # fmt: skip
    assert {name: arrived.fields[name] for name in fields} == fields
    assert arrived.fields.keys().isdisjoint({"repo", "commit"})  # of a repository around the working folder
    stored = json.loads((tmp_path / "runs/a/config.json").read_text())
    settings = {key: value for key, value in stored["config"].items() if not key.startswith(("wandb", "tensorboard"))}
    # W&B's server omits empty values.
    assert {name: arrived.config.get(name, {}) for name in settings} == settings
    assert arrived.config["vitctl_version"] == vitctl.__version__
    assert arrived.config["git_commit"] == stored["sessions"][0]["git_commit"]
    assert arrived.config["params"] == first.json()["params"]
    assert arrived.exit_code == 0
    assert_arrived(arrived, tmp_path / "runs/a")
    assert_same(tmp_path / "runs/a", plain)

    arrived.exit_code = None
    again = cli("train", "--resume", "runs/a", "--epochs", 3)
    assert again.code == 0 and list(service.runs) == [id]
    assert arrived.exit_code == 0 and arrived.config["epochs"] == 3
    assert_arrived(arrived, tmp_path / "runs/a")
    assert_keyless(tmp_path, own_account, first.out, first.err, again.out, again.err)


def test_offline_runs_can_be_synced_by_wandb(cli: Cli, python: list[str], service: WandbServer, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit")  # the client must not import from the working folder
    first = cli("train", *RUN, "--name", "a", "--wandb", "offline")
    again = cli("train", "--resume", "runs/a", "--epochs", 3)
    assert service.requests == []
    assert first.code == again.code == 0 and "warning: W&B" not in first.err + again.err
    assert_keyless(tmp_path, first.out, first.err)

    assert (
        again.err.strip().splitlines()[-1].startswith("to upload the run to W&B: wandb sync runs/a/wandb/offline-run-")
    )
    assert len(list(tmp_path.glob("runs/a/wandb/offline-run-*"))) == 2
    arrived = sync(python, again.err, tmp_path, service)
    assert arrived.exit_code == 0 and arrived.config["epochs"] == 3
    assert_arrived(arrived, tmp_path / "runs/a")


@pytest.mark.usefixtures("patient")
def test_an_online_run_offers_to_sync_its_offline_sessions(
    cli: Cli, python: list[str], service: WandbServer, tmp_path: Path
) -> None:
    cli("train", *TINY, "--epochs", 1, "--name", "a b", "--wandb", "offline")
    online = cli("train", "--resume", "runs/a b", "--epochs", 2, "--wandb", "online")
    ((id, arrived),) = service.runs.items()
    assert [epoch for epoch, _ in arrived.curve("val_acc")] == [2]
    assert online.err.endswith(f"to upload earlier sessions to W&B: wandb sync 'runs/a b/wandb'/offline-run-*-{id}\n")
    sync(python, online.err, tmp_path, service)
    assert sorted(arrived.curve("val_acc")) == [(row["epoch"], row["val_acc"]) for row in rows(tmp_path / "runs/a b")]
    assert "to upload" not in cli("train", "--resume", "runs/a b", "--epochs", 3).err


def no_key(service: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")


def wrong_key(service: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "z" * 40)


def malformed_key(service: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")


def no_response(service: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "INIT_SECONDS", 2.0)
    service.fall_silent()


def closed_port(service: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free.getsockname()[1]}")


@pytest.mark.serial
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (no_key, "not logged in; run wandb login"),
        (wrong_key, "127.0.0.1:{port} rejects the API key; run wandb login --relogin"),
        pytest.param(malformed_key, "API key must have 40+ characters", marks=pytest.mark.slow),
        (no_response, "127.0.0.1:{port} does not respond"),
        pytest.param(closed_port, "127.0.0.1:{port} does not respond", marks=pytest.mark.slow),
    ],
)
def test_a_failed_login_costs_a_warning_and_a_few_seconds(
    fault: Callable[[WandbServer, pytest.MonkeyPatch], None],
    said: str,
    python: list[str],
    service: WandbServer,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(service, monkeypatch)
    port = os.environ["WANDB_BASE_URL"].rpartition(":")[2]
    watcher = Watcher()
    start = time.monotonic()
    start_run(resolve_config({**SETTINGS, "wandb": "online"}), tmp_path, "a", watcher)
    assert time.monotonic() - start + saved_seconds() < LOST_SECONDS
    assert_same(tmp_path / "a", plain)
    warning, command = watcher.warnings
    assert said.format(port=port) in warning and warning.startswith("warning: W&B: ")
    assert "\nthe run continues offline" in warning
    with WandbServer() as later:
        assert_arrived(sync(python, command, tmp_path, later), tmp_path / "a")
    assert_keyless(tmp_path, *watcher.said)


@pytest.mark.parametrize(("name", "value"), [("WANDB_BASE_URL", "notaurl"), ("WANDB_MODE", "bogus")])
def test_an_invalid_environment_variable_costs_a_warning_that_names_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str, value: str, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, value)
    result = cli("train", *RUN, "--wandb", "online", "--name", "x")
    assert result.code == 0, result.err
    assert f"warning: W&B: {name} is invalid: " in result.err and "the run continues offline" in result.err
    assert list((tmp_path / "runs/x/wandb").glob("offline-run-*"))


@pytest.mark.serial
@pytest.mark.parametrize("how", ["fall_silent", pytest.param("close", marks=pytest.mark.slow)])
def test_a_service_that_fails_during_the_run_costs_a_warning_and_a_few_seconds(
    how: str,
    python: list[str],
    service: WandbServer,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wandb, "FINISH_SECONDS", 2.0)
    watcher = Watcher(lambda epoch: getattr(service, how)() if epoch == 1 else None)
    start = time.monotonic()
    start_run(resolve_config({**SETTINGS, "wandb": "online"}), tmp_path, "a", watcher)
    assert time.monotonic() - start + saved_seconds() < LOST_SECONDS
    assert_same(tmp_path / "a", plain)
    (warning,) = watcher.warnings
    assert "the upload did not finish within 2 s" in warning
    with WandbServer() as later:  # nothing is lost
        assert_arrived(sync(python, warning, tmp_path, later), tmp_path / "a")


@pytest.mark.usefixtures("patient")
def test_a_client_that_dies_costs_a_warning(
    service: WandbServer, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def keep(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = popen(*args, **options)
        if wandb.PROGRAM in args[0]:
            clients.append(process)
        return process

    def kill(epoch: int) -> None:
        if epoch == 1:
            clients[0].kill()
            clients[0].wait()
            for thread in threading.enumerate():
                if thread.name == "wandb reader":
                    thread.join()

    monkeypatch.setattr(subprocess, "Popen", keep)
    watcher = Watcher(kill)
    start_run(resolve_config({**SETTINGS, "wandb": "online"}), tmp_path, "a", watcher)
    (warning,) = watcher.warnings
    assert "the client process ended unexpectedly; the run continues without it" in warning
    assert_same(tmp_path / "a", plain)

    # The missing epochs are sent when the run is resumed.
    resume_run(tmp_path / "a", {"epochs": 3}, Watcher())
    (arrived,) = service.runs.values()
    assert {epoch for epoch, _ in arrived.curve("val_acc")} >= {2, 3}


@pytest.mark.usefixtures("patient")
def test_a_failed_run_is_marked_failed(service: WandbServer, tmp_path: Path) -> None:
    config = resolve_config({**SETTINGS, "wandb": "online", "opt": "sgd", "lr": 1e30, "clip_grad": 0, "warmup": 0})
    with pytest.raises(RunFailed, match="not finite"):
        start_run(config, tmp_path, "a", Watcher())
    (arrived,) = service.runs.values()
    assert arrived.exit_code == 1


@pytest.mark.usefixtures("patient")
def test_an_interrupted_run_is_marked_failed_until_resumed(service: WandbServer, plain: Path, tmp_path: Path) -> None:
    watcher = Watcher(lambda epoch: os.kill(os.getpid(), signal.SIGTERM) if epoch == 1 else None)
    with pytest.raises(Interrupted):
        start_run(resolve_config({**SETTINGS, "wandb": "online"}), tmp_path, "a", watcher)
    (arrived,) = service.runs.values()
    assert arrived.exit_code == 128 + signal.SIGTERM
    resume_run(tmp_path / "a", {}, Watcher())
    assert arrived.exit_code == 0 and len(service.runs) == 1
    assert_arrived(arrived, tmp_path / "a")
    assert_same(tmp_path / "a", plain)


@pytest.mark.slow  # the client polls every 15 seconds
@pytest.mark.usefixtures("patient")
def test_the_stop_button_saves_and_interrupts_the_run(service: WandbServer, tmp_path: Path) -> None:
    def press(epoch: int) -> None:
        service.stop_runs = True

    config = resolve_config({**SETTINGS, "wandb": "online", "epochs": 100_000})
    with pytest.raises(Interrupted, match="checkpoint saved"):
        start_run(config, tmp_path, "a", Watcher(press))


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_a_killed_run_is_marked_failed(service: WandbServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitctl", "train", *TINY, "--epochs", "100000", "--wandb", "online"]
    with subprocess.Popen([*command, "--runs-dir", str(tmp_path)], stderr=subprocess.PIPE, text=True) as trainer:
        assert trainer.stderr is not None
        while "epoch 2/" not in trainer.stderr.readline():
            assert trainer.poll() is None
        trainer.kill()
    deadline = time.monotonic() + LOST_SECONDS
    (arrived,) = service.runs.values()
    while arrived.exit_code is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert arrived.exit_code == 1


@pytest.mark.usefixtures("patient")
def test_a_trial_of_a_wandb_sweep_uses_the_run_id_of_the_agent(
    cli: Cli, service: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text("wandb_version: 1\nlr:\n  value: 0.01\n")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_RUN_ID", "trial123")
    monkeypatch.setenv("WANDB_PROJECT", "sweeps")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", str(parameters))
    result = cli("train", *TINY, "--epochs", 1, "--lr=0.01", "--name", "a")
    assert result.code == 0 and "warning: W&B" not in result.err
    arrived = service.runs["trial123"]
    assert (arrived.fields["sweep"], arrived.fields["project"]) == ("sweep123", "sweeps")
    assert arrived.config["lr"] == 0.01 and arrived.summary["val_acc"] == rows(tmp_path / "runs/a")[0]["val_acc"]
    assert cli("train", *TINY, "--epochs", 1, "--nowandb").code == 0
    assert len(service.runs) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--wandb", "onlin"], "did you mean online"),
        (["--wandb-project", "p"], "--wandb-project 'p' does nothing with --wandb disabled"),
        (["--nowandb", "--wandb-tags", "a"], "--wandb-tags 'a' does nothing"),
        (["--nowandb", "--wandb", "offline"], "--nowandb means --wandb disabled"),
        (["--wandb", "offline", "--wandb-project", "a/b"], "W&B does not allow: /"),
        (["--wandb", "offline", "--wandb-entity", "a?"], "W&B does not allow: ?"),
        (["--wandb", "offline", "--wandb-project", "p" * 129], "129 characters"),
        (["--wandb", "offline", "--wandb-tags", "a,,b"], "the tag '' has 0 characters"),
        (["--wandb", "offline", "--wandb-tags", "t" * 65], "has 65"),
        (["--wandb", "offline", "--wandb-notes", ""], "--wandb-notes is empty"),
        (["--wandb", "offline", "--lr-finder"], "--wandb does nothing with"),
    ],
)
def test_bad_flags_are_refused_before_the_run_starts(flags: list[str], said: str, refused: Callable[..., str]) -> None:
    assert said in refused("train", *TINY, *flags)


def test_wandb_is_disabled_by_default_except_under_a_sweep_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_config({}).wandb == "disabled"
    monkeypatch.setenv("WANDB_SWEEP_ID", "x")
    assert resolve_config({}).wandb == "online"
    assert resolve_config({"wandb": "offline"}).wandb == "offline"


def test_a_project_in_a_file_may_be_unused() -> None:
    assert resolve_config({"wandb": "disabled"}, {"wandb_project": "p"}).wandb_project == "p"
    with pytest.raises(RequestError, match="does nothing"):
        resolve_config({"wandb_project": "p"}, {"wandb": "disabled"})


def test_another_project_gets_a_new_wandb_run(cli: Cli, tmp_path: Path) -> None:
    cli("train", *TINY, "--epochs", 1, "--name", "a", "--wandb", "offline")
    before = json.loads((tmp_path / "runs/a" / wandb.STATE).read_text())
    (tmp_path / "runs/a/summary.json").unlink()
    cli("train", "--resume", "runs/a", "--wandb-project", "other")
    after = json.loads((tmp_path / "runs/a" / wandb.STATE).read_text())
    assert after["id"] != before["id"] and after["epoch"] == before["epoch"] == 1


class Breaking:
    """A tracker whose method ``at`` fails."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: object) -> None:
            self.calls.append(name)
            if name == self.at:
                raise ZeroDivisionError("of no use")

        return call


@pytest.mark.parametrize("at", ["open", "started", "epoch_done", "finished", "close"])
def test_a_tracker_that_fails_is_dropped_with_a_warning(at: str) -> None:
    watcher, broken, sound = Watcher(), Breaking(at), Breaking("")
    both = Tracked(watcher, {"broken": broken, "sound": sound})  # type: ignore[dict-item]
    both._observer.started = lambda *_: None  # type: ignore[method-assign]
    both.open(None)  # type: ignore[arg-type]
    both.started(None)  # type: ignore[arg-type]
    for epoch in (1, 2):
        both.epoch_done({"epoch": epoch})
    both.finished({})
    both.close(0)
    assert watcher.said == ["warning: broken: ZeroDivisionError: of no use\nthe run continues without broken"]
    assert sound.calls == ["open", "started", "epoch_done", "epoch_done", "finished", "close"]
    assert broken.calls.count(at) == (2 if at == "close" else 1) and broken.calls[-1] == "close"
