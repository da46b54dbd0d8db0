"""`Pause`: whether the run of one attempt is paused, as its agent's code waits for it.

Nothing here talks to a server: the control channel and the beat say how it is, in any order.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from asm_celery.model import Run


class Pause:
    """A gate that is closed while the run is paused; every method is thread-safe."""

    def __init__(self) -> None:
        self._version = -1
        self._has_ended = False
        self._open = threading.Event()
        self._open.set()
        self._bells: set[Callable[[], None]] = set()
        self._lock = threading.Lock()

    @property
    def is_on(self) -> bool:
        """True while the run is paused and nothing asked its agent to leave."""
        return not self._open.is_set()

    def tell(self, is_paused: bool, version: int) -> None:
        """Take in how it is; the higher version stays.

        A beat may have read SQL before a message that it delivers after: without the version a resumed
        agent would wait until the beat after that.
        """
        with self._lock:
            if version <= self._version or self._has_ended:
                return
            self._version = version
            if is_paused:
                self._open.clear()
            else:
                self._let_through()

    def begin(self, run: Run) -> None:
        """Take in how the claim found it: a pause outlives the attempt it was asked of."""
        self.tell(run.paused_at is not None, run.pause_version)

    def end(self) -> None:
        """Let the agent through for good: it was asked to leave."""
        with self._lock:
            self._has_ended = True
            self._let_through()

    def wait(self) -> None:
        """Wait until it is open."""
        self._open.wait()

    async def await_open(self) -> None:
        """Do the same in a coroutine, without holding its loop."""
        loop, opened = asyncio.get_running_loop(), asyncio.Event()

        def bell() -> None:
            loop.call_soon_threadsafe(opened.set)

        with self._lock:
            if not self.is_on:
                return
            self._bells.add(bell)
        try:
            await opened.wait()
        finally:
            # nobody rings into a loop that may be closed by then: the bells are rung under the lock
            with self._lock:
                self._bells.discard(bell)

    def _let_through(self) -> None:
        self._open.set()
        for bell in self._bells:
            bell()
        self._bells.clear()
