"""Connections and transactions: `Store` opens them, `Transaction` holds the repositories of one.

SQLite: WAL, foreign keys, BEGIN IMMEDIATE, one writer at a time in this process.  PostgreSQL: bounded
waits, so that no frozen client can hold a session for longer than they say.
Nothing here publishes or talks to Redis.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event, exc

from asm_celery.config import Config
from asm_celery.errors import StorageBusy, StorageConnectionFailed, StorageError
from asm_celery.showing import mask
from asm_celery.store.events import Events
from asm_celery.store.faults import CommitUnknown, Conflict, code_of, is_definite, typed
from asm_celery.store.operators import ControlHistory, Executors, Settings
from asm_celery.store.pinging import ping_when_in_doubt
from asm_celery.store.runs import Runs
from asm_celery.store.sessions import Agents, Sessions

log = logging.getLogger(__name__)

# PostgreSQL ends what holds a lock for longer: a client frozen inside a transaction, a runaway query.
_POSTGRES_LIMITS: Final = (
    "-c lock_timeout=5000 -c statement_timeout=15000 -c idle_in_transaction_session_timeout=5000"
)
# How long SQLite's one write lock is waited for, and the longest sleep between two looks at it.
_WRITER_PATIENCE_S: Final = 15.0
_LONGEST_TURN_S: Final = 0.005


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

    Attributes:
        patience_s: how long a connection is waited for.
    """

    def __init__(self, config: Config) -> None:
        self._url = config.database_url
        self.dialect = "sqlite" if self._url.startswith("sqlite") else "postgresql"
        self.patience_s = config.connect_timeout_s
        self._engine = _engine(config)
        # Reads need no BEGIN and no COMMIT: each statement is its own snapshot.
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        # SQLite has one writer: threads of this process queue here, in order, instead of in its busy wait.
        self._writer = threading.Lock() if self.dialect == "sqlite" else None
        # The pool has one connection more than this: a beat that waits behind a crowd looks like a death.
        self._seats = threading.BoundedSemaphore(2 * config.pool_size)
        # Writers wait for locks while they sit: half of the seats, so that reads need not wait for those too.
        self._writing = threading.BoundedSemaphore(config.pool_size)

    @contextmanager
    def transaction(self, *, is_beat: bool = False) -> Iterator[Transaction]:
        """Open a writing transaction; commits at a clean end, rolls back at an exception.

        Only `EventLog.transaction` calls this, so that no change escapes the log.

        Args:
            is_beat: take the connection that is kept for beats if no other is free, and wait for a lock
                no longer than for a connection: the other witness is told behind it.

        Raises:
            Conflict: rolled back for what passes by itself: see `faults.retried`.
            CommitUnknown: the answer to COMMIT was lost: the caller must look whether it happened.
            StorageConnectionFailed: nothing was written; StorageBusy: as there was no room.
            MigrationRequired: the tables are missing or old.
        """
        wait_s = self.patience_s if is_beat else _WRITER_PATIENCE_S
        with (
            self._taught(),
            self._seated(self._writing, is_beat),
            self._seated(self._seats, is_beat),
            self._exclusive(wait_s),
            self._engine.connect() as connection,
        ):
            if self.dialect == "sqlite":
                _begin_immediate(connection, wait_s)
            try:
                yield Transaction(connection)
            except BaseException as cause:
                with suppress(exc.DBAPIError):
                    connection.rollback()
                if isinstance(cause, exc.DBAPIError) and cause.connection_invalidated:
                    # it was cut before COMMIT, so it is certain that nothing was written
                    raise Conflict(
                        "the connection was cut before COMMIT: try again", details={"reason": "cut"}
                    ) from cause
                raise
            self._commit(connection)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a reading connection; each statement sees what is committed when it begins."""
        with self._taught(), self._seated(self._seats), self._reader.connect() as connection:
            yield Transaction(connection)

    def close(self) -> None:
        """Close all connections; a later use opens them anew."""
        self._engine.dispose()

    def _commit(self, connection: Connection) -> None:
        try:
            connection.commit()
        except exc.DBAPIError as cause:
            if is_definite(cause.orig):
                raise
            raise CommitUnknown(
                f"the answer of the database {mask(self._url)} to COMMIT was lost: what was asked is written as "
                "a whole or not at all; look before you ask again"
            ) from cause

    @contextmanager
    def _seated(self, seats: threading.BoundedSemaphore, is_beat: bool = False) -> Iterator[None]:
        if is_beat:
            yield
            return
        if not seats.acquire(timeout=self.patience_s):
            raise self._crowded()
        try:
            yield
        finally:
            seats.release()

    @contextmanager
    def _exclusive(self, wait_s: float) -> Iterator[None]:
        if self._writer is None:
            yield
            return
        if not self._writer.acquire(timeout=wait_s):
            raise self._crowded()
        try:
            yield
        finally:
            self._writer.release()

    @contextmanager
    def _taught(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as cause:
            raise typed(cause, mask(self._url)) from cause
        except exc.TimeoutError as cause:
            raise self._crowded() from cause
        except exc.SQLAlchemyError as cause:
            raise StorageError(f"the database library refused: {cause}") from cause

    def _crowded(self) -> StorageBusy:
        return StorageBusy(
            "no SQL connection of this process became free in time, nothing was written: try again, or raise "
            "pool_size",
            details={"reason": "pool"},
        )


def _warn_of_losses(connection: Any, _record: Any) -> None:
    """Say it once a process when the server may lose what it has acknowledged: all promises stand on that."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT name, setting FROM pg_settings WHERE name IN ('synchronous_commit', 'fsync')")
        unsafe = [f"{name}={setting}" for name, setting in cursor.fetchall() if setting == "off"]
    connection.rollback()
    if unsafe:
        log.warning("PostgreSQL may lose acknowledged runs and events when it crashes: %s", ", ".join(unsafe))


def _begin_immediate(connection: Connection, wait_s: float) -> None:
    """Take SQLite's write lock.

    Its own busy wait sleeps up to 100 ms whatever happens, so that the process that has just written takes
    the lock again before the others look: a writer among six got it once in six seconds.  Short sleeps of
    random length give everyone a turn.
    """
    driver: Any = connection.connection.dbapi_connection
    until = time.monotonic() + wait_s
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except exc.OperationalError as cause:
                if code_of(cause.orig) != "SQLITE_BUSY" or time.monotonic() > until:
                    raise
            time.sleep(random.uniform(0, _LONGEST_TURN_S))
    finally:
        driver.execute(f"PRAGMA busy_timeout={round(_WRITER_PATIENCE_S * 1000)}")


def _engine(config: Config) -> Engine:
    url = config.database_url
    timeout = config.connect_timeout_s
    if url.startswith("postgresql"):
        server = create_engine(
            url,
            pool_size=config.pool_size,
            max_overflow=config.pool_size + 1,
            pool_timeout=timeout,
            connect_args={
                "connect_timeout": max(1, round(timeout)),
                "options": _POSTGRES_LIMITS,
                "keepalives": 1,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 2,
                # a server that vanished without a word is an error and not a hang, also while we send
                "tcp_user_timeout": round(2000 * timeout),
                "application_name": f"asm_celery {config.namespace}",
            },
        )
        ping_when_in_doubt(server)
        event.listen(server, "first_connect", _warn_of_losses)
        return server
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
        max_overflow=config.pool_size + 1,
        pool_timeout=timeout,
        connect_args={"timeout": _WRITER_PATIENCE_S, "isolation_level": None, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={config.sqlite_synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine
