"""Rows SS-1 to SS-35 of the parity table: starting, attaching, submitting."""

from __future__ import annotations

import re
import threading

import pytest

from asm_celery import AgentSessions, errors
from asm_celery.states import RunStatus, SessionStatus
from tests.parity.desk import Desk, all_events, blocked_writers, started
from tests.waiting import wait_until


def test_status_echoes_the_slots_and_the_bound(desk: Desk) -> None:
    """SS-3, SS-11: two slots are two slots; the defaults are 1 slot and 100 waiting runs."""
    given = desk.start(max_concurrent_runs=2).status()
    default = desk.start().status()

    assert (2, 100) == (given.max_concurrent_runs, given.max_queued_runs)
    assert (1, 100) == (default.max_concurrent_runs, default.max_queued_runs)


def test_a_new_session_is_active_and_says_so_in_two_events(desk_on_each: Desk) -> None:
    """SS-6, SS-15: session_created names the agent, session_started follows, the session is active."""
    server = desk_on_each.start(metadata={"user": "u1"})

    created, begun = server.get_events()
    assert (1, "session_created", "echo") == (created.sequence, created.type, created.data["provider"])
    assert (2, "session_started", server.session_id) == (begun.sequence, begun.type, begun.session_id)
    assert SessionStatus.ACTIVE is server.status().status
    assert re.fullmatch("ses_[0-9a-f]{32}", server.session_id)


def test_a_known_id_wins_over_the_options(desk: Desk) -> None:
    """SS-5, SS-13, SS-176: the id is the stable name; what was stored at the start holds."""
    desk.start(session_id="chat-42", max_concurrent_runs=2, metadata={"a": 1})

    again = desk.start(session_id="chat-42", max_concurrent_runs=7, metadata={}, if_exists="attach")

    [stored] = desk.asm.list_sessions()
    assert ("chat-42", 2, {"a": 1}) == (stored.session_id, stored.max_concurrent_runs, stored.metadata)
    assert 2 == again.status().max_concurrent_runs
    with pytest.raises(errors.AlreadyExists):
        desk.start(session_id="chat-42")
    with pytest.raises(errors.InvalidOperation, match="belongs to agent 'echo'"):
        desk.start("boom", session_id="chat-42", if_exists="attach")


def test_attaching_writes_nothing(desk: Desk) -> None:
    """SS-9: a second session_started is never written, whoever attaches how often."""
    server = desk.start(session_id="chat")

    for _ in range(3):
        desk.asm.attach("chat")
        desk.start(session_id="chat", if_exists="attach")

    assert ["session_created", "session_started"] == [event.type for event in all_events(server)]


def test_runs_that_waited_through_a_restart_are_executed(desk: Desk) -> None:
    """SS-17, SS-174: the line is in SQL; whoever works next executes it in order."""
    server = desk.start("echo", session_id="kept")
    run_ids = [server.submit_run(number) for number in range(3)]
    desk.restart()

    other = desk.asm.attach("kept")
    desk.work()
    results = [other.await_run(run_id, 20).output for run_id in run_ids]

    assert [0, 1, 2] == results
    assert run_ids == started(other)


def test_a_submitted_run_is_stored_before_its_id_is_returned(desk_on_each: Desk) -> None:
    """SS-20, SS-28: the id, the status, the input and the options are in SQL."""
    server = desk_on_each.start()

    run_id = server.submit_run(
        {"text": "hi"}, run_timeout=5, queue_timeout=7, max_attempts=3, metadata={"trace": "t"}
    )

    run = desk_on_each.another().get_run(run_id)
    assert re.fullmatch("run_[0-9a-f]{32}", run_id)
    assert (RunStatus.PENDING, {"text": "hi"}, 1) == (run.status, run.input, run.position)
    assert (5, 7, 3, {"trace": "t"}) == (run.run_timeout, run.queue_timeout, run.max_attempts, run.metadata)


def test_the_bound_counts_what_no_slot_is_free_for(desk: Desk) -> None:
    """SS-26: two slots take two runs whatever the bound."""
    server = desk.start("gate", max_concurrent_runs=2, max_queued_runs=0)
    desk.work()

    accepted = [server.submit_run(number) for number in range(2)]

    assert accepted == desk.running(server, 2)
    with pytest.raises(errors.QueueFull):
        server.submit_run("third")


def test_without_a_database_a_submit_fails_and_nothing_is_accepted(desk: Desk) -> None:
    """SS-30, SS-45, ST-45: a typed error within the connect timeout; the process lives on."""
    server = desk.start()
    cut_off = desk.without_database(server)

    for _ in range(2):
        with pytest.raises(errors.StorageConnectionFailed) as refused:
            cut_off.submit_run(1)

    assert refused.value.retryable
    assert [] == server.list_runs()


def test_queued_and_started_are_told_by_events(desk: Desk) -> None:
    """SS-34: run_queued carries the place in the line, run_started the attempt."""
    server = desk.start()
    desk.work()

    run_id = server.execute_run("x").run_id

    queued, begun, _ = all_events(server, run_id=run_id)
    assert ("run_queued", 1) == (queued.type, queued.data["position"])
    assert ("run_started", 1) == (begun.type, begun.data["attempt"])


def test_a_submit_that_waits_for_the_database_holds_up_no_reader(desk_on_each: Desk) -> None:
    """SS-35, SS-104: there is no loop that one slow call could block."""
    server = desk_on_each.start()
    known = server.submit_run("before")
    accepted: list[str] = []
    thread = threading.Thread(target=lambda: accepted.append(server.submit_run("held up")))

    with blocked_writers(desk_on_each.config, server.session_id):
        thread.start()
        assert [known] == server.status().queued_runs
        assert "before" == server.get_run(known).input
        assert 3 == len(all_events(server))
        assert [] == accepted

    wait_until(lambda: accepted, description="the submit that was held up has returned")
    thread.join()
    assert [known, *accepted] == server.status().queued_runs


def test_asm_objects_of_one_installation_see_the_same(desk: Desk) -> None:
    """SS-13: a handle is a name; any number of processes may hold one."""
    server = desk.start(session_id="s")
    run_id = server.submit_run(1)

    other: AgentSessions = desk.another()

    assert other.attach("s").status() == server.status()
    assert run_id == other.get_run(run_id).run_id
