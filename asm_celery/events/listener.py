"""One thread and one Redis connection that hear every channel this process wants.

It knows channels and bytes; what they mean is the audience's (`hub.Hub`).  It never dies of trouble:
it reconnects for ever, and calls the audience's `tick` also while Redis is away.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final, Protocol

import redis

from asm_celery.config import Config
from asm_celery.errors import InvalidOperation
from asm_celery.events.bus import Bus
from asm_celery.model import new_id
from asm_celery.queue.connection import connect

log = logging.getLogger(__name__)

# One look at least so often, in case the ring that should have woken the thread was lost.
_LOOK_S: Final = 1.0
# One read lasts at least so long: a message cut by a shorter one would look like a broken connection.
_READ_S: Final = 0.1
# After so long a silence the server is asked whether it is there: a cut cable says nothing.
_QUIET_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.05
_LAST_PAUSE_S: Final = 2.0


class Audience(Protocol):
    """What the listener calls, always from its own thread."""

    def wants(self, channel: str) -> bool:
        """Return whether the channel should be subscribed."""

    def heard(self, channel: str, message: bytes) -> None:
        """Take a message."""

    def confirmed(self, channel: str) -> None:
        """Take the news that the channel is subscribed from now on: what came before may be lost."""

    def lost(self) -> None:
        """Take the news that nothing is heard until the next `confirmed`."""

    def tick(self, now: float) -> float:
        """Do what is due; return when to be called again, at the latest (monotonic seconds)."""


class Listener:
    """Hears channels for an audience; one thread, which the first `start` starts."""

    def __init__(self, config: Config, bus: Bus, audience: Audience) -> None:
        self._config = config
        self._bus = bus
        self._audience = audience
        self._bell = config.keys.control(new_id("hub"))
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self._subscribed: set[str] = set()
        self._rung = threading.Event()
        self._closing = threading.Event()
        self._is_connected = False
        self._is_away = False
        self._thread: threading.Thread | None = None

    def tune(self, *channels: str) -> None:
        """Have the thread ask, at its next look, whether these channels are wanted."""
        with self._lock:
            self._changed.update(channels)

    def start(self) -> None:
        """Start the thread unless it runs.

        Raises:
            InvalidOperation: closed.
        """
        with self._lock:
            if self._closing.is_set():
                raise InvalidOperation("nothing is followed here any more: it was closed; make a new one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="asm-listener", daemon=True)
                self._thread.start()

    def ring(self) -> None:
        """Have the thread look at once; one round trip to Redis at most, never raises."""
        if not self._rung.is_set():
            self._rung.set()
            if self._is_connected:
                self._bus.ring(self._bell)

    def close(self) -> None:
        """Stop and join the thread; idempotent."""
        with self._lock:
            self._closing.set()
            thread = self._thread
        self._rung.clear()
        self.ring()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._closing.is_set():
            try:
                self._listen()
            except (redis.RedisError, OSError) as cause:
                self._report(cause)
            except Exception:
                log.exception("listening for live events failed and starts again")
            pause = _FIRST_PAUSE_S if self._is_connected else min(2 * pause, _LAST_PAUSE_S)
            self._is_connected = False
            self._tell_loss()
            self._rest(pause)

    def _listen(self) -> None:
        with connect(self._config, blocking=True) as client, client.pubsub() as pubsub:
            with self._lock:
                # also while Redis is away: what was followed and dropped meanwhile must not pile up
                known = self._changed | self._subscribed
                self._changed = {channel for channel in known if self._audience.wants(channel)}
                self._subscribed.clear()
            pubsub.subscribe(self._bell)
            heard_at = asked_at = time.monotonic()
            while not self._closing.is_set():
                self._rung.clear()
                self._retune(pubsub)
                now = time.monotonic()
                wait_s = min(self._tick(now) - now, _LOOK_S)
                message = pubsub.get_message(timeout=max(wait_s, _READ_S))
                now = time.monotonic()
                if message is not None:
                    heard_at = asked_at = now
                    self._hear(message)
                elif now - heard_at > _QUIET_S + self._config.connect_timeout_s:
                    raise redis.ConnectionError("the server does not answer")
                elif now - asked_at > _QUIET_S:
                    asked_at = now
                    pubsub.ping()

    def _retune(self, pubsub: Any) -> None:
        with self._lock:
            if not self._changed:
                return
            changed, self._changed = self._changed, set()
        wanted = {channel for channel in changed if self._audience.wants(channel)}
        added = wanted - self._subscribed
        dropped = (changed - wanted) & self._subscribed
        # noted before they are sent: if sending fails, the next connection looks at them again
        self._subscribed = (self._subscribed | wanted) - dropped
        if added:
            pubsub.subscribe(*added)
        if dropped:
            pubsub.unsubscribe(*dropped)
        for channel in wanted - added:
            # forgotten and wanted again before it was dropped: no confirmation will come
            self._audience.confirmed(channel)

    def _hear(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind not in ("subscribe", "message"):
            return
        channel = message["channel"].decode()
        if channel == self._bell:
            self._is_connected = True
            self._is_away = False
        elif kind == "message":
            self._audience.heard(channel, message["data"])
        elif self._audience.wants(channel):
            self._audience.confirmed(channel)
        else:
            # redis-py reconnects by itself and takes up again what was dropped just before
            self._subscribed.add(channel)
            with self._lock:
                self._changed.add(channel)

    def _rest(self, pause: float) -> None:
        until = time.monotonic() + pause
        while not self._closing.is_set() and (now := time.monotonic()) < until:
            self._rung.wait(max(min(until, self._tick(now)) - now, 0.001))
            self._rung.clear()

    def _tick(self, now: float) -> float:
        try:
            return self._audience.tick(now)
        except Exception:
            log.exception("a periodic duty of the listener failed")
            return now + _LOOK_S

    def _tell_loss(self) -> None:
        try:
            self._audience.lost()
        except Exception:
            log.exception("the loss of the live connection could not be told")

    def _report(self, cause: Exception) -> None:
        level = logging.DEBUG if self._is_away or self._closing.is_set() else logging.WARNING
        self._is_away = True
        log.log(level, "events are read from SQL only while Redis is away: %s", cause)
