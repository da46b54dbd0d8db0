"""What one subscriber has before it: the next event, a page to read, patience, or the end.

Pure and thread-safe: the hub's thread puts live news in, the subscriber's thread or task takes steps
out.  No IO, no clock of its own; the two subscriptions (sync and async) do what a step says.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from asm_celery.config import Config
from asm_celery.errors import InvalidCursor
from asm_celery.events.cursor import Cursor, Notice, Page, Place, refusal
from asm_celery.model import Event
from asm_celery.states import TERMINAL_EVENTS, EventType

PAGE: Final = 500
"""Events of one read: large enough to catch up fast, small enough to hold for each of many readers."""
_IDLE_POLL_S: Final = 15.0
_RETRY_S: Final = 1.0
_SESSION_ENDS: Final = frozenset({EventType.SESSION_COMPLETED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """Hand this event to the subscriber."""

    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """Read a page of SQL with these words, then call `loaded` (or `failed`)."""

    after: int
    run_id: str | None
    types: frozenset[str] | None
    limit: int
    signal: int
    seen: Place | None = None
    known: int = 0

    @property
    def at(self) -> int:
        """The sequence at which an event was seen, 0 if none was: the page tells which one stands there."""
        return 0 if self.seen is None else self.seen.sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing to do until the feed wakes its subscriber, at most so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Nothing follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The log is not the one that was followed: tell the subscriber so, again and again."""

    error: InvalidCursor


Step = Deliver | Read | Wait | End | Refuse


def trust_s(silence_s: float, *, poll_s: float) -> float:
    """Return for how many seconds more a silence is trusted before SQL is read again.

    A quarter of the silence on a living connection so far: so a lost doorbell delays news by a quarter
    of the time waited at most, and ten thousand idle readers cost little.  At least `poll_s`, and never
    more than 15 s.  Without a living connection silence means nothing: pass 0.
    """
    return max(poll_s, min(silence_s / 4, _IDLE_POLL_S))


