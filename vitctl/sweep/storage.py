"""Storage of trials: Optuna's RDB storage in a SQLite file, or in PostgreSQL for several machines.

Optuna reads a trial's state and then sets it. SQLite's default transactions do not make this atomic, so two agents could
take the same trial. Here every transaction of an agent takes the write lock at its start (``BEGIN IMMEDIATE``), which
serialises them. Trials are claimed under a lock that is released when its process ends, even by a signal.
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
from vitctl.units import mask_passwords

BUSY_TIMEOUT = 60.0
"""Seconds that SQLite waits for another process to finish its transaction."""

HEARTBEAT, GRACE = 10, 60
"""Seconds between heartbeats of a running trial, and seconds without one after which its agent counts as dead."""


class TrialStorage(RDBStorage):
    """Optuna's RDB storage that ignores failed heartbeats, because the next one makes up for them.

    An error would end the heartbeat's thread and print a traceback.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat of a trial; a failure is ignored."""
        with contextlib.suppress(optuna.exceptions.StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


_URLS = "use sqlite:///FILE.db or postgresql://USER@HOST/DATABASE"


def parse_url(text: str) -> URL:
    """Parse the URL of a storage: ``sqlite:///FILE`` or ``postgresql://[USER[:PASSWORD]@]HOST/DATABASE``.

    Raises:
        RequestError: not a URL, an unsupported database, or an incomplete URL.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise RequestError(f"--storage {mask_passwords(text)!r} is not a database URL", hint=_URLS) from None
    kind = url.get_backend_name()
    if kind == "postgres":
        kind = "postgresql"
    if kind not in ("postgresql", "sqlite"):
        raise RequestError(f"--storage does not support {kind}", hint=_URLS)
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            raise RequestError(f"--storage {mask_passwords(text)} names no file", hint="use sqlite:///FILE.db")
        return URL.create("sqlite", database=str(Path(url.database).expanduser().absolute()))
    if "@" in (url.host or ""):
        raise RequestError(
            f"--storage {mask_passwords(text)}: the password contains @", hint="use %40 for @ in the password"
        )
    if not url.database:
        raise RequestError(f"--storage {redacted(url)} names no database", hint="use postgresql://USER@HOST/DATABASE")
    return url.set(drivername="postgresql+psycopg")


def redacted(url: URL) -> str:
    """Return the URL without driver and passwords, for display and storage."""
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
    """Return the file of a SQLite storage, or None for PostgreSQL."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def quiet_optuna() -> None:
    """Silence Optuna's log and its warnings about experimental features."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_storage(
    url: URL, *, create: bool = False, heartbeat: int | None = None, grace: int | None = None
) -> TrialStorage:
    """Open the storage at ``url``.

    Args:
        url: see :func:`parse_url`.
        create: create the file and its tables if missing; one process at a time does.
        heartbeat: seconds between heartbeats of running trials; None for a reader.
        grace: seconds without a heartbeat after which a trial counts as lost.

    Raises:
        RequestError: the storage is missing, damaged, not reachable, or of another version of Optuna.
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
            raise RequestError(
                f"storage {file} not found", hint="use another --storage, or create a sweep: vitctl sweep create FILE"
            )
        if create:
            with ClaimLock(url, "tables"):
                storage = build()
        else:
            storage = build()
    except ImportError as error:
        raise RequestError(
            f"storage {redacted(url)} needs the package psycopg", hint="install it: pip install 'vitctl[postgres]'"
        ) from error
    except RuntimeError as error:
        raise RequestError(
            f"storage {redacted(url)} was created by another version of Optuna",
            hint=f"run pip install -U optuna, then optuna storage upgrade --storage {redacted(url)}",
        ) from error
    except (SQLAlchemyError, optuna.exceptions.OptunaError, OSError, AssertionError) as error:
        fault = diagnose(error)
        hint = fault.hint
        if file is None and url.password is None:
            hint = "use --storage with the password, which is not stored, or set PGPASSWORD"
        raise RequestError(f"cannot use storage {redacted(url)}: {fault.reason}", hint=hint) from error
    if file is not None:
        _serialise(storage.engine, immediate=heartbeat is not None or create)
    return storage


def _serialise(engine: sqlalchemy.Engine, *, immediate: bool) -> None:
    """Use write-ahead logging and explicit transactions in a SQLite engine."""

    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the sqlite3 module does not begin transactions
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
    engine.dispose()  # connections of the constructor lack these settings


@dataclass(frozen=True)
class Fault:
    """Cause of a storage error.

    Attributes:
        reason: what is wrong.
        hint: what the user can do about it.
        final: whether retrying is pointless.
    """

    reason: str
    hint: str
    final: bool


_OTHER_STORAGE = "use another --storage"
_NO_SPACE = Fault("the disk is full", "free some space and try again", final=True)
_READ_ONLY = Fault("the database is read-only", "make it writable, or use another --storage", final=True)
_NO_SWEEP = Fault("the database holds no sweeps", "create one: vitctl sweep create FILE --storage URL", final=True)
_SQLITE_FAULTS = {
    sqlite3.SQLITE_FULL: _NO_SPACE,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_ERROR: _NO_SWEEP,  # Optuna's statements are valid, so a table is missing
    sqlite3.SQLITE_CANTOPEN: Fault(
        "cannot open the file", "use --storage with the path of a file that you can read and write", final=False
    ),
    sqlite3.SQLITE_BUSY: Fault(
        f"locked by another process for {BUSY_TIMEOUT:.0f} s", "try again when that process has finished", final=False
    ),
    sqlite3.SQLITE_NOTADB: Fault("the file is not a database", _OTHER_STORAGE, final=True),
    sqlite3.SQLITE_CORRUPT: Fault("the file is damaged", _OTHER_STORAGE, final=True),
}
_POSTGRESQL_FAULTS = {"53100": _NO_SPACE, "25006": _READ_ONLY, "3D000": _NO_SWEEP, "42P01": _NO_SWEEP}
"""Faults by SQLSTATE: disk_full, read_only_sql_transaction, invalid_catalog_name, undefined_table."""


def diagnose(error: BaseException) -> Fault:
    """Return the cause of a storage error, based on the error codes of SQLite and PostgreSQL."""
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
    reason = text.splitlines()[0] if text else type(root).__name__
    return known or Fault(reason, "check that the server is running and --storage is right", final=False)


def is_storage_error(error: BaseException) -> bool:
    """Return whether ``error`` came from the database."""
    return isinstance(error, (optuna.exceptions.StorageInternalError, SQLAlchemyError))


@contextlib.contextmanager
def translated_errors(url: URL, kind: type[VitctlError] = RunFailed) -> Iterator[None]:
    """Raise errors of the database as ``kind``.

    Raises:
        RunFailed: the storage failed.
    """
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        raise storage_failed(url, error, kind) from error


def storage_failed(url: URL, error: BaseException, kind: type[VitctlError] = RunFailed) -> VitctlError:
    """Return the error to raise for a storage that failed."""
    fault = diagnose(error)
    return kind(f"storage {redacted(url)} failed: {fault.reason}", hint=fault.hint)


class ClaimLock:
    """A lock shared by all agents of a storage, released when its holder's process ends.

    With SQLite, it is a lock file next to the database; with PostgreSQL, an advisory lock.

    Args:
        url: URL of the storage.
        name: name of the lock, such as the id of a sweep.
    """

    def __init__(self, url: URL, name: str) -> None:
        self._url = url
        self._name = name
        self._held = contextlib.ExitStack()
        self._engine: sqlalchemy.Engine | None = None

    def acquire(self) -> None:
        """Wait for the lock and take it.

        Raises:
            RunFailed: the lock file cannot be opened.
        """
        file = sqlite_file(self._url)
        if file is None:
            self._acquire_postgresql()
            return
        try:
            self._held.enter_context(locked(file.with_name(f"{file.name}.{self._name}.lock"), wait=-1))
        except OSError as error:
            raise RunFailed(
                f"cannot lock storage {file}: {error.strerror}", hint=f"check that {file.parent} exists and is writable"
            ) from error

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
        """Release the lock, if it is held."""
        with contextlib.suppress(SQLAlchemyError, OSError):
            self._held.close()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def agent_name() -> str:
    """Return the name of this process in the storage: ``HOST:PID``."""
    import platform

    return f"{platform.node()}:{os.getpid()}"
