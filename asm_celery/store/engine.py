"""How the two databases are connected to, and how SQLite's write lock is taken.

SQLite: WAL, foreign keys.  PostgreSQL: bounded waits, so that no frozen client can hold a session for longer
than they say.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event

from asm_celery.config import Config
from asm_celery.errors import StorageConnectionFailed
from asm_celery.store.faults import code_of
from asm_celery.store.pinging import ping_when_in_doubt

log = logging.getLogger(__name__)

WRITER_PATIENCE_S: Final = 15.0
"""How long SQLite's one write lock is waited for."""
# the longest sleep between two looks at it
_LONGEST_TURN_S: Final = 0.005
# PostgreSQL ends what holds a lock for longer: a client frozen inside a transaction, a runaway query; and a
# client whose machine is gone, which by its own defaults it would notice after two hours.
_POSTGRES_LIMITS: Final = (
    "-c lock_timeout=5000 -c statement_timeout=15000 -c idle_in_transaction_session_timeout=5000 "
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=2"
)


def engine_of(config: Config) -> Engine:
    """Make the engine of a configuration's database; it connects at first use.

    Raises:
        StorageConnectionFailed: the folder of a SQLite file cannot be made.
    """
    url = config.database_url
    timeout = config.connect_timeout_s
    if url.startswith("postgresql"):
        # reads, and strokes, need no BEGIN and no COMMIT: each statement is a snapshot of its own
        server = create_engine(
            url,
            isolation_level="AUTOCOMMIT",
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
        connect_args={"timeout": WRITER_PATIENCE_S, "isolation_level": None, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={config.sqlite_synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


@contextmanager
def transactional(connection: Connection) -> Iterator[None]:
    """Have a connection to PostgreSQL begin a transaction with its next statement; the block must end it."""
    driver: Any = connection.connection.dbapi_connection
    driver.autocommit = False
    try:
        yield
    finally:
        # one that was cut is not given back
        if not driver.closed:
            driver.autocommit = True


def pen_of(engine: Engine) -> Connection:
    """Open SQLite's writing connection, which does not wait for a lock; its caller does."""
    pen = engine.connect()
    pen.detach()
    driver: Any = pen.connection.dbapi_connection
    driver.execute("PRAGMA busy_timeout=0")
    return pen


def is_clean(pen: Connection) -> bool:
    """Return whether the writing connection is outside of every transaction, and of use."""
    # a COMMIT that failed is over for the library, and may not be for the driver
    return not (pen.invalidated or pen.in_transaction() or pen.connection.dbapi_connection.in_transaction)  # type: ignore[union-attr]


def begin_immediate(pen: Connection, wait_s: float) -> None:
    """Take SQLite's write lock.

    Its own busy wait sleeps up to 100 ms whatever happens, so that the process that has just written takes
    the lock again before the others look: a writer among six got it once in six seconds.  Short sleeps of
    random length give everyone a turn.
    """
    # by the driver itself: the library's execution of it costs as much as a small move's statements
    driver: Any = pen.connection.dbapi_connection
    until = time.monotonic() + wait_s
    while True:
        try:
            driver.execute("BEGIN IMMEDIATE")
            break
        except sqlite3.OperationalError as cause:
            if code_of(cause) != "SQLITE_BUSY" or time.monotonic() > until:
                # and again by the library, which raises it as an error of its own
                pen.exec_driver_sql("BEGIN IMMEDIATE")
                return
        time.sleep(random.uniform(0, _LONGEST_TURN_S))
    pen.begin()


def _warn_of_losses(connection: Any, _record: Any) -> None:
    """Say it once a process when the server may lose what it has acknowledged: all promises stand on that."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT name, setting FROM pg_settings WHERE name IN ('synchronous_commit', 'fsync')")
        unsafe = [f"{name}={setting}" for name, setting in cursor.fetchall() if setting == "off"]
    connection.rollback()
    if unsafe:
        log.warning("PostgreSQL may lose acknowledged runs and events when it crashes: %s", ", ".join(unsafe))
