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

log = logging.getLogger("asm_celery.worker")

# beyond any claim number: it is raised by one a claim
_MOST_CLAIMS: Final = 1 << 31


def heard(given: Sequence[Any], named: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the run id and the claim number a message names; None, with one line in the log, for no doorbell.

    Args:
        given, named: the message's arguments: run id, claim number, session id, format version.
    """
    match given:
        case [str() as run_id, int() as claim, str(), int() as version, *_] if version > FORMAT_VERSION:
            log.warning(
                "run=%.80r claim=%.20r came in format %.20r: upgrade this worker", run_id, claim, version
            )
        case [str() as run_id, int() as claim, str(), int()] if (
            not named and is_run_id(run_id) and 1 <= claim <= _MOST_CLAIMS and claim is not True
        ):
            return run_id, claim
        case _:
            log.warning("dropped what is no doorbell: arguments %.200r %.200r", list(given), dict(named))
    return None
