"""The door's rules for plain values: ids, seconds, counts.  Each returns the value or teaches."""

from __future__ import annotations

import re
from typing import Final

from asm_celery.errors import RunNotFound, SessionNotFound, ValidationError

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}\Z")
_RUN_ID: Final = re.compile(r"run_[0-9a-f]{32}\Z")


def check_session_id(session_id: object) -> str:
    """Return a well-formed session id.

    Raises:
        SessionNotFound: malformed, so no session can have it; the rule is in the message.
    """
    if isinstance(session_id, str) and _SESSION_ID.match(session_id):
        return session_id
    raise SessionNotFound(
        f"there is no session {str(session_id)[:80]!r}: an id has 1 to 128 of A-Z a-z 0-9 . _ : @ - "
        "and begins with a letter or digit",
        details={"session_id": str(session_id)[:200]},
    )


def check_new_session_id(session_id: object) -> str:
    """Return a session id a caller may use for a new session; raises ValidationError otherwise."""
    try:
        return check_session_id(session_id)
    except SessionNotFound as cause:
        raise ValidationError(
            f"{str(session_id)[:80]!r} cannot be a session id: use 1 to 128 of A-Z a-z 0-9 . _ : @ - , "
            "beginning with a letter or digit",
            details=cause.details,
        ) from None


def is_run_id(run_id: object) -> bool:
    """Say whether a run could have this id."""
    return isinstance(run_id, str) and _RUN_ID.match(run_id) is not None


def check_run_id(run_id: object) -> str:
    """Return a well-formed run id; raises RunNotFound when no run can have it."""
    if isinstance(run_id, str) and is_run_id(run_id):
        return run_id
    raise RunNotFound(
        f"there is no run {str(run_id)[:80]!r}: a run id is run_ and 32 hex digits, as submit_run returns it",
        details={"run_id": str(run_id)[:200]},
    )


def check_actor(by: object) -> str:
    """Return who asks, as the history keeps it; raises ValidationError unless it is 1 to 200 characters."""
    if isinstance(by, str) and 1 <= len(by) <= 200 and by.isprintable():
        return by
    raise ValidationError(
        f"by={by!r:.80} must say in 1 to 200 printable characters who asks for this", details={"field": "by"}
    )


def check_seconds(
    value: float | None, *, what: str, minimum: float = 0.0, optional: bool = True
) -> float | None:
    """Return a number of seconds, None if `optional` allows it.

    Raises:
        ValidationError: not a number, NaN, infinite or below `minimum`.
    """
    if value is None and optional:
        return None
    legal = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not legal or not minimum <= float(value or 0) < 1e9:
        raise ValidationError(
            f"{what}={value!r} is not a number of seconds of at least {minimum:g}"
            + (": give one, or None for no limit" if optional else ""),
            details={"field": what, "value": repr(value), "minimum": minimum},
        )
    return float(value or 0)


def check_count(value: object, *, what: str, minimum: int, maximum: int = 1_000_000) -> int:
    """Return a whole number in ``minimum..maximum``; raises ValidationError naming value and rule."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise ValidationError(
            f"{what}={value!r} must be a whole number from {minimum} to {maximum}",
            details={"field": what, "value": repr(value), "minimum": minimum, "maximum": maximum},
        )
    return value