class Feed:
    """The events of one session, or of one run in it, from a place on.

    Args:
        from_sequence: the first sequence wanted; 0 and 1 both mean from the beginning.
        seen: an event that must stand before the first: else the feed refuses.
        run_id: only this run's events, ending after its terminal event.
        types: only events of these types; the ending event ends the feed also when it is not among them.
        wake: called without the lock held, from any thread, when the next step may have changed.
        now: seconds of the monotonic clock, as in all methods.

    Guarantee: every matching event is delivered once, in order.  A full buffer takes no more live
    events: what it did not take is read from SQL at the subscriber's pace, so at most
    `config.subscriber_buffer` live events and one page are held.
    """

    def __init__(
        self,
        session_id: str,
        *,
        config: Config,
        wake: Callable[[], None],
        now: float,
        from_sequence: int = 0,
        run_id: str | None = None,
        types: frozenset[str] | None = None,
        seen: Place | None = None,
    ) -> None:
        self.session_id = session_id
        self._run_id = run_id
        self._types = types
        self._ending = TERMINAL_EVENTS if run_id else _SESSION_ENDS
        self._limit = config.subscriber_buffer
        self._poll_s = config.poll_s
        self._outage_s = 2 * config.connect_timeout_s
        self._wake = wake
        self._lock = threading.Lock()
        self._cursor = Cursor(from_sequence, seen)
        self._delivered = None if seen is None else str(seen)
        self._end = 0
        self._refused: InvalidCursor | None = None
        self._ready: deque[Event] = deque()
        # each reason to read SQL raises `signals`; a read heeds those raised before it began
        self._signals = 1
        self._heeded = 0
        self._listening = False
        self._news_at = self._read_at = self._retry_at = now
        self._failing_since: float | None = None
        self._ended = False
        self._closed = False

    @property
    def cursor(self) -> str | None:
        """That of the last event delivered, or where it began; None before the first event."""
        return self._delivered

    @property
    def ended(self) -> bool:
        """True when the log says that nothing can follow what is delivered or held."""
        return self._ended

    @property
    def closed(self) -> bool:
        """True when no event will be delivered any more."""
        return self._closed or (self._ended and not self._ready)

    def end_at(self, sequence: int) -> None:
        """Say that the ending event is stored already, under this sequence; 0 says nothing.

        A feed that begins after it ends at once; any other meets the event by itself.
        """
        with self._lock:
            self._end = sequence or self._end
            self._look_for_the_end()

    def next_step(self, now: float) -> Step:
        """Return what to do next; a Deliver has left the buffer."""
        with self._lock:
            if self._refused is not None and not self._closed:
                return Refuse(error=self._refused)
            if self._ready:
                event = self._ready.popleft()
                self._delivered = event.cursor
                return Deliver(event=event)
            if self._closed or self._ended:
                return End()
            due = self._retry_at
            if self._heeded == self._signals:
                due = max(due, self._doubt_at())
            if now < due:
                return Wait(seconds=due - now)
            return Read(
                after=self._cursor.position,
                run_id=self._run_id,
                # a filter must not hide the end
                types=None if self._types is None else self._types | self._ending,
                limit=PAGE,
                signal=self._signals,
                seen=self._cursor.seen,
                known=self._cursor.known,
            )

    def offer(self, notice: Notice, now: float) -> None:
        """Take a live notice: its events if they fit and follow, else the news that SQL has more."""
        with self._lock:
            if self._closed or self._ended or self._refused:
                return
            room = len(self._ready) + len(notice.events) <= self._limit
            fresh, gap = self._cursor.offer(notice if room else replace(notice, events=()))
            self._signals += gap
            if fresh:
                self._news_at = now
            changed = self._keep(fresh, notice.events) or gap
        if changed:
            self._wake()

    def loaded(self, read: Read, page: Page, now: float) -> None:
        """Take the page that a Read asked for."""
        with self._lock:
            self._refused = self._refused or refusal(self.session_id, read.seen, read.known, page)
            if self._refused is not None:
                self._ready.clear()
                return
            before = self._cursor.position
            fresh = self._cursor.loaded(page, self.session_id)
            if page.full:
                self._signals += 1
            else:
                self._heeded = max(self._heeded, read.signal)
            if self._cursor.position > before:
                self._news_at = now
            self._read_at = now
            self._failing_since = None
            if not self._closed:
                self._keep(fresh, page.events)
            # every session has a first event: none means that it was deleted
            self._ended = self._ended or page.head == 0
            self._look_for_the_end()

    def failed(self, now: float) -> bool:
        """Note that the database could not be reached for a Read; it will be asked for again.

        Returns:
            True when this has gone on for so long that the subscriber should be told.
        """
        with self._lock:
            if self._failing_since is None:
                self._failing_since = now
            self._retry_at = now + min(self._poll_s, _RETRY_S)
            if now - self._failing_since < self._outage_s:
                return False
            self._failing_since = None
            return True

    def confirm(self) -> None:
        """Note that the channel is (again) subscribed: anything may have been missed before."""
        with self._lock:
            self._listening = True
            self._signals += 1
        self._wake()

    def lost(self) -> None:
        """Note that the live connection is away: silence means nothing until the next `confirm`."""
        with self._lock:
            self._listening = False
        self._wake()

    def close(self) -> None:
        """End at once, dropping what is held; idempotent."""
        with self._lock:
            self._closed = True
            self._ready.clear()
        self._wake()

    def _doubt_at(self) -> float:
        silence_s = self._read_at - self._news_at if self._listening else 0.0
        return max(self._news_at, self._read_at) + trust_s(silence_s, poll_s=self._poll_s)

    def _keep(self, fresh: Iterable[Event], seen: Iterable[Event]) -> bool:
        wanted = [event for event in fresh if self._wants(event)]
        self._ready.extend(wanted)
        # also an ending event from before the place where this reader began
        self._ended = self._ended or any(
            event.sequence <= self._cursor.position and self._ends(event) for event in seen
        )
        return bool(wanted) or self._ended

    def _look_for_the_end(self) -> None:
        # the ending event itself may have been removed, or stand before the place where this began
        self._ended = self._ended or 0 < self._end <= self._cursor.position

    def _wants(self, event: Event) -> bool:
        if event.type == EventType.SESSION_PRUNED:
            return True
        return (self._run_id is None or event.run_id == self._run_id) and (
            self._types is None or event.type in self._types
        )

    def _ends(self, event: Event) -> bool:
        return event.type in self._ending and (self._run_id is None or event.run_id == self._run_id)
