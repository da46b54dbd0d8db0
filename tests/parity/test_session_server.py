"""Rows SS-1 to SS-35 of the parity table: starting, attaching, submitting."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

from asm_celery import AgentSessions, errors
from asm_celery.states import RunStatus, SessionStatus
from tests.parity.desk import Desk, all_events, blocked_writers, started
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("agent", "kind"),
    [
        ("", errors.ValidationError),
        (None, errors.ValidationError),
        ("not a name", errors.ValidationError),
        ("ecco", errors.AgentNotFound),
    ],
)
def test_a_session_without_a_usable_agent_is_refused(desk: Desk, agent: Any, kind: type) -> None:
    """SS-1, SS-4, SS-7: a session needs an agent, and the error is typed and names it."""
    with pytest.raises(kind, match="agent"):
        desk.start(agent)

    assert [] == desk.asm.list_sessions()


@pytest.mark.parametrize("slots", [0, -1, "2", 1.5, True, None])
def test_slots_are_a_whole_number_from_1(desk: Desk, slots: Any) -> None:
    """SS-2: the value is named and nothing is started."""
    with pytest.raises(errors.ValidationError, match=re.escape(f"max_concurrent_runs={slots!r}")):
        desk.start(max_concurrent_runs=slots)

    assert [] == desk.asm.list_sessions()


@pytest.mark.parametrize("bound", [-1, "2", 1.5, True])
def test_the_bound_is_a_whole_number_from_0(desk: Desk, bound: Any) -> None:
    """SS-12: a negative or odd bound is refused; 0 is legal."""
    with pytest.raises(errors.ValidationError, match=re.escape(f"max_queued_runs={bound!r}")):
        desk.start(max_queued_runs=bound)

    assert 0 == desk.start(max_queued_runs=0).status().max_queued_runs


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


@pytest.mark.parametrize("session_id", ["unknown", "", "no such id", f"ses_{0:032x}"])
def test_an_unknown_session_is_not_found(desk: Desk, session_id: str) -> None:
    """SS-8, ST-2: attaching never makes a session."""
    with pytest.raises(errors.SessionNotFound) as refused:
        desk.asm.attach(session_id)

    assert "session_not_found" == refused.value.code


def test_attaching_writes_nothing(desk: Desk) -> None:
    """SS-9: a second session_started is never written, whoever attaches how often."""
    server = desk.start(session_id="chat")

    for _ in range(3):
        desk.asm.attach("chat")
        desk.start(session_id="chat", if_exists="attach")

    assert ["session_created", "session_started"] == [event.type for event in all_events(server)]


def test_a_completed_session_stays_completed(desk_on_each: Desk) -> None:
    """SS-9, SS-32, SE-5: it can be read, not be reopened, and takes no runs."""
    server = desk_on_each.start(session_id="done")
    server.complete()

    attached = desk_on_each.start(session_id="done", if_exists="attach")

    with pytest.raises(errors.InvalidOperation, match="completed") as refused:
        attached.submit_run("late")
    assert "invalid_operation" == refused.value.code
    for move in (attached.resume, attached.pause):
        with pytest.raises(errors.InvalidTransition):
            move()
    assert [SessionStatus.COMPLETED] == [session.status for session in desk_on_each.asm.list_sessions()]
    assert [] == attached.list_runs()


def test_two_handles_share_the_slots_of_one_session(desk: Desk) -> None:
    """SS-16, SS-13: runs submitted through two processes run one at a time, in one line."""
    one = desk.start("gate", session_id="shared")
    two = desk.another().attach("shared")
    desk.work()

    run_ids = [server.submit_run(number) for number, server in enumerate([one, two, one, two])]
    desk.running(two)
    assert (1, 3) == (one.status().in_flight_count, two.status().queued_count)
    desk.gates.open(0, 1, 2, 3)
    desk.ended(one, run_ids[-1])

    assert run_ids == started(one)


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


@pytest.mark.parametrize("value", [object(), {1: "key"}, float("nan"), {"at": {1, 2}}, b"bytes"])
def test_an_input_that_is_not_json_is_refused(desk: Desk, value: Any) -> None:
    """SS-21: any JSON is an input; what is not JSON has no effect."""
    server = desk.start()

    with pytest.raises(errors.InvalidInput) as refused:
        server.submit_run(value)

    assert isinstance(refused.value, errors.ValidationError)
    assert [] == server.list_runs()


@pytest.mark.parametrize(
    "options",
    [
        {"run_timeout": 0},
        {"run_timeout": "5"},
        {"queue_timeout": -1},
        {"max_attempts": 0},
        {"metadata": [1]},
        {"idempotency_key": ""},
        {"on_busy": "queue"},
    ],
)
def test_an_option_that_breaks_its_rule_is_refused(desk: Desk, options: dict[str, Any]) -> None:
    """SS-21, SS-28: the options are checked at the door."""
    server = desk.start()

    with pytest.raises(errors.ValidationError):
        server.submit_run(1, **options)
    with pytest.raises(TypeError, match="adapter_opts"):
        server.submit_run(1, adapter_opts={})  # type: ignore[call-arg]
    assert [] == server.list_runs()


def test_a_full_session_refuses_and_stores_nothing(desk_on_each: Desk) -> None:
    """SS-24, SS-25, RQ-3: one slot and two waiting make three open runs; the fourth leaves no row."""
    server = desk_on_each.start("gate", max_queued_runs=2)
    desk_on_each.work()
    run_ids = [server.submit_run("shut")]
    desk_on_each.running(server)
    run_ids += [server.submit_run(number) for number in range(2)]

    with pytest.raises(errors.QueueFull) as refused:
        server.submit_run("one too many")

    assert ("max_runs_exceeded", 3, 3) == (refused.value.code, refused.value.limit, refused.value.depth)
    assert run_ids == [run.run_id for run in server.list_runs()]
    assert run_ids[1:] == server.status().queued_runs


def test_the_bound_counts_what_no_slot_is_free_for(desk: Desk) -> None:
    """SS-26: two slots take two runs whatever the bound."""
    server = desk.start("gate", max_concurrent_runs=2, max_queued_runs=0)
    desk.work()

    accepted = [server.submit_run(number) for number in range(2)]

    assert accepted == desk.running(server, 2)
    with pytest.raises(errors.QueueFull):
        server.submit_run("third")


def test_without_a_queue_a_run_starts_when_idle_and_is_refused_when_busy(desk: Desk) -> None:
    """SS-27, SS-12: bound 0 loses nothing that was accepted."""
    server = desk.start("gate", max_queued_runs=0)
    desk.work()
    first = server.submit_run("first")
    desk.running(server)

    with pytest.raises(errors.QueueFull):
        server.submit_run("busy")
    desk.gates.open("first", "second")
    assert "first" == server.await_run(first).output
    assert "second" == server.execute_run("second").output


def test_without_a_database_a_submit_fails_and_nothing_is_accepted(desk: Desk) -> None:
    """SS-30, SS-45, ST-45: a typed error within the connect timeout; the process lives on."""
    server = desk.start()
    cut_off = desk.without_database(server)

    for _ in range(2):
        with pytest.raises(errors.StorageConnectionFailed) as refused:
            cut_off.submit_run(1)

    assert refused.value.retryable
    assert [] == server.list_runs()


def test_the_same_key_is_the_same_run(desk_on_each: Desk) -> None:
    """SS-31: a caller that does not know whether it was accepted asks again."""
    server = desk_on_each.start()

    first = server.submit_run({"a": 1}, idempotency_key="k")

    assert first == desk_on_each.another().attach(server.session_id).submit_run({"a": 1}, idempotency_key="k")
    assert [first] == [run.run_id for run in server.list_runs()]
    with pytest.raises(errors.IdempotencyConflict):
        server.submit_run({"a": 2}, idempotency_key="k")


def test_admission_can_be_closed_and_opened_again(desk: Desk) -> None:
    """SS-33, SS-127: drain(accept=False) refuses new runs in every process until resume."""
    server = desk.start()
    server.drain(accept=False)

    with pytest.raises(errors.SessionDraining) as refused:
        desk.another().attach(server.session_id).submit_run(1)

    assert "session_draining" == refused.value.code
    server.resume()
    assert server.submit_run(1)


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
