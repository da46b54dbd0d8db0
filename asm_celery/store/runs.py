"""Moving runs: each move is one guarded UPDATE whose WHERE is the rule, and RETURNING tells.

The statements themselves, with their guards, are in `run_moves`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from asm_celery.model import Run
from asm_celery.states import STOPPED_STATUS, RunStatus, StopKind, sources_of
from asm_celery.store import run_moves
from asm_celery.store.kept import Kept
from asm_celery.store.run_queries import RunQueries, to_run
from asm_celery.store.tables import is_open, microseconds, runs

_KIND_OF = {status: kind for kind, status in STOPPED_STATUS.items()}


class Runs(RunQueries):
    """Statements on `runs`: the guarded moves, over the queries of `RunQueries`.

    A move returns the run as it is now, or None when its guard did not hold and nothing changed; one after
    which nobody asks for the run returns whether its guard held.
    """

    def insert(self, run: Run, *, input_text: str, input_digest: str, metadata: str) -> None:
        """Add a `pending` run; its queue deadline begins now."""
        waits = run.queue_timeout
        run_moves.insert(waits is not None).first(
            self._connection,
            p_run_id=run.run_id,
            p_session_id=run.session_id,
            p_position=run.position,
            p_agent=run.agent,
            p_queue=run.queue,
            p_input=input_text,
            p_input_digest=input_digest,
            p_metadata=metadata,
            p_idempotency_key=run.idempotency_key,
            p_max_attempts=run.max_attempts,
            p_run_timeout=run.run_timeout,
            p_queue_timeout=waits,
            p_shift=microseconds(waits or 0),
        )

    def claim(self, run_id: str, claim: int, *, executor: str, nonce: str) -> Run | None:
        """Make a pending run running under claim number `claim`, if it may run now.

        The guard is the whole rule of order and slots: fewer than `max_concurrent_runs` open runs of the
        session have a lower position.  The open lower positions can only shrink, so a stale count can
        only refuse too much.
        """
        return self._move(run_moves.claim(), run_id, p_claim=claim, p_executor=executor, p_nonce=nonce)

    def advance(self, run_id: str, claim: int, *, position: int, count: int) -> bool:
        """Move the attempt's event position from `position` by `count`: an append happens once or not."""
        return self._does(
            run_moves.advance(), run_id, p_claim=claim, p_position=position, p_new_position=position + count
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
        return self._move(
            run_moves.finish(unless_stopped, position is not None, frozenset(values)),
            run_id,
            p_claim=claim,
            p_status=status.value,
            p_stop=None if unless_stopped else _KIND_OF[status].value,
            p_position=position,
            p_new_position=(position or 0) + count,
            **{f"p_{name}": value for name, value in values.items()},
        )

    def withdraw(
        self, run_id: str, status: RunStatus, *, reason: str | None = None, error: str | None = None
    ) -> Run | None:
        """End a run that waits; its agent is never called."""
        if RunStatus.PENDING not in sources_of(status):
            return None
        kind = _KIND_OF.get(status)
        return self._move(
            run_moves.withdraw(),
            run_id,
            p_status=status.value,
            p_stop=None if kind is None else kind.value,
            p_reason=reason,
            p_error=error,
        )

    def request_stop(self, run_id: str, kind: StopKind, *, reason: str | None = None) -> Run | None:
        """Ask a running run to stop; the first committed request decides, for ever."""
        return self._move(run_moves.request_stop(), run_id, p_stop=kind.value, p_reason=reason)

    def pause(self, run_id: str) -> Run | None:
        """Ask an open run's agent to wait; None when it waits already, was asked to stop or has ended."""
        return self._move(run_moves.pause(), run_id)

    def resume(self, run_id: str) -> Run | None:
        """Let a paused run go on; None when it is not paused, was asked to stop or has ended."""
        return self._move(run_moves.resume(), run_id)

    def requeue(
        self,
        run_id: str,
        claim: int,
        *,
        delay_s: float,
        counts: bool = True,
        position: int | None = None,
        count: int = 0,
        **values: Any,
    ) -> Run | None:
        """Give an attempt back: the run waits again at its old position, not before `delay_s` from now.

        A pause stays: the next attempt waits where the agent lets it.

        Args:
            counts: False for a hand-back, which does not use up an attempt; True requires one left.
            position, count: as in `finish`; values: further columns.
        """
        return self._move(
            run_moves.requeue(counts, delay_s > 0, position is not None, frozenset(values)),
            run_id,
            p_claim=claim,
            p_shift=microseconds(delay_s),
            p_position=position,
            p_new_position=(position or 0) + count,
            **{f"p_{name}": value for name, value in values.items()},
        )

    def void(self, run_id: str, claim: int) -> bool:
        """Use up a claim number that nobody has claimed: who was given it can claim no more."""
        return self._does(run_moves.void(), run_id, p_claim=claim)

    def void_page(self, *, after: str, limit: int) -> str | None:
        """Use up the next claim numbers of the first `limit` waiting runs by id above `after`.

        Returns:
            The last id of them; None when there were none (index runs_open_id).
        """
        rows = run_moves.void_page().rows(self._connection, p_after=after, p_limit=limit)
        return max((row.run_id for row in rows), default=None)

    def reroute(self, run_id: str, queue: str) -> bool:
        """Send a waiting run's doorbells to another Celery queue: that of the workers with its agent."""
        return self._does(run_moves.reroute(), run_id, p_queue=queue)

    def lock_open(self, session_id: str) -> list[Run]:
        """Lock the session's open runs in the order of their ids, and return them."""
        query = (
            select(runs)
            .where(runs.c.session_id == session_id, is_open(runs))
            .order_by(runs.c.run_id)
            .with_for_update()
        )
        return [to_run(row) for row in self._connection.execute(query)]

    def _move(self, kept: Kept, run_id: str, **parameters: Any) -> Run | None:
        row = kept.first(self._connection, p_run_id=run_id, **parameters)
        return None if row is None else to_run(row)

    def _does(self, kept: Kept, run_id: str, **parameters: Any) -> bool:
        return kept.first(self._connection, p_run_id=run_id, **parameters) is not None
