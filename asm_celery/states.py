"""Statuses, event types and legal moves: the one source of the guards, the SQL CHECKs and the picture.

Nothing here does anything; everything that moves a run or a session asks these tables.
`diagram` prints the picture that docs/explanation/states.md shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from asm_celery.errors import InvalidEventType, InvalidStatus, InvalidTransition
from asm_celery.showing import shown

LONGEST_BACKOFF_S: Final = 72.0
"""No attempt waits longer for its turn: what is due later was written by a clock that has jumped, and is due."""


class RunStatus(StrEnum):
    """Where a run is; the last five are terminal."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    TIMEOUT = "timeout"

    @property
    def is_terminal(self) -> bool:
        """True when nothing can change any more."""
        return self in TERMINAL


class SessionStatus(StrEnum):
    """Where a session is; only `completed` is terminal."""

    ACTIVE = "active"
    PAUSED = "paused"
    DRAINING = "draining"
    COMPLETED = "completed"


class StopKind(StrEnum):
    """Why a run is asked to stop; the first committed request decides."""

    CANCEL = "cancel"
    INTERRUPT = "interrupt"
    TIMEOUT = "timeout"


OPEN: Final = (RunStatus.PENDING, RunStatus.RUNNING)
TERMINAL: Final = frozenset(set(RunStatus) - set(OPEN))

RUN_MOVES: Final[Mapping[RunStatus, frozenset[RunStatus]]] = {
    # withdrawn while waiting, waited too long, or no worker has the agent
    RunStatus.PENDING: frozenset(
        {
            RunStatus.RUNNING,
            RunStatus.CANCELLED,
            RunStatus.INTERRUPTED,
            RunStatus.TIMEOUT,
            RunStatus.FAILED,
        }
    ),
    # back to pending when an attempt is given back: worker lost, retry, hand-back at a deploy
    RunStatus.RUNNING: frozenset(TERMINAL | {RunStatus.PENDING}),
    **dict.fromkeys(TERMINAL, frozenset()),
}

SESSION_MOVES: Final[Mapping[SessionStatus, frozenset[SessionStatus]]] = {
    SessionStatus.ACTIVE: frozenset({SessionStatus.PAUSED, SessionStatus.DRAINING, SessionStatus.COMPLETED}),
    SessionStatus.PAUSED: frozenset({SessionStatus.ACTIVE, SessionStatus.DRAINING, SessionStatus.COMPLETED}),
    SessionStatus.DRAINING: frozenset({SessionStatus.ACTIVE, SessionStatus.COMPLETED}),
    SessionStatus.COMPLETED: frozenset(),
}

STOPPED_STATUS: Final[Mapping[StopKind, RunStatus]] = {
    StopKind.CANCEL: RunStatus.CANCELLED,
    StopKind.INTERRUPT: RunStatus.INTERRUPTED,
    StopKind.TIMEOUT: RunStatus.TIMEOUT,
}

# Sessions in these states may start what they hold; a draining one still finishes its line.
STARTABLE: Final = frozenset({SessionStatus.ACTIVE, SessionStatus.DRAINING})
# And in these they take new ones.
ACCEPTING: Final = (SessionStatus.ACTIVE, SessionStatus.PAUSED)


class EventType(StrEnum):
    """The runtime's own words and the agents' common ones; agents may use further words."""

    SESSION_CREATED = "session_created"
    SESSION_STARTED = "session_started"
    SESSION_PAUSED = "session_paused"
    SESSION_RESUMED = "session_resumed"
    SESSION_DRAINING = "session_draining"
    SESSION_COMPLETED = "session_completed"
    SESSION_FAILED = "session_failed"
    SESSION_CANCELLED = "session_cancelled"
    SESSION_PRUNED = "session_pruned"
    RUN_QUEUED = "run_queued"
    RUN_STARTED = "run_started"
    RUN_REQUEUED = "run_requeued"
    RUN_STOP_REQUESTED = "run_stop_requested"
    RUN_PAUSED = "run_paused"
    RUN_RESUMED = "run_resumed"
    RUN_COMPLETED = "run_completed"
    RUN_FAILED = "run_failed"
    RUN_CANCELLED = "run_cancelled"
    RUN_INTERRUPTED = "run_interrupted"
    RUN_TIMEOUT = "run_timeout"
    MESSAGE_SENT = "message_sent"
    MESSAGE_RECEIVED = "message_received"
    MESSAGE_STREAMED = "message_streamed"
    TOOL_CALL_STARTED = "tool_call_started"
    TOOL_CALL_COMPLETED = "tool_call_completed"
    TOOL_CALL_FAILED = "tool_call_failed"
    ERROR_OCCURRED = "error_occurred"
    ERROR_RECOVERED = "error_recovered"
    TOKEN_USAGE_UPDATED = "token_usage_updated"
    TURN_COMPLETED = "turn_completed"
    WORKSPACE_SNAPSHOT_TAKEN = "workspace_snapshot_taken"
    WORKSPACE_DIFF_COMPUTED = "workspace_diff_computed"
    POLICY_VIOLATION = "policy_violation"
    TOOL_APPROVAL_REQUESTED = "tool_approval_requested"
    TOOL_APPROVAL_GRANTED = "tool_approval_granted"
    TOOL_APPROVAL_DENIED = "tool_approval_denied"


