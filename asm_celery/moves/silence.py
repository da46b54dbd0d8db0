"""Judge silence by the observer's own monotonic clock; pure but for that clock.

A lease is silent when its beat was not seen to change for `lease_s` of unbroken observation.  An observer
that was itself paused, or could not look, starts all counts anew: it knows nothing of the time it missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from asm_celery.queue.run_queue import Held

# Answers, for silent leases, (executor, its beat in SQL) of those that SQL says it is running.
Vouchers = Callable[[list[Held]], dict[str, tuple[str, int]]]


@dataclass(slots=True)
class _Seen:
    beat: int
    since: float
    voucher: tuple[str, int] | None = None
    vouched_since: float = 0.0


class Silence:
    """What one observer has seen of every lease.

    Args:
        lease_s: seconds of silence after which a lease is judged dead.
        look_s: seconds between looks; a gap of more than 2.5 looks (and 1 s) breaks the observation.
    """

    def __init__(self, *, lease_s: float, look_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_s = lease_s
        self._longest_gap_s = max(2.5 * look_s, 1.0)
        self._clock = clock
        self._looked_at = float("-inf")
        self._seen: dict[tuple[str, int, str], _Seen] = {}

    def judge(self, leases: list[Held], vouchers: Vouchers) -> list[Held]:
        """Take in one look at all leases; return those that are dead.

        Args:
            vouchers: asked only for leases that are silent for half of `lease_s`: an executor that cannot
                reach Redis still beats in SQL, which vouches for what SQL says it is running.
        """
        at = self._clock()
        if at - self._looked_at > self._longest_gap_s:
            self._seen.clear()
        self._looked_at = at
        self._seen = {key: self._look(key, lease, at) for lease in leases for key in [_key(lease)]}
        quiet = [lease for lease in leases if at - self._seen[_key(lease)].since >= self._lease_s / 2]
        if not quiet:
            return []
        vouched = vouchers(quiet)
        return [lease for lease in quiet if self._is_dead(lease, vouched.get(lease.run_id), at)]

    def _look(self, key: tuple[str, int, str], lease: Held, at: float) -> _Seen:
        seen = self._seen.get(key)
        if seen is None or seen.beat != lease.beat:
            return _Seen(beat=lease.beat, since=at)
        return seen

    def _is_dead(self, lease: Held, voucher: tuple[str, int] | None, at: float) -> bool:
        seen = self._seen[_key(lease)]
        if voucher is not None and voucher != seen.voucher:
            # half of lease_s is more than one beat: a living executor's beat in SQL changes in that time
            seen.voucher, seen.vouched_since = voucher, at
        is_silent = at - seen.since >= self._lease_s
        if voucher is None:
            return is_silent
        return is_silent and at - seen.vouched_since >= self._lease_s / 2


def _key(lease: Held) -> tuple[str, int, str]:
    return lease.run_id, lease.claim, lease.executor
