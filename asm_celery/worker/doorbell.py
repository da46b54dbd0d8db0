"""A doorbell as a worker hears it.

Whoever reaches the broker can send one, so what it says is checked before anything is asked for.  It names a
lease and grants nothing: what is well formed and no lease of ours is spare, and dropped by the queue's script.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from asm_celery.checks import is_run_id
from asm_celery.keys import FORMAT_VERSION
from asm_celery.showing import shown

log = logging.getLogger("asm_celery.worker")

# What a doorbell's message says of itself; all else that Celery would heed (limits of time, a time to begin,
# tasks to follow) is not ours, and is not heeded.
_HEADERS: Final = frozenset({"id", "task", "lang", "shadow", "argsrepr", "kwargsrepr", "origin", "root_id"})

_LONGEST: Final = 1000

# beyond any claim number: it is raised by one a claim
_MOST_CLAIMS: Final = 1 << 31


def headers_of(headers: Mapping[str, Any], body: Any) -> dict[str, Any] | None:
    """Return the headers of a doorbell as Celery may see them; None, and a line in the log, for no doorbell.

    Args:
        headers, body: the message's: `heard` says what its arguments must be, and nothing may follow it.
    """
    kept = {
        name: value
        for name, value in headers.items()
        if name in _HEADERS and isinstance(value, str) and len(value) <= _LONGEST and value.isprintable()
    }
    match body:
        case [list() as given, dict() as named, dict() as more] if not any(more.values()):
            if "id" not in kept:
                log.warning("dropped a doorbell without an id: arguments %s", shown(given, 200))
            elif heard(given, named) is not None:
                return {**kept, "ignore_result": True}
        case _:
            log.warning("dropped what is no doorbell: body %s", shown(body, 200))
    return None


def heard(given: Sequence[Any], named: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the run id and the claim number a message names; None, with one line in the log, for no doorbell.

    Args:
        given, named: the message's arguments: run id, claim number, session id, format version.
    """
    match given:
        case [str() as run_id, int() as claim, str(), int() as version, *_] if version > FORMAT_VERSION:
            log.warning(
                "run=%s claim=%s came in format %s: upgrade this worker",
                shown(run_id),
                shown(claim),
                shown(version),
            )
        case [str() as run_id, int() as claim, str(), int()] if (
            not named and is_run_id(run_id) and 1 <= claim <= _MOST_CLAIMS and claim is not True
        ):
            return run_id, claim
        case _:
            log.warning(
                "dropped what is no doorbell: arguments %s %s",
                shown(list(given), 200),
                shown(dict(named), 200),
            )
    return None
