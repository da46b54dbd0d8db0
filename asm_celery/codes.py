"""The table of error codes: family, whether trying again may help, default message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Code:
    """What is known of an error code: its family, whether trying again may help, its default message."""

    category: str
    retryable: bool
    message: str


def _family(category: str, **messages: str) -> dict[str, Code]:
    return {
        name: Code(category, message.endswith("*"), message.removesuffix("*"))
        for name, message in messages.items()
    }


# A message that ends in * marks a code for which the same call may succeed later.
CODES: Final[Mapping[str, Code]] = {
    **_family(
        "validation",
        validation_error="a value breaks a rule",
        invalid_input="the input cannot be accepted",
        missing_required_field="a required field is missing",
        invalid_format="a value has the wrong form",
    ),
    **_family(
        "state",
        invalid_status="this is not a status",
        invalid_transition="this move is not legal from the present status",
        invalid_event_type="this is not an event type",
        invalid_capability_type="this is not a capability type",
        missing_required_capability="a required capability is missing",
        stream_closed="the stream is closed",
        context_mismatch="the event belongs elsewhere",
        invalid_cursor="the cursor does not fit this log",
        cursor_gone="what follows the cursor was removed by retention",
        cursor_ahead="the log ends before the cursor",
        cursor_mismatch="the log has another event at the cursor's place",
        session_mismatch="the event belongs to another session",
        run_mismatch="the event belongs to another run",
        lease_lost="the attempt no longer holds its claim",
    ),
    **_family(
        "resource",
        not_found="there is no such thing",
        session_not_found="there is no such session",
        run_not_found="there is no such run",
        capability_not_found="there is no such capability",
        agent_not_found="no process here knows this agent",
        already_exists="it exists already",
        duplicate_capability="the capability exists already",
        idempotency_conflict="the idempotency key was used with another input",
    ),
    **_family(
        "provider",
        provider_error="the agent's provider failed",
        provider_unavailable="the provider is not available*",
        provider_rate_limited="the provider limits the rate*",
        provider_timeout="the provider did not answer in time*",
        provider_authentication_failed="the provider refused the credentials",
        provider_quota_exceeded="the provider's quota is used up",
    ),
    **_family(
        "storage",
        storage_error="the database refused",
        storage_connection_failed="the database cannot be reached*",
        storage_busy="the database has no room for this now*",
        storage_write_failed="the database did not write",
        storage_read_failed="the database did not read",
        dependency_not_available="something this needs is not available",
        coordination_unavailable="Redis cannot be reached*",
        coordination_damaged="Redis holds what is not ours at our keys*",
        eviction_allowed="Redis may evict what it was given",
        migration_required="the database schema is missing or old",
        query_error="the query failed",
        maintenance_error="the maintenance step failed",
    ),
    **_family(
        "runtime",
        timeout="the time allowed has passed*",
        run_timeout="the run took longer than its run_timeout",
        queue_timeout="the run waited longer than its queue_timeout",
        cancelled="the run was cancelled",
        interrupted="the run was interrupted",
        worker_lost="the worker of this run died",
        worker_shutdown="the worker of this run was shut down",
        policy_violation="a policy forbids this",
        command_failed="the command ended with a non-zero exit code",
        command_timeout="the command took too long",
        agent_error="the agent raised an exception",
        invalid_output="the agent returned something that is not JSON",
        internal_error="something unexpected happened",
        unknown_error="the cause is not known",
    ),
    **_family(
        "concurrency",
        max_sessions_exceeded="the limit of parallel sessions is reached*",
        max_runs_exceeded="the limit of runs is reached*",
        capability_not_supported="the agent does not declare this capability",
        invalid_operation="the present state does not allow this",
        session_draining="the session accepts no new runs*",
        session_busy="the session has open runs*",
    ),
    **_family(
        "tool",
        tool_error="a tool failed",
        tool_not_found="there is no such tool",
        tool_execution_failed="the tool did not execute",
        tool_permission_denied="the tool is not permitted",
    ),
}


def is_code(code: object) -> bool:
    """Say whether `code` is one of the codes above."""
    return isinstance(code, str) and code in CODES


def category(code: str) -> str:
    """Return the family of a code, ``"unknown"`` for a code that is not in the table."""
    known = CODES.get(code)
    return known.category if known else "unknown"
