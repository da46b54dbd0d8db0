"""The hub: awaited runs are answered, channels are heard, whatever happens to the connection."""

from __future__ import annotations

import threading
from contextlib import closing
from queue import SimpleQueue

import pytest
import redis

from asm_celery.config import Config
from asm_celery.errors import InvalidOperation
from asm_celery.events.bus import Bus
from asm_celery.model import Run, new_id
from asm_celery.states import RunStatus
from tests.following import SilentBus, place
from tests.waiting import wait_until


@pytest.mark.parametrize("bus", [Bus, SilentBus])
def test_an_awaited_run_is_answered_when_it_ends(config: Config, bus: type[Bus]) -> None:
    """The doorbell brings the answer; when it is lost, the next look at SQL does."""
    with place(config, bus=bus) as here:
        session_id = here.session()
        run_id, other = here.run(session_id), here.run(session_id)
        answers: SimpleQueue[Run] = SimpleQueue()
        here.hub.wait_for(run_id, session_id, answers.put)
        here.hub.wait_for(other, session_id, answers.put)

        here.end_run(session_id, run_id)

        answer = answers.get(timeout=20)
        assert (run_id, RunStatus.CANCELLED) == (answer.run_id, answer.status)
        assert answers.empty()


def test_a_run_that_has_ended_is_answered_at_once(sqlite_config: Config) -> None:
    """Who asks late does not wait for an event that was long ago."""
    with place(sqlite_config, poll_s=60.0) as here:
        session_id = here.session()
        run_id = here.run(session_id)
        here.end_run(session_id, run_id)
        answers: SimpleQueue[Run] = SimpleQueue()

        here.hub.wait_for(run_id, session_id, answers.put)

        assert run_id == answers.get(timeout=20).run_id


def test_an_answer_that_is_not_wanted_any_more_is_not_given(sqlite_config: Config) -> None:
    """The cancel handle takes back one callback, and only that one."""
    with place(sqlite_config) as here:
        session_id = here.session()
        run_id = here.run(session_id)
        unwanted: SimpleQueue[Run] = SimpleQueue()
        answers: SimpleQueue[Run] = SimpleQueue()
        cancel = here.hub.wait_for(run_id, session_id, unwanted.put)
        here.hub.wait_for(run_id, session_id, answers.put)

        cancel()
        cancel()
        here.end_run(session_id, run_id)

        assert run_id == answers.get(timeout=20).run_id
        assert unwanted.empty()


def test_many_awaiters_of_many_runs_are_all_answered(config: Config) -> None:
    """They share one thread and a few SELECTs."""
    with place(config) as here:
        session_ids = [here.session() for _ in range(3)]
        runs = [(session_id, here.run(session_id)) for session_id in session_ids for _ in range(40)]
        answers: SimpleQueue[str] = SimpleQueue()
        for session_id, run_id in runs:
            for _ in range(20):
                here.hub.wait_for(run_id, session_id, lambda run: answers.put(run.run_id))

        for session_id, run_id in runs:
            here.end_run(session_id, run_id)

        expected = sorted(20 * [run_id for _, run_id in runs])
        assert expected == sorted(answers.get(timeout=20) for _ in expected)
        assert answers.empty()


def test_a_callback_that_raises_hurts_nobody(sqlite_config: Config) -> None:
    """What it raises is logged; the hub and the other awaiters go on."""
    with place(sqlite_config) as here:
        session_id = here.session()
        run_id = here.run(session_id)
        answers: SimpleQueue[Run] = SimpleQueue()

        def broken(run: Run) -> None:
            raise RuntimeError("a bug of the caller")

        here.hub.wait_for(run_id, session_id, broken)
        here.hub.wait_for(run_id, session_id, answers.put)
        here.end_run(session_id, run_id)

        assert run_id == answers.get(timeout=20).run_id


