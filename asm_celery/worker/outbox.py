"""`Outbox`: one attempt's events that wait to be stored, in order and bounded.

The agent's threads put in, the process's one `EventWriter` takes out; both under the writer's lock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from asm_celery.errors import AsmError, InvalidOperation, StopRun
from asm_celery.model import Event
from asm_celery.moves.coordinator import Claim
from asm_celery.worker.attempt import LOST, Attempt

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
        failure: why events of it could not be stored at all, or None.
    """

    unsettled: list[Event]
    events: list[Event]
    position: int
    failure: AsmError | None


class Outbox:
    """One attempt's waiting events; made by `EventWriter.open`."""

    def __init__(
        self,
        attempt: Attempt,
        claim: Claim,
        *,
        batch_size: int,
        lock: threading.Lock,
        wake: threading.Condition,
    ) -> None:
        self.attempt = attempt
        self.claim = claim
        self.batch: list[Event] = []
        self.position = 0
        self.is_writing = False
        self.failure: AsmError | None = None
        self._batch_size = batch_size
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
            if len(self._waiting) in (1, self._batch_size):
                # the writer sleeps until the first event is due; only a full batch changes that
                self._writer.notify()

    # The rest is the writer's; it holds the lock.

    def due_at(self, window_s: float) -> float | None:
        """Return when the next batch is due (monotonic, maybe past); None if there is nothing to write."""
        if self.batch or len(self._waiting) >= self._batch_size:
            return 0.0
        return self._oldest_at + window_s if self._waiting else None

    def take(self) -> list[Event]:
        """Return the batch to write: the unanswered one as it was, else the next."""
        if not self.batch:
            count = min(self._batch_size, len(self._waiting))
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
        return Leftover(unsettled=self.batch, events=events, position=self.position, failure=self.failure)
