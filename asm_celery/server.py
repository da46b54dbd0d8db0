"""`SessionServer`: one session as its users see it.  A plain handle: nothing to close, any number of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

from asm_celery.awaiting import await_timeout, cancel_timeout, result_of
from asm_celery.checks import check_count, check_list, check_run_id, check_seconds, check_time
from asm_celery.errors import DrainTimeout, RunNotFound, ValidationError
from asm_celery.events.cursor import Place, begin_at, pruned
from asm_celery.events.subscription import Subscription
from asm_celery.model import Event, Run, RunResult, Session, SessionStatusReport, StopReceipt
from asm_celery.moves.admission import SubmitOptions
from asm_celery.runtime import Runtime
from asm_celery.showing import shown
from asm_celery.states import TERMINAL_EVENTS, SessionStatus, StopKind, check_event_type, check_run_status

# A drain looks again after so long even if no event came.
LOOK_AGAIN_S = 1.0
MAX_PAGE = 1000
# of one call: they are one transaction, and every other writer of the session waits for it
_MAX_EVENTS = 100_000


class SessionServer:
    """One session.  Made by `AgentSessions.start_session` and `attach`; safe to share by threads.

    Attributes:
        session_id: its id.
    """

    def __init__(self, runtime_of: Callable[[], Runtime], session: Session) -> None:
        self._runtime_of = runtime_of
        self._session = session
        self.session_id = session.session_id

    def __repr__(self) -> str:
        return f"SessionServer({self.session_id!r}, agent={self._session.agent!r})"

    @property
    def agent(self) -> str:
        """The name of the session's agent."""
        return self._session.agent

    @property
    def runtime(self) -> Runtime:
        """The parts of this process; for the async face, not for users."""
        return self._runtime_of()

    def submit_run(
        self,
        input: Any,  # noqa: A002 - the word of the public face
        *,
        run_timeout: float | None = None,
        queue_timeout: float | None = None,
        max_attempts: int | None = None,
        metadata: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
        on_busy: str = "enqueue",
    ) -> str:
        """Accept a run at the end of the session's line and return its id; see `Submission.submit`.

        Args:
            input: JSON of at most `max_input_bytes`.
            run_timeout: seconds it may execute.
            queue_timeout: seconds it may wait to start.
            max_attempts: 1-1000, how often a failed or lost run is entered.
            idempotency_key: the same key with equal input returns the same run, for ever.
            on_busy: ``enqueue``, ``reject`` (SessionBusy if any run is open) or ``interrupt`` (stop what
                runs, withdraw what waits, then this one).

        Guarantee: when it returns, the run is in SQL and will reach exactly one terminal status.
        """
        options = SubmitOptions(
            run_timeout=run_timeout,
            queue_timeout=queue_timeout,
            max_attempts=max_attempts,
            metadata=metadata,
            idempotency_key=idempotency_key,
            on_busy=on_busy,
        )
        return self.runtime.submission.submit(self._session, input, options)

    def await_run(self, run_id: str, timeout: float | None = 60.0) -> RunResult:
        """Return the result of a run when it is terminal; any number of times, from any process.

        Args:
            timeout: seconds of patience; None: as long as it takes.

        Raises:
            RunFailed, RunCancelled, RunInterrupted, RunTimeout: it ended so; each has `.result`.
            AwaitTimeout: patience ended; the run goes on.
            RunNotFound: at once, for an id this session does not have.
        """
        check_seconds(timeout, what="timeout")
        run = self._ended(run_id, timeout)
        if run is None:
            raise await_timeout(run_id, timeout or 0.0)
        return result_of(run)

    def execute_run(self, input: Any, timeout: float | None = 60.0, **submit_options: Any) -> RunResult:  # noqa: A002
        """Submit and await; `submit_options` are those of `submit_run`."""
        check_seconds(timeout, what="timeout")
        return self.await_run(self.submit_run(input, **submit_options), timeout)

    def cancel_run(self, run_id: str, *, wait: bool = False, timeout: float | None = None) -> StopReceipt:
        """Ask for a run to end `cancelled`; see `StopReceipt`.

        A waiting run is withdrawn at once.  A finished one is left as it is.  With `wait`, returns when
        the run is terminal.

        Raises:
            ValidationError: `timeout` is no number of seconds; nothing was asked.
            RunNotFound: this session has no such run.
            CancelTimeout: `wait` and not terminal after `timeout` seconds; the request stands.
            StorageConnectionFailed: no database within `connect_timeout_s`; asking again is safe.
        """
        return self._stop(run_id, StopKind.CANCEL, wait, timeout)

    def interrupt_run(self, run_id: str, *, wait: bool = False, timeout: float | None = None) -> StopReceipt:
        """Ask for a run to end `interrupted`, keeping what it produced; otherwise as `cancel_run`."""
        return self._stop(run_id, StopKind.INTERRUPT, wait, timeout)

    def subscribe(
        self,
        from_sequence: int | str = 0,
        run_id: str | None = None,
        type: str | Collection[str] | None = None,  # noqa: A002
    ) -> Subscription:
        """Follow the session's events.

        With `run_id` it ends after that run's terminal event, else after the session's closing event.
        Where retention has removed events that would come, one ``session_pruned`` stands for them.

        Args:
            from_sequence: the first sequence wanted (0 and 1: from the beginning; beyond the end: only what
                is written there later), or a cursor of an event that was seen: what follows that event.

        Raises:
            ValidationError, InvalidEventType: a bound or a type breaks a rule.
            RunNotFound: this session has no such run.
            CursorGone, CursorAhead, CursorMismatch: the log does not go on at this cursor.
        """
        first, seen = begin_at(from_sequence, what="from_sequence")
        types = check_types(type)
        end = self.check_place(seen, run_id)
        runtime = self.runtime
        return Subscription(
            runtime.hub,
            runtime.log,
            runtime.config,
            self.session_id,
            from_sequence=first + 1 if seen else first,
            run_id=run_id,
            types=types,
            seen=seen,
            run_end=end,
        )

    def unsubscribe(self, subscription: Subscription) -> None:
        """Close a subscription; closed already is fine."""
        if not isinstance(subscription, Subscription):
            raise ValidationError(f"{shown(subscription)} is not what subscribe returned")
        subscription.close()

    def status(self) -> SessionStatusReport:
        """Report what runs, what waits and who listens; from SQL, so the same in every process."""
        return self.runtime.inspection.status(self.session_id)

    def drain(self, timeout: float | None = 60.0, accept: bool = True) -> None:
        """Return when nothing is queued or in flight.

        Args:
            timeout: seconds of patience; None: as long as it takes.
            accept: False closes admission durably first, until `resume` or `complete`.

        Raises:
            DrainTimeout: with what is left, and why; work goes on.
        """
        check_seconds(timeout, what="timeout")
        deadline = None if timeout is None else time.monotonic() + timeout
        head = self.begin_drain(accept=accept)
        with self.subscribe(from_sequence=head + 1, type=TERMINAL_EVENTS) as endings:
            while (report := self.status()).in_flight_count or report.queued_count:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    why = self.runtime.inspection.why_waiting(report)
                    raise drain_timeout(report, timeout or 0.0, why)
                endings.get(LOOK_AGAIN_S if left is None else min(left, LOOK_AGAIN_S))

    def check_place(self, seen: Place | None, run_id: str | None) -> int:
        """Check that the log goes on behind an event; return the sequence that ends what is followed, or 0."""
        self.runtime.log.check(self.session_id, seen)
        run = None if run_id is None else self.get_run(run_id)
        if run is not None and (run.last_sequence or not run.is_terminal):
            return run.last_sequence
        with self.runtime.store.read() as tx:
            if run is not None:
                # its events were removed: nothing of it comes behind them
                return tx.sessions.first_sequence(self.session_id) - 1
            counter = tx.sessions.counter(self.session_id)
        is_closed = counter is not None and counter.state is SessionStatus.COMPLETED
        return counter.last_sequence if counter is not None and is_closed else 0

    def begin_drain(self, *, accept: bool) -> int:
        """Close admission unless `accept`; return the sequence behind which endings are to be watched."""
        with self.runtime.store.read() as tx:
            counter = tx.sessions.counter(self.session_id)
        if not accept and (counter is None or counter.state is not SessionStatus.COMPLETED):
            self._move(SessionStatus.DRAINING)
        return counter.last_sequence if counter else 0

    def get_run(self, run_id: str) -> Run:
        """Return a run of this session; raises RunNotFound."""
        check_run_id(run_id)
        with self.runtime.store.read() as tx:
            run = tx.runs.get(run_id)
        if run is None or run.session_id != self.session_id:
            raise RunNotFound(
                f"session {self.session_id!r} has no run {run_id!r}",
                details={"run_id": run_id, "session_id": self.session_id},
            )
        return run

    def list_runs(
        self, *, status: str | Collection[str] | None = None, after: str | None = None, limit: int = 50
    ) -> list[Run]:
        """Return runs in the order of their submission, beginning behind the run `after`.

        Args:
            status: one status or several; limit: 1-1000.
        """
        check_count(limit, what="limit", minimum=1, maximum=MAX_PAGE)
        wanted = [status] if isinstance(status, str) else status
        statuses = (
            None if wanted is None else [check_run_status(one) for one in check_list(wanted, what="status")]
        )
        position = 0 if after is None else self.get_run(after).position
        with self.runtime.store.read() as tx:
            return tx.runs.of_session(
                session_id=self.session_id, status=statuses, after=position, limit=limit
            )

    def get_events(
        self,
        after: int | str = 0,
        limit: int = 100,
        run_id: str | None = None,
        type: str | Collection[str] | None = None,  # noqa: A002
        *,
        before: int | None = None,
        since: datetime | None = None,
        wait_timeout: float = 0.0,
    ) -> list[Event]:
        """Return events of sequence above `after` (and below `before`), in order.

        Where retention has removed some of them, the first is one ``session_pruned`` that stands for them.

        Args:
            after: a sequence, or the cursor of an event.
            limit: 1-1000.
            since: only events of this time or later (aware datetime).
            wait_timeout: seconds to wait for the first one when there is none yet.
        """
        place, seen = begin_at(after, what="after")
        check_count(limit, what="limit", minimum=1, maximum=MAX_PAGE)
        if before is not None:
            check_count(before, what="before", minimum=0, maximum=1 << 62)
        check_seconds(wait_timeout, what="wait_timeout", optional=False)
        if since is not None:
            check_time(since, what="since")
        if run_id is not None:
            check_run_id(run_id)
        types = check_types(type)
        store = self.runtime.store

        def page() -> list[Event]:
            with store.read() as tx:
                found = tx.events.page(
                    self.session_id,
                    after=place,
                    before=before,
                    since=since,
                    limit=limit,
                    run_id=run_id,
                    types=types,
                )
                # behind the page: what was removed before it was read is known by now
                first = tx.sessions.first_sequence(self.session_id)
                if place >= first - 1 or (run_id is not None and tx.events.is_whole(run_id)):
                    return found
            return [pruned(self.session_id, first), *(one for one in found if one.sequence >= first)][:limit]

        self.runtime.log.check(self.session_id, seen)
        found = page()
        if found or not wait_timeout:
            return found
        with self.subscribe(from_sequence=after if seen else place + 1, run_id=run_id, type=type) as news:
            news.get(wait_timeout)
        return page()

    def append_events(self, events: Collection[Event]) -> list[Event]:
        """Store events of the caller's own in the session's log, in the order given.

        One transaction.  Guarantee: all or none; an event id that is stored already is not stored again,
        and the event as first stored is returned in its place.

        Raises:
            ValidationError, InvalidEventType: over 100,000, not an event, of another session, or a word of
                the runtime's.
            AlreadyExists: the id of an event of another session.
            RunNotFound, InvalidOperation: its run is not of this session, or has ended.
            SessionNotFound: the session was deleted.
        """
        return self.runtime.submission.append_events(
            self._session, check_list(events, what="events", maximum=_MAX_EVENTS)
        )

    def pause(self) -> None:
        """Let what runs finish and start nothing new, until `resume`; survives restarts."""
        self._move(SessionStatus.PAUSED)

    def resume(self) -> None:
        """Start what waits again, and accept runs again."""
        self._move(SessionStatus.ACTIVE)

    def complete(self) -> None:
        """Close the session for good; raises InvalidOperation while it has open runs."""
        self._move(SessionStatus.COMPLETED)

    def _move(self, target: SessionStatus) -> None:
        self.runtime.control.move_session(self.session_id, target)

    def _ended(self, run_id: str, timeout: float | None) -> Run | None:
        """Return the run once it is terminal; None after `timeout` seconds."""
        run = self.get_run(run_id)
        if run.is_terminal:
            return run
        told: list[Run] = []
        bell = threading.Event()

        def on_end(ended: Run) -> None:
            told.append(ended)
            bell.set()

        forget = self.runtime.hub.wait_for(run_id, self.session_id, on_end)
        try:
            bell.wait(timeout)
        finally:
            forget()
        return told[0] if told else None

    def _stop(self, run_id: str, kind: StopKind, wait: bool, timeout: float | None) -> StopReceipt:
        check_seconds(timeout, what="timeout")
        receipt = self.runtime.stopper.request(run_id, kind, session_id=self.session_id)
        if not wait or receipt.status.is_terminal:
            return receipt
        run = self._ended(run_id, timeout) or self.get_run(run_id)
        if not run.is_terminal:
            raise cancel_timeout(run, timeout or 0.0)
        return StopReceipt(run_id=run_id, state=receipt.state, status=run.status, kind=receipt.kind)


def check_types(type: str | Collection[str] | None) -> frozenset[str] | None:  # noqa: A002
    """Return the event types asked for; raises InvalidEventType for one that is not a word."""
    if type is None:
        return None
    wanted = [type] if isinstance(type, str) else type
    return frozenset(check_event_type(one) for one in check_list(wanted, what="type"))


def drain_timeout(report: SessionStatusReport, timeout: float, why: str) -> DrainTimeout:
    """Return the error that says what is left of a session, and why."""
    return DrainTimeout(
        f"session {report.session_id!r} was not empty after {timeout:g} s: {report.in_flight_count} in flight, "
        f"{report.queued_count} queued; {why}",
        session_id=report.session_id,
        queued=report.queued_runs,
        in_flight=report.in_flight_runs,
        why=why,
    )
