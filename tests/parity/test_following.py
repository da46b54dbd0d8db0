"""Rows SS-130 to SS-153 of the parity table: subscriptions, through the public face."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from asm_celery import Event, SessionServer, Subscription, errors
from tests.parity.desk import Desk, all_events
from tests.waiting import wait_until


def say(server: SessionServer, count: int, **values: Any) -> None:
    """Append events of a caller's own."""
    server.append_events(
        [Event.new("said", server.session_id, data={"n": number}, **values) for number in range(count)]
    )


def taken(subscription: Subscription, count: int) -> list[int]:
    """Return the sequences of the next so many events."""
    found = []
    while len(found) < count:
        event = subscription.get(timeout=20)
        assert event is not None, f"nothing came after {found[-5:]}"
        found.append(event.sequence)
    return found


def test_a_subscription_gives_numbered_events_of_its_session(desk: Desk) -> None:
    """SS-130, SS-145: an iterator with an id; two in one process get a copy each."""
    server = desk.start()
    desk.work()

    with server.subscribe() as one, server.subscribe() as two:
        server.execute_run("x")
        seen = [[subscription.get(20) for _ in range(5)] for subscription in (one, two)]

    assert all_events(server) == seen[0] == seen[1]
    assert {server.session_id} == {event.session_id for event in seen[0] if event}
    assert one.id != two.id


@pytest.mark.parametrize(
    ("from_sequence", "first"), [(0, 1), (1, 1), (2, 2), (5, 5), (12, 12), (13, None), (99, None)]
)
def test_the_place_is_inclusive(desk: Desk, from_sequence: int, first: int | None) -> None:
    """SS-132, SS-135, SS-136: 0 and 1 are the beginning; beyond the head only later events come."""
    server = desk.start()
    say(server, 10)

    with server.subscribe(from_sequence=from_sequence) as events:
        backlog = [] if first is None else taken(events, 13 - first)
        assert events.get(timeout=0.05) is None
        say(server, 100)
        live = taken(events, 112 - max(from_sequence, 13) + 1)

    assert list(range(first or 13, 13)) == backlog
    assert list(range(max(from_sequence, 13), 113)) == live


def test_filters_hold_for_backlog_and_live(desk: Desk) -> None:
    """SS-133: run and types together."""
    server = desk.start("echo")
    desk.work()
    first = server.execute_run(1).run_id
    desk.asm.register("pair", lambda ctx, given: [ctx.emit("a"), ctx.emit("b")])

    with server.subscribe(type=["run_started", "run_completed"]) as both:
        second = server.execute_run(2).run_id
        seen = [both.get(20) for _ in range(4)]

    assert [first, first, second, second] == [event.run_id for event in seen if event]
    of_one = list(server.subscribe(run_id=first, type="run_started"))
    assert [("run_started", first)] == [(event.type, event.run_id) for event in of_one]


def test_resuming_behind_the_last_seen_gives_nothing_twice(desk_on_each: Desk) -> None:
    """SS-137, SS-152, SS-140: read, leave, come back at the next sequence: neither gap nor repetition."""
    server = desk_on_each.start()
    say(server, 30)
    seen: list[int] = []

    for pause in (5, 20, 7, 30):
        with server.subscribe(from_sequence=(seen[-1] if seen else 0) + 1) as events:
            seen += taken(events, pause)
        say(server, 10)
    with server.subscribe(from_sequence=seen[-1] + 1) as events:
        seen += taken(events, 72 - len(seen))
        assert events.get(timeout=0.05) is None

    assert list(range(1, 73)) == seen


def test_a_backlog_of_thousands_is_read_to_its_end(desk: Desk) -> None:
    """SS-138, SS-139: a late subscriber beside a live one, with more than three pages before it."""
    server = desk.start()

    with server.subscribe() as early:
        for _ in range(4):
            say(server, 500)
        taken(early, 2002)
        with server.subscribe() as late:
            say(server, 3)
            assert list(range(1, 2006)) == taken(late, 2005)
        assert [2003, 2004, 2005] == taken(early, 3)


def test_unseen_events_before_the_place_hold_up_nothing(desk: Desk) -> None:
    """SS-141, SS-14: cursors are each subscriber's own."""
    server = desk.start()
    desk.work()
    say(server, 1500)

    with server.subscribe(from_sequence=1503) as events:
        server.execute_run("short")

        assert [1503, 1504, 1505] == taken(events, 3)


def test_events_of_anybody_are_delivered(desk: Desk) -> None:
    """SS-142, SS-143, SS-144: of other processes, of sessions, of stop requests: every append is a doorbell."""
    server = desk.start("gate", session_id="s")
    other = desk.another().attach("s")
    desk.work()

    with server.subscribe(from_sequence=3) as events:
        other.append_events([Event.new("note", "s")])
        run_id = other.submit_run("x")
        desk.running(server)
        other.cancel_run(run_id)
        desk.ended(server, run_id)
        other.complete()
        seen = [event.type for event in events]

    assert [
        "note",
        "run_queued",
        "run_started",
        "run_stop_requested",
        "run_cancelled",
        "session_completed",
    ] == seen


def test_unsubscribing_twice_is_fine(desk: Desk) -> None:
    """SS-147: closed is closed; a waiting reader is let go."""
    server = desk.start()
    events = server.subscribe(from_sequence=99)
    left: list[object] = []
    thread = threading.Thread(target=lambda: left.append(events.get()))
    thread.start()

    server.unsubscribe(events)
    server.unsubscribe(events)

    thread.join(20)
    assert [None] == left
    assert events.closed


def test_interleaved_runs_share_one_sequence(desk: Desk) -> None:
    """SS-149, SS-150: ascending over all slots; the run id tells whose an event is."""

    def agent(ctx: Any, given: Any) -> None:
        for number in range(20):
            ctx.emit("n", {"n": number})
            ctx.sleep(0.001)

    desk.asm.register("counting", agent)
    server = desk.start("counting", max_concurrent_runs=3)
    desk.work()
    with server.subscribe() as events:
        run_ids = [server.submit_run(None) for _ in range(3)]
        server.drain(20)
        seen = [event for event in (events.get(20) for _ in range(2 + 3 * 23)) if event]

    assert list(range(1, 72)) == [event.sequence for event in seen]
    for run_id in run_ids:
        own = [event.data["n"] for event in seen if event.run_id == run_id and event.type == "n"]
        assert list(range(20)) == own


def test_without_a_database_following_is_a_typed_error(desk: Desk) -> None:
    """SS-151: the reader is told, the process lives on, and the line is what it was."""
    server = desk.start()
    run_id = server.submit_run(1)

    cut_off = desk.without_database(server)
    with pytest.raises(errors.StorageConnectionFailed), cut_off.subscribe() as events:
        events.get(timeout=30)

    assert [run_id] == server.status().queued_runs


def test_a_run_filter_ends_with_the_run(desk: Desk) -> None:
    """SS-130: for an iterator over one run the end of the run is the end."""
    server = desk.start("gate")
    desk.work()
    run_id = server.submit_run("x")
    seen: list[str] = []
    thread = threading.Thread(
        target=lambda: seen.extend(event.type for event in server.subscribe(run_id=run_id))
    )
    thread.start()

    wait_until(lambda: "run_started" in seen, description="the reader follows")
    desk.gates.open("x")
    thread.join(20)

    assert ["run_queued", "run_started", "run_completed"] == seen
