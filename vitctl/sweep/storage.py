"""Where trials are kept: Optuna's RDB storage, in a SQLite file on one machine or in PostgreSQL for several.

Optuna reads a trial's state and then sets it, which SQLite's usual transactions do not make one step: two agents may
take the same trial. Here every transaction of an agent begins with the right to write (``BEGIN IMMEDIATE``), so that
they come one after the other. Claims are made under a lock that ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from vitctl.errors import RequestError, RunFailed, VitctlError
from vitctl.files import is_full, locked
from vitctl.registry import suggest
from vitctl.units import mask_passwords

BUSY_TIMEOUT = 60.0
"""Seconds that SQLite waits for another process to finish its transaction."""

HEARTBEAT, GRACE = 10, 60
"""Seconds between two signs of life of a running trial, and after how many without one its agent is held for dead."""


class TrialStorage(RDBStorage):
    """Optuna's RDB storage whose heartbeats outlive an outage: a missed one is made up for by the next.

    Raised in the heartbeat's own thread, an error would end it and leave a traceback on the screen.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a sign of life of a trial."""
        with contextlib.suppress(optuna.exceptions.StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


def parse_url(text: str) -> URL:
    """Return the URL of a storage: ``sqlite:///FILE`` or ``postgresql://[USER[:PASSWORD]@]HOST/DATABASE``.

    Raises:
        RequestError: another kind of database, or no URL.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise RequestError(
            f"--storage {mask_passwords(text)!r} is no URL of a database, such as postgresql://user@host/database or sqlite:///file.db"
        ) from None
    kind = url.get_backend_name()
    if kind == "postgres":
        kind = "postgresql"
    if kind not in ("postgresql", "sqlite"):
        raise RequestError(
            f"--storage {redacted(url)}: {kind!r} is not supported",
            hint=suggest(kind, ("postgresql", "sqlite")),
        )
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            raise RequestError(f"--storage {mask_passwords(text)}: name a file, such as sqlite:///sweep.db")
        return URL.create("sqlite", database=str(Path(url.database).expanduser().absolute()))
    if "@" in (url.host or ""):
        raise RequestError(f"--storage {mask_passwords(text)}: write an @ of the password as %40")
    if not url.database:
        raise RequestError(f"--storage {redacted(url)}: name a database, such as postgresql://user@host/database")
    return url.set(drivername="postgresql+psycopg")


def redacted(url: URL) -> str:
    """Return the URL without driver and passwords, so that it may be shown and stored."""
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{url.database}"
    plain = URL.create(
        "postgresql",
        username=url.username,
        host=url.host,
        port=url.port,
        database=url.database,
        query={key: value for key, value in url.query.items() if "password" not in key},
    )
    return plain.render_as_string(hide_password=False)


def sqlite_file(url: URL) -> Path | None:
    """Return the file of a SQLite storage, None for others."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def quiet_optuna() -> None:
    """Keep Optuna's log, and its remarks on what is experimental in it, off the screen."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_storage(
    url: URL, *, create: bool = False, heartbeat: int | None = None, grace: int | None = None
) -> TrialStorage:
    """Open the storage at ``url``.

    Args:
        url: see :func:`parse_url`.
        create: make what is not there, one process at a time.
        heartbeat: seconds between signs of life of running trials; None for those who only look.
        grace: after how many seconds without one a trial is held for lost.

    Raises:
        RequestError: it cannot be had; the sentence says why.
    """
    file = sqlite_file(url)
    quiet_optuna()
    arguments: dict[str, Any] = {"timeout": BUSY_TIMEOUT} if file else {"connect_timeout": 10}
    engine_kwargs: dict[str, Any] = {"connect_args": arguments, "pool_pre_ping": file is None}

    def build() -> TrialStorage:
        return TrialStorage(
            url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}"),
            engine_kwargs=engine_kwargs,
            heartbeat_interval=heartbeat,
            grace_period=grace,
            skip_table_creation=not create,
        )

    try:
        if file is not None and create:
            file.parent.mkdir(parents=True, exist_ok=True)
        elif file is not None and not file.is_file():
            raise RequestError(f"the sweep's storage {file} is not there")
        if create:
            with ClaimLock(url, "tables"):
                storage = build()
        else:
            storage = build()
    except ImportError as error:
        raise RequestError(
            f"--storage {redacted(url)} needs psycopg, which is not installed: pip install 'vitctl[postgres]'"
        ) from error
    except RuntimeError as error:
        raise RequestError(f"the storage {redacted(url)} is of another version of Optuna: {error}") from error
    except (SQLAlchemyError, optuna.exceptions.OptunaError, OSError, AssertionError) as error:
        hint = ""
        if file is None and url.password is None:
            hint = "; passwords are not stored: give --storage with the password, or set PGPASSWORD"
        raise RequestError(f"the storage {redacted(url)} cannot be used: {diagnose(error).sentence}{hint}") from error
    if file is not None:
        _serialise(storage.engine, immediate=heartbeat is not None or create)
    return storage


def _serialise(engine: sqlalchemy.Engine, *, immediate: bool) -> None:
    """Make the transactions of a SQLite engine its own business, with write-ahead logging."""

    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # Python's module leaves BEGIN to us
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
    engine.dispose()  # what the constructor opened was not set up so


@dataclass(frozen=True)
class Fault:
    """Cause of a storage error.

    Attributes:
        sentence: clause for messages to the user.
        final: whether retrying is pointless.
    """

    sentence: str
    final: bool


_NO_SPACE = Fault("the disk is full", final=True)
_READ_ONLY = Fault("it is read-only", final=True)
_NO_SWEEP = Fault("it holds no sweep", final=True)
_SQLITE_FAULTS = {
    sqlite3.SQLITE_FULL: _NO_SPACE,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_ERROR: _NO_SWEEP,  # Optuna's statements are valid, so a table is missing
    sqlite3.SQLITE_CANTOPEN: Fault("its file cannot be opened", final=False),
    sqlite3.SQLITE_BUSY: Fault(f"another process has kept it locked for {BUSY_TIMEOUT:.0f} s", final=False),
    sqlite3.SQLITE_NOTADB: Fault("the file is not a database", final=True),
    sqlite3.SQLITE_CORRUPT: Fault("the file is damaged", final=True),
}
_POSTGRESQL_FAULTS = {"53100": _NO_SPACE, "25006": _READ_ONLY, "3D000": _NO_SWEEP, "42P01": _NO_SWEEP}
"""Faults by SQLSTATE: disk_full, read_only_sql_transaction, invalid_catalog_name, undefined_table."""


def diagnose(error: BaseException) -> Fault:
    """Return the cause of a storage error, from the error codes of SQLite and PostgreSQL."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    root = getattr(root, "orig", None) or root
    if is_full(root):
        return _NO_SPACE
    code = getattr(root, "sqlite_errorcode", None)
    known = _POSTGRESQL_FAULTS.get(getattr(root, "sqlstate", None) or "")
    if code is not None:
        known = _SQLITE_FAULTS.get(code & 0xFF)  # the low byte of an extended code is the primary code
    text = str(root).strip()
    return known or Fault(text.splitlines()[0] if text else type(root).__name__, final=False)


def is_storage_error(error: BaseException) -> bool:
    """Whether ``error`` came from the database."""
    return isinstance(error, (optuna.exceptions.StorageInternalError, SQLAlchemyError))


@contextlib.contextmanager
def storage_sentences(url: URL, kind: type[VitctlError] = RunFailed) -> Iterator[None]:
    """Turn errors of the database into one sentence.

    Raises:
        RunFailed: or another ``kind``: the storage failed.
    """
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        raise kind(f"the storage {redacted(url)} failed: {diagnose(error).sentence}") from error


class ClaimLock:
    """A lock over all agents of a storage, freed when its holder's process ends.

    On SQLite it is a file beside the database, one for each name, on PostgreSQL an advisory lock.

    Args:
        url: of the storage.
        name: what is locked; of one sweep, its id.
    """

    def __init__(self, url: URL, name: str) -> None:
        self._url = url
        self._name = name
        self._held = contextlib.ExitStack()
        self._engine: sqlalchemy.Engine | None = None

    def acquire(self) -> None:
        """Wait for the lock and take it.

        Raises:
            RunFailed: the storage is gone.
        """
        file = sqlite_file(self._url)
        if file is None:
            self._acquire_postgresql()
            return
        try:
            self._held.enter_context(locked(file.with_name(f"{file.name}.{self._name}.lock"), wait=-1))
        except OSError as error:
            raise RunFailed(f"the storage {file} cannot be locked: {error.strerror}") from error

    def _acquire_postgresql(self) -> None:
        if self._engine is None:
            self._engine = sqlalchemy.create_engine(
                self._url, poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": 10}
            )
        connection = self._engine.connect()
        try:
            connection.execute(
                sqlalchemy.text("SELECT pg_advisory_lock(hashtext(:name))"), {"name": f"vitctl:{self._name}"}
            )
        except BaseException:
            connection.close()
            raise
        self._held.enter_context(connection)

    def release(self) -> None:
        """Free the lock; nothing happens when it is not held."""
        with contextlib.suppress(SQLAlchemyError, OSError):
            self._held.close()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def host_name() -> str:
    """Return how this process is called in the storage."""
    import platform

    return f"{platform.node()}:{os.getpid()}"
