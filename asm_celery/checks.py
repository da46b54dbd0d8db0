"""The door's rules for plain values: ids, words, seconds, counts.  Each returns the value or teaches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from asm_celery.errors import RunNotFound, SessionNotFound, ValidationError
from asm_celery.showing import shown

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
        f"there is no session {shown(session_id)}: an id has 1 to 128 of A-Z a-z 0-9 . _ : @ - "
        "and begins with a letter or digit",
        details={"session_id": shown(session_id, 200)},
    )


def check_new_session_id(session_id: object) -> str:
    """Return a session id a caller may use for a new session; raises ValidationError otherwise."""
    try:
        return check_session_id(session_id)
    except SessionNotFound as cause:
        raise ValidationError(
            f"{shown(session_id)} cannot be a session id: use 1 to 128 of A-Z a-z 0-9 . _ : @ - , "
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
        f"there is no run {shown(run_id)}: a run id is run_ and 32 hex digits, as submit_run returns it",
        details={"run_id": shown(run_id, 200)},
    )


def check_words(value: object, *, what: str, maximum: int = 255) -> str:
    """Return text of a caller's own, such as a key or a name.

    It goes into SQL, Redis and logs, so it has 1 to `maximum` characters, all of them printable.

    Raises:
        ValidationError: anything else.
    """
    if isinstance(value, str) and 1 <= len(value) <= maximum and value.isprintable():
        return value
    raise ValidationError(
        f"{what}={shown(value)} must be a string of 1 to {maximum} printable characters",
        details={"field": what},
    )


def check_actor(by: object) -> str:
    """Return who asks, as the history keeps it; raises ValidationError unless it is 1 to 200 characters."""
    if isinstance(by, str) and 1 <= len(by) <= 200 and by.isprintable():
        return by
    raise ValidationError(
        f"by={shown(by)} must say in 1 to 200 printable characters who asks for this", details={"field": "by"}
    )


def check_list(values: object, *, what: str, maximum: int = 1_000_000) -> list[Any]:
    """Return a collection as a list; raises ValidationError for text, a map, too many, or no collection."""
    is_legal = isinstance(values, Iterable) and not isinstance(values, (str, bytes, bytearray, Mapping))
    found = list(values) if isinstance(values, Iterable) and is_legal else []
    if is_legal and len(found) <= maximum:
        return found
    raise ValidationError(
        f"{what}={shown(values)} must be a list, or another collection, of at most {maximum}",
        details={"field": what},
    )


def check_time(value: object, *, what: str) -> datetime:
    """Return an aware time; raises ValidationError for anything else, such as a time without a zone."""
    if isinstance(value, datetime) and value.utcoffset() is not None:
        return value
    raise ValidationError(
        f"{what}={shown(value)} must be an aware datetime, such as datetime.now(UTC)", details={"field": what}
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
    # compared as it is: a whole number may be too large for a float
    if not legal or not minimum <= (value or 0) < 1e9:
        raise ValidationError(
            f"{what}={shown(value)} is not a number of seconds of at least {minimum:g}"
            + (": give one, or None for no limit" if optional else ""),
            details={"field": what, "value": shown(value), "minimum": minimum},
        )
    return float(value or 0)


def check_count(value: object, *, what: str, minimum: int, maximum: int = 1_000_000) -> int:
    """Return a whole number in ``minimum..maximum``; raises ValidationError naming value and rule."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise ValidationError(
            f"{what}={shown(value)} must be a whole number from {minimum} to {maximum}",
            details={"field": what, "value": shown(value), "minimum": minimum, "maximum": maximum},
        )
    return value
