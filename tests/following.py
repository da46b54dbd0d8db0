"""An event log with its hub on real servers, and the few moves that tests of following need."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from asm_celery.config import Config
from asm_celery.events.bus import Bus
from asm_celery.events.hub import Hub
from asm_celery.events.log import EventLog
from asm_celery.events.subscription import Subscription
from asm_celery.events.subscription_async import AsyncSubscription
from asm_celery.model import Event, Run, Session
from asm_celery.states import EventType, RunStatus, SessionStatus
from asm_celery.store.database import Store


class LossyBus(Bus):
    """A bus that loses one message in ten and sends one in ten twice."""

    chance = random.Random(6)

    def publish(self, events: Sequence[Event]) -> None:
        """Publish never, once or twice."""
        for _ in range(self.chance.choice((0, 1, 1, 1, 1, 1, 1, 1, 1, 2))):
            super().publish(events)


class SilentBus(Bus):
    """A bus that loses every message."""

    def publish(self, events: Sequence[Event]) -> None:
        """Publish nothing."""


@dataclass(frozen=True, slots=True)
class Place:
    """One process's log and hub; `close` ends what it started."""

    config: Config
    store: Store
    log: EventLog
    hub: Hub

    def session(self) -> str:
        """Start a session; its log holds `session_created`."""
        session = Session.new("agent")
        with self.log.transaction() as writing:
            writing.sessions.insert(session, "{}")
            writing.append(session.session_id, [Event.new("session_created", session.session_id)])
        return session.session_id

    def run(self, session_id: str) -> str:
        """Queue a run."""
        with self.log.transaction() as writing:
            counter = writing.sessions.draw(session_id, positions=1)
            assert counter is not None
            run = Run.new(session_id, agent="agent", queue="q", position=counter.last_position)
            writing.runs.insert(run, input_text="null", input_digest="", metadata="{}")
            writing.append(session_id, [Event.new("run_queued", session_id, run_id=run.run_id)])
        return run.run_id

    def say(self, session_id: str, count: int = 1, **values: Any) -> int:
        """Append events in one transaction; return the last one's sequence."""
        kind = values.pop("type", EventType.MESSAGE_STREAMED)
        with self.log.transaction() as writing:
            written = writing.append(
                session_id, [Event.new(kind, session_id, **values) for _ in range(count)]
            )
        assert written
        return written[-1].sequence

    def end_run(self, session_id: str, run_id: str) -> int:
        """End a queued run; return the sequence of its terminal event."""
        with self.log.transaction() as writing:
            assert writing.runs.withdraw(run_id, RunStatus.CANCELLED)
            written = writing.append(session_id, [Event.new("run_cancelled", session_id, run_id=run_id)])
        assert written
        return written[0].sequence

    def end_session(self, session_id: str) -> int:
        """Complete a session; return the sequence of its closing event."""
        with self.log.transaction() as writing:
            counter = writing.sessions.move(session_id, SessionStatus.COMPLETED, [SessionStatus.ACTIVE])
            assert counter is not None
            event = Event.new("session_completed", session_id, sequence=counter.last_sequence)
            writing.write([event])
        return counter.last_sequence

    def follow(self, session_id: str, **options: Any) -> Subscription:
        """Subscribe from this thread."""
        return Subscription(self.hub, self.log, self.config, session_id, **options)

    def follow_async(self, session_id: str, **options: Any) -> AsyncSubscription:
        """Subscribe from a coroutine."""
        return AsyncSubscription(self.hub, self.log, self.config, session_id, **options)


@contextmanager
def place(
    config: Config,
    *,
    bus: type[Bus] = Bus,
    on_beat: Callable[[dict[str, int]], object] | None = None,
    **settings: Any,
) -> Iterator[Place]:
    """Open a log and a hub, as one process has them; the settings are changes to the config."""
    config = config.model_copy(update=settings)
    store = Store(config)
    log = EventLog(store, bus.of(config))
    hub = Hub(config, log, on_beat)
    try:
        yield Place(config, store, log, hub)
    finally:
        hub.close()
        store.close()
        log.bus.close()