def test_without_redis_awaiters_are_answered_from_sql(sqlite_config: Config) -> None:
    """A process that never reached Redis polls."""
    with place(sqlite_config, redis_url="redis://127.0.0.1:1/0") as here:
        session_id = here.session()
        run_id = here.run(session_id)
        answers: SimpleQueue[Run] = SimpleQueue()
        here.hub.wait_for(run_id, session_id, answers.put)

        here.end_run(session_id, run_id)

        assert run_id == answers.get(timeout=20).run_id


def test_what_was_followed_while_redis_is_away_does_not_pile_up(sqlite_config: Config) -> None:
    """Of a thousand sessions that were followed and left during an outage, only the last is remembered."""
    with place(sqlite_config, redis_url="redis://127.0.0.1:1/0") as here:
        for _ in range(1000):
            here.hub.wait_for(new_id("run"), new_id("ses"), print)()
        kept = here.config.keys.control("exe_1")
        here.hub.listen(kept, print)

        wait_until(lambda: here.hub._listener._changed == {kept}, description="the rest is forgotten")

        assert {kept} == here.hub._channels.keys()


def test_a_control_channel_is_heard_until_it_is_stopped(sqlite_config: Config) -> None:
    """Messages come as bytes, also after the connection was cut."""
    with place(sqlite_config) as here, closing(redis.Redis.from_url(sqlite_config.redis_url)) as operator:
        channel = here.config.keys.control("exe_1")
        messages: SimpleQueue[bytes] = SimpleQueue()
        stop = here.hub.listen(channel, messages.put)

        def heard(word: bytes) -> bool:
            operator.publish(channel, word)
            return not messages.empty() and messages.get() == word

        wait_until(lambda: heard(b"one"), description="the channel is heard")
        operator.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        wait_until(lambda: heard(b"two"), description="the channel is heard again")
        stop()
        stop()
        wait_until(
            lambda: operator.pubsub_numsub(channel)[0][1] == 0, description="the channel is not subscribed"
        )


def test_beats_count_the_feeds_of_each_session_and_tell_once_of_none(sqlite_config: Config) -> None:
    """Whoever counts subscribers hears of each session as long as it has any, and of its last one's end."""
    beats: SimpleQueue[dict[str, int]] = SimpleQueue()
    with place(sqlite_config, on_beat=beats.put) as here:
        one, two = here.session(), here.session()

        with here.follow(one), here.follow(one), here.follow(two):
            wait_until(lambda: beats.get(timeout=20) == {one: 2, two: 1}, description="all are counted")
        wait_until(lambda: beats.get(timeout=20) == {one: 0, two: 0}, description="their end is told")

        with here.follow(two):
            wait_until(lambda: beats.get(timeout=20) == {two: 1}, description="the first is not told again")


def test_one_thread_and_one_connection_serve_all(sqlite_config: Config) -> None:
    """However many follow, the process listens once; and nothing is started before the first."""
    with place(sqlite_config) as here, closing(redis.Redis.from_url(sqlite_config.redis_url)) as operator:

        def listeners() -> int:
            return sum(thread.name == "asm-listener" for thread in threading.enumerate())

        session_ids = [here.session() for _ in range(10)]
        assert listeners() == 0

        subscriptions = [here.follow(session_id) for session_id in 3 * session_ids]
        channels = [here.config.keys.events(session_id) for session_id in session_ids]
        wait_until(
            lambda: {1} == {count for _, count in operator.pubsub_numsub(*channels)},
            description="each channel is subscribed once",
        )
        assert listeners() == 1

        here.hub.close()
        assert listeners() == 0
        assert all(subscription.closed for subscription in subscriptions)


def test_a_closed_hub_takes_nobody(sqlite_config: Config) -> None:
    """After `close` nobody is left to wait for what will never come."""
    with place(sqlite_config) as here:
        session_id = here.session()
        here.hub.close()
        here.hub.close()

        with pytest.raises(InvalidOperation):
            here.follow(session_id)
