"""Cursor honesty: a place that the log does not have any more, or never had, is said and never skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import text

from asm_celery import errors
from asm_celery.aio import AsyncSessionServer
from asm_celery.cli.program import run
from asm_celery.config import Config
from asm_celery.model import Event, Session
from asm_celery.moves.outcome import Outcome
from asm_celery.server import SessionServer
from asm_celery.states import EventType, RunStatus
from tests.waiting import wait_until
from tests.world import World

PRUNED = EventType.SESSION_PRUNED


@pytest.fixture
def world(config: Config) -> Iterator[World]:
    """One process."""
    made = World(config)
    yield made
    made.close()


def say(server: SessionServer, count: int) -> list[Event]:
    """Append events of the caller's own."""
    return server.append_events([Event.new("note", server.session_id) for _ in range(count)])


def numbers(events: list[Event]) -> list[int]:
    """The sequences of events."""
    return [event.sequence for event in events]


def prune(world: World, keep: int = 0, before: datetime | None = None, session_id: str | None = None) -> int:
    """Remove old events."""
    return world.runtime.retention.prune(before=before, keep=keep, session_id=session_id)


@contextmanager
def restored(world: World, session: Session) -> Iterator[None]:
    """Put the session's log back to what it was before the block, as a restored copy of its database does."""
    engine = world.runtime.store._engine
    known = {"session": session.session_id}
    with engine.connect() as connection:
        select = text("SELECT last_sequence FROM session_counters WHERE session_id = :session")
        known["head"] = connection.execute(select, known).scalar_one()
    yield
    with engine.connect() as connection:
        connection.execute(text("DELETE FROM events WHERE session_id = :session AND sequence > :head"), known)
        connection.execute(
            text("UPDATE session_counters SET last_sequence = :head WHERE session_id = :session"), known
        )
        connection.commit()


def test_a_cursor_goes_on_behind_its_event(world: World) -> None:
    """Each event's cursor, and that of a subscription, give what follows it: live, stored, and over restarts."""
    server = world.server(world.session())
    events = [*server.get_events(), *say(server, 5)]

    for event in events:
        rest = [one.sequence for one in events if one.sequence > event.sequence]
        assert rest == numbers(server.get_events(after=event.cursor))
        with server.subscribe(from_sequence=event.cursor) as following:
            assert event.cursor == following.cursor
            assert rest == [following.get(20).sequence for _ in rest]  # type: ignore[union-attr]
            assert events[-1].cursor == following.cursor
    with server.subscribe(from_sequence=events[-1].cursor) as following:
        [newest] = say(server, 1)
        assert newest == following.get(20)


@pytest.mark.parametrize(
    "place", ["", "17", "0.00000000", "1.xyz", "1.9f86d081.", " 1.9f86d081", "-1.9f86d081", "9" * 400]
)
def test_what_is_no_cursor_is_refused(sqlite_config: Config, place: str) -> None:
    """A text that no event ever gave is a mistake of the caller."""
    world = World(sqlite_config)
    server = world.server(world.session())

    for call in (server.subscribe, server.get_events):
        with pytest.raises(errors.ValidationError, match="cursor"):
            call(place)
    world.close()


def test_a_cursor_ahead_of_the_log_is_refused(world: World) -> None:
    """The database was restored to an older copy: what the reader has seen never was."""
    session = world.session()
    server = world.server(session)
    with restored(world, session):
        seen = say(server, 3)[-1]

    for call in (server.subscribe, server.get_events):
        with pytest.raises(errors.CursorAhead) as refused:
            call(seen.cursor)
        assert ("cursor_ahead", False, 2) == (
            refused.value.code,
            refused.value.retryable,
            refused.value.details["last_sequence"],
        )


def test_a_cursor_of_another_history_is_refused(world: World) -> None:
    """The restored database has gone on: the same numbers are other events; so are those of another session."""
    session = world.session()
    server = world.server(session)
    with restored(world, session):
        seen = say(server, 3)[-1]
    say(server, 9)
    stranger = world.server(world.session()).get_events()[0]

    for cursor in (seen.cursor, stranger.cursor):
        for call in (server.subscribe, server.get_events):
            with pytest.raises(errors.CursorMismatch):
                call(cursor)


