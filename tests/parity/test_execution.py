"""Rows SS-40 to SS-50 and SS-160 to SS-177 of the parity table: executing, slots, the limiter, crashes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from asm_celery import errors
from asm_celery.model import Event
from asm_celery.states import TERMINAL_EVENTS, RunStatus, SessionStatus
from tests.history import anomalies, most_running
from tests.parity.desk import Desk, all_events, started
from tests.waiting import wait_until


def test_an_agent_executes_away_from_the_caller(desk: Desk) -> None:
    """SS-40: submit returns while the agent works, and the session answers meanwhile."""
    server = desk.start("gate")
    desk.work()

    run_id = server.submit_run("long")
    desk.running(server)

    assert RunStatus.RUNNING is server.get_run(run_id).status
    assert server.get_run(run_id).executor != desk.asm._runtime().process


def test_what_a_submit_says_wins_over_what_the_agent_says(desk: Desk) -> None:
    """SS-41: the agent's own settings are the defaults of its runs, option by option."""
    desk.asm.register("careful", lambda ctx, given: given, run_timeout=9, max_attempts=4)
    server = desk.start("careful")

    plain = server.get_run(server.submit_run(1))
    said = server.get_run(server.submit_run(1, max_attempts=1))

    assert (9, 4) == (plain.run_timeout, plain.max_attempts)
    assert (9, 1) == (said.run_timeout, said.max_attempts)


def test_each_event_is_stored_before_it_is_shown(desk: Desk) -> None:
    """SS-42: who follows a run sees every event of its agent, with type and sequence, after it is stored."""

    def agent(ctx: Any, given: Any) -> None:
        for number in range(given):
            ctx.emit("noted", {"n": number})

    desk.asm.register("noting", agent)
    server = desk.start("noting")
    desk.work()

    seen = []
    for event in server.subscribe(run_id=server.submit_run(5)):
        assert [event] == server.get_events(after=event.sequence - 1, limit=1)
        seen.append(event)

    assert [0, 1, 2, 3, 4] == [event.data["n"] for event in seen if event.type == "noted"]
    assert "run_completed" == seen[-1].type


def test_a_third_run_waits_for_one_of_two_slots(desk: Desk) -> None:
    """SS-43, SS-46, SS-112: two run, one waits; their statuses say so."""
    server = desk.start("gate", max_concurrent_runs=2)
    desk.work()

    run_ids = [server.submit_run(number) for number in range(3)]
    desk.running(server, 2)

    report = server.status()
    assert (2, 1) == (report.in_flight_count, report.queued_count)
    assert (set(run_ids[:2]), run_ids[2:]) == (set(report.in_flight_runs), report.queued_runs)
    assert ["running", "running", "pending"] == [run.status for run in server.list_runs()]


def test_five_runs_share_two_slots(desk: Desk) -> None:
    """SS-44: never more than two at once; when two finish, the next two start."""
    server = desk.start("gate", max_concurrent_runs=2)
    desk.work()
    run_ids = [server.submit_run(number) for number in range(5)]
    desk.running(server, 2)
    assert run_ids[2:] == server.status().queued_runs

    desk.gates.open(0, 1)
    wait_until(lambda: set(run_ids[2:4]) == set(server.status().in_flight_runs), description="3 and 4 run")
    desk.gates.open(2, 3, 4)
    desk.ended(server, run_ids[4])
    for run_id in run_ids:
        desk.ended(server, run_id)

    assert 2 == most_running(all_events(server))


def test_a_free_slot_is_taken_at_once(desk: Desk) -> None:
    """SS-45: the third run starts when the first ends, while the second goes on."""
    server = desk.start("gate", max_concurrent_runs=2)
    desk.work()
    first, second, third = [server.submit_run(number) for number in range(3)]
    desk.running(server, 2)

    desk.gates.open(0)
    wait_until(lambda: third in server.status().in_flight_runs, description="the third run is running")

    assert {second, third} == set(server.status().in_flight_runs)
    assert RunStatus.COMPLETED is server.get_run(first).status


def test_one_slot_means_one_after_the_other(desk_on_each: Desk) -> None:
    """SS-22, SS-23: starts in the order of submission, each after the end of the one before."""
    server = desk_on_each.start()
    desk_on_each.work()

    run_ids = [server.submit_run(number) for number in range(5)]
    desk_on_each.ended(server, run_ids[-1])

    assert [] == anomalies(all_events(server), slots=1, submitted=run_ids)
    assert run_ids == desk_on_each.entered


