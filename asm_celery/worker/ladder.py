"""The ladder: what makes a requested stop true, rung by rung, whatever the agent does.

1. At once the agent is asked: `ctx.cancelled`, `ctx.check`, `on_stop` callables, its task is cancelled.
2. After half its grace StopRun is raised in the body of an agent that has not heard of the stop.
3. When its grace is over the place it executes in is ended: a prefork child by the worker's main process; a
   thread cannot be ended, so its attempt is given up.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Final, Protocol

from asm_celery.errors import StopRun
from asm_celery.worker.attempt import Attempt
from asm_celery.worker.board import ChildSeat

log = logging.getLogger("asm_celery.worker")

# A thread has this long to leave after StopRun was raised in it a last time.
LAST_S: Final = 1.0


class Place(Protocol):
    """Where attempts execute, as what can be ended."""

    def begin(self, run_id: str, claim: int, grace_s: float) -> None:
        """The agent is about to be entered."""

    def leave(self) -> bool:
        """The agent was left; True when this process was told to end for it."""

    def end(self, attempt: Attempt) -> None:
        """The grace of an attempt is over."""

    def tick(self) -> None:
        """This process lives."""

    def fall(self) -> None:
        """This process must not execute any longer, and what it executes has not left."""

    def close(self) -> None:
        """This process executes no more."""


class ThreadPlace:
    """A thread of this process.

    Args:
        abandon: gives an attempt up: stores its end, and counts its thread as lost.
        tick: tells the guard of this process, which is a worker and nothing else, that it lives.
    """

    def __init__(self, abandon: Callable[[Attempt], None], tick: Callable[[], None] | None = None) -> None:
        self._abandon = abandon
        self._tick = tick

    def begin(self, run_id: str, claim: int, grace_s: float) -> None:
        """Nothing: threads have no seat."""

    def leave(self) -> bool:
        """Nothing: nobody ends a process for one thread of it."""
        return False

    def end(self, attempt: Attempt) -> None:
        """Raise StopRun a last time, whatever the agent has heard; then give the attempt up."""
        attempt.reach.throw(StopRun(attempt.stop_kind or ""))
        if not attempt.has_left(LAST_S):
            self._abandon(attempt)

    def tick(self) -> None:
        """Tell whoever watches this process that its interpreter runs."""
        if self._tick is not None:
            self._tick()

    def fall(self) -> None:
        """End this process, unless it is somebody's program in which a worker is only a part."""
        if self._tick is not None:
            _end_this_process()

    def close(self) -> None:
        """Nothing."""


class ChildPlace:
    """A prefork child, which executes one attempt at a time in its main thread."""

    def __init__(self, seat: ChildSeat) -> None:
        self._seat = seat

    def begin(self, run_id: str, claim: int, grace_s: float) -> None:
        """Take note on the board."""
        self._seat.begin(run_id, claim, grace_s)

    def leave(self) -> bool:
        """Take note on the board, under the lock of whoever would end this process."""
        return self._seat.leave()

    def end(self, attempt: Attempt) -> None:
        """Ask the main process to end this one now, if it still executes this attempt."""
        self._seat.end(attempt.run_id, attempt.number)

    def tick(self) -> None:
        """Give a sign of life on the board."""
        self._seat.tick()

    def fall(self) -> None:
        """End this process."""
        _end_this_process()

    def close(self) -> None:
        """Give the seat up."""
        self._seat.stand_up()


def _end_this_process() -> None:
    # at once: nothing of it must go on; its guard ends its commands
    os.kill(os.getpid(), signal.SIGKILL)


def lead_down(attempt: Attempt, place: Place) -> None:
    """See one stop through; called in a thread of its own, returns when the attempt was left or ended."""
    if attempt.claim is None:
        return  # it asks before it enters its agent
    half = attempt.grace_s / 2
    if attempt.has_left(half):
        return
    began = time.monotonic()
    if not attempt.has_heard:
        attempt.reach.throw(StopRun(attempt.stop_kind or ""))
    if attempt.has_left(max(0.0, attempt.grace_s - half - (time.monotonic() - began))):
        return
    log.warning(
        "run=%s claim=%s has not left %g s after it was asked to stop: it is ended",
        attempt.run_id,
        attempt.number,
        attempt.grace_s,
    )
    place.end(attempt)
