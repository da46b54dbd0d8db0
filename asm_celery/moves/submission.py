"""Start sessions and submit runs: SQL first, then Redis, then the doorbell.

What is accepted here is in SQL and will reach a terminal status, whatever happens to Redis, the broker or
this process.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from asm_celery.agent import AgentRegistry
from asm_celery.codec import digest, encode
from asm_celery.config import Config
from asm_celery.errors import (
    AlreadyExists,
    CoordinationUnavailable,
    IdempotencyConflict,
    SessionBusy,
    SessionNotFound,
    StorageError,
)
from asm_celery.events.log import EventLog, LogTransaction
from asm_celery.model import Event, Run, Session
from asm_celery.moves import at_once
from asm_celery.moves.admission import (
    SubmitOptions,
    capacity,
    check_events,
    refuse_closed,
    refuse_ended,
    refuse_foreign,
    refuse_full,
)
from asm_celery.moves.doorkeeper import REFUSALS, Doorkeeper
from asm_celery.moves.promotion import Promoter, entries_of, line_of
from asm_celery.moves.stopping import Stopper, Stops
from asm_celery.queue.run_queue import Entry, Line
from asm_celery.states import EventType
from asm_celery.store.faults import CommitUnknown, retried
from asm_celery.store.sessions import AgentTerms, Counter

log = logging.getLogger(__name__)

_TRIES = 20


class _KnownKey(Exception):
    """Leaves the transaction, so that it is rolled back, with the run that has the key."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id


class _LineMoved(Exception):
    """Leaves the transaction: not every open run was stopped in it."""