def test_the_end_is_in_the_log_before_await_answers(desk_on_each: Desk) -> None:
    """SS-47: status, result and terminal event are one commit, and await_run answers after it."""
    server = desk_on_each.start()
    desk_on_each.work()

    for number in range(5):
        result = server.execute_run(number)
        [ending] = server.get_events(after=result.last_sequence - 1, limit=1)
        assert ("run_completed", result.run_id) == (ending.type, ending.run_id)
        assert RunStatus.COMPLETED is server.get_run(result.run_id).status


def test_a_result_tells_output_usage_and_cost(desk: Desk) -> None:
    """SS-48, RN-9, RN-10: usage and cost are the sums of what the agent told; events are in the log."""

    def agent(ctx: Any, given: Any) -> Any:
        for _ in range(2):
            ctx.emit("token_usage_updated", {"input_tokens": 3, "output_tokens": 5, "cost_usd": 0.25})
            ctx.emit("turn_completed")
        return {"answer": given}

    desk.asm.register("paid", agent)
    server = desk.start("paid")
    desk.work()

    result = server.execute_run(42)

    run = server.get_run(result.run_id)
    assert (RunStatus.COMPLETED, {"answer": 42}, None) == (result.status, result.output, result.error)
    assert {"input_tokens": 6, "output_tokens": 10} == result.token_usage == run.token_usage
    assert (0.5, 2, 1) == (run.cost_usd, run.turn_count, result.attempts)
    assert 7 == len(all_events(server, run_id=result.run_id))


def test_a_run_that_takes_too_long_ends_as_timeout(desk: Desk) -> None:
    """SS-49: run_timeout bounds the whole run, whatever the agent does inside."""
    server = desk.start("gate")
    desk.work()

    with pytest.raises(errors.RunTimeout) as ended:
        server.execute_run("never", run_timeout=0.2)

    assert ("run_timeout", RunStatus.TIMEOUT) == (ended.value.code, ended.value.result.status)


def test_the_end_of_a_run_writes_nothing_of_its_session_back(desk_on_each: Desk) -> None:
    """SS-50: what changed while the run executed stays changed."""
    server = desk_on_each.start("gate", metadata={"tags": ["a"]})
    desk_on_each.work()
    run_id = server.submit_run("x")
    desk_on_each.running(server)

    server.pause()
    server.append_events([Event.new("note", server.session_id)])
    desk_on_each.gates.open("x")
    desk_on_each.ended(server, run_id)

    assert SessionStatus.PAUSED is server.status().status
    assert ["session_paused", "note", "run_completed"] == [event.type for event in all_events(server)][-3:]


def test_running_runs_hold_slots_of_the_limiter(desk: Desk) -> None:
    """SS-160, SS-167: as many run slots as runs execute, one session slot a session in flight, 0 after."""
    server = desk.start("gate", max_concurrent_runs=2)
    desk.work()
    run_ids = [server.submit_run(number) for number in range(2)]
    desk.running(server, 2)

    status = desk.asm.limiter.get_status()
    assert (2, 1) == (status.active_runs, status.active_sessions)
    desk.gates.open(0, 1)
    for run_id in run_ids:
        desk.ended(server, run_id)

    wait_until(lambda: 0 == desk.asm.limiter.get_status().active_runs, description="both slots are free")
    assert 0 == desk.asm.limiter.get_status().active_sessions


def test_a_full_limiter_makes_runs_wait(desk: Desk) -> None:
    """SS-161, SS-162, SS-163: with one slot for all, nothing fails; everything completes, one at a time."""
    desk.asm.limiter.set_limits(max_parallel_runs=1)
    wide = desk.start("gate", max_concurrent_runs=2)
    other = desk.start("echo")
    desk.work()

    first = wide.submit_run("held")
    desk.running(wide)
    waiting = [(wide, wide.submit_run("second")), *[(other, other.submit_run(n)) for n in range(3)]]
    assert (1, 1, 3) == (
        wide.status().in_flight_count,
        wide.status().queued_count,
        other.status().queued_count,
    )
    desk.gates.open("held", "second")

    assert RunStatus.COMPLETED is desk.ended(wide, first).status
    assert {RunStatus.COMPLETED} == {desk.ended(server, run_id).status for server, run_id in waiting}


