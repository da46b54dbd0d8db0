"""Say what is true: the status of a session, and why work waits."""

from __future__ import annotations

from asm_celery.errors import CoordinationUnavailable, SessionNotFound
from asm_celery.events.log import EventLog
from asm_celery.model import Run, Session, SessionStatusReport
from asm_celery.moves.holding import Holding
from asm_celery.queue.run_queue import RunQueue
from asm_celery.states import RunStatus, SessionStatus


class Inspection:
    """Read-only questions."""

    def __init__(self, log: EventLog, queue: RunQueue, holding: Holding) -> None:
        self._log = log
        self._queue = queue
        self._holding = holding

    def status(self, session_id: str) -> SessionStatusReport:
        """Report a session from SQL; `subscribers` from Redis, 0 while it is away.

        Two statements, one script.  Raises SessionNotFound.
        """
        with self._log.store.read() as tx:
            session = tx.sessions.get(session_id)
            open_runs = tx.runs.open_of(session_id) if session else []
        if session is None:
            raise SessionNotFound(
                f"there is no session {session_id!r}: start it with start_session",
                details={"session_id": session_id},
            )
        return self._report(session, open_runs)

    def why_waiting(self, report: SessionStatusReport) -> str:
        """Say in one sentence why what is left of a session has not ended."""
        if report.status is SessionStatus.PAUSED and report.queued_count:
            return "the session is paused: resume() it"
        if report.in_flight_count:
            return f"{report.in_flight_count} running, {report.queued_count} waiting behind them"
        return self.why_idle()

    def why_idle(self) -> str:
        """Say in one sentence why what waits in sessions that may start runs does not start."""
        hold = self._holding.read()
        if hold.is_held:
            return f"the whole installation is held by {hold.by}: release it with `asm resume --all`"
        try:
            active, limit, _, _ = self._queue.limiter_status()
        except CoordinationUnavailable:
            return "Redis is away: waiting runs start when it is back"
        if limit is not None and active >= limit:
            return f"the limit of {limit} parallel runs is reached"
        return "no worker has taken them: is one running that knows the agent, `asm worker`?"

    def _report(self, session: Session, open_runs: list[Run]) -> SessionStatusReport:
        in_flight = [run.run_id for run in open_runs if run.status is RunStatus.RUNNING]
        queued = [run.run_id for run in open_runs if run.status is RunStatus.PENDING]
        try:
            subscribers = self._queue.subscribers(session.session_id)
        except CoordinationUnavailable:
            subscribers = 0
        return SessionStatusReport(
            session_id=session.session_id,
            status=session.status,
            in_flight_runs=in_flight,
            in_flight_count=len(in_flight),
            queued_runs=queued,
            queued_count=len(queued),
            max_concurrent_runs=session.max_concurrent_runs,
            max_queued_runs=session.max_queued_runs,
            subscribers=subscribers,
        )
