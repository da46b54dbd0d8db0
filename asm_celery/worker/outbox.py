"""An attempt's events on their way to the log: one bounded queue an attempt, one writing thread a process.

The writer sends a batch when the oldest waiting event is `event_batch_ms` old or `event_batch_size` wait:
one transaction a batch.  When the database is away it tries again, in order, with growing pauses; what
waits is bounded, so that ``emit`` blocks and nothing is dropped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from asm_celery.coordinator import Claim
from asm_celery.errors import AsmError, InvalidOperation, LeaseLost, StorageConnectionFailed, StopRun
from asm_celery.model import Event
from asm_celery.worker.attempt import LOST, Attempt
from asm_celery.worker.backoff import delays

log = logging.getLogger("asm_celery.worker")

Append = Callable[[Claim, list[Event], int], int]
# Backpressure: beyond this an agent waits in emit.  Together they bound what an outage can cost in memory.
MAX_WAITING: Final = 1000
MAX_WAITING_BYTES: Final = 8 << 20
# A blocked emit looks this often whether its attempt was lost meanwhile.
_LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What an attempt had not stored when it ended.

    Attributes:
        unsettled: a batch that was sent and not answered: it may be stored already, so it must be sent
            again exactly as it is before anything else.
        events: what waits behind it.
        position: how many events of the attempt are known to be stored.
    """

    unsettled: list[Event]
    events: list[Event]
    position: int


class Outbox:
    """One attempt's waiting events; made by `EventWriter.open`."""

    def __init__(self, attempt: Attempt, claim: Claim, lock: threading.Lock, wake: threading.Condition):
        self.attempt = attempt
        self.claim = claim
        self.batch: list[Event] = []
        self.position = 0
        self.is_writing = False
        self.failure: AsmError | None = None
        self._waiting: deque[tuple[Event, int]] = deque()
        self._bytes = 0
        self._oldest_at = 0.0
        self._is_closed = False
        self._changed = threading.Condition(lock)
        self._writer = wake

    def put(self, event: Event, size: int) -> None:
        """Hand over an event of `size` bytes; blocks while too much waits.

        Raises:
            InvalidOperation: the attempt has ended.
            StopRun: its claim has passed to another.
            AsmError: an earlier event could not be stored.
        """
        with self._changed:
            while True:
                if self._is_closed:
                    raise InvalidOperation(
                        f"run {self.claim.run.run_id!r} cannot emit {event.type!r}: its attempt "
                        f"{self.claim.run.attempt} has ended; emit before the agent returns",
                        details={"run_id": self.claim.run.run_id, "attempt": self.claim.run.attempt},
                    )
                if self.attempt.is_lost:
                    raise StopRun(LOST)
                if self.failure is not None:
                    raise self.failure
                if len(self._waiting) < MAX_WAITING and self._bytes < MAX_WAITING_BYTES:
                    break
                self._changed.wait(_LOOK_S)
            if not self._waiting:
                self._oldest_at = time.monotonic()
            self._waiting.append((event, size))
            self._bytes += size
            self._writer.notify()

    # The rest is the writer's; it holds the lock.

    def due_at(self, window_s: float, batch_size: int) -> float | None:
        """Return when the next batch is due (monotonic, maybe past); None if there is nothing to write."""
        if self.batch or len(self._waiting) >= batch_size:
            return 0.0
        return self._oldest_at + window_s if self._waiting else None

    def take(self, batch_size: int) -> list[Event]:
        """Return the batch to write: the unanswered one as it was, else the next."""
        if not self.batch:
            count = min(batch_size, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(count)]
            self.batch = [event for event, _ in taken]
            self._bytes -= sum(size for _, size in taken)
            self._oldest_at = time.monotonic()
            self._changed.notify_all()
        return self.batch

    def settle(self, position: int) -> None:
        """Take note that the batch is stored."""
        self.position, self.batch = position, []

    def drop(self, failure: AsmError) -> None:
        """Give up what waits: nothing of it can be stored any more."""
        self.failure, self.batch = failure, []
        self._waiting.clear()
        self._bytes = 0
        self._changed.notify_all()

    def rest(self) -> None:
        """Take note that no write is under way."""
        self.is_writing = False
        self._changed.notify_all()

    def close(self) -> Leftover:
        """Take no more events; wait for a write under way and return what is not stored."""
        self._is_closed = True
        self._changed.notify_all()
        while self.is_writing:
            self._changed.wait()
        events = [event for event, _ in self._waiting]
        self._waiting.clear()
        return Leftover(unsettled=self.batch, events=events, position=self.position)


