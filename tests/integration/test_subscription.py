"""Following sessions on real servers: nothing lost, nothing doubled, nobody hurt by a slow neighbour."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
import redis

from asm_celery.config import Config
from asm_celery.errors import StorageConnectionFailed
from asm_celery.events.log import EventLog
from asm_celery.events.subscription import Subscription
from asm_celery.model import Event
from tests.following import LossyBus, Place, SilentBus, place
from tests.waiting import await_until, wait_until

FULL = os.environ.get("ASM_TEST_FULL") == "1"
EVENTS = 20_000 if FULL else 4_000
SUBSCRIBERS = 50


def numbers(events: list[Event]) -> list[int]:
    """The sequences of events."""
    return [event.sequence for event in events]


def read(subscription: Subscription, count: int) -> list[int]:
    """The sequences of the next events; fails when one does not come."""
    taken = []
    for _ in range(count):
        event = subscription.get(timeout=20)
        assert event is not None, f"only {taken} came"
        taken.append(event.sequence)
    return taken


@contextmanager
def loop_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.mark.timeout(600)
def test_fifty_subscribers_each_see_everything_from_their_cursor_once_in_order(config: Config) -> None:
    """They join at random moments of a long session while messages are dropped and repeated."""
    chance = random.Random(50)

    with (
        place(config, bus=LossyBus) as here,
        place(config) as elsewhere,
        loop_thread() as loop,
        ThreadPoolExecutor(SUBSCRIBERS) as threads,
    ):
        session_id = here.session()

        def follow(reader: Place, start: int) -> list[int]:
            with reader.follow(session_id, from_sequence=start) as events:
                return numbers(list(events))

        async def follow_async(reader: Place, start: int) -> list[int]:
            async with reader.follow_async(session_id, from_sequence=start) as events:
                return [event.sequence async for event in events]

        joins = sorted(chance.randrange(EVENTS) for _ in range(SUBSCRIBERS))
        transcripts: list[tuple[int, Future[list[int]]]] = []
        head = 1
        while head < EVENTS:
            head = here.say(session_id, min(chance.choice((1, 1, 2, 5, 64)), EVENTS - head))
            while joins and joins[0] <= head:
                joins.pop(0)
                reader = chance.choice((here, elsewhere))
                start = chance.choice((0, 1, head + 1, chance.randrange(head + 1)))
                if chance.random() < 0.5:
                    transcripts.append((start, threads.submit(follow, reader, start)))
                else:
                    pending = asyncio.run_coroutine_threadsafe(follow_async(reader, start), loop)
                    transcripts.append((start, pending))
        last = here.end_session(session_id)

        assert SUBSCRIBERS == len(transcripts)
        for start, transcript in transcripts:
            assert list(range(max(start, 1), last + 1)) == transcript.result(timeout=120)


def test_a_late_subscriber_beside_a_live_one_gets_the_whole_backlog(config: Config) -> None:
    """Each subscription has its own cursor: one at the head takes nothing from one at the beginning."""
    with place(config) as here:
        session_id = here.session()
        last = here.say(session_id, 3_000)

        with here.follow(session_id, from_sequence=last + 1) as live:
            assert [here.say(session_id)] == read(live, 1)
            with here.follow(session_id) as late:
                assert list(range(1, last + 2)) == read(late, last + 1)
                newest = here.say(session_id, 3)
                assert list(range(last + 2, newest + 1)) == read(late, 3)
            assert list(range(last + 2, newest + 1)) == read(live, 3)
            assert live.get(timeout=0) is None


def test_filters_choose_by_run_and_by_type(config: Config) -> None:
    """A filtered subscription sees its own among thousands, stored and live, and a run's one ends."""
    with place(config) as here:
        session_id = here.session()
        mine, other = here.run(session_id), here.run(session_id)
        expected = [2]
        for _ in range(10):
            here.say(session_id, 120, run_id=other)
            expected.append(here.say(session_id, run_id=mine))
        tools = [here.say(session_id, type="tool_call_started", run_id=mine)]

        with (
            here.follow(session_id, run_id=mine) as all_of_mine,
            here.follow(session_id, types=frozenset({"tool_call_started"})) as all_tools,
            here.follow(session_id, run_id=mine, types=frozenset({"tool_call_started"})) as my_tools,
        ):
            assert expected + tools == read(all_of_mine, len(expected) + 1)
            here.say(session_id, 5, run_id=other)
            tools.append(here.say(session_id, type="tool_call_started", run_id=mine))
            here.end_run(session_id, other)
            end = here.end_run(session_id, mine)

            assert tools == read(all_tools, 2)
            assert tools == numbers(list(my_tools))
            assert [tools[1], end] == numbers(list(all_of_mine))
            assert my_tools.ended
            assert my_tools.closed
            assert not all_tools.ended


