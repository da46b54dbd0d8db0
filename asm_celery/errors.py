"""The one tree of errors, and the table of codes it stands on.

AsmError
├── ValidationError                 validation_error
│   ├── InvalidInput                invalid_input
│   ├── AgentNotFound               agent_not_found
│   ├── InvalidEventType            invalid_event_type
│   └── InvalidStatus               invalid_status
├── NotFound                        not_found
│   ├── SessionNotFound             session_not_found
│   └── RunNotFound                 run_not_found
├── AlreadyExists                   already_exists
│   └── IdempotencyConflict         idempotency_conflict
├── InvalidOperation                invalid_operation
│   ├── InvalidTransition           invalid_transition
│   ├── SessionDraining             session_draining
│   ├── SessionBusy                 session_busy
│   └── CapabilityNotSupported      capability_not_supported
├── InvalidCursor                   invalid_cursor
│   ├── CursorGone                  cursor_gone
│   ├── CursorAhead                 cursor_ahead
│   └── CursorMismatch              cursor_mismatch
├── LimitExceeded
│   ├── QueueFull                   max_runs_exceeded      (.limit, .depth)
│   ├── RunLimitExceeded            max_runs_exceeded      (.limit, .active)
│   └── SessionLimitExceeded        max_sessions_exceeded  (.limit, .active)
├── RunEnded                                               (.result)
│   ├── RunFailed                   the run's own code
│   ├── RunCancelled                cancelled
│   ├── RunInterrupted              interrupted
│   └── RunTimeout                  run_timeout, queue_timeout
├── PatienceEnded                   timeout                (also a TimeoutError)
│   ├── AwaitTimeout                                       (.run_id)
│   ├── CancelTimeout                                      (.run_id, .status, .executor)
│   └── DrainTimeout                                       (.queued, .in_flight)
├── StorageError                    storage_error
│   ├── StorageConnectionFailed     storage_connection_failed
│   │   └── StorageBusy             storage_busy
│   └── MigrationRequired           migration_required
├── DependencyNotAvailable          dependency_not_available
│   ├── EvictionAllowed             eviction_allowed
│   └── CoordinationUnavailable     coordination_unavailable
│       └── CoordinationDamaged     coordination_damaged
├── LeaseLost                       lease_lost
└── InternalError                   internal_error

Every message says what was asked, what is true and what to do.  Errors travel as maps (``to_map``,
``from_map``), never as pickles.  `StopRun` is not an error: it is how a requested stop leaves an agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from asm_celery.codes import CODES, category, is_code
from asm_celery.showing import shown

__all__ = [
    "CODES",
    "AgentNotFound",
    "AlreadyExists",
    "AsmError",
    "AwaitTimeout",
    "CancelTimeout",
    "CapabilityNotSupported",
    "CoordinationUnavailable",
    "CursorAhead",
    "CursorGone",
    "CursorMismatch",
    "DependencyNotAvailable",
    "DrainTimeout",
    "IdempotencyConflict",
    "InternalError",
    "InvalidCursor",
    "InvalidEventType",
    "InvalidInput",
    "InvalidOperation",
    "InvalidStatus",
    "InvalidTransition",
    "LeaseLost",
    "LimitExceeded",
    "MigrationRequired",
    "NotFound",
    "PatienceEnded",
    "QueueFull",
    "RunCancelled",
    "RunEnded",
    "RunFailed",
    "RunInterrupted",
    "RunLimitExceeded",
    "RunNotFound",
    "RunTimeout",
    "SessionBusy",
    "SessionDraining",
    "SessionLimitExceeded",
    "SessionNotFound",
    "StopRun",
    "StorageBusy",
    "StorageConnectionFailed",
    "StorageError",
    "ValidationError",
    "category",
    "is_code",
    "is_retryable",
    "of_code",
]


def is_retryable(code: str | AsmError) -> bool:
    """Say whether the same call may succeed later; False for unknown codes."""
    if isinstance(code, AsmError):
        return code.retryable
    known = CODES.get(code)
    return bool(known and known.retryable)


class AsmError(Exception):
    """Anything this library refuses or cannot do.

    Attributes:
        code: stable snake_case word, see `CODES`.
        message: what was asked, what is true, what to do.
        retryable: whether the same call may succeed later.
        details: JSON-ready facts (ids, limits, rules).
        provider_error: what an agent's provider said, if it did.
        timestamp: when the error was made, aware, UTC.
    """

    default_code: str = "unknown_error"

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        provider_error: Mapping[str, Any] | None = None,
    ) -> None:
        self.code = code or self.default_code
        known = CODES.get(self.code)
        self.message = message or (known.message if known else self.code)
        self.retryable = bool(known and known.retryable)
        self.details: dict[str, Any] = dict(details or {})
        self.provider_error = dict(provider_error) if provider_error is not None else None
        self.timestamp = datetime.now(UTC)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"

    @property
    def category(self) -> str:
        """The family of the code."""
        return category(self.code)

    @classmethod
    def wrap(cls, code: str, cause: BaseException, message: str | None = None) -> AsmError:
        """Make an error of `code` that remembers `cause` by type and text, in its details."""
        details = {"original_exception": type(cause).__name__, "original_message": str(cause)}
        return of_code(code, message or str(cause) or type(cause).__name__, details=details)

    def to_map(self) -> dict[str, Any]:
        """Return the error as a JSON-ready map; `from_map` reads it back."""
        return {
            "code": self.code,
            "message": self.message,
            "details": self.details,
            "provider_error": self.provider_error,
            "retryable": self.retryable,
            "timestamp": self.timestamp.isoformat(),
        }

    @staticmethod
    def from_map(source: Mapping[str, Any]) -> AsmError:
        """Read what `to_map` wrote; raises ValidationError for an empty map or an unknown code."""
        code = source.get("code") if isinstance(source, Mapping) else None
        if not is_code(code):
            raise ValidationError(
                f"an error map needs a known code, got {shown(code)}: use one of errors.CODES",
                details={"field": "code", "value": shown(code)},
            )
        return of_code(
            str(code),
            str(source.get("message") or ""),
            details=source.get("details") or {},
            provider_error=source.get("provider_error"),
        )


class ValidationError(AsmError):
    """A value breaks a rule: the message names the value, the rule and the remedy."""

    default_code = "validation_error"


class InvalidInput(ValidationError):
    """The input is not JSON or is larger than `max_input_bytes`."""

    default_code = "invalid_input"


class AgentNotFound(ValidationError):
    """This process registered agents, and not this one."""

    default_code = "agent_not_found"


class InvalidEventType(ValidationError):
    """An event type must be a word, and the life-cycle words belong to the runtime."""

    default_code = "invalid_event_type"


class InvalidStatus(ValidationError):
    """This is not one of the statuses."""

    default_code = "invalid_status"


class NotFound(AsmError):
    """There is no such thing."""

    default_code = "not_found"


class SessionNotFound(NotFound):
    """No session has this id."""

    default_code = "session_not_found"


class RunNotFound(NotFound):
    """No run has this id, or it belongs to another session."""

    default_code = "run_not_found"


class AlreadyExists(AsmError):
    """It exists already; attach to it instead."""

    default_code = "already_exists"


class IdempotencyConflict(AlreadyExists):
    """The idempotency key was used before, with another input."""

    default_code = "idempotency_conflict"


class InvalidOperation(AsmError):
    """The present state does not allow this."""

    default_code = "invalid_operation"


class InvalidTransition(InvalidOperation):
    """The state table has no such move."""

    default_code = "invalid_transition"


class SessionDraining(InvalidOperation):
    """The session was drained with ``accept=False``: resume or complete it."""

    default_code = "session_draining"


class SessionBusy(InvalidOperation):
    """``on_busy="reject"`` and the session has open runs."""

    default_code = "session_busy"


class CapabilityNotSupported(InvalidOperation):
    """The agent does not declare this capability."""

    default_code = "capability_not_supported"


class InvalidCursor(AsmError):
    """The log does not go on where this cursor stands; `details` say from where it can be followed."""

    default_code = "invalid_cursor"


class CursorGone(InvalidCursor):
    """What follows the cursor was removed by retention: follow from ``details["first_sequence"]``."""

    default_code = "cursor_gone"


class CursorAhead(InvalidCursor):
    """The log ends before the cursor: the database was restored to an older copy."""

    default_code = "cursor_ahead"


class CursorMismatch(InvalidCursor):
    """The log has another event at the cursor's place: it is of another history, or another session."""

    default_code = "cursor_mismatch"


