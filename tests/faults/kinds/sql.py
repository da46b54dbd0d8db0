"""Faults of SQL: a database that dies, hangs, is locked or full of connections."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
from collections.abc import Iterator

import psycopg

from tests.faults import system
from tests.faults.nemesis import Hit, fault
from tests.faults.preset import QUIET_S, STORE_S
from tests.faults.stage import Stage

# asm_celery's own bounds on statements and idle transactions
LOCK_S = 5.0


@fault("sql", bound_s=STORE_S, on="postgresql")
def postgres_killed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL postmaster and backends, and start PostgreSQL again."""
    hit.cuts.add("sql")
    stage.sql.kill()
    yield dice.uniform(0.0, 2.0)
    stage.sql.start()


@fault("sql", bound_s=STORE_S, on="postgresql")
def postgres_killed_thrice(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGKILL PostgreSQL three times, each a moment after it came back."""
    hit.cuts.add("sql")
    for _ in range(3):
        stage.sql.kill()
        stage.sql.start()
        yield dice.uniform(0.1, 1.5)


@fault("sql", bound_s=STORE_S, on="postgresql")
def postgres_away(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Shut PostgreSQL down immediately and leave it away for twice a lease."""
    hit.cuts.add("sql")
    stage.sql.kill(signal.SIGQUIT)
    yield 8.0
    stage.sql.start()


@fault("sql", on="postgresql")
def backends_terminated(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """pg_terminate_backend of every connection, several times."""
    for _ in range(dice.randint(1, 4)):
        with stage.sql.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        yield dice.uniform(0.1, 0.8)


@fault("sql", on="postgresql")
def counter_locked(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Lock the counter rows of some sessions in a transaction of somebody else."""
    yield from _locked(stage, dice, "SELECT 1 FROM session_counters ORDER BY random() LIMIT 5 FOR UPDATE")


@fault("sql", on="postgresql")
def open_runs_locked(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Lock the rows of all open runs in a transaction of somebody else."""
    yield from _locked(stage, dice, "SELECT 1 FROM runs WHERE status IN ('pending', 'running') FOR UPDATE")


@fault("sql", on="postgresql")
def table_locked(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Lock the table of events exclusively, as a careless migration does."""
    yield from _locked(stage, dice, "LOCK TABLE events IN ACCESS EXCLUSIVE MODE")


@fault("sql", on="postgresql")
def idle_in_transaction(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Leave somebody else's transaction with a lock on the executors open, longer than a statement may wait."""
    yield from _locked(stage, dice, "SELECT 1 FROM executors FOR UPDATE", lasts_s=LOCK_S + 1.5)


def _locked(
    stage: Stage, dice: random.Random, statement: str, lasts_s: float | None = None
) -> Iterator[float]:
    with stage.sql.connect() as connection:
        connection.autocommit = False
        connection.execute(statement)
        yield dice.uniform(0.5, 4.0) if lasts_s is None else lasts_s
        connection.rollback()


@fault("sql", on="postgresql")
def connections_taken(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Take every connection that PostgreSQL has left."""
    with contextlib.ExitStack() as taken:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                taken.enter_context(stage.sql.connect())
        yield dice.uniform(1.0, 4.0)


@fault("sql", bound_s=QUIET_S + LOCK_S, on="postgresql")
def backend_frozen(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGSTOP some backends, whatever locks they hold, then SIGCONT."""
    with stage.sql.connect() as connection:
        rows = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND application_name LIKE 'asm_celery%'"
        ).fetchall()
    frozen = system.send(signal.SIGSTOP, dice.sample([pid for (pid,) in rows], min(3, len(rows))))
    yield dice.uniform(1.0, 5.0)
    system.send(signal.SIGCONT, frozen)


@fault("sql", bound_s=STORE_S, on="postgresql")
def postgres_frozen(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """SIGSTOP all of PostgreSQL for some seconds, then SIGCONT."""
    hit.cuts.add("sql")
    stage.sql.freeze(signal.SIGSTOP)
    yield dice.uniform(1.0, 6.0)
    stage.sql.freeze(signal.SIGCONT)


@fault("sql", bound_s=QUIET_S, on="sqlite")
def sqlite_locked(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Hold the file's only write lock in another program for some seconds."""
    yield from _holding(stage, dice.uniform(0.5, 6.0))


@fault("sql", bound_s=QUIET_S, on="sqlite")
def sqlite_contended(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Take the file's write lock again and again."""
    for _ in range(20):
        yield from _holding(stage, dice.uniform(0.01, 0.2))


@fault("sql", bound_s=QUIET_S, on="sqlite")
def sqlite_checkpointed(stage: Stage, dice: random.Random, hit: Hit) -> Iterator[float]:
    """Have another program move the write-ahead log into the file, as a backup does, several times."""
    for _ in range(5):
        with contextlib.closing(sqlite3.connect(stage.sql.path, timeout=20.0)) as connection:
            connection.execute("PRAGMA wal_checkpoint(RESTART)")
        yield 0.2


def _holding(stage: Stage, lasts_s: float) -> Iterator[float]:
    # a lock lasts as long as the connection of the thread that took it
    with contextlib.closing(
        sqlite3.connect(stage.sql.path, timeout=20.0, isolation_level=None)
    ) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield lasts_s
        connection.execute("ROLLBACK")