@pytest.mark.parametrize("goes_on", [0, 2, 9])
def test_a_live_subscription_says_that_its_database_was_restored(world: World, goes_on: int) -> None:
    """It never goes on in another history as if it were its own, whether the log is shorter or longer now."""
    session = world.session()
    server = world.server(session)
    with server.subscribe(type="note") as events:
        with restored(world, session):
            last = say(server, 3)[-1].sequence
            wait_until(
                lambda: (one := events.get(20)) and one.sequence == last, description="all was delivered"
            )
        for _ in range(goes_on):
            say(server, 1)

        with pytest.raises((errors.CursorAhead, errors.CursorMismatch)):
            while events.get(20) is not None:
                pass
        with pytest.raises(errors.InvalidCursor):
            events.get(0)


def test_a_pruned_log_says_where_it_begins(world: World) -> None:
    """Whoever asks for what was removed gets one event that stands for it, then the rest; nobody else does."""
    server = world.server(world.session())
    say(server, 10)

    assert 8 == prune(world, keep=4)

    for begin in (0, 1, 5, 8):
        with server.subscribe(from_sequence=begin, type="note") as events:
            seen = [events.get(20) for _ in range(5)]
            assert [PRUNED, *["note"] * 4] == [one.type for one in seen if one]
            assert [8, 9, 10, 11, 12] == [one.sequence for one in seen if one]
            assert {"first_sequence": 9} == seen[0].data if seen[0] else False
    assert [8, 9, 10] == numbers(server.get_events(limit=3))
    assert (
        [9, 10, 11, 12]
        == numbers(server.get_events(after=8))
        == numbers(server.get_events(after=8, type="note"))
    )
    with server.subscribe(from_sequence=9) as events:
        assert 9 == events.get(20).sequence  # type: ignore[union-attr]
    assert 13 == say(server, 1)[0].sequence


def test_a_cursor_whose_followers_were_removed_is_refused_and_can_be_resumed(world: World) -> None:
    """The error names where the log begins; a cursor right before that has lost nothing and goes on."""
    server = world.server(world.session())
    events = [*server.get_events(), *say(server, 10)]
    prune(world, keep=4)

    for call in (server.subscribe, server.get_events):
        with pytest.raises(errors.CursorGone) as refused:
            call(events[3].cursor)
        assert [9, 10, 11, 12] == numbers(
            server.get_events(after=refused.value.details["first_sequence"] - 1)
        )
    marker = server.get_events()[0]
    for cursor in (events[7].cursor, marker.cursor):
        assert [9, 10, 11, 12] == numbers(server.get_events(after=cursor))


def test_a_slow_subscriber_is_told_what_was_removed_before_it_read_it(world: World) -> None:
    """Retention may overtake a reader; what it missed is said at its place."""
    server = world.server(world.session())
    with server.subscribe() as events:
        assert [1, 2] == [events.get(20).sequence for _ in range(2)]  # type: ignore[union-attr]
        # more than its buffer holds, so that it must read them
        say(server, 1500)
        prune(world, keep=100)

        rest: list[Event] = []
        wait_until(
            lambda: rest.append(one) if (one := events.get(1)) else rest,
            description="it has read on",
            timeout=30,
        )
        while (one := events.get(0.5)) is not None:
            rest.append(one)

    gaps = [
        (before.sequence, after) for before, after in pairwise(rest) if after.sequence != before.sequence + 1
    ]
    assert all(PRUNED == after.type for _, after in gaps)
    assert 1502 == rest[-1].sequence
    assert sum(one.type == PRUNED for one in rest) <= 1


