"""Connections and transactions: `Store` opens them, `Transaction` holds the repositories of one.

SQLite: WAL, foreign keys, BEGIN IMMEDIATE, one writer at a time in this process.  PostgreSQL: bounded
waits, so that no frozen client can hold a session for longer than they say.
Nothing here publishes or talks to Redis.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, exc

from asm_celery.config import Config, mask
from asm_celery.errors import MigrationRequired, StorageConnectionFailed, StorageError
from asm_celery.store.events import Events
from asm_celery.store.operators import ControlHistory, Executors, Settings
from asm_celery.store.runs import Runs
from asm_celery.store.sessions import Agents, Sessions

# PostgreSQL ends what holds a lock for longer: a client frozen inside a transaction, a runaway query.
_POSTGRES_LIMITS: Final = (
    "-c lock_timeout=5000 -c statement_timeout=15000 -c idle_in_transaction_session_timeout=5000"
)
_NO_TABLE: Final = ("no such table", "no such column", "UndefinedTable", "UndefinedColumn")


class Transaction:
    """The repositories over one connection.

    Attributes:
        sessions, agents, runs, events, executors, settings, operations: one repository a table family.
    """

    def __init__(self, connection: Connection) -> None:
        self.sessions = Sessions(connection)
        self.agents = Agents(connection)
        self.runs = Runs(connection)
        self.events = Events(connection)
        self.executors = Executors(connection)
        self.settings = Settings(connection)
        self.operations = ControlHistory(connection)


class Store:
    """One database, its pool and its transactions.

    It connects at first use.  Every error of the database leaves as an error of `errors.StorageError`.
    """

    def __init__(self, config: Config) -> None:
        self._url = config.database_url
        self.dialect = "sqlite" if self._url.startswith("sqlite") else "postgresql"
        self._engine = _engine(config)
        # Reads need no BEGIN and no COMMIT: each statement is its own snapshot.
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        # SQLite has one writer: threads of this process queue here, in order, instead of in its busy wait.
        self._writer = threading.Lock() if self.dialect == "sqlite" else None

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Open a writing transaction; commits at a clean end, rolls back at an exception.

        Only `EventLog.transaction` calls this, so that no change escapes the log.

        Raises:
            StorageConnectionFailed: also when the answer to COMMIT was lost: the caller cannot know
                whether it happened and must look.
            MigrationRequired: the tables are missing or old.
        """
        with self._taught(), self._exclusive(), self._engine.connect() as connection:
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield Transaction(connection)
            except BaseException:
                connection.rollback()
                raise
            connection.commit()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a reading connection; each statement sees what is committed when it begins."""
        with self._taught(), self._reader.connect() as connection:
            yield Transaction(connection)

    def close(self) -> None:
        """Close all connections; a later use opens them anew."""
        self._engine.dispose()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if self._writer is None:
            yield
            return
        with self._writer:
            yield

    @contextmanager
    def _taught(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as cause:
            raise self._typed(cause) from cause
        except exc.TimeoutError as cause:
            raise StorageConnectionFailed(
                "no SQL connection became free in time: raise pool_size or try again"
            ) from cause
        except exc.SQLAlchemyError as cause:
            raise StorageError(f"the database library refused: {cause}") from cause

    def _typed(self, cause: exc.DBAPIError) -> StorageError:
        original = cause.orig
        kind, words = type(original).__name__, str(original)
        if any(sign in words or sign == kind for sign in _NO_TABLE):
            return MigrationRequired(
                f"the database {mask(self._url)} has no asm_celery schema, or an old one: run `asm migrate`"
            )
        if isinstance(cause, (exc.IntegrityError, exc.DataError, exc.ProgrammingError)):
            return StorageError(f"the database refused the write: {words}", code="storage_write_failed")
        return StorageConnectionFailed(
            f"the database {mask(self._url)} cannot be reached or did not answer in time ({kind}: "
            f"{words.strip().splitlines()[0] if words.strip() else 'no text'}): nothing was acknowledged; "
            "try again when it is back"
        )


def _engine(config: Config) -> Engine:
    url = config.database_url
    timeout = config.connect_timeout_s
    if url.startswith("postgresql"):
        return create_engine(
            url,
            pool_size=config.pool_size,
            max_overflow=config.pool_size,
            pool_timeout=timeout,
            # a connection that died with a database restart is replaced before it is used
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": max(1, round(timeout)),
                "options": _POSTGRES_LIMITS,
                "keepalives": 1,
                "keepalives_idle": 10,
                "application_name": f"asm_celery {config.namespace}",
            },
        )
    path = url.removeprefix("sqlite:///")
    if path and path != ":memory:":
        try:
            Path(path).expanduser().resolve().parent.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise StorageConnectionFailed(f"the folder of {url} cannot be made: {cause.strerror}") from cause
    # autocommit at the driver: transactions begin by our own BEGIN IMMEDIATE, and only then
    engine = create_engine(
        url,
        pool_size=config.pool_size,
        max_overflow=config.pool_size,
        pool_timeout=timeout,
        connect_args={"timeout": max(timeout, 15.0), "isolation_level": None, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={config.sqlite_synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine
