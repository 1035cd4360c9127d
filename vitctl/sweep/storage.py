"""Where trials are kept: Optuna's RDB storage, in a SQLite file on one machine or in PostgreSQL for several.

Optuna reads a trial's state and then sets it, which SQLite's usual transactions do not make one step: two agents may
take the same trial. Here every transaction of an agent begins with the right to write (``BEGIN IMMEDIATE``), so that
they come one after the other. Claims are made under a lock that ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
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
from vitctl.registry import suggest

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
            f"--storage {text!r} is no URL of a database, such as postgresql://user@host/database or sqlite:///file.db"
        ) from None
    kind = url.get_backend_name()
    if kind == "postgres":
        kind = "postgresql"
    if kind not in ("postgresql", "sqlite"):
        raise RequestError(
            f"--storage {redacted(url)}: {kind!r} is not supported{suggest(kind, ('postgresql', 'sqlite'))}"
        )
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            raise RequestError(f"--storage {text}: name a file, such as sqlite:///sweep.db")
        return URL.create("sqlite", database=str(Path(url.database).expanduser().absolute()))
    if not url.database:
        raise RequestError(f"--storage {redacted(url)}: name a database, such as postgresql://user@host/database")
    return url.set(drivername="postgresql+psycopg")


def redacted(url: URL) -> str:
    """Return the URL as it may be shown and kept: without driver and password."""
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{url.database}"
    return url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)


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
        raise RequestError(f"the storage {redacted(url)} cannot be used: {reason(error)}") from error
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


def reason(error: BaseException) -> str:
    """Return why a storage failed, in half a sentence."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = str(getattr(root, "orig", None) or root).strip()
    first = text.splitlines()[0] if text else type(root).__name__
    for words, sentence in (
        ("disk is full", "the disk is full"),
        ("No space left", "the disk is full"),
        ("readonly database", "it is read-only"),
        ("unable to open database file", "its file cannot be opened"),
        ("database is locked", f"another process has kept it locked for {BUSY_TIMEOUT:.0f} s"),
        ("no such table", "it holds no sweep"),
        ("does not exist", f"it holds no sweep ({first})"),
        ("file is not a database", "the file is not a database"),
        ("malformed", "the file is damaged"),
    ):
        if words in text:
            return sentence
    return first


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
        raise kind(f"the storage {redacted(url)} failed: {reason(error)}") from error


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
        self._held: Any = None
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
            import fcntl

            lock = open(file.with_name(f"{file.name}.{self._name}.lock"), "a")  # noqa: SIM115 - held open as long as the lock
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._held = lock
        except ImportError:  # Windows
            _PROCESS_LOCK.acquire()
            self._held = _PROCESS_LOCK
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
        self._held = connection

    def release(self) -> None:
        """Free the lock; nothing happens when it is not held."""
        held, self._held = self._held, None
        if held is None:
            return
        if held is _PROCESS_LOCK:
            _PROCESS_LOCK.release()
        else:  # closing the file frees it, and closing the connection does
            with contextlib.suppress(SQLAlchemyError, OSError):
                held.close()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_PROCESS_LOCK = threading.Lock()


def host_name() -> str:
    """Return how this process is called in the storage."""
    import platform

    return f"{platform.node()}:{os.getpid()}"