def test_a_slow_reader_holds_a_bounded_number_of_events_and_loses_none(config: Config) -> None:
    """Its neighbour stays live, memory stays bounded, and at its own pace it sees everything."""
    with place(config, subscriber_buffer=100) as here:
        session_id = here.session()

        with here.follow(session_id) as slow, here.follow(session_id) as quick:
            assert [1] == read(slow, 1)
            assert [1] == read(quick, 1)
            for batch in range(60):
                here.say(session_id, 50)
                assert list(range(2 + 50 * batch, 52 + 50 * batch)) == read(quick, 50)

            gc.collect()
            alive = sum(isinstance(item, Event) for item in gc.get_objects())
            assert alive <= 100 + 500 + 50 + 10
            assert list(range(2, 3002)) == read(slow, 3000)


def test_a_lost_message_is_found_by_reading(config: Config) -> None:
    """When every doorbell is lost, silence is not trusted for long."""
    with place(config, bus=SilentBus) as here:
        session_id = here.session()

        with here.follow(session_id) as events:
            assert [1] == read(events, 1)
            for _ in range(3):
                assert [here.say(session_id)] == read(events, 1)


def test_cut_connections_lose_nothing(config: Config) -> None:
    """Every subscriber connection is killed again and again in the middle of a stream."""
    with place(config) as here, closing(redis.Redis.from_url(config.redis_url)) as operator:
        session_id = here.session()

        with here.follow(session_id) as events:
            for _ in range(20):
                here.say(session_id, 10)
                operator.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                here.say(session_id, 10)
            assert list(range(1, 402)) == read(events, 401)


def test_without_redis_events_come_from_sql(config: Config) -> None:
    """Redis may be away from the first moment: following is slower, and complete."""
    with place(config, redis_url="redis://127.0.0.1:1/0") as here:
        session_id = here.session()

        with here.follow(session_id) as events:
            assert [1] == read(events, 1)
            last = here.say(session_id, 700)
            assert list(range(2, last + 1)) == read(events, 700)


def test_a_large_event_is_announced_without_being_carried(config: Config) -> None:
    """A message stays small; its reader finds the event in SQL."""
    with place(config) as here:
        session_id = here.session()

        with here.follow(session_id) as events:
            assert [1] == read(events, 1)
            here.say(session_id, data={"text": "x" * 100_000})
            event = events.get(timeout=20)
            assert event is not None
            assert len(event.data["text"]) == 100_000


def test_stored_and_live_events_are_equal(config: Config) -> None:
    """It cannot be seen on an event which way it came."""
    with place(config) as here:
        session_id = here.session()

        with here.follow(session_id, from_sequence=2) as live:
            assert live.get(timeout=0) is None
            here.say(
                session_id, data={"text": "\ud800 ü", "n": [1, 2.5, None]}, metadata={"k": "v"}, attempt=2
            )
            heard = live.get(timeout=20)
        with here.follow(session_id, from_sequence=2) as later:
            assert heard == later.get(timeout=20)


@pytest.mark.parametrize("from_sequence", [3, 4, 5])
def test_a_run_that_is_over_ends_its_subscription(config: Config, from_sequence: int) -> None:
    """From the terminal event or before, it is delivered; from behind it, there is nothing to wait for."""
    with place(config) as here:
        session_id = here.session()
        run_id = here.run(session_id)
        here.say(session_id, run_id=run_id)
        end = here.end_run(session_id, run_id)

        with here.follow(session_id, from_sequence=from_sequence, run_id=run_id, run_end=end) as events:
            assert list(range(from_sequence, end + 1)) == numbers(list(events))
            assert events.closed


def test_close_from_another_thread_wakes_the_reader(sqlite_config: Config) -> None:
    """A `get` that waits returns None, and iteration stops."""
    with place(sqlite_config) as here, ThreadPoolExecutor(1) as threads:
        session_id = here.session()
        events = here.follow(session_id, from_sequence=2)
        waiting = threads.submit(events.get)

        events.close()

        assert waiting.result(timeout=20) is None
        assert events.closed
        assert not events.ended
        assert [] == list(events)


def test_a_get_with_no_patience_reads_what_is_there(sqlite_config: Config) -> None:
    """`timeout=0` never waits, and still goes on: it is how a poller reads."""
    with place(sqlite_config) as here:
        session_id = here.session()
        here.say(session_id, 2)

        with here.follow(session_id) as events:
            taken = [events.get(timeout=0) for _ in range(4)]

    assert [1, 2, 3, None] == [event and event.sequence for event in taken]


class Outage(EventLog):
    """A log whose pages cannot be read while `is_down`."""

    is_down = True

    def page(self, *args: object, **options: object):  # type: ignore[no-untyped-def,override]
        """Read a page, or fail as a lost database does."""
        if self.is_down:
            raise StorageConnectionFailed("the database cannot be reached")
        return super().page(*args, **options)  # type: ignore[arg-type]


