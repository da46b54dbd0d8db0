"""The rules of admission: what a submit may say, and when a session takes a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from asm_celery.checks import check_count, check_run_id, check_seconds, check_time, check_words
from asm_celery.codec import encode
from asm_celery.config import Config
from asm_celery.errors import (
    AlreadyExists,
    InvalidOperation,
    QueueFull,
    RunNotFound,
    SessionBusy,
    SessionDraining,
    ValidationError,
)
from asm_celery.events.log import LogTransaction
from asm_celery.model import Event, Session
from asm_celery.showing import shown
from asm_celery.states import SessionStatus, check_event_type

ON_BUSY: Final = ("enqueue", "reject", "interrupt")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """What a submit may say; `None` leaves it to the agent, then to the configuration."""

    run_timeout: float | None = None
    queue_timeout: float | None = None
    max_attempts: int | None = None
    metadata: dict[str, Any] | None = None
    idempotency_key: str | None = None
    on_busy: str = "enqueue"

    def __post_init__(self) -> None:
        check_seconds(self.run_timeout, what="run_timeout", minimum=0.001)
        check_seconds(self.queue_timeout, what="queue_timeout", minimum=0.001)
        if self.max_attempts is not None:
            check_count(self.max_attempts, what="max_attempts", minimum=1, maximum=1000)
        if self.metadata is not None and not isinstance(self.metadata, dict):
            raise ValidationError(
                f"metadata must be an object, got {shown(self.metadata)}", details={"field": "metadata"}
            )
        if self.idempotency_key is not None:
            check_words(self.idempotency_key, what="idempotency_key")
        if self.on_busy not in ON_BUSY:
            raise ValidationError(
                f"on_busy={shown(self.on_busy)} must be one of {', '.join(ON_BUSY)}",
                details={"field": "on_busy", "value": shown(self.on_busy)},
            )


def check_event(event: Event) -> None:
    """Refuse an event of which a field cannot be stored; its type and data have rules of their own.

    Raises:
        ValidationError: names the field.
        RunNotFound: its run id is malformed.
    """
    check_words(event.event_id, what="event_id", maximum=128)
    check_time(event.timestamp, what="timestamp")
    check_count(event.attempt, what="attempt", minimum=0)
    check_count(event.schema_version, what="schema_version", minimum=1)
    for what in ("provider", "correlation_id"):
        if getattr(event, what) is not None:
            check_words(getattr(event, what), what=what)
    if event.run_id is not None:
        check_run_id(event.run_id)


def check_events(session_id: str, events: list[Event], config: Config) -> None:
    """Refuse a caller's events unless each can be stored in this session.

    Raises:
        ValidationError, InvalidEventType, InvalidInput, RunNotFound: names what is wrong.
    """
    for event in events:
        if not isinstance(event, Event) or event.session_id != session_id:
            raise ValidationError(
                f"{shown(event)} is not an Event of session {session_id!r}: make it with Event.new",
                details={"session_id": session_id},
            )
        check_event_type(event.type, from_agent=True)
        check_event(event)
        encode(event.data, what="event data", max_bytes=config.max_event_bytes)
        encode(event.metadata, what="event metadata", max_bytes=config.max_metadata_bytes)


def refuse_foreign(session_id: str, stored: dict[str, Event]) -> None:
    """Raise AlreadyExists for a stored event of another session: event ids are global."""
    for event in stored.values():
        if event.session_id != session_id:
            raise AlreadyExists(
                f"event id {event.event_id!r} belongs to session {event.session_id!r}: ids are global, make a "
                "new event",
                details={"event_id": event.event_id},
            )


def refuse_ended(tx: LogTransaction, session_id: str, run_ids: set[str]) -> None:
    """Refuse events of runs that have ended: a run's terminal event is its last one.

    Under the lock of the counter row, which a run's end takes too, so none ends between this and the insert.
    """
    known = {run.run_id: run for run in tx.runs.get_many(run_ids)} if run_ids else {}
    for run_id in sorted(run_ids):
        run = known.get(run_id)
        if run is None or run.session_id != session_id:
            raise RunNotFound(
                f"session {session_id!r} has no run {run_id!r}: leave run_id out for an event of the session",
                details={"run_id": run_id, "session_id": session_id},
            )
        if run.is_terminal:
            raise InvalidOperation(
                f"run {run_id} has ended {run.status} and takes no more events: leave run_id out for an event "
                "of the session",
                details={"run_id": run_id, "status": run.status.value},
            )


def refuse_closed(session_id: str, state: SessionStatus) -> None:
    """Raise InvalidOperation or SessionDraining for a session that accepts no runs."""
    if state is SessionStatus.COMPLETED:
        raise InvalidOperation(
            f"session {session_id!r} is completed and accepts no runs: start another session",
            details={"session_id": session_id, "status": state.value},
        )
    if state is SessionStatus.DRAINING:
        raise SessionDraining(
            f"session {session_id!r} was drained with accept=False and accepts no runs: resume() it first",
            details={"session_id": session_id, "status": state.value},
        )


def capacity(session: Session) -> int:
    """Return how many runs a session may have open at once."""
    return session.max_concurrent_runs + session.max_queued_runs


def refuse_full(session: Session, on_busy: str, depth: int) -> None:
    """Raise QueueFull or SessionBusy when `depth` open runs leave no room for another."""
    if depth and on_busy == "reject":
        raise SessionBusy(
            f"session {session.session_id!r} has {depth} open runs and on_busy is 'reject': wait for them, or "
            "say on_busy='enqueue'",
            details={"session_id": session.session_id, "depth": depth},
        )
    limit = capacity(session)
    if depth >= limit:
        raise QueueFull(
            f"session {session.session_id!r} is full: {depth} open runs, the limit is "
            f"{session.max_concurrent_runs} running + {session.max_queued_runs} waiting; try again when one "
            "has ended",
            limit=limit,
            depth=depth,
            session_id=session.session_id,
        )
