"""Connections and transactions: `Store` opens them, `Transaction` holds the repositories of one.

SQLite: BEGIN IMMEDIATE, one writer at a time in this process.  Nothing here publishes or talks to Redis.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from sqlalchemy import Connection, exc

from asm_celery.config import Config
from asm_celery.errors import StorageBusy, StorageError
from asm_celery.showing import mask
from asm_celery.store.engine import (
    WRITER_PATIENCE_S,
    begin_immediate,
    engine_of,
    is_clean,
    pen_of,
    transactional,
)
from asm_celery.store.events import Events
from asm_celery.store.faults import CommitUnknown, Conflict, Spoiled, is_definite, typed
from asm_celery.store.operators import ControlHistory, Executors, Settings
from asm_celery.store.runs import Runs
from asm_celery.store.sessions import Agents, Sessions
from asm_celery.store.strokes import Strokes


class Transaction:
    """The repositories over one connection.

    Attributes:
        sessions, agents, runs, events, executors, settings, operations: one repository a table family.
        strokes: the moves of a single statement.
    """

    def __init__(self, connection: Connection, where: str = "") -> None:
        self._connection = connection
        self._where = where
        self.sessions = Sessions(connection)
        self.agents = Agents(connection)
        self.runs = Runs(connection)
        self.events = Events(connection)
        self.executors = Executors(connection)
        self.settings = Settings(connection)
        self.operations = ControlHistory(connection)
        self.strokes = Strokes(connection)

    @contextmanager
    def part(self) -> Iterator[None]:
        """Do something that an exception undoes, and nothing else of the transaction with it; SQLite only.

        Raises:
            Spoiled: the database has rolled back the whole transaction.
        """
        # by the driver itself: a nested transaction of the library costs as much as a small move
        driver: Any = self._connection.connection.dbapi_connection
        driver.execute("SAVEPOINT part")
        try:
            yield
        except BaseException as cause:
            if not driver.in_transaction:
                raise Spoiled("the transaction was rolled back as a whole: try again") from cause
            driver.execute("ROLLBACK TO part")
            driver.execute("RELEASE part")
            if isinstance(cause, exc.DBAPIError):
                raise typed(cause, self._where) from cause
            raise
        driver.execute("RELEASE part")


class Store:
    """One database, its pool and its transactions.

    It connects at first use.  Every error of the database leaves as an error of `errors.StorageError`.

    Attributes:
        patience_s: how long a connection is waited for.
    """

    def __init__(self, config: Config) -> None:
        self._where = mask(config.database_url)
        self.dialect = "sqlite" if config.database_url.startswith("sqlite") else "postgresql"
        self.patience_s = config.connect_timeout_s
        self._engine = engine_of(config)
        # SQLite has one writer: threads of this process queue here, in order, instead of in its busy wait.
        self._writer = threading.Lock() if self.dialect == "sqlite" else None
        # and it has one connection, because it must not wait as the readers' do
        # (taken out while it writes, so that nobody closes it then)
        self._pens: list[Connection] = []
        self._closings = 0
        # The pool has one connection more than this: a beat that waits behind a crowd looks like a death.
        self._seats = threading.BoundedSemaphore(2 * config.pool_size)
        # Writers wait for locks while they sit: half of the seats, so that reads need not wait for those too.
        self._writing = threading.BoundedSemaphore(config.pool_size)

    @contextmanager
    def transaction(self, *, is_beat: bool = False, at_once: bool = False) -> Iterator[Transaction]:
        """Open a writing transaction; commits at a clean end, rolls back at an exception.

        Only `EventLog.transaction` calls this, so that no change escapes the log.

        Args:
            is_beat: take the connection that is kept for beats if no other is free, and wait for a lock
                no longer than for a connection: the other witness is told behind it.
            at_once: for a single one of `Transaction.strokes`, which commits by itself; PostgreSQL only.

        Raises:
            Conflict: rolled back for what passes by itself: see `faults.retried`.
            CommitUnknown: the answer to COMMIT was lost: the caller must look whether it happened.
            StorageConnectionFailed: nothing was written; StorageBusy: as there was no room.
            MigrationRequired: the tables are missing or old.
        """
        wait_s = self.patience_s if is_beat else WRITER_PATIENCE_S
        with (
            self._taught(),
            self._seated(self._writing, is_beat),
            self._seated(self._seats, is_beat),
            self._exclusive(wait_s),
            self._begun(wait_s, at_once) as connection,
        ):
            try:
                yield Transaction(connection, self._where)
            except BaseException as cause:
                with suppress(exc.DBAPIError):
                    connection.rollback()
                if isinstance(cause, exc.DBAPIError) and cause.connection_invalidated:
                    if at_once and not is_definite(cause.orig):
                        raise self._unknown("a statement") from cause
                    # it was cut before COMMIT, so it is certain that nothing was written
                    raise Conflict(
                        "the connection was cut before COMMIT: try again", details={"reason": "cut"}
                    ) from cause
                raise
            self._commit(connection)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """Open a reading connection; each statement sees what is committed when it begins."""
        with self._taught(), self._seated(self._seats), self._engine.connect() as connection:
            yield Transaction(connection)

    def close(self) -> None:
        """Close all connections; a later use opens them anew."""
        self._engine.dispose()
        # Order matters: who begins before this line may have one of the old connections, and closes it
        self._closings += 1
        with suppress(IndexError):
            self._pens.pop().close()

    @contextmanager
    def _begun(self, wait_s: float, at_once: bool) -> Iterator[Connection]:
        if self._writer is None:
            with (
                self._engine.connect() as connection,
                nullcontext() if at_once else transactional(connection),
            ):
                yield connection
            return
        closings = self._closings
        try:
            pen = self._pens.pop()
        except IndexError:
            pen = pen_of(self._engine)
        try:
            begin_immediate(pen, wait_s)
            yield pen
        finally:
            if closings == self._closings and is_clean(pen):
                self._pens.append(pen)
            else:
                with suppress(exc.DBAPIError):
                    pen.close()

    def _commit(self, connection: Connection) -> None:
        try:
            connection.commit()
        except exc.DBAPIError as cause:
            if is_definite(cause.orig):
                raise
            raise self._unknown("COMMIT") from cause

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
            raise typed(cause, self._where) from cause
        except exc.TimeoutError as cause:
            raise self._crowded() from cause
        except exc.SQLAlchemyError as cause:
            raise StorageError(f"the database library refused: {cause}") from cause

    def _unknown(self, what: str) -> CommitUnknown:
        return CommitUnknown(
            f"the answer of the database {self._where} to {what} was lost: what was asked is written as "
            "a whole or not at all; look before you ask again"
        )

    def _crowded(self) -> StorageBusy:
        return StorageBusy(
            "no SQL connection of this process became free in time, nothing was written: try again, or raise "
            "pool_size",
            details={"reason": "pool"},
        )
