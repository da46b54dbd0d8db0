"""Reading runs: by id, by session, by what is open."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, Row, Text, bindparam, func, select, type_coerce

from asm_celery.codec import decode
from asm_celery.model import Run
from asm_celery.states import LONGEST_BACKOFF_S, TERMINAL, RunStatus, StopKind
from asm_celery.store.kept import Kept
from asm_celery.store.tables import events, has_status, instant_in, is_open, runs, session_counters, sessions

# A run's last event is its terminal one once it has ended (index events_run).
_RUN = select(
    runs,
    select(func.max(events.c.sequence))
    .where(events.c.run_id == runs.c.run_id)
    .scalar_subquery()
    .label("last"),
)
_P_RUN_ID = bindparam("p_run_id", type_=Text)
_P_SESSION_ID = bindparam("p_session_id", type_=Text)
_BY_ID = Kept(_RUN.where(runs.c.run_id == _P_RUN_ID))
_BY_KEY = Kept(
    select(runs.c.run_id, runs.c.input_digest).where(
        runs.c.session_id == _P_SESSION_ID, runs.c.idempotency_key == bindparam("p_key", type_=Text)
    )
)
_NONCE = Kept(select(runs.c.claim_nonce).where(runs.c.run_id == _P_RUN_ID))
_COUNT_OPEN = Kept(
    select(func.count().label("open"))
    .select_from(runs)
    .where(runs.c.session_id == _P_SESSION_ID, is_open(runs))
)
_TERMINAL = [status.value for status in sorted(TERMINAL)]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """What Redis needs to know of an open run; `waits_ms` is how long its back-off still lasts."""

    run_id: str
    session_id: str
    agent: str
    position: int
    status: RunStatus
    claims: int
    executor: str | None
    queue: str
    waits_ms: int
    slots: int
    state: str
    state_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRun:
    """A running run as its executor's beat needs to know it."""

    run_id: str
    claims: int
    stop: StopKind | None
    is_paused: bool
    pause_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OverdueRun:
    """An open run whose deadline has passed; `queue_timeout` is what it might wait, if it waits."""

    run_id: str
    is_running: bool
    queue_timeout: float | None