def test_a_cancelled_run_keeps_its_slots_until_its_agent_leaves(desk: Desk) -> None:
    """SS-83, SS-164: the receipt comes at once, the slots are free when the agent has left."""
    server = desk.start("stubborn")
    desk.work()
    run_id = server.submit_run("x")
    desk.running(server)
    follower = server.submit_run("y")

    receipt = server.cancel_run(run_id)

    assert ("requested", RunStatus.RUNNING) == (receipt.state, receipt.status)
    assert "stopping" == desk.asm.control.get_operation_status(run_id).state
    assert 1 == desk.asm.limiter.get_status().active_runs
    assert [follower] == server.status().queued_runs
    desk.gates.open("x", "y")
    assert RunStatus.CANCELLED is desk.ended(server, run_id).status
    assert RunStatus.COMPLETED is desk.ended(server, follower).status


def test_without_redis_a_submit_is_accepted_and_starts_later(desk: Desk) -> None:
    """SS-166: the limiter's server away fails no run and no caller."""
    server = desk.start()
    run_id = desk.without_redis(server).submit_run("patient")

    assert RunStatus.PENDING is server.get_run(run_id).status
    desk.work()

    assert "patient" == server.await_run(run_id).output


def test_a_failed_run_frees_its_slot(desk_on_each: Desk) -> None:
    """SS-170, SS-171, RN-8: failed with the reason stored, then the next run starts and completes."""
    server = desk_on_each.start("boom")
    desk_on_each.work()

    run_ids = [server.submit_run(word) for word in ("one", "two")]
    with pytest.raises(errors.RunFailed, match="one"):
        server.await_run(run_ids[0])
    failed = desk_on_each.ended(server, run_ids[1])

    assert run_ids == started(server)
    assert (RunStatus.FAILED, "agent_error", "two") == (
        failed.status,
        (failed.error or {})["code"],
        (failed.error or {})["message"],
    )
    [ending] = all_events(server, run_id=run_ids[1], type=TERMINAL_EVENTS)
    assert ("run_failed", "agent_error") == (ending.type, ending.data["error_code"])


@pytest.mark.parametrize("value", [object(), {"at": {1}}, float("inf")])
def test_a_result_that_is_not_json_fails_the_run(desk: Desk, value: Any) -> None:
    """SS-172: invalid_output is stored with its event, and the worker lives on."""
    desk.asm.register("odd", lambda ctx, given: value if given else "fine")
    server = desk.start("odd")
    desk.work()

    with pytest.raises(errors.RunFailed) as ended:
        server.execute_run(True)

    assert "invalid_output" == ended.value.code
    assert "fine" == server.execute_run(False).output


def test_a_raising_callback_hurts_neither_its_run_nor_another(desk: Desk) -> None:
    """SS-173, SS-105: an on_stop callable that raises is logged; the run still ends as asked."""

    def agent(ctx: Any, given: Any) -> None:
        ctx.on_stop(lambda: 1 / 0)
        while True:
            ctx.sleep(1)

    desk.asm.register("clumsy", agent)
    clumsy, other = desk.start("clumsy"), desk.start("gate")
    desk.work()
    run_id, neighbour = clumsy.submit_run(1), other.submit_run("n")
    desk.running(clumsy)
    desk.running(other)

    clumsy.interrupt_run(run_id, wait=True, timeout=20)
    desk.gates.open("n")

    assert RunStatus.INTERRUPTED is clumsy.get_run(run_id).status
    assert "n" == other.await_run(neighbour).output


def test_an_agent_reads_the_runs_before_its_own(desk: Desk) -> None:
    """SS-177: ctx.history reads ended runs from SQL; there is no cache and none is claimed."""
    seen: list[list[Any]] = []
    desk.asm.register("recalling", lambda ctx, given: seen.append([run.input for run in ctx.history(2)]))
    server = desk.start("recalling")
    desk.work()

    for number in range(4):
        server.execute_run(number)

    assert [[], [0], [0, 1], [1, 2]] == seen


def test_many_threads_submit_into_one_line(desk: Desk) -> None:
    """SS-22: positions are given in the order of acceptance, without a hole, and runs follow them."""
    server = desk.start()
    desk.work()
    threads = [threading.Thread(target=server.submit_run, args=(number,)) for number in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.drain(20)

    runs = server.list_runs()
    assert list(range(1, 9)) == [run.position for run in runs]
    assert [run.run_id for run in runs] == started(server)
