"""Brings live news to every subscriber and awaiter of this process.

One hub a process: it knows who follows which session and who awaits which run; `listener` holds the
thread and the connection.  What a subscriber missed is not the hub's concern: it only says when
something may have been missed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar
from weakref import WeakSet

from asm_celery.config import Config
from asm_celery.errors import StorageError
from asm_celery.events.bus import decode
from asm_celery.events.feed import Feed
from asm_celery.events.listener import Listener
from asm_celery.events.log import EventLog
from asm_celery.events.waiters import RunWaiters
from asm_celery.model import Run

log = logging.getLogger(__name__)

# Awaited runs of one SELECT: bounds the memory of an answer and the length of the statement.
_CHUNK: Final = 500

_T = TypeVar("_T")
Hear = Callable[[bytes], None]
Counts = Callable[[dict[str, int]], object]


@dataclass(slots=True, kw_only=True)
class _Channel:
    session_id: str | None = None
    # weak: a subscription that was dropped without close() is forgotten, not fed for ever
    feeds: WeakSet[Feed] = field(default_factory=WeakSet)
    listeners: list[Hear] = field(default_factory=list)
    is_confirmed: bool = False


class Hub:
    """Distributes live news; its thread and connection start at first use.

    Args:
        on_beat: called every `config.beat_s` seconds, while Redis is there, with the number of feeds of
            each session that has any, and once with 0 for a session that has none any more.

    Callbacks run in the hub's thread, one at a time: they must be quick; what they raise is logged.
    """

    def __init__(self, config: Config, log: EventLog, on_beat: Counts | None = None) -> None:
        self._log = log
        self._keys = config.keys
        self._beat_s = config.beat_s
        self._beat_at = 0.0
        self._poll_s = config.poll_s
        self._poll_at = 0.0
        self._is_heard = False
        self._on_beat = on_beat
        self._counted: set[str] = set()
        self._lock = threading.Lock()
        self._channels: dict[str, _Channel] = {}
        self._waiters = RunWaiters()
        self._listener = Listener(config, log.bus, self)

    def attach(self, feed: Feed) -> None:
        """Bring a session's news to a feed from now on; the feed is held weakly.

        One Redis round trip at most.  Raises InvalidOperation after `close`.
        """
        name = self._keys.events(feed.session_id)
        with self._lock:
            channel = self._channel(name, feed.session_id)
            channel.feeds.add(feed)
            is_confirmed = channel.is_confirmed
        if is_confirmed:
            feed.confirm()
        else:
            self._tune(name)

    def detach(self, feed: Feed) -> None:
        """Bring no more news to a feed; idempotent, no round trip."""
        name = self._keys.events(feed.session_id)
        with self._lock:
            channel = self._channels.get(name)
            if channel is None or feed not in channel.feeds:
                return
            channel.feeds.discard(feed)

    def wait_for(self, run_id: str, session_id: str, callback: Callable[[Run], None]) -> Callable[[], None]:
        """Call back once, with the Run, when it is terminal (also if it is already).

        One Redis round trip at most.  Raises InvalidOperation after `close`.

        Returns:
            what to call when the answer is not wanted any more; idempotent, no round trip.
        """
        name = self._keys.events(session_id)
        self._waiters.add(run_id, session_id, callback)
        with self._lock:
            self._channel(name, session_id)
        self._tune(name)
        return lambda: self._waiters.remove(run_id, callback)

    def listen(self, channel: str, callback: Hear) -> Callable[[], None]:
        """Call back with each message of a channel; what was sent before it is subscribed is not heard.

        Returns:
            what to call to hear no more; idempotent, no round trip.
        """
        with self._lock:
            self._channel(channel, None).listeners.append(callback)
        self._tune(channel)

        def stop() -> None:
            with self._lock:
                known = self._channels.get(channel)
                if known is not None and callback in known.listeners:
                    known.listeners.remove(callback)

        return stop

    def close(self) -> None:
        """Join the thread, drop the connection and end every attached feed; idempotent."""
        self._listener.close()
        with self._lock:
            feeds = [feed for channel in self._channels.values() for feed in channel.feeds]
            self._channels.clear()
        for feed in feeds:
            feed.close()

    # What the listener calls, in its thread

    def wants(self, channel: str) -> bool:
        """Return whether anyone follows the channel; forget it if nobody does."""
        with self._lock:
            known = self._channels.get(channel)
            if known is None:
                return False
            if known.feeds or known.listeners or self._waiters.awaits(known.session_id):
                return True
            del self._channels[channel]
            return False

    def heard(self, channel: str, message: bytes) -> None:
        """Bring a message to those who follow its channel."""
        with self._lock:
            known = self._channels.get(channel)
            if known is None:
                return
            feeds, listeners, session_id = list(known.feeds), list(known.listeners), known.session_id
        for listener in listeners:
            _guarded(listener, message)
        notice = None if session_id is None else decode(message)
        if notice is None or session_id is None:
            return
        now = time.monotonic()
        for feed in feeds:
            feed.offer(notice, now)
        if not notice.events:
            self._waiters.ring_session(session_id)
        for event in notice.events:
            if event.is_terminal and event.run_id is not None:
                self._waiters.ring(event.run_id)

    def confirmed(self, channel: str) -> None:
        """Tell the channel's followers that they may have missed something before now."""
        with self._lock:
            known = self._channels[channel]
            known.is_confirmed = self._is_heard = True
            feeds, session_id = list(known.feeds), known.session_id
        for feed in feeds:
            feed.confirm()
        if session_id is not None:
            self._waiters.ring_session(session_id)

    def lost(self) -> None:
        """Tell everyone that silence means nothing for now."""
        with self._lock:
            self._is_heard = False
            feeds = [feed for channel in self._channels.values() for feed in channel.feeds]
            for channel in self._channels.values():
                channel.is_confirmed = False
        for feed in feeds:
            feed.lost()

    def tick(self, now: float) -> float:
        """Look at the awaited runs that are due, and beat; return when to be called again."""
        if self._poll_at <= now:
            self._answer(self._waiters.everyone())
            # a crowd of awaiters may use a tenth of this thread, which also brings the live events
            self._poll_at = now + max(self._poll_s, 10 * (time.monotonic() - now))
        else:
            self._answer(self._waiters.take_rung())
        if self._beat_at <= now:
            self._beat_at = now + self._beat_s
            self._beat()
        return min(self._beat_at, self._poll_at)

    def _answer(self, run_ids: list[str]) -> None:
        for start in range(0, len(run_ids), _CHUNK):
            try:
                ended = self._log.ended_runs(run_ids[start : start + _CHUNK])
            except StorageError as cause:
                # the next poll asks again
                log.debug("awaited runs cannot be read: %s", cause)
                return
            for run in ended:
                for callback in self._waiters.answered(run.run_id):
                    _guarded(callback, run)

    def _beat(self) -> None:
        with self._lock:
            names = list(self._channels)
        self._listener.tune(*(name for name in names if not self.wants(name)))
        with self._lock:
            feeds = {
                channel.session_id: len(channel.feeds)
                for channel in self._channels.values()
                if channel.session_id is not None and channel.feeds
            }
        if self._on_beat is not None and self._is_heard and (feeds or self._counted):
            _guarded(self._on_beat, dict.fromkeys(self._counted, 0) | feeds)
            self._counted = set(feeds)

    def _channel(self, name: str, session_id: str | None) -> _Channel:
        channel = self._channels.setdefault(name, _Channel())
        channel.session_id = channel.session_id or session_id
        return channel

    def _tune(self, name: str) -> None:
        self._listener.tune(name)
        self._listener.start()
        self._listener.ring()


def _guarded(callback: Callable[[_T], object], argument: _T) -> None:
    try:
        callback(argument)
    except Exception:
        log.exception("a callback of the hub failed")
