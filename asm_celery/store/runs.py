"""Moving runs: each move is one guarded UPDATE whose WHERE is the rule, and RETURNING tells.

The fence: every write of a worker names its claim number, and is refused when the row has moved on.  It
stands in the WHERE of the UPDATE on the run row, which is checked again after a lock wait; a sub-select
would see a snapshot older than that wait.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, null, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from asm_celery.model import Run
from asm_celery.states import STOPPED_STATUS, RunStatus, StopKind, sources_of
from asm_celery.store.run_queries import RunQueries, to_run
from asm_celery.store.tables import instant_in, is_open, microseconds, runs, sessions

_PENDING = RunStatus.PENDING.value
_RUNNING = RunStatus.RUNNING.value
_KIND_OF = {status: kind for kind, status in STOPPED_STATUS.items()}


class Runs(RunQueries):
    """Statements on `runs`: the guarded moves, over the queries of `RunQueries`.

    Every move returns the run as it is now, or None when its guard did not hold and nothing changed.
    """

    def insert(self, run: Run, *, input_text: str, input_digest: str, metadata: str) -> None:
        """Add a `pending` run; its queue deadline begins now."""
        waits = run.queue_timeout
        self._connection.execute(
            runs.insert().values(
                run_id=run.run_id,
                session_id=run.session_id,
                position=run.position,
                agent=run.agent,
                queue=run.queue,
                status=_PENDING,
                input=input_text,
                input_digest=input_digest,
                metadata=metadata,
                idempotency_key=run.idempotency_key,
                max_attempts=run.max_attempts,
                run_timeout=run.run_timeout,
                queue_timeout=waits,
                queue_deadline=null() if waits is None else instant_in(microseconds(waits)),
                created_at=instant_in(0),
            )
        )

    def claim(self, run_id: str, claim: int, *, executor: str, nonce: str) -> Run | None:
        """Make a pending run running under claim number `claim`, if it may run now.

        The guard is the whole rule of order and slots: fewer than `max_concurrent_runs` open runs of the
        session have a lower position.  The open lower positions can only shrink, so a stale count can
        only refuse too much.
        """
        other = runs.alias("other")
        lower = (
            select(func.count())
            .select_from(other)
            .where(
                other.c.session_id == runs.c.session_id,
                is_open(other),
                other.c.position < runs.c.position,
            )
            .scalar_subquery()
        )
        slots = (
            select(sessions.c.max_concurrent_runs)
            .where(sessions.c.session_id == runs.c.session_id)
            .scalar_subquery()
        )
        return self._move(
            run_id,
            runs.c.status == _PENDING,
            runs.c.claims == claim - 1,
            runs.c.stop_requested.is_(None),
            or_(runs.c.not_before.is_(None), runs.c.not_before <= instant_in(0)),
            lower < slots,
            status=_RUNNING,
            claims=claim,
            claim_nonce=nonce,
            executor=executor,
            attempt=runs.c.attempt + 1,
            event_position=0,
            not_before=None,
            started_at=func.coalesce(runs.c.started_at, instant_in(0)),
            deadline=instant_in(0) + runs.c.run_timeout * 1_000_000,
        )

    def advance(self, run_id: str, claim: int, *, position: int, count: int) -> Run | None:
        """Move the attempt's event position from `position` by `count`: an append happens once or not."""
        return self._move(
            run_id,
            *_held(claim),
            runs.c.event_position == position,
            event_position=position + count,
        )

    def finish(
        self,
        run_id: str,
        claim: int,
        status: RunStatus,
        *,
        position: int | None = None,
        count: int = 0,
        unless_stopped: bool = True,
        **values: Any,
    ) -> Run | None:
        """End a running attempt's run.

        Once a stop was requested, the run can end only as the request says; without one, it cannot end
        as stopped (but for a shutdown, which says ``unless_stopped=True`` with status `interrupted`).

        Args:
            position: the attempt's event position expected; None where no attempt writes (a lost worker).
            count: events stored with this end, the terminal one not counted.
            unless_stopped: True: refuse when any stop was requested; False: require the request that
                leads to `status`.
            values: the columns output, error, token_usage, cost_usd, turn_count as JSON text or numbers.
        """
        stop = (
            runs.c.stop_requested.is_(None)
            if unless_stopped
            else runs.c.stop_requested == _KIND_OF[status].value
        )
        where = [*_held(claim), stop]
        if position is not None:
            where.append(runs.c.event_position == position)
            values["event_position"] = position + count
        return self._move(run_id, *where, status=status.value, ended_at=instant_in(0), **values)

    def withdraw(
        self, run_id: str, status: RunStatus, *, reason: str | None = None, **values: Any
    ) -> Run | None:
        """End a run that waits; its agent is never called."""
        kind = _KIND_OF.get(status)
        if kind is not None:
            values["stop_requested"] = kind.value
        return self._move(
            run_id,
            runs.c.status == _PENDING,
            runs.c.status.in_([source.value for source in sources_of(status)]),
            status=status.value,
            stop_reason=reason,
            ended_at=instant_in(0),
            **values,
        )

    def request_stop(self, run_id: str, kind: StopKind, *, reason: str | None = None) -> Run | None:
        """Ask a running run to stop; the first committed request decides, for ever."""
        return self._move(
            run_id,
            runs.c.status == _RUNNING,
            runs.c.stop_requested.is_(None),
            stop_requested=kind.value,
            stop_reason=reason,
        )

    def requeue(
        self,
        run_id: str,
        claim: int,
        *,
        delay_s: float,
        counts: bool = True,
        position: int | None = None,
        count: int = 0,
        **also: Any,
    ) -> Run | None:
        """Give an attempt back: the run waits again at its old position, not before `delay_s` from now.

        Args:
            counts: False for a hand-back, which does not use up an attempt; True requires one left.
            position, count: as in `finish`; also: further columns.
        """
        where = [*_held(claim), runs.c.stop_requested.is_(None)]
        values: dict[str, Any] = {
            "status": _PENDING,
            "executor": None,
            "deadline": None,
            "not_before": instant_in(microseconds(delay_s)) if delay_s > 0 else None,
            **also,
        }
        if counts:
            where.append(runs.c.attempt < runs.c.max_attempts)
        else:
            values["attempt"] = runs.c.attempt - 1
        if position is not None:
            where.append(runs.c.event_position == position)
            values["event_position"] = position + count
        return self._move(run_id, *where, **values)

    def reroute(self, run_id: str, queue: str) -> Run | None:
        """Send a waiting run's doorbells to another Celery queue: that of the workers with its agent."""
        return self._move(run_id, runs.c.status == _PENDING, queue=queue)

    def lock_open(self, session_id: str) -> list[Run]:
        """Lock the session's open runs in the order of their ids, and return them."""
        query = (
            select(runs)
            .where(runs.c.session_id == session_id, is_open(runs))
            .order_by(runs.c.run_id)
            .with_for_update()
        )
        return [to_run(row) for row in self._connection.execute(query)]

    def _move(self, run_id: str, *where: ColumnElement[bool], **values: Any) -> Run | None:
        row = self._connection.execute(
            update(runs).where(runs.c.run_id == run_id, *where).values(**values).returning(runs)
        ).first()
        return None if row is None else to_run(row)


def _held(claim: int) -> list[ColumnElement[bool]]:
    return [runs.c.status == _RUNNING, runs.c.claims == claim]
