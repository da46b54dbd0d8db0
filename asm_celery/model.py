"""The nouns: frozen records that stores return, moves pass on and users see.

No record talks to a server.  Change one by `dataclasses.replace`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

from asm_celery.checks import check_count, check_new_session_id
from asm_celery.errors import InvalidInput, ValidationError
from asm_celery.showing import shown
from asm_celery.states import (
    TERMINAL,
    EventType,
    RunStatus,
    SessionStatus,
    StopKind,
    check_event_type,
    check_run_status,
    check_session_status,
    event_category,
)

SCHEMA_VERSION = 1
_Record = TypeVar("_Record")


def new_id(prefix: str) -> str:
    """Return a fresh id: prefix, ``_`` and 32 hex digits that sort by time (UUID version 7)."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return f"{prefix}_{value:032x}"


def mark_of(event_id: str) -> str:
    """Return eight hex digits that tell this event from another one at the same place of another history."""
    return hashlib.blake2s(event_id.encode(), digest_size=4).hexdigest()


def now() -> datetime:
    """Return the present time, aware, UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One line of runs, as stored.

    Attributes:
        max_concurrent_runs: slots, 1 or more; fixed at the start.
        max_queued_runs: how many runs may wait, 0 or more; fixed at the start.
        state_version: rises at each pause, resume, drain and complete.
    """

    session_id: str
    agent: str
    status: SessionStatus = SessionStatus.ACTIVE
    max_concurrent_runs: int = 1
    max_queued_runs: int = 100
    metadata: dict[str, Any] = field(default_factory=dict)
    created_at: datetime = field(default_factory=now)
    updated_at: datetime = field(default_factory=now)
    last_sequence: int = 0
    last_position: int = 0
    state_version: int = 0

    @classmethod
    def new(cls, agent: str, *, session_id: str | None = None, **values: Any) -> Self:
        """Make a record with a fresh id (or the one given); raises ValidationError without an agent."""
        if not isinstance(agent, str) or not agent:
            raise ValidationError("a session needs an agent: give the name it was registered under")
        chosen = new_id("ses") if session_id is None else check_new_session_id(session_id)
        return cls(session_id=chosen, agent=agent, **values)

    def to_map(self) -> dict[str, Any]:
        """Return a JSON-ready map with text keys; `from_map` reads it back."""
        return _to_map(self)

    @classmethod
    def from_map(cls, source: Mapping[str, Any]) -> Self:
        """Read what `to_map` wrote; raises ValidationError when a field is missing or wrong."""
        _require(source, "a session map", "session_id", "agent")
        status = check_session_status(source.get("status", SessionStatus.ACTIVE))
        return _from_map(cls, source, status=status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution in a session's line, as stored.

    Attributes:
        position: its place in the line, 1, 2, 3 ...
        attempt: how many attempts have been entered and count against `max_attempts`.
        claims: how many claims were made: the number of the current or last one.
        not_before: while set and in the future, a retry is in back-off.
        stop_requested: the first committed stop request, or None.
        paused_at: since when its agent is asked to wait, or None; `pause_version` rises at each change.
        created_at: when it was accepted; `started_at`: first claim; `ended_at`: terminal.
        last_sequence: the sequence of its terminal event; 0 while open.
    """

    run_id: str
    session_id: str
    agent: str
    position: int = 0
    status: RunStatus = RunStatus.PENDING
    input: Any = None
    output: Any = None
    error: dict[str, Any] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    token_usage: dict[str, Any] = field(default_factory=dict)
    cost_usd: float | None = None
    turn_count: int = 0
    queue: str = ""
    idempotency_key: str | None = None
    attempt: int = 0
    max_attempts: int = 1
    claims: int = 0
    executor: str | None = None
    event_position: int = 0
    run_timeout: float | None = None
    queue_timeout: float | None = None
    stop_requested: StopKind | None = None
    stop_reason: str | None = None
    paused_at: datetime | None = None
    pause_version: int = 0
    not_before: datetime | None = None
    created_at: datetime = field(default_factory=now)
    started_at: datetime | None = None
    ended_at: datetime | None = None
    deadline: datetime | None = None
    last_sequence: int = 0

    @classmethod
    def new(cls, session_id: str, *, agent: str = "", run_id: str | None = None, **values: Any) -> Self:
        """Make a `pending` record with a fresh id; raises ValidationError without a session."""
        if not isinstance(session_id, str) or not session_id:
            raise ValidationError("a run needs a session_id: start or attach a session first")
        return cls(run_id=run_id or new_id("run"), session_id=session_id, agent=agent, **values)

    @property
    def is_terminal(self) -> bool:
        """True when nothing can change any more."""
        return self.status in TERMINAL

    @property
    def result(self) -> RunResult:
        """What awaiting this run gives."""
        return RunResult(
            run_id=self.run_id,
            status=self.status,
            output=self.output,
            error=self.error,
            token_usage=self.token_usage,
            attempts=self.attempt,
            last_sequence=self.last_sequence,
        )

    def to_map(self) -> dict[str, Any]:
        """Return a JSON-ready map with text keys; `from_map` reads it back."""
        return _to_map(self)

    @classmethod
    def from_map(cls, source: Mapping[str, Any]) -> Self:
        """Read what `to_map` wrote; raises ValidationError or InvalidStatus when a field is wrong."""
        _require(source, "a run map", "run_id", "session_id")
        status = check_run_status(source.get("status", RunStatus.PENDING))
        stop = source.get("stop_requested")
        if stop is not None and not (isinstance(stop, str) and stop in set(StopKind)):
            raise ValidationError(
                f"stop_requested={shown(stop)} must be None or one of {', '.join(StopKind)}",
                details={"field": "stop_requested"},
            )
        return _from_map(cls, {"agent": "", **source}, status=status, stop_requested=stop and StopKind(stop))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended: what `await_run` returns, or what its exception carries."""

    run_id: str
    status: RunStatus
    output: Any = None
    error: dict[str, Any] | None = None
    token_usage: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0
    last_sequence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One numbered fact of a session's log, immutable once stored.

    Attributes:
        sequence: its place in the session's log, 1, 2, 3 ... without holes; 0 before it is stored.
        run_id: the run it belongs to; None for events of the session itself.
        attempt: the attempt that wrote it; 0 when no attempt did.
        provider: the agent's name.
    """

    type: str
    session_id: str
    data: dict[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    sequence: int = 0
    event_id: str = field(default_factory=lambda: new_id("evt"))
    attempt: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    provider: str | None = None
    correlation_id: str | None = None
    timestamp: datetime = field(default_factory=now)
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def new(cls, type: str, session_id: str, **values: Any) -> Self:  # noqa: A002 - the field's name
        """Make an unstored event with a fresh id and the present time.

        Raises:
            ValidationError: no type, no session, or data that is not an object.
            InvalidEventType: the type is not a word.
        """
        if type is None or (isinstance(type, str) and not type):
            raise ValidationError("an event needs a type: a word such as 'message_streamed'")
        if not isinstance(session_id, str) or not session_id:
            raise ValidationError("an event needs a session_id")
        for name in ("data", "metadata"):
            if not isinstance(values.get(name, {}), dict):
                raise ValidationError(
                    f"event {name} must be an object, got {shown(values[name])}", details={"field": name}
                )
        return cls(type=check_event_type(type), session_id=session_id, **values)

    @property
    def cursor(self) -> str:
        """Its place and a mark of its id: ``subscribe`` from it and you get what follows this very event."""
        return f"{self.sequence}.{mark_of(self.event_id)}"

    @property
    def category(self) -> str:
        """The family of its type: session, run, message, tool, error, usage ..."""
        return event_category(self.type)

    @property
    def is_terminal(self) -> bool:
        """True for the event that ends a run."""
        return self.type in _RUN_ENDS

    def to_map(self) -> dict[str, Any]:
        """Return a JSON-ready map with text keys; `from_map` reads it back."""
        return _to_map(self)

    @classmethod
    def from_map(cls, source: Mapping[str, Any]) -> Self:
        """Read what `to_map` wrote.

        Raises:
            ValidationError: a field is missing, or `schema_version` is missing or below 1.
            InvalidEventType: the type is not a word.
        """
        _require(source, "an event map", "type", "session_id", "schema_version")
        check_count(source["schema_version"], what="schema_version", minimum=1)
        return _from_map(cls, source, type=check_event_type(source["type"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatusReport:
    """What `status()` tells: exact from SQL, but for `subscribers`, which is eventually right."""

    session_id: str
    status: SessionStatus
    in_flight_runs: list[str]
    in_flight_count: int
    queued_runs: list[str]
    queued_count: int
    max_concurrent_runs: int
    max_queued_runs: int
    subscribers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to execute a run under one claim number, as a promoting script granted it.

    Attributes:
        claim: the claim number n the executor must claim with.
        queue: the Celery queue its doorbell goes to.
    """

    run_id: str
    session_id: str
    agent: str
    claim: int
    queue: str

    @property
    def task_id(self) -> str:
        """The Celery task id: the run id for claim 1, ``<run_id>.<n>`` for claim n.

        A revoked id is never used again, because each claim has its own.
        """
        return self.run_id if self.claim == 1 else f"{self.run_id}.{self.claim}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bell:
    """What a promoting script pushes for a lease, where broker and coordination are one server.

    Attributes:
        list_prefix: what the names of the broker's lists begin with; the Celery queue follows.
        message: a whole message of the broker, with ``@run@``, ``@session@``, ``@agent@``, ``@claim@``,
            ``@queue@``, ``@task@`` and ``@tag@`` where the lease's words go.
    """

    list_prefix: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopReceipt:
    """What a stop request came to.

    Attributes:
        state: ``withdrawn`` (it never started), ``requested`` (it runs and was told),
            ``already_terminal`` or ``passed`` (meant for a claim that has passed): nothing changed.
        kind: the request that decides: the first committed one, which may be another's.
    """

    run_id: str
    state: str
    status: RunStatus
    kind: StopKind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseReceipt:
    """What a request to pause or resume a run came to.

    Attributes:
        state: ``paused`` or ``resumed``; ``already_paused`` or ``not_paused``: nothing changed.
        status: the run's status, which pausing does not change.
    """

    run_id: str
    state: str
    status: RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Whether the whole installation is held: nothing new starts in any session, and what runs goes on.

    Attributes:
        version: rises at each change.
        by: who changed it last, and `since` when; None where nobody ever did.
    """

    is_held: bool
    version: int = 0
    by: str | None = None
    since: datetime | None = None


_RUN_ENDS = frozenset(
    {
        EventType.RUN_COMPLETED,
        EventType.RUN_FAILED,
        EventType.RUN_CANCELLED,
        EventType.RUN_INTERRUPTED,
        EventType.RUN_TIMEOUT,
    }
)


def _to_map(record: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name in record.__dataclass_fields__:
        value = getattr(record, name)
        if isinstance(value, datetime):
            value = value.isoformat()
        elif isinstance(value, str):
            value = str(value)
        plain[name] = value
    return plain


def _require(source: Mapping[str, Any], what: str, *names: str) -> None:
    if not isinstance(source, Mapping):
        raise ValidationError(f"{shown(source)} is not {what}", details={"what": what})
    missing = [name for name in names if not source.get(name)]
    if missing:
        raise ValidationError(
            f"{what} needs {', '.join(missing)}", details={"missing": missing, "what": what}
        )


def _from_map(kind: type[_Record], source: Mapping[str, Any], **ready: Any) -> _Record:
    values: dict[str, Any] = {}
    for description in fields(kind):  # type: ignore[arg-type]
        name = description.name
        if name in ready:
            values[name] = ready[name]
        elif name in source:
            value = source[name]
            if "datetime" in str(description.type) and isinstance(value, str):
                try:
                    value = datetime.fromisoformat(value)
                except ValueError:
                    raise InvalidInput(f"{name}={shown(value)} is not an ISO 8601 time") from None
            values[name] = value
    return kind(**values)


def with_sequences(events: list[Event], first: int) -> list[Event]:
    """Return the events numbered first, first + 1, ..."""
    return [_numbered(event, first + offset) for offset, event in enumerate(events)]


def _numbered(event: Event, sequence: int) -> Event:
    # what `replace` does in three times the time, for each event that is ever stored
    return Event(
        type=event.type,
        session_id=event.session_id,
        data=event.data,
        run_id=event.run_id,
        sequence=sequence,
        event_id=event.event_id,
        attempt=event.attempt,
        metadata=event.metadata,
        provider=event.provider,
        correlation_id=event.correlation_id,
        timestamp=event.timestamp,
        schema_version=event.schema_version,
    )
