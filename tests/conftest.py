"""Fixtures and settings for all tests: one thread, a separate cache, tiny networks."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests import forkserver

# Before torch is imported, and for child processes: contending threads make a busy machine very slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_NET = "cct_2:embed_dim=16,depth=1,num_heads=2,conv_width=8"
TINY = [
    "--dataset",
    "digits",
    "--net",
    TINY_NET,
    "--size",
    "8",
    "--limit-train",
    "200",
    "--limit-test",
    "100",
    "--bs",
    "64",
]
"""Flags of a run that takes about a second, with 4 steps per epoch."""


class Clock:
    """A fake clock that advances only when it is read and when a :meth:`slowed` function is called."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now

    def slowed(self, function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            self.now += seconds
            return function(*args, **more)

        return call


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run tests marked ``serial`` while no other worker runs a test."""
    shared = shared_folder(item.config)
    with open(shared / "turn.lock", "w") as turn, open(shared / "running.lock", "w") as running:
        fcntl.flock(turn, fcntl.LOCK_EX)  # a waiting serial test goes before tests that have not started
        fcntl.flock(running, fcntl.LOCK_EX if item.get_closest_marker("serial") else fcntl.LOCK_SH)
        fcntl.flock(turn, fcntl.LOCK_UN)
        return (yield)


def shared_folder(config: pytest.Config) -> Path:
    """Return the temporary folder that all workers share."""
    own: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(config: pytest.Config, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder shared by all workers; the first worker that needs it fills it."""
    folder = shared_folder(config) / name
    with open(folder.with_suffix(".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock.fileno()).st_size == 0:
            folder.mkdir(exist_ok=True)
            make(folder)
            lock.write("made")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate tests from the user's cache and settings, and from each other's."""
    monkeypatch.setenv("VITCTL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("VITCTL_DEBUG", raising=False)
    # Tests download only from their own servers.
    for name in ("CIFAR", "MNIST", "FASHIONMNIST", "KMNIST", "SVHN", "STL10"):
        monkeypatch.setenv(f"VITCTL_{name}_URL", "http://127.0.0.1:9/closed")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="session")
def python(request: pytest.FixtureRequest) -> list[str]:
    """Return a command that runs programs like ``python``, in a process that has already imported torch.

    All workers share one server.
    """

    def start(folder: Path) -> None:
        controller = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
        serve = f"from tests.forkserver import serve; serve({os.fspath(folder / 's')!r}, {controller})"
        subprocess.run([sys.executable, "-c", serve], cwd=Path(__file__).parents[1], check=True)

    return [sys.executable, "-S", "-I", forkserver.__file__, str(made_once(request.config, "server", start) / "s")]


@pytest.fixture
def forked_runs(python: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the runs of sweeps and comparisons with the ``python`` fixture."""
    from vitctl.process import child

    monkeypatch.setattr(child, "VITCTL", (*python, "-m", "vitctl"))


@pytest.fixture
def real_cifar10() -> Path:
    """Return the folder of the real CIFAR-10, or skip."""
    root = os.environ.get("VITCTL_DATA", "")
    folder = Path(root).expanduser() / "cifar10"
    if not root or not folder.is_dir():
        pytest.skip("needs the real CIFAR-10: set VITCTL_DATA to the folder that holds cifar10/")
    return folder


Cli = Callable[..., "Result"]

built_command = functools.cache(typer.main.get_command)
"""Builds a program's commands once, which takes a tenth of a second."""


class Result:
    """Exit code and output of a command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def json(self) -> Any:
        """Parse stdout as JSON."""
        return json.loads(self.out)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Return a function that runs ``vitctl`` in this process, in the test's temporary folder."""
    import torch

    threads = torch.get_num_threads()
    from vitctl.cli import main

    monkeypatch.setattr(typer.main, "get_command", built_command)
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> Result:
        capfd.readouterr()
        code = main([str(word) for word in argv])
        if "--threads" in argv:  # it sets the threads of the whole process
            torch.set_num_threads(threads)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(cli: Cli) -> Callable[..., str]:
    """Return a function that runs a command, requires an error with at most one hint, and returns both lines."""

    def run(*argv: object, code: int = 2) -> str:
        result = cli(*argv)
        assert result.code == code, result.err
        assert "Traceback" not in result.err
        lines = result.err.strip().splitlines()
        said = lines[-2:] if lines[-1].startswith("hint: ") else lines[-1:]
        assert said[0].startswith("error: ") and not said[0].startswith("error: unexpected "), result.err
        assert result.out == ""
        return "\n".join(said)

    return run


@pytest.fixture(scope="session")
def digits_runs(request: pytest.FixtureRequest) -> Path:
    """Return a read-only folder with two trained runs, which the two fixtures below copy."""

    def train(runs: Path) -> None:
        from vitctl.cli import main

        common = ["train", "--dataset", "digits", "--net", TINY_NET, "--bs", "32", "--runs-dir", str(runs), "--json"]
        assert main([*common, "--size", "8", "--lr", "0.01", "--epochs", "6", "--name", "digits"]) == 0
        assert main([*common, "--size", "12", "--epochs", "1", "--name", "resized"]) == 0

    return made_once(request.config, "trained", train)


@pytest.fixture
def digits_run(digits_runs: Path, tmp_path: Path) -> Path:
    """Return a copy of a run whose network classifies most digits correctly, at their native 8 pixels."""
    return Path(shutil.copytree(digits_runs / "digits", tmp_path / "digits"))


@pytest.fixture
def resized_run(digits_runs: Path, tmp_path: Path) -> Path:
    """Return a copy of a run whose network takes digits resized to 12 pixels."""
    return Path(shutil.copytree(digits_runs / "resized", tmp_path / "resized"))
