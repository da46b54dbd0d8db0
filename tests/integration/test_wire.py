"""Questions to the coordination server: their answers are theirs, whatever becomes of the connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from uuid import uuid4

import pytest
import redis
from redis.connection import AbstractConnection

from asm_celery.queue.wire import Wire


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """An operator's own client, which gives up after two seconds."""
    with redis.Redis.from_url(redis_url, socket_timeout=2) as made:
        yield made


@pytest.fixture
def wire(redis_url: str) -> Iterator[Wire]:
    """A wire that waits for its answers."""
    with redis.Redis.from_url(redis_url) as made:
        wire = Wire(made)
        yield wire
        wire.close()


def connection_of(wire: Wire) -> int:
    """Return the number of the connection that is asked."""
    return int(wire.ask(("CLIENT", "ID"))[0])


def spread(wire: Wire, client: redis.Redis, count: int) -> None:
    """Have so many connections in use at once; all are kept afterwards."""
    key = f"t{uuid4().hex}"
    waiting = [threading.Thread(target=wire.ask, args=(("BLPOP", key, 20),)) for _ in range(count)]
    for one in waiting:
        one.start()
    client.rpush(key, *range(count))
    for one in waiting:
        one.join()


def test_an_error_stands_in_the_place_of_its_answer(wire: Wire) -> None:
    """Whoever asked for several things sees which of them failed."""
    first, refused, last = wire.ask(("ECHO", "1"), ("EVALSHA", "0" * 40, 0), ("ECHO", "3"))

    assert (b"1", b"3") == (first, last)
    assert isinstance(refused, redis.exceptions.NoScriptError)


def test_a_connection_is_kept_for_the_next_question(wire: Wire) -> None:
    """No look at it, no second connection."""
    assert connection_of(wire) == connection_of(wire)


def test_connections_that_were_cut_cost_no_question(wire: Wire, client: redis.Redis) -> None:
    """All were lost by one thing: the second try does not take another of the lost ones."""
    spread(wire, client, 4)
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    assert [b"PONG"] == wire.ask(("PING",))


def test_a_question_that_was_cut_short_leaves_no_answer_to_the_next(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop is raised in the middle of whatever its thread does."""
    wire.ask(("PING",))
    read, count = AbstractConnection.read_response, iter(range(100))

    def struck(connection: AbstractConnection, *given: object, **named: object) -> object:
        if next(count) == 1:
            raise KeyboardInterrupt
        return read(connection, *given, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(AbstractConnection, "read_response", struck)
        with pytest.raises(KeyboardInterrupt):
            wire.ask(("ECHO", "1"), ("ECHO", "2"), ("ECHO", "3"))

    assert [b"4"] == wire.ask(("ECHO", "4"))


def test_a_server_that_is_away_is_said() -> None:
    """Nobody listens there."""
    with redis.Redis.from_url("redis://127.0.0.1:1") as client, pytest.raises(redis.ConnectionError):
        Wire(client).ask(("PING",))
