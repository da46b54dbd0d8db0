"""The doorbell: tells subscribers over pub/sub which events were committed, and carries them if small.

Losing a message costs time, never an event: the log decides.  So nothing here raises for Redis trouble,
and nothing here is called before a commit.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Final, Self

import redis

from asm_celery.config import Config
from asm_celery.errors import AsmError
from asm_celery.events.cursor import Notice
from asm_celery.keys import FORMAT_VERSION, Keys
from asm_celery.model import Event
from asm_celery.queue.caller import Message
from asm_celery.queue.connection import connect
from asm_celery.queue.wire import Wire

log = logging.getLogger(__name__)

# A larger message would make Redis copy user data to every process that follows the session.
MAX_MESSAGE_BYTES: Final = 64 * 1024
# A doorbell is not worth a longer wait: who misses it reads SQL.
_PATIENCE_S: Final = 1.0
# After a failure nothing is sent for ten times what it cost, within these bounds: a Redis that hangs must
# not slow every commit, and one that is back must be noticed soon.
_SHORTEST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 15.0
_reported: set[str] = set()


class Bus:
    """Publishes what was committed; safe to share by threads."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._wire = Wire(client)
        self._keys = keys
        self._paused_until = 0.0
        self._away = False
        self._mine = threading.local()

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return a bus with connections of its own, which give up after a second."""
        patience_s = min(config.connect_timeout_s, _PATIENCE_S)
        return cls(connect(config.model_copy(update={"connect_timeout_s": patience_s})), config.keys)

    def close(self) -> None:
        """Close the connections; a later use opens them anew."""
        self._wire.close()

    def publish(self, events: Sequence[Event]) -> None:
        """Announce committed events, one message a session, in one round trip.

        Guarantee: never raises; a message may be lost, and its readers find the events in SQL.
        """
        if not events:
            return
        by_session = sorted(events, key=lambda event: (event.session_id, event.sequence))
        try:
            messages = [
                (self._keys.events(session_id), encode(list(group)))
                for session_id, group in groupby(by_session, key=lambda event: event.session_id)
            ]
            held: list[Message] | None = getattr(self._mine, "held", None)
            if held is None:
                self.send(messages)
            else:
                held += messages
        except Exception:
            # the events are committed: their writer must not be told otherwise
            log.exception("events of %s could not be announced", events[0].session_id)

    @contextmanager
    def held(self) -> Iterator[list[Message]]:
        """Keep what this thread publishes within the block: a script that follows at once takes it along.

        Guarantee: what was kept is sent here when the block is left by an exception.
        """
        kept = self._mine.held = []
        try:
            yield kept
        except BaseException:
            self.send(kept)
            raise
        finally:
            self._mine.held = None

    def ring(self, channel: str, message: bytes = b"") -> None:
        """Send a message to a control channel; never raises. One round trip."""
        self.send([(channel, message)])

    def send(self, messages: Sequence[Message]) -> None:
        """Send what was held; never raises for Redis trouble. One round trip, none for no messages."""
        began = time.monotonic()
        if not messages or began < self._paused_until:
            return
        try:
            self._wire.ask(*(("PUBLISH", channel, message) for channel, message in messages))
        except (redis.RedisError, OSError) as cause:
            now = time.monotonic()
            self._paused_until = now + min(max(10 * (now - began), _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
            level = logging.DEBUG if self._away else logging.WARNING
            self._away = True
            log.log(level, "live events are not announced while Redis is away: %s", cause)
        else:
            self._away = False


def encode(events: Sequence[Event]) -> bytes:
    """Return the message that announces a session's events, which are in order of sequence.

    A message that would be too large, or whose sequences have a hole, carries only the numbers.
    """
    first, last = events[0].sequence, events[-1].sequence
    body: dict[str, Any] = {"v": FORMAT_VERSION, "first": first, "last": last}
    if last - first + 1 == len(events):
        message = _json({**body, "events": [event.to_map() for event in events]})
        if len(message) <= MAX_MESSAGE_BYTES:
            return message
    return _json(body)


def decode(message: bytes) -> Notice | None:
    """Return what `encode` wrote; None for anything else, logged once a process.

    Events that are not exactly ``first..last``, or of another format, are left out: then it only rings.
    """
    try:
        body = json.loads(message)
        first, last = body["first"], body["last"]
        if type(first) is not int or type(last) is not int or not 0 < first <= last:
            raise ValueError(f"first={first!r:.40} last={last!r:.40}")
        maps = body.get("events", ()) if body["v"] == FORMAT_VERSION else ()
        events = tuple(Event.from_map(event) for event in maps)
    except (AsmError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as cause:
        if "garbage" not in _reported:
            _reported.add("garbage")
            log.warning("a message on an events channel is not ours and is ignored: %r", cause)
        return None
    whole = [event.sequence for event in events] == list(range(first, first + len(events)))
    if not whole or first + len(events) - 1 != last:
        events = ()
    return Notice(first=first, last=last, events=events)


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
