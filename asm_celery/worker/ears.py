"""`Ears`: notices that doorbells wait at the broker while this executor is free, and hears none of them.

A Celery consumer can stop taking messages and look well: its process lives, its children beat, and its queue
is served by nobody.  Who executes sees that best: it is free, messages wait, none comes.  A broker that is
away is no deafness: then nothing is seen to wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from celery import Celery

# Shorter than a slow machine may take to hand a message on, nothing is judged.
SHORTEST_S: Final = 10.0
_LOOKS: Final = 4


class Ears:
    """Looks from a thread of its own.

    Args:
        deaf_s: how long messages must have waited, at every look, while this executor was free.
        is_free: whether it could take a run.
        waiting: how many messages wait at the broker; it may raise when the broker is away.
        on_deaf: called once.
    """

    def __init__(
        self,
        deaf_s: float,
        *,
        is_free: Callable[[], bool],
        waiting: Callable[[], int],
        on_deaf: Callable[[], None],
    ) -> None:
        self._deaf_s = deaf_s
        self._is_free = is_free
        self._waiting = waiting
        self._on_deaf = on_deaf
        self._since: float | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._listen, name="asm-ears", daemon=True).start()

    def stop(self) -> None:
        """Have the thread end."""
        self._stopping.set()

    def heard(self) -> None:
        """Note that a doorbell was heard."""
        self._since = None

    def look(self, now: float) -> bool:
        """Look once; True when this executor is deaf."""
        began = self._since = now if self._since is None else self._since
        if not self._is_free() or not self._count():
            self._since = None
        # a doorbell may have been heard while we asked
        return self._since == began and now - began >= self._deaf_s

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
