"""What is published along with a script: in its round trip, and whatever becomes of the script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis

from asm_celery.errors import CoordinationDamaged
from asm_celery.events.bus import Bus
from asm_celery.keys import Keys
from asm_celery.model import Event
from asm_celery.queue.run_queue import RunQueue


class Station:
    """A namespace, its scripts and its bus, and somebody who hears all that is published there."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.keys = Keys(f"t{uuid4().hex[:12]}")
        self.queue = RunQueue(client, self.keys)
        self.bus = Bus(client, self.keys)
        self._ear: Any = client.pubsub()  # type: ignore[no-untyped-call]
        self._ear.psubscribe(f"{self.keys.root}*")
        assert "psubscribe" == self._next()["type"]

    def heard(self) -> list[bytes]:
        """What was published until now."""
        self.client.publish(f"{self.keys.root}end", b"end")
        found = []
        while (data := self._next()["data"]) != b"end":
            found.append(data)
        return found

    def close(self) -> None:
        """Leave nothing behind."""
        self._ear.close()
        for key in self.client.scan_iter(match=f"{self.keys.root}*"):
            self.client.delete(key)

    def _next(self) -> dict[str, Any]:
        found: dict[str, Any] | None = self._ear.get_message(timeout=20)
        assert found is not None
        return found


@pytest.fixture
def station(redis_url: str) -> Iterator[Station]:
    """A namespace of the test's own."""
    with redis.Redis.from_url(redis_url) as client:
        made = Station(client)
        yield made
        made.close()


def test_what_is_told_is_published_when_the_server_does_not_know_the_script(station: Station) -> None:
    """Once: a server that has just started is sent the script, and not the messages again."""
    station.client.script_flush()

    granted = station.queue.finish(
        "run", telling=[(f"{station.keys.root}a", b"1"), (f"{station.keys.root}a", b"2")]
    )

    assert "absent" == granted.word
    assert [b"1", b"2"] == station.heard()


def test_what_is_told_is_published_when_the_script_stumbles(station: Station) -> None:
    """The error is the script's."""
    station.client.set(f"{station.keys.root}run:run", "not a hash")

    with pytest.raises(CoordinationDamaged):
        station.queue.finish("run", telling=[(f"{station.keys.root}a", b"1")])

    assert [b"1"] == station.heard()


def test_what_is_held_is_sent_by_nobody_until_it_is_taken_along(station: Station) -> None:
    """Only within the block, and what an exception leaves behind is sent after all."""
    event = Event.new("a", "ses_1", sequence=1)
    with station.bus.held() as told:
        station.bus.publish([event])
    assert [] == station.heard()

    station.queue.finish("run", telling=told)
    assert [told[0][1]] == station.heard()

    with pytest.raises(RuntimeError), station.bus.held():
        station.bus.publish([event])
        raise RuntimeError
    station.bus.publish([event])
    assert 2 * [told[0][1]] == station.heard()
