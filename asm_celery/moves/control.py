"""Control of sessions: pause, resume, close, complete, interrupt, delete.  Runs are stopped by `stopping`."""

from __future__ import annotations

from asm_celery.errors import InvalidOperation, SessionNotFound
from asm_celery.events.log import EventLog
from asm_celery.model import Event, Session, StopReceipt
from asm_celery.moves.promotion import Promoter
from asm_celery.moves.stopping import Stopper
from asm_celery.states import SESSION_EVENT, SESSION_MOVES, SessionStatus, StopKind, check_session_move
from asm_celery.store.faults import retried


class Control:
    """The moves of a session's state."""

    def __init__(self, log: EventLog, promoter: Promoter, stopper: Stopper) -> None:
        self._log = log
        self._promoter = promoter
        self._stopper = stopper

    @retried
    def move_session(self, session_id: str, target: SessionStatus) -> Session:
        """Move a session: pause, resume, close its admission, complete it.

        One transaction, then one script.  Guarantee: idempotent: a session that is there already is left
        as it is, without an event.

        Raises:
            SessionNotFound: no such session.
            InvalidTransition: the state table has no such move.
            InvalidOperation: a session with open runs cannot be completed.
        """
        sources = [source for source, targets in SESSION_MOVES.items() if target in targets]
        with self._log.transaction() as tx:
            counter = tx.sessions.move(session_id, target, sources)
            session = tx.sessions.get(session_id)
            if session is None:
                raise _unknown(session_id)
            if counter is None:
                if session.status is not target:
                    check_session_move(session_id, session.status, target)
                return session
            if target is SessionStatus.COMPLETED and (depth := tx.runs.count_open(session_id)):
                raise InvalidOperation(
                    f"session {session_id!r} cannot be completed: it has {depth} open runs; drain() it first",
                    details={"session_id": session_id, "open_runs": depth},
                )
            moved = Event.new(
                SESSION_EVENT[target], session_id, sequence=counter.last_sequence, provider=session.agent
            )
            tx.write([moved])
        self._promoter.settle(
            lambda: self._promoter.queue.session_state(session_id, target.value, counter.state_version)
        )
        return session

    @retried
    def stop_session(
        self, session_id: str, *, by: str, reason: str = "interrupt_session"
    ) -> dict[str, StopReceipt]:
        """Interrupt every open run of a session; returns the receipts of those that were stopped or told.

        One transaction, with an entry in the history a run.  Runs submitted meanwhile are not touched.
        """
        with self._log.transaction() as tx:
            if tx.sessions.counter(session_id) is None:
                raise _unknown(session_id)
            stops = self._stopper.stop_open(tx, session_id, reason=reason)
            # a run that was asked to stop before keeps its kind: the first request decides
            receipts = {
                run.run_id: StopReceipt(
                    run_id=run.run_id, state=state, status=run.status, kind=run.stop_requested
                )
                for state, runs in (("withdrawn", stops.withdrawn), ("requested", stops.told))
                for run in runs
            }
            for receipt in receipts.values():
                tx.operations.record(receipt.run_id, session_id, StopKind.INTERRUPT.value, by, receipt.state)
        self._stopper.carry_out(stops)
        return receipts

    @retried
    def delete_session(self, session_id: str) -> None:
        """Remove a session, its runs and events: only a completed or draining one without open runs.

        Raises:
            SessionNotFound: no such session.
            InvalidOperation: it is active or paused, or has open runs.
        """
        with self._log.transaction() as tx:
            counter = tx.sessions.draw(session_id)
            if counter is None:
                raise _unknown(session_id)
            depth = tx.runs.count_open(session_id)
            if depth or counter.state in (SessionStatus.ACTIVE, SessionStatus.PAUSED):
                raise InvalidOperation(
                    f"session {session_id!r} cannot be deleted: it is {counter.state} with {depth} open runs; "
                    "drain(accept=False) or complete() it first",
                    details={"session_id": session_id, "status": counter.state.value, "open_runs": depth},
                )
            tx.sessions.delete(session_id)


def _unknown(session_id: str) -> SessionNotFound:
    return SessionNotFound(
        f"there is no session {session_id!r}: start it with start_session", details={"session_id": session_id}
    )
