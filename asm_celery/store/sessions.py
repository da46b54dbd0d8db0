"""Sessions, their hot counters, and what workers declare of agents."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Connection, Text, bindparam, delete, func, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from asm_celery.codec import decode
from asm_celery.model import Session
from asm_celery.states import SessionStatus
from asm_celery.store.kept import Kept
from asm_celery.store.tables import (
    agents,
    control_operations,
    events,
    instant_in,
    runs,
    session_counters,
    sessions,
)

_SESSION = select(
    sessions,
    session_counters.c.state,
    session_counters.c.state_version,
    session_counters.c.last_sequence,
    session_counters.c.last_position,
).join(session_counters, session_counters.c.session_id == sessions.c.session_id)
_P_SESSION_ID = bindparam("p_session_id", type_=Text)
_BY_ID = Kept(_SESSION.where(sessions.c.session_id == _P_SESSION_ID))
_AGENT = Kept(select(agents).where(agents.c.name == bindparam("p_name", type_=Text)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """The counter row after a draw: the numbers drawn are the last ones up to these."""

    last_sequence: int
    last_position: int
    state: SessionStatus
    state_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTerms:
    """What workers declared of an agent; None where they left it to the defaults."""

    queue: str
    stop_grace_s: float | None = None
    run_timeout: float | None = None
    max_attempts: int | None = None
    resumable: bool = False
    capabilities: frozenset[str] = frozenset()


@cache
def _draw(states: frozenset[SessionStatus] | None) -> Kept:
    table = session_counters
    where = [table.c.session_id == _P_SESSION_ID]
    if states is not None:
        where.append(or_(*[table.c.state == state.value for state in sorted(states)]))
    return Kept(
        update(table)
        .where(*where)
        .values(
            last_sequence=table.c.last_sequence + bindparam("p_sequences", type_=BigInteger),
            last_position=table.c.last_position + bindparam("p_positions", type_=BigInteger),
        )
        .returning(table.c.last_sequence, table.c.last_position, table.c.state, table.c.state_version)
    )


def insert_into(connection: Connection, table: Any) -> Any:
    """Return the dialect's INSERT, which knows ON CONFLICT."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


