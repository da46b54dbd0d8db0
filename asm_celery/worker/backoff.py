"""How long to wait before trying again, and doing so while the database is away."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from asm_celery.errors import StorageConnectionFailed

log = logging.getLogger("asm_celery.worker")
T = TypeVar("T")

FIRST_S: Final = 0.05
# A store that is back must be noticed soon: its outage is what everybody waits for.
LONGEST_S: Final = 2.0


def delays() -> Iterator[float]:
    """Yield seconds to wait, for ever: doubling from 50 ms to 2 s, each shortened by up to half.

    The jitter keeps a fleet that lost its database from coming back in one beat.
    """
    delay = FIRST_S
    while True:
        yield delay * random.uniform(0.5, 1.0)
        delay = min(2 * delay, LONGEST_S)


def patiently(
    act: Callable[[], T],
    patience_s: float,
    *,
    what: str = "the end of a run",
    leaves: Callable[[], object] = lambda: None,
) -> T:
    """Do it again while the database is away, with growing pauses.

    Raises the database's error when patience ends, or `leaves` says something.
    """
    until = time.monotonic() + patience_s
    for tries, pause in enumerate(delays()):
        try:
            return act()
        except StorageConnectionFailed as cause:
            if time.monotonic() + pause > until or leaves():
                raise
            if tries == 0:
                log.warning("%s waits, the database is away: %s", what, cause)
        time.sleep(pause)
    raise AssertionError("delays never ends")
