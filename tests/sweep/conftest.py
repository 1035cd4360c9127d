"""Fixtures of the sweep tests."""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import alembic.util
import pytest

from vitctl.sweep.file import SweepFile, parse_sweep_file

FIXTURES = Path(__file__).parent / "fixtures"
SHIPPED = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))


def fixture(name: str) -> Any:
    """Load a JSON file made with W&B's ``sweeps`` package; see fixtures/make.py."""
    return json.loads((FIXTURES / name).read_text())


def sweep_text(parameters: Any, method: str = "random", **more: Any) -> str:
    """Return the text of a sweep file, as JSON, which is valid YAML."""
    return json.dumps(
        {"method": method, "metric": {"name": "val_acc", "goal": "maximize"}, "parameters": parameters, **more}
    )


def sweep_file(parameters: Any, method: str = "random", **more: Any) -> SweepFile:
    """Return a parsed sweep file."""
    return parse_sweep_file(sweep_text(parameters, method, **more), "test.yaml")


@pytest.fixture
def lr_file() -> SweepFile:
    """Return a sweep over learning rate and weight decay."""
    return sweep_file(
        {
            "lr": {"distribution": "q_log_uniform_values", "min": 1e-4, "max": 2e-3, "q": 1e-4},
            "weight_decay": {"distribution": "q_uniform", "min": 0.0, "max": 0.05, "q": 0.005},
            "opt": {"value": "adam"},
        }
    )


load_python_file = alembic.util.load_python_file
load_revision = functools.cache(load_python_file)


@pytest.fixture(autouse=True)
def revisions_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile each revision of Optuna's tables once, instead of each time a storage is opened."""

    def load(folder: str, name: str) -> ModuleType:
        return (
            load_python_file(folder, name) if name == "env.py" else load_revision(folder, name)
        )  # env.py has side effects

    monkeypatch.setattr(alembic.util, "load_python_file", load)


class Postgres:
    """A PostgreSQL server for tests, in a temporary folder and on a free port.

    Args:
        programs: folder of ``initdb`` and ``pg_ctl``.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="vitctl-postgres-"))
        self._user: str | None = None
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            self._user = next(name for name in ("postgres", "nobody") if _is_user(name))
            shutil.chown(self._folder, self._user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        data = str(self._folder / "data")
        self._run("initdb", "-D", data, "-U", "vitctl", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        options = (
            f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder} -c fsync=off"
        )
        self._run("pg_ctl", "-D", data, "-l", str(self._folder / "log"), "-w", "-o", options, "start")

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._programs / program, *words],
            cwd=self._folder,
            user=self._user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server would inherit a pipe and keep it open
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{program} {' '.join(words)} exited {done.returncode}"

    def new_database(self) -> str:
        """Create an empty database and return its URL."""
        import psycopg

        name = f"t{secrets.token_hex(6)}"
        server = f"host=127.0.0.1 port={self._port} user=vitctl dbname=postgres"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://vitctl@127.0.0.1:{self._port}/{name}"

    def stop(self) -> None:
        """Stop the server immediately and delete its data."""
        if self._folder.exists():
            self._run("pg_ctl", "-D", str(self._folder / "data"), "-m", "immediate", "-w", "stop")
            shutil.rmtree(self._folder)


def _is_user(name: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def postgres_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, or None; Debian does not put them on the path."""
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(found).resolve().parent if found else debian[-1].parent if debian else None


def start_postgres() -> Postgres:
    """Start a server, or skip the test if PostgreSQL is not installed."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("needs PostgreSQL's initdb and pg_ctl, as in Debian's package postgresql")
    pytest.importorskip("psycopg")
    return Postgres(programs)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Return a PostgreSQL server shared by all tests."""
    server = start_postgres()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> str:
    """Return a value of ``--storage``: empty for SQLite, or the URL of an empty PostgreSQL database."""
    if request.param == "sqlite":
        return ""
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def forked_trainers(python: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start fake trainers through the ``python`` fixture."""
    from tests.sweep import fake

    monkeypatch.setattr(fake, "PYTHON", python)