class Sessions:
    """Guarded statements on `sessions` and `session_counters`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def insert(self, session: Session, metadata: str) -> bool:
        """Add a session with its counters; False (and nothing written) if the id is taken."""
        row = self._connection.execute(
            insert_into(self._connection, sessions)
            .values(
                session_id=session.session_id,
                agent=session.agent,
                max_concurrent_runs=session.max_concurrent_runs,
                max_queued_runs=session.max_queued_runs,
                metadata=metadata,
                created_at=session.created_at,
                updated_at=session.updated_at,
            )
            .on_conflict_do_nothing(index_elements=["session_id"])
            .returning(sessions.c.session_id)
        ).first()
        if row is None:
            return False
        self._connection.execute(session_counters.insert().values(session_id=session.session_id))
        return True

    def get(self, session_id: str) -> Session | None:
        """Return a session, or None."""
        row = _BY_ID.first(self._connection, p_session_id=session_id)
        return None if row is None else session_of(row)

    def page(
        self, *, status: SessionStatus | None, agent: str | None, after: str | None, limit: int
    ) -> list[Session]:
        """Return sessions by creation, oldest first, beginning behind the session `after`."""
        query = _SESSION.order_by(sessions.c.created_at, sessions.c.session_id).limit(limit)
        if status is not None:
            query = query.where(session_counters.c.state == status.value)
        if agent is not None:
            query = query.where(sessions.c.agent == agent)
        if after is not None:
            place = select(sessions.c.created_at, sessions.c.session_id).where(sessions.c.session_id == after)
            query = query.where(
                tuple_(sessions.c.created_at, sessions.c.session_id) > place.scalar_subquery()
            )
        return [session_of(row) for row in self._connection.execute(query)]

    def last_sequence(self, session_id: str) -> int:
        """Return the number of the session's last event; 0 without events or session."""
        counted = self._connection.execute(
            select(session_counters.c.last_sequence).where(session_counters.c.session_id == session_id)
        ).scalar()
        return int(counted or 0)

    def first_sequence(self, session_id: str) -> int:
        """Return the sequence the log begins with, 1 unless retention removed some; 1 without a session."""
        stored = self._connection.execute(
            select(session_counters.c.first_sequence).where(session_counters.c.session_id == session_id)
        ).scalar()
        return int(stored or 1)

    def begin_with(self, session_id: str, sequence: int) -> None:
        """Write down where the log begins, behind what retention removes in the same transaction."""
        self._connection.execute(
            update(session_counters)
            .where(session_counters.c.session_id == session_id)
            .values(first_sequence=sequence)
        )

    def with_more_than(self, keep: int, *, after: str, limit: int) -> list[str]:
        """Return the ids, in order and above `after`, of sessions whose logs have more than `keep` events."""
        counters = session_counters.c
        query = (
            select(counters.session_id)
            .where(counters.last_sequence - counters.first_sequence + 1 > keep, counters.session_id > after)
            .order_by(counters.session_id)
            .limit(limit)
        )
        return list(self._connection.execute(query).scalars())

    def draw(
        self,
        session_id: str,
        *,
        sequences: int = 0,
        positions: int = 0,
        states: frozenset[SessionStatus] | None = None,
    ) -> Counter | None:
        """Take the next sequences and positions under the lock of the counter row.

        Guarantee: the row stays locked until the transaction ends, so commit order is number order, and
        a rollback gives the numbers back: no holes.

        Returns:
            The counter after the draw; None when there is no such session or its state is not in `states`.
        """
        row = _draw(states).first(
            self._connection, p_session_id=session_id, p_sequences=sequences, p_positions=positions
        )
        return None if row is None else counter_of(row)

    def counter(self, session_id: str) -> Counter | None:
        """Return the counter row without locking it, or None."""
        table = session_counters
        row = self._connection.execute(
            select(table.c.last_sequence, table.c.last_position, table.c.state, table.c.state_version).where(
                table.c.session_id == session_id
            )
        ).first()
        return None if row is None else counter_of(row)

    def move(
        self, session_id: str, target: SessionStatus, sources: Collection[SessionStatus]
    ) -> Counter | None:
        """Change the state where it is one of `sources`, raise its version and take one sequence.

        Returns:
            The counter after the move; None when the guard did not hold (another state, or no session).
        """
        table = session_counters
        row = self._connection.execute(
            update(table)
            .where(table.c.session_id == session_id, table.c.state.in_([source.value for source in sources]))
            .values(
                state=target.value,
                state_version=table.c.state_version + 1,
                last_sequence=table.c.last_sequence + 1,
            )
            .returning(table.c.last_sequence, table.c.last_position, table.c.state, table.c.state_version)
        ).first()
        if row is None:
            return None
        self._connection.execute(
            update(sessions).where(sessions.c.session_id == session_id).values(updated_at=instant_in(0))
        )
        return counter_of(row)

    def delete(self, session_id: str) -> None:
        """Remove a session with all that is kept of it; the caller has checked that none is open."""
        its_runs = select(runs.c.run_id).where(runs.c.session_id == session_id)
        self._connection.execute(delete(control_operations).where(control_operations.c.run_id.in_(its_runs)))
        for table in (events, runs, session_counters, sessions):
            self._connection.execute(delete(table).where(table.c.session_id == session_id))

    def count(self) -> int:
        """Return how many sessions are stored."""
        return int(self._connection.execute(select(func.count()).select_from(sessions)).scalar() or 0)


class Agents:
    """What workers declare of their agents."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def declare(self, name: str, terms: AgentTerms, capabilities: str) -> None:
        """Write an agent's terms; the last declaration holds."""
        values = {
            "queue": terms.queue,
            "stop_grace_s": terms.stop_grace_s,
            "run_timeout": terms.run_timeout,
            "max_attempts": terms.max_attempts,
            "resumable": int(terms.resumable),
            "capabilities": capabilities,
            "updated_at": instant_in(0),
        }
        self._connection.execute(
            insert_into(self._connection, agents)
            .values(name=name, **values)
            .on_conflict_do_update(index_elements=["name"], set_=values)
        )

    def get(self, name: str) -> AgentTerms | None:
        """Return an agent's terms, None when no worker ever declared it."""
        row = _AGENT.first(self._connection, p_name=name)
        if row is None:
            return None
        return AgentTerms(
            queue=row.queue,
            stop_grace_s=row.stop_grace_s,
            run_timeout=row.run_timeout,
            max_attempts=row.max_attempts,
            resumable=bool(row.resumable),
            capabilities=frozenset(decode(row.capabilities)),
        )


def counter_of(row: Any) -> Counter:
    """Return the counter that a row tells."""
    return Counter(
        last_sequence=row.last_sequence,
        last_position=row.last_position,
        state=SessionStatus(row.state),
        state_version=row.state_version,
    )


def session_of(row: Any, prefix: str = "") -> Session:
    """Return the session that a row tells, whose own columns may begin with a prefix."""

    def its(name: str) -> Any:
        return getattr(row, prefix + name)

    return Session(
        session_id=its("session_id"),
        agent=its("agent"),
        status=SessionStatus(row.state),
        max_concurrent_runs=its("max_concurrent_runs"),
        max_queued_runs=its("max_queued_runs"),
        metadata=decode(its("metadata")),
        created_at=its("created_at"),
        updated_at=its("updated_at"),
        last_sequence=row.last_sequence,
        last_position=row.last_position,
        state_version=row.state_version,
    )
