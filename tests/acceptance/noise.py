"""Doorbells as a bad broker would carry them: each three times, late and in random order."""

from __future__ import annotations

import heapq
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Sequence

from asm_celery.dispatch import CeleryDispatcher
from asm_celery.model import Lease

VARIABLE = "ASM_TEST_NOISE"
COPIES = 3
LATEST_S = 0.08


class Shuffler:
    """Holds each doorbell a random moment, three times over, and then sends it."""

    def __init__(self) -> None:
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def dispatch(self, dispatcher: CeleryDispatcher, leases: Sequence[Lease]) -> None:
        """Take leases to ring for; returns at once."""
        with self._ready:
            if self._thread is None:
                self._thread = threading.Thread(target=self._ring, name="test-noise", daemon=True)
                self._thread.start()
            for lease in leases:
                for _ in range(COPIES):
                    due = time.monotonic() + random.uniform(0.0, LATEST_S)
                    heapq.heappush(self._bells, (due, next(self._count), dispatcher, lease))
            self._ready.notify()

    def _begin(self) -> None:
        # a forked child has bells of its own, and a thread of its own to ring them
        self._bells: list[tuple[float, int, CeleryDispatcher, Lease]] = []
        self._count = itertools.count()
        self._ready = threading.Condition()
        self._thread: threading.Thread | None = None

    def _ring(self) -> None:
        while True:
            with self._ready:
                left = self._bells[0][0] - time.monotonic() if self._bells else None
                if left is None or left > 0:
                    self._ready.wait(left)
                    continue
                _, _, dispatcher, lease = heapq.heappop(self._bells)
            _plain(dispatcher, [lease])


_plain = CeleryDispatcher.dispatch


def install() -> None:
    """Send every doorbell of this process so; only for a process of the test's own."""
    CeleryDispatcher.dispatch = noisy()  # type: ignore[method-assign]
    CeleryDispatcher.bell = None  # type: ignore[assignment]


def noisy() -> Callable[[CeleryDispatcher, Sequence[Lease]], None]:
    """Return what replaces `CeleryDispatcher.dispatch`."""
    shuffler = Shuffler()

    def dispatch(self: CeleryDispatcher, leases: Sequence[Lease]) -> None:
        shuffler.dispatch(self, leases)

    return dispatch
