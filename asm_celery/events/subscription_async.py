"""Following a session from a coroutine: `Subscription` again, with no thread while it waits.

Only listening anew and reading a page borrow a thread for a moment (`asyncio.to_thread`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from asm_celery.config import Config
from asm_celery.errors import StorageConnectionFailed
from asm_celery.events.cursor import Place
from asm_celery.events.feed import Deliver, End, Feed, Read, Refuse
from asm_celery.events.hub import Hub
from asm_celery.events.log import EventLog
from asm_celery.model import Event, new_id


class AsyncSubscription:
    """The events of a session, or of one run: asynchronous iterator and context manager.

    It listens from the first ``async with``, `get` or iteration on.  One task reads at a time; a `get` that
    is cancelled loses nothing.  Arguments and guarantee are those of `Subscription`, but for:

    Args:
        run_end: may be a function that returns it; it is called in a thread when listening begins, and
            what it raises (such as RunNotFound) is raised there.
    """

    def __init__(
        self,
        hub: Hub,
        log: EventLog,
        config: Config,
        session_id: str,
        *,
        from_sequence: int = 0,
        run_id: str | None = None,
        types: frozenset[str] | None = None,
        seen: Place | None = None,
        run_end: int | Callable[[], int] = 0,
    ) -> None:
        self.id = new_id("sub")
        self.session_id = session_id
        self._hub = hub
        self._log = log
        self._run_end = run_end
        self._is_attached = False
        self._bell = _Bell()
        self._feed = Feed(
            session_id,
            config=config,
            wake=self._bell.ring,
            now=time.monotonic(),
            from_sequence=from_sequence,
            run_id=run_id,
            types=types,
            seen=seen,
        )

    @property
    def closed(self) -> bool:
        """True when no event will be delivered any more: it was closed, or has ended."""
        return self._feed.closed

    @property
    def cursor(self) -> str | None:
        """Where to resume: pass it to `subscribe` as `from_sequence`.  None before the first event."""
        return self._feed.cursor

    @property
    def ended(self) -> bool:
        """True when the run or session has ended and nothing can follow what is not delivered yet."""
        return self._feed.ended

    async def get(self, timeout: float | None = None) -> Event | None:
        """Return the next event; see `Subscription.get`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        await self._attach()
        while True:
            # before the step: what changes after it is not slept through
            self._bell.clear()
            now = time.monotonic()
            match self._feed.next_step(now):
                case Deliver(event=event):
                    return event
                case End():
                    await self.close()
                    return None
                case Read() as read:
                    await self._read(read)
                case Refuse(error=error):
                    raise error
                case wait:
                    left = wait.seconds if deadline is None else min(wait.seconds, deadline - now)
                    if left <= 0:
                        return None
                    await self._bell.wait(left)

    async def close(self) -> None:
        """Stop; a `get` that waits in another task returns None. Idempotent."""
        self._feed.close()
        self._hub.detach(self._feed)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self.get()
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> Self:
        await self._attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _attach(self) -> None:
        if not self._is_attached and not self._feed.closed:
            await asyncio.to_thread(self._attach_now)
            self._is_attached = True

    def _attach_now(self) -> None:
        self._feed.end_at(self._run_end() if callable(self._run_end) else self._run_end)
        self._hub.attach(self._feed)

    async def _read(self, read: Read) -> None:
        try:
            page = await asyncio.to_thread(
                self._log.page,
                self.session_id,
                after=read.after,
                limit=read.limit,
                run_id=read.run_id,
                types=read.types,
                at=read.at,
            )
        except StorageConnectionFailed:
            if self._feed.failed(time.monotonic()):
                raise
        else:
            self._feed.loaded(read, page, time.monotonic())


class _Bell:
    """Wakes the one task that waits, from any thread; indifferent to loops that are closed."""

    def __init__(self) -> None:
        self._is_rung = False
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def ring(self) -> None:
        # Order matters: the task says that it waits and then looks, this rings and then looks.
        if self._is_rung:
            return
        self._is_rung = True
        waiting = self._waiting
        if waiting is not None:
            loop, future = waiting
            # a closed loop raises: then nobody waits any more
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, future)

    def clear(self) -> None:
        self._is_rung = False

    async def wait(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting = loop, future
        try:
            if not self._is_rung:
                await asyncio.wait((future,), timeout=seconds)
        finally:
            self._waiting = None


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