def test_retention_leaves_open_runs_and_results(world: World) -> None:
    """Nothing of an open run goes, nor anything behind it; the results of ended ones are read as before."""
    session = world.session(max_concurrent_runs=2)
    server = world.server(session)
    first = server.submit_run(1)
    world.finish(world.start(), output="kept")
    opened = server.submit_run(2)
    claim = world.start()
    say(server, 5)

    prune(world, before=datetime.now(UTC) + timedelta(hours=1))

    assert ["run_queued", "run_started"] == [event.type for event in server.get_events(run_id=opened)]
    assert "kept" == server.await_run(first, timeout=0).output
    assert [PRUNED] == [event.type for event in server.subscribe(run_id=first)]
    with server.subscribe(run_id=opened) as events:
        world.runtime.coordinator.finish(claim, Outcome(status=RunStatus.COMPLETED), [], 0)
        assert ["run_queued", "run_started", "run_completed"] == [event.type for event in events]
    assert 8 == prune(world, before=datetime.now(UTC) + timedelta(hours=1), session_id=session.session_id)
    assert [PRUNED] == [event.type for event in server.get_events()]
    server.complete()
    prune(world, before=datetime.now(UTC) + timedelta(hours=1))
    assert [PRUNED] == [event.type for event in server.subscribe()], "it ends, its closing event is gone"


def test_only_what_is_older_goes_and_only_as_a_prefix(world: World) -> None:
    """An event with an old clock behind a young one stays: a log has no holes."""
    server = world.server(world.session())
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    old = Event.new("old", server.session_id, timestamp=long_ago)
    server.append_events([old])
    assert 0 == prune(world, before=long_ago + timedelta(days=1))
    assert 2 == prune(world, before=datetime.now(UTC) + timedelta(hours=1), keep=1)
    server.append_events(
        [Event.new("young", server.session_id), Event.new("old", server.session_id, timestamp=long_ago)]
    )

    assert 1 == prune(world, before=long_ago + timedelta(days=1))

    assert [PRUNED, "young", "old"] == [event.type for event in server.get_events()]


@pytest.mark.parametrize(
    "bounds",
    [{}, {"keep": -1}, {"keep": True}, {"before": datetime(2020, 1, 1)}, {"before": "2020"}],  # noqa: DTZ001
)
def test_retention_without_a_sound_bound_is_refused(sqlite_config: Config, bounds: dict[str, Any]) -> None:
    """Nothing is removed by mistake."""
    world = World(sqlite_config)
    server = world.server(world.session())

    with pytest.raises(errors.ValidationError):
        world.runtime.retention.prune(**{"before": None, "keep": 0, "session_id": None} | bounds)

    assert 2 == len(server.get_events())
    world.close()


@pytest.mark.anyio
async def test_coroutines_get_the_same_answers(sqlite_config: Config) -> None:
    """Cursors, their refusals and what stands for removed events are those of the sync face."""
    world = World(sqlite_config)
    session = world.session()
    server = world.server(session)
    other = AsyncSessionServer(server)
    first, *rest = say(server, 3)

    assert rest == await other.get_events(after=first.cursor)
    async with other.subscribe(from_sequence=first.cursor) as events:
        assert rest == [await events.get(20) for _ in rest]
        assert rest[-1].cursor == events.cursor
    prune(world, keep=1)
    with pytest.raises(errors.CursorGone):
        async with other.subscribe(from_sequence=first.cursor):
            pass
    async with other.subscribe() as events:
        gap = await events.get(20)
        assert gap is not None
        assert PRUNED == gap.type
    world.close()


def test_the_command_prunes_and_tails_by_cursor(
    sqlite_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """`asm prune` removes what it was agreed to, and `asm tail --cursor` resumes or is refused with 5."""
    world = World(sqlite_config)
    server = world.server(world.session())
    events = [*server.get_events(), *say(server, 10)]
    where = ["--database-url", sqlite_config.database_url, "--redis-url", sqlite_config.redis_url, "--json"]

    def asm(*words: str) -> tuple[int, list[dict[str, Any]]]:
        capsys.readouterr()
        code = run([*where, *words])
        return int(code), [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert (2, []) == asm("prune", server.session_id, "--yes")
    code, answers = asm("prune", server.session_id, "--keep", "4", "--older-than", "0", "--yes")
    assert (0, 8) == (code, answers[0]["events"])
    tail = ["tail", server.session_id, "--no-follow"]
    code, answers = asm(*tail, "--cursor", events[9].cursor)
    assert (0, [one.cursor for one in events[10:]]) == (code, [one["cursor"] for one in answers])
    assert 5 == asm(*tail, "--cursor", events[1].cursor)[0]
    world.close()