class EventWriter:
    """The thread that stores the events of all attempts of this process.

    Args:
        append: ``coordinator.append``: one transaction; raises LeaseLost and StorageConnectionFailed.
        batch_s: how long an event may wait for companions.
        batch_size: how many events go into one transaction at most.
    """

    def __init__(self, append: Append, *, batch_s: float, batch_size: int) -> None:
        self._append = append
        self._batch_s = batch_s
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._boxes: dict[Outbox, None] = {}
        self._delays = delays()
        self._is_away = False
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def open(self, attempt: Attempt, claim: Claim) -> Outbox:
        """Return the outbox of an attempt that begins."""
        box = Outbox(attempt, claim, self._lock, self._wake)
        with self._lock:
            self._boxes[box] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="asm-events", daemon=True)
                self._thread.start()
        return box

    def close(self, box: Outbox) -> Leftover:
        """Take the attempt's outbox away from the writer and return what it had not stored."""
        with self._lock:
            self._boxes.pop(box, None)
            return box.close()

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread; attempts that still run keep their events, `close` returns them."""
        with self._lock:
            self._is_stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout)

    def _write(self) -> None:
        while True:
            with self._lock:
                box = self._next()
                if box is None:
                    return
                batch, position, box.is_writing = box.take(self._batch_size), box.position, True
            pause = self._send(box, batch, position)
            with self._lock:
                box.rest()
                if pause:
                    # everybody's database is away: no other outbox needs to find that out now
                    self._pause(pause)

    def _next(self) -> Outbox | None:
        """Wait for the next due outbox; None at the end.  Who was served goes to the back."""
        while not self._is_stopping:
            soonest, wait = None, None
            for box in self._boxes:
                due = box.due_at(self._batch_s, self._batch_size)
                if due is not None and (wait is None or due < wait):
                    soonest, wait = box, due
            left = None if wait is None else wait - time.monotonic()
            if soonest is not None and left is not None and left <= 0:
                del self._boxes[soonest]
                self._boxes[soonest] = None
                return soonest
            self._wake.wait(left)
        return None

    def _send(self, box: Outbox, batch: list[Event], position: int) -> float:
        """Store one batch; returns the pause before the next, 0 when the database answered."""
        try:
            stored = self._append(box.claim, batch, position)
        except StorageConnectionFailed as cause:
            if not self._is_away:
                log.warning("events wait, the database is away: %s", cause)
            self._is_away = True
            return next(self._delays)
        except LeaseLost as cause:
            log.info("run=%s attempt=%s lost its claim", box.claim.run.run_id, box.claim.run.attempt)
            box.attempt.stop(LOST)
            self._give_up(box, cause)
        except Exception as cause:
            log.exception("events of run=%s cannot be stored", box.claim.run.run_id)
            refused = cause if isinstance(cause, AsmError) else AsmError.wrap("internal_error", cause)
            self._give_up(box, refused)
        else:
            with self._lock:
                box.settle(stored)
        if self._is_away:
            log.info("the database is back")
            self._is_away, self._delays = False, delays()
        return 0.0

    def _give_up(self, box: Outbox, cause: AsmError) -> None:
        with self._lock:
            box.drop(cause)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._is_stopping and (left := until - time.monotonic()) > 0:
            self._wake.wait(left)
