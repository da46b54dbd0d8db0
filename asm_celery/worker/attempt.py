"""One attempt while it runs here: its claim, its deadline and whether it was asked to stop.

It exists from before the claim until after the end is stored, so that a stop that arrives early is kept
and the process never forgets an attempt that SQL says it holds.  Nothing here talks to a server.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from asm_celery.errors import StopRun
from asm_celery.moves.coordinator import Claim
from asm_celery.worker.pausing import Pause
from asm_celery.worker.reach import Reach

log = logging.getLogger("asm_celery.worker")

# Stops that are not a request of anybody: the process must end, or the claim has passed to another.
SHUTDOWN: Final = "shutdown"
LOST: Final = "lost"


class Attempt:
    """The state of one attempt; every method is thread-safe.

    Args:
        lead: called in a thread of its own when a stop is asked for: what makes the stop true.

    Attributes:
        run_id, number: the run and the claim number it is executed under.
        claim: the claim, once there is one.
        vouched_at: what its silence counts from before its first renewal, on this process's monotonic clock: when
            its doorbell came, or, if its claim came late, when Redis was asked for its lease.
        deadline: on this process's monotonic clock; None without a `run_timeout`.
        grace_s: how long the agent may take to leave after a stop was asked for.
        reach: the agent's code, as what an exception can be raised in.
        pause: whether the run is paused, as what its agent may wait for.
        is_rung_again: True when a further doorbell of the same claim came meanwhile.
        earlier: the run's attempt that was here when this one's doorbell came.
        is_gone: True once it was left for good.
    """

    def __init__(self, run_id: str, number: int, lead: Callable[[Attempt], None] | None = None) -> None:
        self.run_id = run_id
        self.number = number
        self.claim: Claim | None = None
        self.vouched_at = time.monotonic()
        self.deadline: float | None = None
        self.grace_s = 0.0
        self.reach = Reach()
        self.pause = Pause()
        self.is_rung_again = False
        self.earlier: Attempt | None = None
        self.is_gone = False
        self._lead = lead
        self._kind: str | None = None
        self._is_lost = False
        self._has_heard = False
        self._is_settled = False
        self._left = threading.Event()
        self._stopped = threading.Event()
        self._cancel: Callable[[], None] | None = None
        self._hooks: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def begin(self, claim: Claim, grace_s: float = 0.0) -> None:
        """Take note of the claim; the time allowed counts from now."""
        self.grace_s = grace_s
        if claim.run.run_timeout is not None:
            self.deadline = time.monotonic() + claim.run.run_timeout
        self.pause.begin(claim.run)
        self.claim = claim

    @property
    def stop_kind(self) -> str | None:
        """Why it must stop: a StopKind, ``shutdown`` or ``lost``; the first one asked for, or None."""
        return self._kind

    @property
    def is_lost(self) -> bool:
        """True when the claim has passed to another: nothing it writes will be accepted."""
        return self._is_lost

    @property
    def has_heard(self) -> bool:
        """True once the agent's code was told of the stop, so it may be cleaning up."""
        return self._has_heard

    def hear(self) -> str | None:
        """Return `stop_kind` to the agent's code, which has heard of the stop then."""
        if self._kind is not None:
            self._has_heard = True
        return self._kind

    def stop(self, kind: str) -> None:
        """Ask it to stop.  The first kind decides; later ones and those after the end change nothing.

        Does not block: an async agent's task is cancelled in its loop, and `on_stop` callables run in a
        thread of their own, because they are the agent's code and may take their time.
        """
        with self._lock:
            if self._left.is_set():
                return
            self._is_lost = self._is_lost or kind == LOST
            if self._kind is not None:
                return
            self._kind = str(kind)
            self._stopped.set()
            if self._cancel is not None:
                self._cancel()
            # behind the cancellation, so that a paused coroutine meets that and not the open gate
            self.pause.end()
            hooks, self._hooks = self._hooks, []
        if hooks:
            self._has_heard = True
            self._aside(self._call, *hooks)
        if self._lead is not None:
            self._aside(self._lead, self)

    def check(self) -> None:
        """Raise StopRun if it was asked to stop."""
        kind = self.hear()
        if kind is not None:
            raise StopRun(kind)

    def sleep(self, seconds: float) -> None:
        """Wait; raises StopRun as soon as a stop is asked for."""
        self._stopped.wait(seconds)
        self.check()

    def on_stop(self, hook: Callable[[], object]) -> None:
        """Call `hook` once when a stop is asked for; at once, in this thread, if it was."""
        with self._lock:
            if self._kind is None:
                self._hooks.append(hook)
                return
        self._call(hook)

    @contextmanager
    def cancelling(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Have `cancel`, which must not block, called when a stop is asked for within the block."""
        with self._lock:
            self._cancel = cancel
            if self._kind is not None:
                cancel()
        try:
            yield
        finally:
            with self._lock:
                self._cancel = None

    def end(self) -> None:
        """Take no more stops: the agent has left."""
        with self._lock:
            self._left.set()
            self._hooks.clear()

    def has_left(self, within: float) -> bool:
        """Wait for the agent to leave, at most `within` seconds; True when it has left."""
        return self._left.wait(within)

    def settle(self) -> bool:
        """Take the right to store the attempt's end; True for the first caller only.

        The thread that executes the attempt and the ladder that gives it up may come at the same moment.
        """
        with self._lock:
            is_first, self._is_settled = not self._is_settled, True
            return is_first

    def _aside(self, act: Callable[..., object], *args: object) -> None:
        threading.Thread(target=act, args=args, name=f"asm-stop-{self.run_id}", daemon=True).start()

    def _call(self, *hooks: Callable[[], object]) -> None:
        for hook in hooks:
            try:
                hook()
            except Exception:
                log.exception("an on_stop callable of run=%s failed", self.run_id)


class Attempts:
    """The attempts of this process, by run; thread-safe.

    Args:
        lead: see `Attempt`.
    """

    def __init__(self, lead: Callable[[Attempt], None] | None = None) -> None:
        self._lead = lead
        self._by_run: dict[str, Attempt] = {}
        self._lock = threading.Lock()
        self._changed = threading.Event()

    def enter(self, run_id: str, number: int) -> Attempt | None:
        """Make the attempt of a doorbell; None when it, or a later one of the run, is here already.

        An earlier attempt of the run that still executes here is told that it has lost its claim when this
        one has got it, and not before: a doorbell proves nothing, and anybody may send one.
        """
        with self._lock:
            earlier = self._by_run.get(run_id)
            if earlier is not None and earlier.number >= number:
                earlier.is_rung_again |= earlier.number == number
                return None
            attempt = self._by_run[run_id] = Attempt(run_id, number, self._lead)
            attempt.earlier = earlier
            return attempt

    def begin(self, attempt: Attempt, claim: Claim, grace_s: float = 0.0) -> None:
        """Begin the attempt; wakes who waits for the next deadline."""
        attempt.begin(claim, grace_s)
        if attempt.earlier is not None:
            attempt.earlier.stop(LOST)
        if attempt.deadline is not None:
            self.wake()

    def leave(self, attempt: Attempt) -> bool:
        """Forget the attempt; True when a further doorbell of its claim was turned away meanwhile."""
        with self._lock:
            attempt.is_gone = True
            if self._by_run.get(attempt.run_id) is attempt:
                del self._by_run[attempt.run_id]
                earlier = attempt.earlier
                while earlier is not None and earlier.is_gone:
                    earlier = earlier.earlier
                if earlier is not None:
                    # the doorbell was spare, or has ended before it: it is still here
                    self._by_run[attempt.run_id] = earlier
            return attempt.is_rung_again

    def all(self) -> list[Attempt]:
        """Return the attempts that are here now, also those just being claimed."""
        with self._lock:
            return list(self._by_run.values())

    def stop(self, run_id: str, number: int, kind: str) -> None:
        """Ask the attempt to stop; nothing if the run is not here under this claim number."""
        with self._lock:
            attempt = self._by_run.get(run_id)
        if attempt is not None and attempt.number == number:
            attempt.stop(kind)

    def pause(self, run_id: str, number: int, is_paused: bool, version: int) -> None:
        """Tell the attempt whether its run is paused; nothing if the run is not here under this claim number."""
        with self._lock:
            attempt = self._by_run.get(run_id)
        if attempt is not None and attempt.number == number:
            attempt.pause.tell(is_paused, version)

    def next_deadline(self) -> float | None:
        """Return the earliest deadline (monotonic) of an attempt that nobody asked to stop."""
        return min((one.deadline for one in self._limited() if one.deadline is not None), default=None)

    def overdue(self) -> list[Attempt]:
        """Return the attempts whose deadline has passed and that nobody asked to stop."""
        now = time.monotonic()
        return [one for one in self._limited() if one.deadline is not None and one.deadline <= now]

    def wait(self, timeout: float) -> None:
        """Wait until a deadline was added or `wake` was called, at most `timeout` seconds."""
        self._changed.wait(timeout)
        self._changed.clear()

    def wake(self) -> None:
        """End a `wait`."""
        self._changed.set()

    def _limited(self) -> list[Attempt]:
        return [attempt for attempt in self.all() if attempt.stop_kind is None]