def test_a_database_outage_is_told_after_a_while_and_loses_nothing(sqlite_config: Config) -> None:
    """Reads are repeated quietly, then the error is raised; the same subscription goes on afterwards."""
    with place(sqlite_config, connect_timeout_s=0.2) as here:
        session_id = here.session()
        log = Outage(here.store, here.log.bus)
        with Subscription(here.hub, log, here.config, session_id) as events:
            assert events.get(timeout=0.1) is None
            with pytest.raises(StorageConnectionFailed):
                events.get(timeout=20)
            log.is_down = False
            assert [1] == read(events, 1)


def test_a_dropped_subscription_is_forgotten(sqlite_config: Config) -> None:
    """One that nobody closed is not fed for ever: the hub holds it weakly and drops its channel."""
    with place(sqlite_config) as here, closing(redis.Redis.from_url(sqlite_config.redis_url)) as operator:
        session_id = here.session()
        channel = here.config.keys.events(session_id)
        events = here.follow(session_id)
        wait_until(
            lambda: operator.pubsub_numsub(channel)[0][1] == 1, description="the channel is subscribed"
        )

        del events

        wait_until(lambda: operator.pubsub_numsub(channel)[0][1] == 0, description="the channel is dropped")
        with here.follow(session_id) as again:
            assert [1, here.say(session_id)] == read(again, 2)


async def test_many_waiting_coroutines_cost_no_thread_each(sqlite_config: Config) -> None:
    """A thousand subscribers wait in one loop, and all of them are told."""
    followers: dict[str, int] = {}
    with place(sqlite_config, on_beat=followers.update, poll_s=30.0) as here:
        session_id = await asyncio.to_thread(here.session)

        async def last() -> int:
            async with here.follow_async(session_id, from_sequence=2) as events:
                return max([event.sequence async for event in events])

        tasks = [asyncio.create_task(last()) for _ in range(1_000)]
        await await_until(lambda: followers.get(session_id) == 1_000, description="all of them listen")
        end = await asyncio.to_thread(here.end_session, session_id)
        threads = threading.active_count()

        assert {end} == set(await asyncio.gather(*tasks))
        assert threads < 60


async def test_a_cancelled_get_loses_nothing(sqlite_config: Config) -> None:
    """A task that gives up in the middle of a wait or a read leaves the cursor where it was."""
    with place(sqlite_config) as here:
        session_id = here.session()
        taken: list[int] = []

        async with here.follow_async(session_id) as events:
            for number in range(50):
                await asyncio.to_thread(here.say, session_id)
                task = asyncio.create_task(events.get())
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                if task.cancel():
                    await asyncio.gather(task, return_exceptions=True)
                elif (event := task.result()) is not None:
                    taken.append(event.sequence)
            while len(taken) < 51:
                event = await events.get(timeout=20)
                assert event is not None
                taken.append(event.sequence)

        assert list(range(1, 52)) == taken


async def test_closing_in_another_task_wakes_the_reader(sqlite_config: Config) -> None:
    """`async for` stops when the subscription is closed."""
    with place(sqlite_config) as here:
        session_id = await asyncio.to_thread(here.session)
        events = here.follow_async(session_id, from_sequence=2)
        waiting = asyncio.create_task(events.get())
        await asyncio.sleep(0)

        await events.close()

        assert await waiting is None
        assert events.closed


async def test_what_looks_up_the_end_runs_when_listening_begins(sqlite_config: Config) -> None:
    """An asynchronous subscription is made without waiting; its errors come when it is entered."""
    with place(sqlite_config) as here:
        session_id = await asyncio.to_thread(here.session)

        def unknown() -> int:
            raise KeyError("no such run")

        events = here.follow_async(session_id, run_id="run_x", run_end=unknown)
        with pytest.raises(KeyError):
            async with events:
                pass
        async with here.follow_async(session_id, from_sequence=9, run_id="r", run_end=lambda: 8) as events:
            assert [] == [event async for event in events]


def test_a_closed_loop_does_not_hurt_the_others(sqlite_config: Config) -> None:
    """A loop that ended with its subscribers waiting leaves the hub to its neighbours."""
    with place(sqlite_config) as here:
        session_id = here.session()
        abandoned = here.follow_async(session_id, from_sequence=2)

        async def give_up() -> None:
            assert await abandoned.get(timeout=0.05) is None

        asyncio.run(give_up())
        with here.follow(session_id) as events:
            assert [1, here.say(session_id), here.say(session_id)] == read(events, 3)
        assert not abandoned.closed


def test_closing_the_hub_ends_open_subscriptions(sqlite_config: Config) -> None:
    """What a process closes does not leave its readers waiting."""
    with place(sqlite_config) as here, ThreadPoolExecutor(1) as threads:
        events = here.follow(here.session(), from_sequence=2)
        waiting: Future[Event | None] = threads.submit(events.get)

        here.hub.close()

        assert waiting.result(timeout=20) is None