class LimitExceeded(AsmError):
    """A bound is reached; try again when work has ended."""

    default_code = "max_runs_exceeded"


class QueueFull(LimitExceeded):
    """The session has no room for one more run; nothing was written."""

    def __init__(self, message: str = "", *, limit: int, depth: int, session_id: str) -> None:
        self.limit = limit
        self.depth = depth
        super().__init__(message, details={"limit": limit, "depth": depth, "session_id": session_id})


class RunLimitExceeded(LimitExceeded):
    """A caller's own `acquire_run_slot` met a full limiter."""

    def __init__(self, message: str = "", *, limit: int, active: int) -> None:
        self.limit = limit
        self.active = active
        super().__init__(message, details={"limit": limit, "active": active})


class SessionLimitExceeded(LimitExceeded):
    """A caller's own `acquire_session_slot` met a full limiter."""

    default_code = "max_sessions_exceeded"

    def __init__(self, message: str = "", *, limit: int, active: int) -> None:
        self.limit = limit
        self.active = active
        super().__init__(message, details={"limit": limit, "active": active})


class RunEnded(AsmError):
    """The awaited run ended in another way than `completed`; `.result` is its RunResult."""

    def __init__(self, message: str = "", *, result: Any, code: str | None = None) -> None:
        self.result = result
        error = result.error or {}
        super().__init__(
            message,
            code=code or error.get("code"),
            details={**(error.get("details") or {}), "run_id": result.run_id},
        )


