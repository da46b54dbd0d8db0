"""`Fence`: how long this process may go on executing when nobody can hear that it lives.

Others take its runs over once both of its beats, in SQL and in Redis, were silent for a lease.  By then it
must not execute any more, or what they do outside would happen beside it.  One witness is enough to go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final

# Of a lease without any witness: what executes is asked to leave, and the process ends if it has not.
LEAVE: Final = 0.6
FALL: Final = 0.8
# Redis alone vouches for so long: events and ends wait in memory for SQL, which may not come back.
STORE_GRACE_S: Final = 300.0


class Witness(StrEnum):
    """A store in which this process raises its beat."""

    SQL = "sql"
    REDIS = "redis"


class Verdict(StrEnum):
    """What a look says: go on, ask what executes to leave, or end this process."""

    STAY = "stay"
    LEAVE = "leave"
    FALL = "fall"


class Fence:
    """The last confirmed beat of each witness, on this process's own clock.

    Args:
        lease_s: after so much silence others judge this process dead.
        look_s: seconds between looks; one that comes late says that this process itself stood still.
        ask_s: how long it may then ask its witnesses before it judges.
    """

    def __init__(
        self, *, lease_s: float, look_s: float, ask_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lease_s = lease_s
        self._late_s = 2 * look_s
        self._ask_s = ask_s
        self._clock = clock
        now = clock()
        self._heard = dict.fromkeys(Witness, now)
        self._looked_at = now
        self._awake_since = float("-inf")

    def now(self) -> float:
        """Return the time to confirm a beat with: taken before it is raised, for its answer may be late."""
        return self._clock()

    def confirm(self, witness: Witness, at: float) -> None:
        """A witness has answered the beat that was raised at `at`."""
        self._heard[witness] = max(self._heard[witness], at)

    def silent_s(self) -> float:
        """Return for how long nobody has confirmed a beat."""
        return self._clock() - max(self._heard.values())

    def look(self) -> Verdict:
        """Judge; call it every `look_s`."""
        now = self._clock()
        if now - self._looked_at > self._late_s:
            self._awake_since = now
        self._looked_at = now
        if now - self._awake_since < self._ask_s:
            # it was stopped, and others may have taken over: its next beat tells, in milliseconds
            return Verdict.STAY
        silent_s = now - max(self._heard.values())
        if silent_s >= FALL * self._lease_s:
            return Verdict.FALL
        no_store_s = now - self._heard[Witness.SQL]
        is_cut_off = silent_s >= LEAVE * self._lease_s or no_store_s >= max(STORE_GRACE_S, self._lease_s)
        return Verdict.LEAVE if is_cut_off else Verdict.STAY
