"""The tables, once for both databases; Alembic's migrations build the same (a test compares them).

Times are whole microseconds since 1970 UTC, taken from the database's clock where they decide anything.
JSON is text made by `codec.encode`.  The CHECKs come from `states`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

from asm_celery.states import OPEN, RunStatus, SessionStatus, StopKind

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Instant(TypeDecorator[datetime]):
    """An aware datetime in Python, whole microseconds since 1970 UTC in SQL."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Turn a datetime into microseconds."""
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """Turn microseconds into a datetime."""
        return None if value is None else _EPOCH + timedelta(microseconds=int(value))


class instant_in(FunctionElement[Any]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock plus a bound number of microseconds: ``instant_in(0)`` is now."""

    type = BigInteger()
    inherit_cache = True


@compiles(instant_in, "postgresql")
def _instant_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    shift = compiler.process(element.clauses, **kw)
    return f"(CAST(extract(epoch from clock_timestamp()) * 1000000 AS BIGINT) + CAST({shift} AS BIGINT))"


@compiles(instant_in, "sqlite")
def _instant_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    shift = compiler.process(element.clauses, **kw)
    return f"(CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000 + {shift})"


def microseconds(seconds: float) -> int:
    """Return seconds as whole microseconds."""
    return round(seconds * 1_000_000)


def _words(column: str, words: Any) -> str:
    return f"{column} IN ({', '.join(repr(str(word)) for word in words)})"


OPEN_SQL = _words("status", OPEN)


def has_status(table: Any, *statuses: RunStatus) -> ColumnElement[bool]:
    """Return ``status IN (...)`` with the words written out.

    A partial index is used only where the planner can read its condition in the query, and it cannot read
    a bound parameter.
    """
    words: list[ColumnElement[str]] = [literal_column(f"'{one.value}'") for one in statuses]
    # SQLite does not see that IN of one word is equality
    said = table.c.status == words[0] if len(words) == 1 else table.c.status.in_(words)
    return cast("ColumnElement[bool]", said)


def is_open(table: Any) -> ColumnElement[bool]:
    """Return the condition of the indexes on open runs."""
    return has_status(table, *OPEN)


metadata = MetaData()

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("agent", Text, nullable=False),
    Column("max_concurrent_runs", Integer, nullable=False),
    Column("max_queued_runs", Integer, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    CheckConstraint("max_concurrent_runs >= 1", name="sessions_slots"),
    CheckConstraint("max_queued_runs >= 0", name="sessions_bound"),
    Index("sessions_created", "created_at", "session_id"),
)

# Narrow and hot: every writer of a session takes this row's lock, and nothing else of the session's.
session_counters = Table(
    "session_counters",
    metadata,
    Column("session_id", Text, ForeignKey("sessions.session_id"), primary_key=True),
    Column("last_sequence", BigInteger, nullable=False, server_default="0"),
    Column("last_position", BigInteger, nullable=False, server_default="0"),
    # what retention has left of the log begins here; only prefixes are removed
    Column("first_sequence", BigInteger, nullable=False, server_default="1"),
    Column("state", Text, nullable=False, server_default=SessionStatus.ACTIVE.value),
    Column("state_version", BigInteger, nullable=False, server_default="0"),
    CheckConstraint(_words("state", SessionStatus), name="session_counters_state"),
    postgresql_with={"fillfactor": 50},
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("session_id", Text, ForeignKey("sessions.session_id"), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("agent", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("input_digest", Text, nullable=False),
    Column("output", Text),
    Column("error", Text),
    Column("metadata", Text, nullable=False),
    Column("token_usage", Text, nullable=False, server_default="{}"),
    Column("cost_usd", Float),
    Column("turn_count", Integer, nullable=False, server_default="0"),
    Column("idempotency_key", Text),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("max_attempts", Integer, nullable=False, server_default="1"),
    # the claim number of the current or last claim: the fence named in the WHERE of every worker's write
    Column("claims", Integer, nullable=False, server_default="0"),
    Column("claim_nonce", Text),
    Column("executor", Text),
    # events the current claim has stored: makes an append exactly-once through a lost commit answer
    Column("event_position", BigInteger, nullable=False, server_default="0"),
    Column("run_timeout", Float),
    Column("queue_timeout", Float),
    Column("stop_requested", Text),
    Column("stop_reason", Text),
    # since when it is to wait; the version rises at each pause and resume, so the later of two news is known
    Column("paused_at", Instant),
    Column("pause_version", Integer, nullable=False, server_default="0"),
    Column("not_before", Instant),
    Column("queue_deadline", Instant),
    Column("deadline", Instant),
    Column("created_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("ended_at", Instant),
    UniqueConstraint("session_id", "position", name="runs_position"),
    CheckConstraint(_words("status", RunStatus), name="runs_status"),
    CheckConstraint(f"stop_requested IS NULL OR {_words('stop_requested', StopKind)}", name="runs_stop"),
    # ended_at and the terminal statuses belong together
    CheckConstraint(f"(ended_at IS NULL) = ({OPEN_SQL})", name="runs_ended"),
    CheckConstraint(f"paused_at IS NULL OR {OPEN_SQL}", name="runs_paused"),
    Index(
        "runs_open", "session_id", "position", postgresql_where=text(OPEN_SQL), sqlite_where=text(OPEN_SQL)
    ),
    Index(
        "runs_key",
        "session_id",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
        sqlite_where=text("idempotency_key IS NOT NULL"),
    ),
    Index(
        "runs_executor",
        "executor",
        postgresql_where=text("status = 'running'"),
        sqlite_where=text("status = 'running'"),
    ),
    # the repair pass asks every few seconds who is overdue
    Index(
        "runs_queue_deadline",
        "queue_deadline",
        postgresql_where=text("status = 'pending' AND queue_deadline IS NOT NULL"),
        sqlite_where=text("status = 'pending' AND queue_deadline IS NOT NULL"),
    ),
    Index(
        "runs_deadline",
        "deadline",
        postgresql_where=text("status = 'running' AND deadline IS NOT NULL"),
        sqlite_where=text("status = 'running' AND deadline IS NOT NULL"),
    ),
    # the comparison and the restore read the open runs in pages
    Index("runs_open_id", "run_id", postgresql_where=text(OPEN_SQL), sqlite_where=text(OPEN_SQL)),
    postgresql_with={"fillfactor": 70},
)

events = Table(
    "events",
    metadata,
    # no foreign key: the counter row's lock has proven the session, and the check would cost each row
    Column("session_id", Text, primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("event_id", Text, nullable=False, unique=True),
    Column("run_id", Text),
    Column("type", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("metadata", Text, nullable=False, server_default="{}"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("provider", Text),
    Column("correlation_id", Text),
    Column("schema_version", Integer, nullable=False, server_default="1"),
    Column("created_at", Instant, nullable=False),
    CheckConstraint("sequence >= 1", name="events_sequence"),
    Index("events_run", "run_id", "sequence"),
)

# What the workers' registries declare, so that a web backend without agents can route their runs.
agents = Table(
    "agents",
    metadata,
    Column("name", Text, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("stop_grace_s", Float),
    Column("run_timeout", Float),
    Column("max_attempts", Integer),
    Column("resumable", Integer, nullable=False, server_default="0"),
    Column("capabilities", Text, nullable=False, server_default="[]"),
    Column("updated_at", Instant, nullable=False),
)

executors = Table(
    "executors",
    metadata,
    Column("executor", Text, primary_key=True),
    Column("worker", Text, nullable=False),
    Column("beat", BigInteger, nullable=False, server_default="0"),
    Column("started_at", Instant, nullable=False),
    Column("seen_at", Instant, nullable=False),
)

settings = Table(
    "settings",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

control_operations = Table(
    "control_operations",
    metadata,
    Column("operation_id", Text, primary_key=True),
    Column("session_id", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Index("control_operations_run", "run_id", "at"),
)
