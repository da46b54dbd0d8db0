"""Arbitrate, then dispatch what was granted: the tail of every move that frees or admits.

Redis away is no failure of a move whose outcome SQL has committed: the repair loop carries it on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from asm_celery.dispatch import Dispatcher
from asm_celery.errors import CoordinationDamaged, CoordinationUnavailable
from asm_celery.model import Lease
from asm_celery.queue.run_queue import Entry, Granted, Line, RunQueue
from asm_celery.store.run_queries import OpenRun

log = logging.getLogger(__name__)

# includes/promote.lua grants at most so many leases a call
_BOUND: Final = 32


class Promoter:
    """Runs a script and rings for the leases it granted, until none is granted any more."""

    def __init__(self, queue: RunQueue, dispatcher: Dispatcher) -> None:
        self.queue = queue
        self._dispatcher = dispatcher
        self._is_away = False

    def settle(self, arbitrate: Callable[[], Granted], *, is_repair: bool = False) -> str:
        """Call a script and dispatch its leases.

        Guarantee: never raises for Redis or the broker being away; what was not done is found and done by
        the repair loop.

        Args:
            is_repair: the caller is who mends what a script stumbles over.

        Raises:
            CoordinationDamaged: with `is_repair`: nobody else would come to mend it.

        Returns:
            The script's word, ``"unreachable"`` when Redis is away.
        """
        try:
            granted = arbitrate()
        except CoordinationUnavailable as cause:
            if is_repair and isinstance(cause, CoordinationDamaged):
                raise
            # said once, and not by every move of an outage
            level = logging.DEBUG if self._is_away else logging.WARNING
            self._is_away = True
            log.log(level, "left to the repair loop: %s", cause.message)
            return "unreachable"
        self._is_away = False
        self.ring_for(granted.leases)
        return granted.word

    def ring_for(self, leases: list[Lease]) -> None:
        """Dispatch leases; a full answer means that more may be ready, so ask again until it is not."""
        self._dispatcher.dispatch(leases)
        while len(leases) >= _BOUND:
            try:
                rung = self.queue.ring()
            except CoordinationUnavailable:
                return
            self._dispatcher.dispatch([*rung.repeated, *rung.granted])
            leases = rung.granted

    def revoke(self, task_id: str) -> None:
        """Ask workers to drop a doorbell."""
        self._dispatcher.revoke(task_id)

    def terminate(self, task_id: str, worker: str) -> None:
        """Have a worker end what executes a lease, when the agent's grace is over."""
        self._dispatcher.terminate(task_id, worker)


def line_of(run: OpenRun) -> Line:
    """Return the session part of what SQL said of an open run."""
    return Line(session_id=run.session_id, slots=run.slots, state=run.state, version=run.state_version)


def entries_of(runs: Iterable[OpenRun]) -> list[Entry]:
    """Return what SQL said of open runs in the form the scripts take."""
    return [
        Entry(
            run_id=run.run_id,
            agent=run.agent,
            position=run.position,
            queue=run.queue,
            status=run.status.value,
            claims=run.claims,
            executor=run.executor,
            waits_ms=run.waits_ms,
        )
        for run in runs
    ]