class RunFailed(RunEnded):
    """The run ended `failed`; the code is the run's own."""

    default_code = "agent_error"


class RunCancelled(RunEnded):
    """The run ended `cancelled`."""

    default_code = "cancelled"


class RunInterrupted(RunEnded):
    """The run ended `interrupted`; `.result.output` holds what it had produced."""

    default_code = "interrupted"


class RunTimeout(RunEnded, TimeoutError):
    """The run ended `timeout`: it ran, or waited, longer than it was allowed to."""

    default_code = "run_timeout"


class PatienceEnded(AsmError, TimeoutError):
    """The caller's own patience ended; the work goes on."""

    default_code = "timeout"


class AwaitTimeout(PatienceEnded):
    """`await_run` waited as long as it was told to; the run goes on."""

    def __init__(self, message: str = "", *, run_id: str, timeout: float) -> None:
        self.run_id = run_id
        super().__init__(message, details={"run_id": run_id, "timeout": timeout})


class CancelTimeout(PatienceEnded):
    """A stop was requested and stands, but the run had not ended in time.

    Attributes:
        status, executor: where the run was then; no executor holds a run that is `pending`.
    """

    def __init__(
        self, message: str = "", *, run_id: str, timeout: float, status: str = "", executor: str | None = None
    ) -> None:
        self.run_id = run_id
        self.status = status
        self.executor = executor
        super().__init__(
            message,
            details={"run_id": run_id, "timeout": timeout, "status": status, "executor": executor},
        )


class DrainTimeout(PatienceEnded):
    """`drain` waited as long as it was told to; `.queued` and `.in_flight` are the run ids left."""

    def __init__(
        self, message: str = "", *, session_id: str, queued: list[str], in_flight: list[str], why: str
    ) -> None:
        self.queued = queued
        self.in_flight = in_flight
        self.why = why
        super().__init__(
            message,
            details={"session_id": session_id, "queued": queued, "in_flight": in_flight, "why": why},
        )


class StorageError(AsmError):
    """The database refused."""

    default_code = "storage_error"


class StorageConnectionFailed(StorageError):
    """The database cannot be reached; nothing was written."""

    default_code = "storage_connection_failed"


class StorageBusy(StorageConnectionFailed):
    """The database is there and has no room for this now: conflict, lock or pool; nothing was written."""

    default_code = "storage_busy"


class MigrationRequired(StorageError):
    """The database has no schema, or an old one: run ``asm migrate``."""

    default_code = "migration_required"


class DependencyNotAvailable(AsmError):
    """A program, library or server version that this needs is missing."""

    default_code = "dependency_not_available"


class CoordinationUnavailable(DependencyNotAvailable):
    """Redis cannot be reached; accepted runs start when it is back."""

    default_code = "coordination_unavailable"


class CoordinationDamaged(CoordinationUnavailable):
    """What Redis holds at our keys is not ours; workers throw it away and restore it from SQL."""

    default_code = "coordination_damaged"


class EvictionAllowed(DependencyNotAvailable):
    """Redis may evict keys when its memory is full: a worker does not start on it unless told to."""

    default_code = "eviction_allowed"


class LeaseLost(AsmError):
    """The attempt no longer holds its claim: its writes are refused, it must stop."""

    default_code = "lease_lost"


class InternalError(AsmError):
    """Something unexpected happened; the cause is chained."""

    default_code = "internal_error"


class StopRun(BaseException):
    """Raised inside an agent by ``ctx.check()`` when a stop was asked for.

    It derives from BaseException so that an agent's ``except Exception`` lets it pass.

    Attributes:
        kind: ``"cancel"``, ``"interrupt"``, ``"timeout"``, ``"shutdown"`` or ``"lost"``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(kind)


def _leaves(root: type[AsmError]) -> dict[str, type[AsmError]]:
    found: dict[str, type[AsmError]] = {}
    for child in root.__subclasses__():
        if child.__init__ is AsmError.__init__:
            found.setdefault(child.default_code, child)
        found.update({code: kind for code, kind in _leaves(child).items() if code not in found})
    return found


def of_code(
    code: str,
    message: str = "",
    *,
    details: Mapping[str, Any] | None = None,
    provider_error: Mapping[str, Any] | None = None,
) -> AsmError:
    """Make the error of the tree that carries `code`, a plain AsmError where the tree has none."""
    kind = _BY_CODE.get(code, AsmError)
    return kind(message, code=code, details=details, provider_error=provider_error)


_BY_CODE: Final = _leaves(AsmError)