TERMINAL_EVENT: Final[Mapping[RunStatus, EventType]] = {
    RunStatus.COMPLETED: EventType.RUN_COMPLETED,
    RunStatus.FAILED: EventType.RUN_FAILED,
    RunStatus.CANCELLED: EventType.RUN_CANCELLED,
    RunStatus.INTERRUPTED: EventType.RUN_INTERRUPTED,
    RunStatus.TIMEOUT: EventType.RUN_TIMEOUT,
}
TERMINAL_EVENTS: Final = frozenset(TERMINAL_EVENT.values())

SESSION_EVENT: Final[Mapping[SessionStatus, EventType]] = {
    SessionStatus.ACTIVE: EventType.SESSION_RESUMED,
    SessionStatus.PAUSED: EventType.SESSION_PAUSED,
    SessionStatus.DRAINING: EventType.SESSION_DRAINING,
    SessionStatus.COMPLETED: EventType.SESSION_COMPLETED,
}

_WORD: Final = re.compile(r"[a-z][a-z0-9_.]{0,63}\Z")
_RESERVED: Final = ("run_", "session_")


def event_category(event_type: str) -> str:
    """Return session, run, message, tool, error, usage, workspace, policy, approval or other."""
    if event_type.startswith("tool_approval_"):
        return "approval"
    if event_type in (EventType.TOKEN_USAGE_UPDATED, EventType.TURN_COMPLETED):
        return "usage"
    family = event_type.partition("_")[0]
    return family if event_type in set(EventType) else "other"


def check_event_type(event_type: object, *, from_agent: bool = False) -> str:
    """Return the type if it is a word, and not one of the runtime's when it comes `from_agent`.

    Raises:
        InvalidEventType: not a word of a-z, 0-9, ``_`` and ``.`` (64 at most), or a reserved one.
    """
    if not isinstance(event_type, str) or not _WORD.match(event_type):
        raise InvalidEventType(
            f"{shown(event_type)} cannot be an event type: a type is a word of a-z, 0-9, '_' and '.', "
            "beginning with a letter, 64 characters at most",
            details={"value": shown(event_type, 200)},
        )
    if from_agent and event_type.startswith(_RESERVED):
        raise InvalidEventType(
            f"{shown(event_type)} is not yours to write: the words run_* and session_* are the runtime's, once "
            "each; use a word of your own",
            details={"value": event_type},
        )
    return str(event_type)


def check_run_status(status: object) -> RunStatus:
    """Return `status` as a RunStatus; raises InvalidStatus with the legal words."""
    # an enum would name what it refuses, and not everything can be named
    if isinstance(status, str) and status in set(RunStatus):
        return RunStatus(status)
    raise InvalidStatus(f"{shown(status)} is not a run status: use one of {', '.join(RunStatus)}")


def check_session_status(status: object) -> SessionStatus:
    """Return `status` as a SessionStatus; raises InvalidStatus with the legal words."""
    if isinstance(status, str) and status in set(SessionStatus):
        return SessionStatus(status)
    raise InvalidStatus(f"{shown(status)} is not a session status: use one of {', '.join(SessionStatus)}")


def check_session_move(session_id: str, source: SessionStatus, target: SessionStatus) -> None:
    """Raise InvalidTransition unless the table has the move."""
    if target not in SESSION_MOVES[source]:
        legal = ", ".join(sorted(SESSION_MOVES[source])) or "nothing: it is final"
        raise InvalidTransition(
            f"session {session_id!r} cannot become {target}: it is {source}, which can become {legal}",
            details={"session_id": session_id, "status": str(source), "target": str(target)},
        )


def sources_of(target: RunStatus) -> tuple[RunStatus, ...]:
    """Return the statuses a run can come from to reach `target`: the WHERE of its guard."""
    return tuple(source for source, targets in RUN_MOVES.items() if target in targets)


def diagram() -> str:
    """Return both state machines as one Mermaid picture each, made from the tables above."""
    lines = ["stateDiagram-v2", "    [*] --> pending"]
    lines += [
        f"    {source} --> {target}" for source, targets in RUN_MOVES.items() for target in sorted(targets)
    ]
    lines += [f"    {status} --> [*]" for status in sorted(TERMINAL)]
    lines += ["", "stateDiagram-v2", "    [*] --> active"]
    lines += [
        f"    {source} --> {target}"
        for source, targets in SESSION_MOVES.items()
        for target in sorted(targets)
    ]
    lines += ["    completed --> [*]"]
    return "\n".join(lines)
