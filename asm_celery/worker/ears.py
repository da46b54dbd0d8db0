"""`Ears`: notices that messages wait at the broker while this executor is free, and its worker takes none.

A Celery consumer can stop taking messages and look well: its process lives, its children beat, and its queue
is served by nobody.  Who executes sees that best: it is free, messages wait, none is taken.  A broker that
is away is no deafness: then nothing is seen to wait.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from celery import Celery

# Shorter than a slow machine may take to hand a message on, nothing is judged.
SHORTEST_S: Final = 10.0
_LOOKS: Final = 4


class Hearing:
    """How many messages a worker's consumer has taken, as it and the children it forks later see it.

    What is thrown away counts as well: a consumer behind a heap of nonsense is not deaf.
    """

    def __init__(self) -> None:
        self._count = memoryview(mmap.mmap(-1, 8)).cast("Q")

    def note(self) -> None:
        """Count one more; called by the consumer only."""
        self._count[0] += 1

    def taken(self) -> int:
        """Return the count."""
        return self._count[0]


class Ears:
    """Looks from a thread of its own.

    Args:
        deaf_s: how long messages must have waited, at every look, while this executor was free.
        is_free: whether it could take a run.
        waiting: how many messages wait at the broker; it may raise when the broker is away.
        taken: how many messages this worker has taken.
        on_deaf: called once.
    """

    def __init__(
        self,
        deaf_s: float,
        *,
        is_free: Callable[[], bool],
        waiting: Callable[[], int],
        taken: Callable[[], int],
        on_deaf: Callable[[], None],
    ) -> None:
        self._deaf_s = deaf_s
        self._is_free = is_free
        self._waiting = waiting
        self._taken = taken
        self._taken_before = taken()
        self._on_deaf = on_deaf
        self._since: float | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._listen, name="asm-ears", daemon=True).start()

    def stop(self) -> None:
        """Have the thread end."""
        self._stopping.set()

    def look(self, now: float) -> bool:
        """Look once; True when this executor is deaf."""
        since = now if self._since is None else self._since
        waits = self._is_free() and self._count() > 0
        # counted last: one may have been taken while we asked
        taken, before = self._taken(), self._taken_before
        self._since, self._taken_before = since if waits and taken == before else None, taken
        return self._since is not None and now - since >= self._deaf_s

    def _count(self) -> int:
        try:
            return self._waiting()
        except Exception:  # noqa: BLE001 - kombu's errors differ by transport: away, or no such queue yet
            return 0

    def _listen(self) -> None:
        while not self._stopping.wait(self._deaf_s / _LOOKS):
            if self.look(time.monotonic()):
                self._on_deaf()
                return


def count_waiting(app: Celery, queues: Sequence[str]) -> int:
    """Return how many messages wait in these queues, on a connection of its own."""
    with app.connection_for_read() as connection:
        # its methods are not in the stubs; a passive declaration asks Redis for a key without our prefix
        channel: Any = connection.default_channel
        size = getattr(channel, "_size", None)
        return sum(int(size(name) if size else _declared(channel, name)) for name in queues)


def _declared(channel: Any, name: str) -> int:
    return int(channel.queue_declare(queue=name, passive=True).message_count)
