"""`EventWriter`: the one thread of a process that stores what its agents emit.

A batch is due when its oldest event has waited `event_batch_ms` or when `event_batch_size` wait: one
transaction a batch.  When the database is away it tries again, in order, with growing pauses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from asm_celery.errors import AsmError, LeaseLost, StorageConnectionFailed
from asm_celery.model import Event
from asm_celery.moves.coordinator import Claim
from asm_celery.worker.attempt import LOST, Attempt
from asm_celery.worker.backoff import delays
from asm_celery.worker.outbox import Leftover, Outbox

log = logging.getLogger("asm_celery.worker")

Append = Callable[[Claim, list[Event], int], int]


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
        box = Outbox(attempt, claim, batch_size=self._batch_size, lock=self._lock, wake=self._wake)
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
                batch, position, box.is_writing = box.take(), box.position, True
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
                due = box.due_at(self._batch_s)
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