class Submission:
    """The moves that admit: sessions and runs."""

    def __init__(
        self, config: Config, registry: AgentRegistry, log: EventLog, promoter: Promoter, stopper: Stopper
    ) -> None:
        self._config = config
        self._registry = registry
        self._log = log
        self._promoter = promoter
        self._stopper = stopper
        self._doorkeeper = Doorkeeper(log)

    @retried
    def start_session(self, session: Session) -> Session:
        """Store a new session with its first two events.

        One transaction.  Guarantee: all or nothing.

        Raises:
            AlreadyExists: the id is taken.
        """
        metadata = encode(
            session.metadata, what="session metadata", max_bytes=self._config.max_metadata_bytes
        )
        with self._log.transaction() as tx:
            if not tx.sessions.insert(session, metadata):
                raise AlreadyExists(
                    f"session {session.session_id!r} exists already: attach to it, or say if_exists='attach'",
                    details={"session_id": session.session_id},
                )
            tx.append(
                session.session_id,
                [
                    Event.new(
                        EventType.SESSION_CREATED,
                        session.session_id,
                        data={"provider": session.agent, "agent": session.agent},
                        provider=session.agent,
                    ),
                    Event.new(EventType.SESSION_STARTED, session.session_id, provider=session.agent),
                ],
            )
        return replace(session, last_sequence=2)

    def submit(self, session: Session, value: Any, options: SubmitOptions) -> str:
        """Accept a run and return its id; it is in SQL when this returns.

        One transaction, one script, and one message for each lease the script grants.

        Guarantee: if it raises, no run was accepted, unless the error says that nobody knows; if the process
        dies inside, the run is accepted or not.  An idempotency key makes trying again safe.

        Raises:
            InvalidInput: not JSON, or over `max_input_bytes`.
            SessionNotFound, InvalidOperation, SessionDraining: it accepts no runs.
            QueueFull, SessionBusy: no room, or open runs and ``on_busy="reject"``.
            IdempotencyConflict: the key was used with another input.
            StorageConnectionFailed: no database; nothing was written, or, in its words, the answer was lost.
        """
        text = encode(value, what="the input", max_bytes=self._config.max_input_bytes)
        metadata = encode(
            options.metadata or {}, what="run metadata", max_bytes=self._config.max_metadata_bytes
        )
        self._refuse_old_server()
        self._doorkeeper.check(session, options)
        run = Run.new(session.session_id, agent=session.agent, idempotency_key=options.idempotency_key)
        try:
            with self._log.bus.held() as told:
                run, counter, stops = self._accept_when_still(session, run, options, text, metadata)
        except _KnownKey as known:
            self._repeat(known.run_id)
            return known.run_id
        except REFUSALS:
            self._doorkeeper.expect(session.session_id)
            raise
        except StorageError:
            # the answer may be all that was lost, and a second try finds its row written
            accepted = self._look_up(run.run_id)
            if accepted is None:
                raise
            self._repeat(run.run_id)
            return run.run_id
        self._stopper.carry_out(stops)
        line = Line(
            session_id=session.session_id,
            slots=session.max_concurrent_runs,
            state=counter.state.value,
            version=counter.state_version,
        )
        entry = Entry(
            run_id=run.run_id,
            agent=run.agent,
            position=run.position,
            queue=run.queue,
            status=run.status.value,
            claims=0,
        )
        self._promoter.settle(lambda: self._promoter.queue.enqueue(line, [entry], telling=told))
        return run.run_id

    @retried
    def append_events(self, session: Session, events: list[Event]) -> list[Event]:
        """Store a caller's events; see `SessionServer.append_events`."""
        check_events(session.session_id, events, self._config)
        if not events:
            return []
        with self._log.transaction() as tx:
            # the counter row is locked before the ids are looked up, so no writer comes between
            if tx.sessions.draw(session.session_id) is None:
                raise SessionNotFound(f"there is no session {session.session_id!r}: it was deleted")
            stored = tx.events.by_ids([event.event_id for event in events])
            refuse_foreign(session.session_id, stored)
            fresh = list({event.event_id: event for event in events if event.event_id not in stored}.values())
            refuse_ended(tx, session.session_id, {event.run_id for event in fresh if event.run_id})
            stored |= {event.event_id: event for event in tx.append(session.session_id, fresh) or []}
        return [stored[event.event_id] for event in events]

    def _accept_when_still(
        self, session: Session, run: Run, options: SubmitOptions, text: str, metadata: str
    ) -> tuple[Run, Counter, Stops]:
        for _ in range(_TRIES):
            try:
                return self._accept(session, run, options, text, metadata)
            except _LineMoved:
                continue
        raise SessionBusy(
            f"session {session.session_id!r} took new runs at each of {_TRIES} tries to interrupt it: try again",
            details={"session_id": session.session_id},
        )

    def _accept(
        self, session: Session, run: Run, options: SubmitOptions, text: str, metadata: str
    ) -> tuple[Run, Counter, Stops]:
        try:
            accepted = at_once.accept(
                self._log, self._config, self._registry, session, run, options, text=text, metadata=metadata
            )
        except CommitUnknown as unknown:
            try:
                return self._accept_for_certain(session, run, options, text, metadata)
            except REFUSALS:
                # it may be the accepted run that fills the session
                raise unknown from None
        if accepted is None:
            return self._accept_for_certain(session, run, options, text, metadata)
        placed, counter, depth = accepted
        self._expect(session, depth)
        return placed, counter, Stops()

    @retried
    def _accept_for_certain(
        self, session: Session, run: Run, options: SubmitOptions, text: str, metadata: str
    ) -> tuple[Run, Counter, Stops]:
        session_id = session.session_id

        def unit(tx: LogTransaction) -> tuple[Run, Counter, Stops, int]:
            stops = Stops()
            if options.on_busy == "interrupt":
                stops = self._stopper.stop_open(tx, session_id, reason="on_busy")
            counter = tx.sessions.draw(session_id, sequences=1, positions=1)
            if counter is None:
                raise SessionNotFound(
                    f"there is no session {session_id!r}: it was deleted", details={"session_id": session_id}
                )
            self._refuse_known_key(tx, session_id, options.idempotency_key, digest(text))
            if options.on_busy == "interrupt" and tx.runs.count_open(session_id) != len(stops.told):
                # a run was submitted between the locks of the runs and that of the counter
                raise _LineMoved
            refuse_closed(session_id, counter.state)
            # runs on their way out do not keep the one that replaces them from waiting
            depth = tx.runs.count_open(session_id) - len(stops.told)
            refuse_full(session, options.on_busy, depth)
            placed = self._placed(tx, run, counter.last_position, options)
            tx.runs.insert(placed, input_text=text, input_digest=digest(text), metadata=metadata)
            queued = Event.new(
                EventType.RUN_QUEUED,
                session_id,
                run_id=placed.run_id,
                data={"position": placed.position},
                provider=placed.agent,
                sequence=counter.last_sequence,
            )
            tx.write([queued])
            return placed, counter, stops, depth

        placed, counter, stops, depth = self._log.grouped(unit)
        self._expect(session, depth)
        return placed, counter, stops

    def _expect(self, session: Session, depth: int) -> None:
        if depth + 1 >= capacity(session):
            self._doorkeeper.expect(session.session_id)

    def _placed(self, tx: LogTransaction, run: Run, position: int, options: SubmitOptions) -> Run:
        spec = self._registry.get(run.agent)
        terms = tx.agents.get(run.agent) if spec is None else None
        said = spec or terms or AgentTerms(queue=self._config.default_queue)
        return replace(
            run,
            position=position,
            queue=said.queue or self._config.default_queue,
            run_timeout=options.run_timeout if options.run_timeout is not None else said.run_timeout,
            queue_timeout=options.queue_timeout,
            max_attempts=options.max_attempts or said.max_attempts or self._config.max_attempts,
        )

    def _refuse_known_key(
        self, tx: LogTransaction, session_id: str, key: str | None, fingerprint: str
    ) -> None:
        known = tx.runs.by_key(session_id, key) if key is not None else None
        if known is None:
            return
        run_id, known_fingerprint = known
        if known_fingerprint != fingerprint:
            raise IdempotencyConflict(
                f"idempotency key {key!r} was used in session {session_id!r} for {run_id}, with another "
                "input: use a new key for a new run",
                details={"session_id": session_id, "run_id": run_id, "idempotency_key": key},
            )
        raise _KnownKey(run_id)

    def _repeat(self, run_id: str) -> None:
        with self._log.store.read() as tx:
            open_runs = tx.runs.open_page(run_ids=[run_id])
        for run in open_runs:
            self._promoter.settle(
                lambda run=run: self._promoter.queue.enqueue(line_of(run), entries_of([run]))  # type: ignore[misc]
            )

    def _look_up(self, run_id: str) -> Run | None:
        with self._log.store.read() as tx:
            return tx.runs.get(run_id)

    def _refuse_old_server(self) -> None:
        try:
            self._promoter.queue.check_server()
        except CoordinationUnavailable:
            # away, not old: the run is accepted all the same
            log.debug("Redis is away; its version is checked when it is back")
