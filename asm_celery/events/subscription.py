"""Following a session from a thread: an iterator of events that never skips, repeats or reorders.

The pure `Feed` decides; this module only waits and reads.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from asm_celery.config import Config
from asm_celery.errors import StorageConnectionFailed
from asm_celery.events.cursor import Place
from asm_celery.events.feed import Deliver, End, Feed, Read, Refuse
from asm_celery.events.hub import Hub
from asm_celery.events.log import EventLog
from asm_celery.model import Event, new_id


class Subscription:
    """The events of a session, or of one run, from a place on: iterator and context manager.

    It listens from its construction.  One thread reads at a time; any thread may close.

    Args:
        from_sequence: the first sequence wanted; 0 and 1 both mean from the beginning.
        run_id: only this run's events; ends after its terminal event.  Without it, it ends after the
            session's closing event.
        types: only events of these types; None for all.
        seen: an event that must stand right before `from_sequence`, as the caller has checked.
        run_end: the sequence of that last event if it is stored already, else 0.

    Guarantee: each matching event is delivered once, in order.  A slow reader costs others nothing: what
    does not fit its buffer it reads from SQL.
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
        run_end: int = 0,
    ) -> None:
        self.id = new_id("sub")
        self.session_id = session_id
        self._hub = hub
        self._log = log
        self._bell = threading.Event()
        self._feed = Feed(
            session_id,
            config=config,
            # not a method of this object: a subscription that is dropped unclosed can be forgotten
            wake=self._bell.set,
            now=time.monotonic(),
            from_sequence=from_sequence,
            run_id=run_id,
            types=types,
            seen=seen,
        )
        self._feed.end_at(run_end)
        hub.attach(self._feed)

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

    def get(self, timeout: float | None = None) -> Event | None:
        """Return the next event.

        Args:
            timeout: seconds to wait for it; None for as long as it takes, 0 for what is there.

        Returns:
            the event; None when the time has passed, or when nothing will follow (`closed` is True).

        Raises:
            StorageConnectionFailed: the database could not be reached for twice `config.connect_timeout_s`;
                call again and nothing is lost.
            StorageError: the database refused.
            CursorAhead, CursorMismatch: the log is not the one that was followed any more: its database
                was restored.  Every further call says so.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            # before the step: what changes after it is not slept through
            self._bell.clear()
            now = time.monotonic()
            match self._feed.next_step(now):
                case Deliver(event=event):
                    return event
                case End():
                    self.close()
                    return None
                case Read() as read:
                    self._read(read)
                case Refuse(error=error):
                    raise error
                case wait:
                    left = wait.seconds if deadline is None else min(wait.seconds, deadline - now)
                    if left <= 0:
                        return None
                    self._bell.wait(left)

    def close(self) -> None:
        """Stop; a `get` that waits in another thread returns None. Idempotent."""
        self._feed.close()
        self._hub.detach(self._feed)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, read: Read) -> None:
        try:
            page = self._log.page(
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
