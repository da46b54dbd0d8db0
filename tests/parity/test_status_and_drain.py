"""Rows SS-110 to SS-127 of the parity table: status and drain."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest

from asm_celery import SessionStatusReport, errors
from asm_celery.states import RunStatus, SessionStatus
from tests.parity.desk import Desk
from tests.waiting import wait_until


def test_status_has_exactly_these_words() -> None:
    """SS-110: those of the original and `status`."""
    words = {field.name for field in fields(SessionStatusReport)}

    assert {
        "session_id",
        "in_flight_runs",
        "in_flight_count",
        "queued_runs",
        "queued_count",
        "max_concurrent_runs",
        "max_queued_runs",
        "subscribers",
        "status",
    } == words


def test_a_fresh_session_has_nothing(desk_on_each: Desk) -> None:
    """SS-111: counts are 0, the numbers are those given."""
    server = desk_on_each.start(max_concurrent_runs=2, max_queued_runs=50)

    expected = SessionStatusReport(
        session_id=server.session_id,
        status=SessionStatus.ACTIVE,
        in_flight_runs=[],
        in_flight_count=0,
        queued_runs=[],
        queued_count=0,
        max_concurrent_runs=2,
        max_queued_runs=50,
        subscribers=0,
    )
    assert expected == server.status()


def test_queued_runs_are_listed_in_their_order(desk: Desk) -> None:
    """SS-112: the running one apart, the others first in, first out."""
    server = desk.start("gate")
    desk.work()

    run_ids = [server.submit_run(number) for number in range(4)]
    desk.running(server)

    report = server.status()
    assert ([run_ids[0]], run_ids[1:]) == (report.in_flight_runs, report.queued_runs)
    assert (1, 3) == (report.in_flight_count, report.queued_count)


def test_an_idle_session_is_drained_at_once(desk: Desk) -> None:
    """SS-120: nothing to do, nothing to wait for."""
    server = desk.start()

    server.drain(timeout=0)

    assert SessionStatus.ACTIVE is server.status().status


def test_drain_returns_when_everything_has_ended(desk_on_each: Desk) -> None:
    """SS-121, SS-125: every caller is answered when queue and slots are empty."""
    server = desk_on_each.start("gate", session_id="s")
    desk_on_each.work()
    for number in range(3):
        server.submit_run(number)
    desk_on_each.running(server)

    with ThreadPoolExecutor(3) as threads:
        other = desk_on_each.another().attach("s")
        drains = [threads.submit(handle.drain, 20) for handle in (server, server, other)]
        assert not any(drain.done() for drain in drains)
        desk_on_each.gates.open(0, 1, 2)
        assert [None] * 3 == [drain.result() for drain in drains]

    report = server.status()
    assert (0, 0) == (report.in_flight_count, report.queued_count)


@pytest.mark.parametrize("timeout", [0, 0.1])
def test_drain_tells_what_is_left_and_why(desk: Desk, timeout: float) -> None:
    """SS-122, SS-123: a typed error; work goes on, and a later drain succeeds."""
    server = desk.start("gate")
    desk.work()
    running, queued = server.submit_run("a"), server.submit_run("b")
    desk.running(server)

    with pytest.raises(errors.DrainTimeout, match="1 in flight, 1 queued") as refused:
        server.drain(timeout)

    assert ("timeout", [running], [queued]) == (
        refused.value.code,
        refused.value.in_flight,
        refused.value.queued,
    )
    desk.gates.open("a", "b")
    server.drain(20)
    assert RunStatus.COMPLETED is server.get_run(queued).status


def test_a_cancelled_run_does_not_hold_up_a_drain(desk: Desk) -> None:
    """SS-126: withdrawing what waits and finishing what runs empties the session."""
    server = desk.start("gate")
    desk.work()
    run_ids = [server.submit_run(number) for number in range(2)]
    desk.running(server)

    with ThreadPoolExecutor(1) as threads:
        drain = threads.submit(server.drain, 20)
        server.cancel_run(run_ids[1])
        desk.gates.open(0)
        assert drain.result() is None

    assert [RunStatus.COMPLETED, RunStatus.CANCELLED] == [run.status for run in server.list_runs()]


def test_subscribers_of_all_processes_are_counted(desk: Desk) -> None:
    """SS-110, SS-146, SS-153: each process counts its own under its beat; who leaves is counted no more."""
    here = desk.start(session_id="s")
    there = desk.another().attach("s")

    mine, theirs = here.subscribe(), there.subscribe()
    wait_until(lambda: 2 == here.status().subscribers, description="both are counted")
    assert 2 == there.status().subscribers
    theirs.close()

    wait_until(lambda: 1 == here.status().subscribers, description="one is left")
    mine.close()
    wait_until(lambda: 0 == there.status().subscribers, description="none is left")
    assert ["session_created", "session_started"] == [event.type for event in here.get_events()]
