"""The log: numbered without holes, stored, committed, and only then published."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import redis

from asm_celery.config import Config
from asm_celery.errors import ValidationError
from asm_celery.events.bus import decode
from asm_celery.events.cursor import Notice
from asm_celery.events.log import LogTransaction
from asm_celery.model import Event
from asm_celery.states import SessionStatus
from tests.following import Place, place


def listening(here: Place, session_id: str) -> redis.client.PubSub:
    """A confirmed subscription to a session's channel, of nothing of ours."""
    pubsub = redis.Redis.from_url(here.config.redis_url).pubsub()
    pubsub.subscribe(here.config.keys.events(session_id))
    confirmation = pubsub.get_message(timeout=20)
    assert confirmation is not None
    assert confirmation["type"] == "subscribe"
    return pubsub


def next_notice(pubsub: redis.client.PubSub) -> Notice:
    """The next message, which must come."""
    message = pubsub.get_message(timeout=20)
    assert message is not None
    notice = decode(message["data"])
    assert notice is not None
    return notice


def test_what_was_committed_is_published_as_one_message_a_session(config: Config) -> None:
    """All that a transaction appended to a session is one notice, numbered without a hole."""
    with place(config) as here:
        one, two = here.session(), here.session()
        with closing(listening(here, one)) as first, closing(listening(here, two)) as second:
            with here.log.transaction() as writing:
                writing.append(one, [Event.new("a", one), Event.new("b", one)])
                writing.append(two, [Event.new("c", two)])
                writing.append(one, [Event.new("d", one)])

            notice = next_notice(first)
            assert (2, 4, ["a", "b", "d"]) == (
                notice.first,
                notice.last,
                [event.type for event in notice.events],
            )
            assert (2, 2) == (next_notice(second).first, 2)
        assert notice.events == here.log.page(one, after=1, limit=10).events


def store_then_fail(writing: LogTransaction, session_id: str) -> None:
    """Append an event, then meet one that is not legal."""
    writing.append(session_id, [Event.new("never", session_id)])
    Event.new("", session_id)


def test_a_transaction_that_fails_leaves_no_trace(config: Config) -> None:
    """Rolled back: nothing stored, nothing published, and no number used up."""
    with place(config) as here:
        session_id = here.session()
        with closing(listening(here, session_id)) as pubsub:
            with pytest.raises(ValidationError), here.log.transaction() as writing:
                store_then_fail(writing, session_id)
            assert here.say(session_id) == 2

            assert (2, 2) == (next_notice(pubsub).first, 2)
        page = here.log.page(session_id, after=0, limit=10)
        assert ["session_created", "message_streamed"] == [event.type for event in page.events]


def test_append_refuses_an_unknown_session_and_a_state_that_is_not_asked_for(config: Config) -> None:
    """A lost guard is an answer, and nothing is written."""
    with place(config) as here:
        session_id = here.session()

        with here.log.transaction() as writing:
            event = Event.new("a", session_id)
            assert writing.append("nobody", [Event.new("a", "nobody")]) is None
            assert writing.append(session_id, [event], states=frozenset({SessionStatus.PAUSED})) is None
            assert writing.append(session_id, [event], states=frozenset({SessionStatus.ACTIVE}))

        assert here.log.page(session_id, after=0, limit=10).head == 2


def test_without_redis_a_commit_is_a_success(sqlite_config: Config) -> None:
    """Publishing never surfaces: what is stored is accepted."""
    with place(sqlite_config, redis_url="redis://127.0.0.1:1/0") as here:
        session_id = here.session()

        assert [2, 3, 4] == [here.say(session_id) for _ in range(3)]


def test_a_page_says_whether_it_is_full_and_where_the_head_is(config: Config) -> None:
    """The two facts a cursor needs to know how far it has come."""
    with place(config) as here:
        session_id = here.session()
        here.say(session_id, 5)

        full = here.log.page(session_id, after=1, limit=3)
        short = here.log.page(session_id, after=4, limit=3)
        none = here.log.page(session_id, after=0, limit=3, types=frozenset({"other"}))

        assert ([2, 3, 4], 6, True) == ([event.sequence for event in full.events], full.head, full.full)
        assert ([5, 6], 6, False) == ([event.sequence for event in short.events], short.head, short.full)
        assert ((), 6, False) == (none.events, none.head, none.full)
        assert here.log.page("nobody", after=0, limit=3).head == 0


def test_writers_of_one_session_make_one_unbroken_line(config: Config) -> None:
    """Eight writers, one session: each event has its own number, and a follower sees them all."""
    with place(config) as here, ThreadPoolExecutor(8) as threads:
        session_id = here.session()
        with here.follow(session_id) as events:
            written = list(threads.map(lambda _: here.say(session_id), range(200)))
            seen = [event and event.sequence for event in (events.get(timeout=20) for _ in range(201))]

        assert list(range(2, 202)) == sorted(written)
        assert list(range(1, 202)) == seen
