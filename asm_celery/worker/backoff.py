"""How long to wait before trying again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

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