class RunQueries:
    """Statements that read `runs`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, run_id: str) -> Run | None:
        """Return a run, or None."""
        row = _BY_ID.first(self._connection, p_run_id=run_id)
        return None if row is None else to_run(row)

    def get_many(self, run_ids: Collection[str]) -> list[Run]:
        """Return the runs of these ids that exist, in no order; one statement, keep it under 1,000 ids."""
        rows = self._connection.execute(_RUN.where(runs.c.run_id.in_(list(run_ids))))
        return [to_run(row) for row in rows]

    def ended(self, run_ids: Collection[str]) -> list[Run]:
        """Return those of these runs that are terminal."""
        rows = self._connection.execute(
            _RUN.where(runs.c.run_id.in_(list(run_ids)), runs.c.status.in_(_TERMINAL))
        )
        return [to_run(row) for row in rows]

    def by_key(self, session_id: str, key: str) -> tuple[str, str] | None:
        """Return (run id, input digest) of the run with this idempotency key, or None."""
        row = _BY_KEY.first(self._connection, p_session_id=session_id, p_key=key)
        return None if row is None else (row.run_id, row.input_digest)

    def nonce_of(self, run_id: str) -> str | None:
        """Return the nonce of the current claim: whose commit it was when the answer was lost."""
        row = _NONCE.first(self._connection, p_run_id=run_id)
        return None if row is None else row.claim_nonce

    def count_open(self, session_id: str) -> int:
        """Return how many runs of the session are not terminal (index runs_open)."""
        return int(_COUNT_OPEN.first(self._connection, p_session_id=session_id).open)

    def open_of(self, session_id: str, limit: int | None = None) -> list[Run]:
        """Return the session's open runs by position (index runs_open)."""
        query = (
            _RUN.where(runs.c.session_id == session_id, is_open(runs)).order_by(runs.c.position).limit(limit)
        )
        return [to_run(row) for row in self._connection.execute(query)]

    def ended_before(self, session_id: str, position: int, limit: int) -> list[Run]:
        """Return the last `limit` ended runs of lower position, oldest first."""
        query = (
            _RUN.where(
                runs.c.session_id == session_id,
                runs.c.position < position,
                runs.c.status.in_(_TERMINAL),
            )
            .order_by(runs.c.position.desc())
            .limit(limit)
        )
        return [to_run(row) for row in self._connection.execute(query)][::-1]

    def of_session(
        self,
        *,
        session_id: str,
        status: Collection[RunStatus] | None = None,
        after: int = 0,
        limit: int = 50,
    ) -> list[Run]:
        """Return the session's runs of position above `after`, by position."""
        query = (
            _RUN.where(runs.c.session_id == session_id, runs.c.position > after)
            .order_by(runs.c.position)
            .limit(limit)
        )
        if status is not None:
            query = query.where(runs.c.status.in_([one.value for one in status]))
        return [to_run(row) for row in self._connection.execute(query)]

    def held_by(self, executor: str) -> list[HeldRun]:
        """Return the runs SQL says this executor is running (index runs_executor)."""
        rows = self._connection.execute(
            select(
                runs.c.run_id,
                runs.c.claims,
                runs.c.stop_requested,
                runs.c.paused_at,
                runs.c.pause_version,
            ).where(runs.c.executor == executor, has_status(runs, RunStatus.RUNNING))
        )
        return [
            HeldRun(
                run_id=row.run_id,
                claims=row.claims,
                stop=StopKind(row.stop_requested) if row.stop_requested else None,
                is_paused=row.paused_at is not None,
                pause_version=row.pause_version,
            )
            for row in rows
        ]

    def claims_of(self, run_ids: Collection[str]) -> dict[str, tuple[str | None, int]]:
        """Return (executor, claim number) of those of these runs that are running; keep it under 1,000 ids."""
        rows = self._connection.execute(
            select(runs.c.run_id, runs.c.executor, runs.c.claims).where(
                runs.c.run_id.in_(list(run_ids)), has_status(runs, RunStatus.RUNNING)
            )
        )
        return {row.run_id: (row.executor, row.claims) for row in rows}

    def open_page(self, *, after: str = "", limit: int = 500, run_ids: Sequence[str] = ()) -> list[OpenRun]:
        """Return open runs by id above `after` (index runs_open_id), or all those of `run_ids`."""
        if len(run_ids) > limit:
            # each of them is asked for: one that is left out would be taken for one that is over
            pieces = [run_ids[start : start + limit] for start in range(0, len(run_ids), limit)]
            return [run for piece in pieces for run in self.open_page(run_ids=piece, limit=limit)]
        query = (
            select(
                runs.c.run_id,
                runs.c.session_id,
                runs.c.agent,
                runs.c.position,
                runs.c.status,
                runs.c.claims,
                runs.c.executor,
                runs.c.queue,
                (type_coerce(runs.c.not_before, BigInteger) - instant_in(0)).label("waits"),
                sessions.c.max_concurrent_runs,
                session_counters.c.state,
                session_counters.c.state_version,
            )
            .join(sessions, sessions.c.session_id == runs.c.session_id)
            .join(session_counters, session_counters.c.session_id == runs.c.session_id)
            .where(is_open(runs))
            .order_by(runs.c.run_id)
            .limit(limit)
        )
        query = query.where(runs.c.run_id.in_(run_ids)) if run_ids else query.where(runs.c.run_id > after)
        return [_open_run(row) for row in self._connection.execute(query)]

    def first_open(self, session_id: str, slots: int) -> list[OpenRun]:
        """Return the session's first `slots` open runs: the only ones that may run now."""
        ids = select(runs.c.run_id).where(runs.c.session_id == session_id, is_open(runs))
        first = self._connection.execute(ids.order_by(runs.c.position).limit(slots)).scalars().all()
        return sorted(self.open_page(run_ids=first), key=lambda run: run.position) if first else []

    def overdue(self, limit: int = 100) -> list[OverdueRun]:
        """Return open runs whose queue deadline (pending) or deadline (running) has passed, `limit` of each."""
        # two queries, each with its own small index (runs_queue_deadline, runs_deadline)
        waiting = has_status(runs, RunStatus.PENDING), runs.c.queue_deadline <= instant_in(0)
        executing = (
            has_status(runs, RunStatus.RUNNING),
            runs.c.deadline <= instant_in(0),
            runs.c.stop_requested.is_(None),
        )
        return [
            OverdueRun(run_id=row.run_id, is_running=rule is executing, queue_timeout=row.queue_timeout)
            for rule in (waiting, executing)
            for row in self._connection.execute(
                select(runs.c.run_id, runs.c.queue_timeout).where(*rule).limit(limit)
            )
        ]


def to_run(row: Row[Any]) -> Run:
    """Return the record of a row of `runs`, read by `_RUN` or returned by a move."""
    status = RunStatus(row.status)
    return Run(
        run_id=row.run_id,
        session_id=row.session_id,
        agent=row.agent,
        position=row.position,
        status=status,
        input=decode(row.input),
        output=decode(row.output),
        error=decode(row.error),
        metadata=decode(row.metadata),
        token_usage=decode(row.token_usage),
        cost_usd=row.cost_usd,
        turn_count=row.turn_count,
        queue=row.queue,
        idempotency_key=row.idempotency_key,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        claims=row.claims,
        executor=row.executor,
        event_position=row.event_position,
        run_timeout=row.run_timeout,
        queue_timeout=row.queue_timeout,
        stop_requested=StopKind(row.stop_requested) if row.stop_requested else None,
        stop_reason=row.stop_reason,
        paused_at=row.paused_at,
        pause_version=row.pause_version,
        not_before=row.not_before,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        deadline=row.deadline,
        last_sequence=(getattr(row, "last", 0) or 0) if status.is_terminal else 0,
    )


def _waits_ms(waits_us: int | None) -> int:
    waits_ms = max(0, -(-int(waits_us or 0) // 1000))
    return waits_ms if waits_ms <= LONGEST_BACKOFF_S * 1000 else 0


def _open_run(row: Row[Any]) -> OpenRun:
    return OpenRun(
        run_id=row.run_id,
        session_id=row.session_id,
        agent=row.agent,
        position=row.position,
        status=RunStatus(row.status),
        claims=row.claims,
        executor=row.executor,
        queue=row.queue,
        waits_ms=_waits_ms(row.waits),
        slots=row.max_concurrent_runs,
        state=row.state,
        state_version=row.state_version,
    )
