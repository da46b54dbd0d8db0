"""Rows SS-80 to SS-105 of the parity table: cancelling and interrupting."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from asm_celery import errors
from asm_celery.model import StopReceipt, new_id
from asm_celery.states import TERMINAL_EVENTS, RunStatus, StopKind
from tests.parity.desk import Desk, all_events, started
from tests.waiting import wait_until


def test_a_queued_run_is_withdrawn(desk_on_each: Desk) -> None:
    """SS-80, SS-81: cancelled with its event, never entered; what runs goes on."""
    server = desk_on_each.start("gate")
    desk_on_each.work()
    running, queued, last = [server.submit_run(word) for word in ("a", "b", "c")]
    desk_on_each.running(server)

    receipt = server.cancel_run(queued)

    run = server.get_run(queued)
    assert ("withdrawn", RunStatus.CANCELLED) == (receipt.state, receipt.status)
    assert (RunStatus.CANCELLED, None) == (run.status, run.error)
    assert run.ended_at is not None
    assert run.started_at is None
    assert ([running], [last]) == (server.status().in_flight_runs, server.status().queued_runs)
    assert ["run_queued", "run_cancelled"] == [event.type for event in all_events(server, run_id=queued)]
    desk_on_each.gates.open("a", "b", "c")
    assert RunStatus.COMPLETED is desk_on_each.ended(server, running).status
    assert RunStatus.COMPLETED is desk_on_each.ended(server, last).status
    assert [running, last] == desk_on_each.entered


def test_a_cancel_that_cannot_be_stored_is_an_error(desk: Desk) -> None:
    """SS-82: the caller is told, the run stays in the queue, and cancelling it later works."""
    server = desk.start()
    run_id = server.submit_run(1)

    with pytest.raises(errors.StorageConnectionFailed):
        desk.without_database(server).cancel_run(run_id)

    assert [run_id] == server.status().queued_runs
    assert "withdrawn" == server.cancel_run(run_id).state


@pytest.mark.parametrize("late", ["result", "error"])
def test_cancelled_is_final(desk_on_each: Desk, late: str) -> None:
    """SS-84, SS-85: whatever comes late, the run is cancelled, once; a late result is kept as output."""

    def agent(ctx: Any, given: Any) -> Any:
        desk_on_each.gates.open("entered")
        desk_on_each.gates.of("leave").wait(20)
        if late == "error":
            raise RuntimeError("broken off")
        return {"late": given}

    # it is left alone for as long as it takes
    desk_on_each.asm.register("deaf", agent, stop_grace_s=60)
    server = desk_on_each.start("deaf")
    desk_on_each.work()
    run_id = server.submit_run(7)
    # claimed and not yet entered, it would never be entered
    assert desk_on_each.gates.of("entered").wait(20)
    server.cancel_run(run_id)

    desk_on_each.gates.open("leave")
    with pytest.raises(errors.RunCancelled) as ended:
        server.await_run(run_id)

    endings = [event.type for event in all_events(server, run_id=run_id) if event.type in TERMINAL_EVENTS]
    assert ["run_cancelled"] == endings
    assert ({"late": 7} if late == "result" else None) == ended.value.result.output
    assert ended.value.result.error is None


def test_a_stop_that_is_not_obeyed_is_told(desk: Desk) -> None:
    """SS-86: the request is durable, shown as stopping, and a caller who waits for its end learns the truth."""
    server = desk.start("stubborn")
    desk.work()
    run_id = server.submit_run("x")
    desk.running(server)

    with pytest.raises(errors.CancelTimeout) as refused:
        server.cancel_run(run_id, wait=True, timeout=0.1)

    assert ("timeout", run_id) == (refused.value.code, refused.value.run_id)
    assert StopKind.CANCEL is server.get_run(run_id).stop_requested
    assert "run_stop_requested" == all_events(server)[-1].type
    desk.gates.open("x")
    assert RunStatus.CANCELLED is desk.ended(server, run_id).status


def test_a_second_stop_gets_the_receipt_of_the_first(desk: Desk) -> None:
    """SS-87, SS-102: asked twice is asked once, whatever the second asks for."""
    server = desk.start("stubborn")
    desk.work()
    run_id = server.submit_run("x")
    desk.running(server)

    first, again, other = server.cancel_run(run_id), server.cancel_run(run_id), server.interrupt_run(run_id)

    expected = StopReceipt(run_id=run_id, state="requested", status=RunStatus.RUNNING, kind=StopKind.CANCEL)
    assert [expected] * 3 == [first, again, other]
    assert 1 == len(all_events(server, type="run_stop_requested"))
    desk.gates.open("x")
    assert RunStatus.CANCELLED is desk.ended(server, run_id).status


def test_stopping_a_finished_run_changes_nothing(desk: Desk) -> None:
    """SS-88, SS-103: a success, from any handle, whatever the outcome was."""
    server = desk.start(session_id="s")
    desk.work()
    run_id = server.execute_run(1).run_id
    before = all_events(server)

    for handle in (server, desk.another().attach("s")):
        for stop in (handle.cancel_run, handle.interrupt_run):
            assert ("already_terminal", RunStatus.COMPLETED) == (stop(run_id).state, stop(run_id).status)

    assert before == all_events(server)


def test_any_process_can_stop_a_run(desk: Desk) -> None:
    """SS-89: queued or running elsewhere; only a run that does not exist is not found."""
    server = desk.start("gate", session_id="s")
    other = desk.another().attach("s")
    desk.work()
    running, queued = server.submit_run("a"), server.submit_run("b")
    desk.running(server)

    assert "withdrawn" == other.cancel_run(queued).state
    assert "requested" == other.cancel_run(running).state

    assert RunStatus.CANCELLED is desk.ended(server, running).status
    for unknown in (new_id("run"), "run_7"):
        with pytest.raises(errors.RunNotFound):
            other.cancel_run(unknown)
        with pytest.raises(errors.RunNotFound):
            other.interrupt_run(unknown)


def test_the_next_run_starts_when_a_cancelled_one_has_left(desk: Desk) -> None:
    """SS-90: its slot is free at once."""
    server = desk.start("gate")
    desk.work()
    cancelled, follower = server.submit_run("a"), server.submit_run("b")
    desk.running(server)

    server.cancel_run(cancelled, wait=True, timeout=20)
    desk.gates.open("b")

    assert "b" == server.await_run(follower).output
    assert [cancelled, follower] == started(server)


def test_a_run_cancelled_before_it_began_is_never_entered(desk: Desk) -> None:
    """SS-91: its doorbell was rung; the claim is refused, because the request is in SQL."""
    server = desk.start()
    desk.announce()

    run_id = server.submit_run(1)
    [lease] = desk.rung
    server.cancel_run(run_id)
    desk.work()
    desk.ring(lease)

    assert [] == desk.entered
    assert RunStatus.CANCELLED is server.get_run(run_id).status


def test_an_operator_interrupts_by_the_run_id_alone(desk_on_each: Desk) -> None:
    """SS-100, SS-101: a receipt with the id, a history, and an end of its own: interrupted, with its event."""
    server = desk_on_each.start("gate")
    desk_on_each.work()
    run_id = server.submit_run("x")
    desk_on_each.running(server)

    receipt = desk_on_each.asm.control.interrupt(run_id, by="alice")

    assert (run_id, "requested") == (receipt.run_id, receipt.state)
    assert RunStatus.INTERRUPTED is desk_on_each.ended(server, run_id).status
    status = desk_on_each.asm.control.get_operation_status(run_id)
    assert ("interrupted", "interrupt") == (status.state, status.last_operation)
    assert [("interrupt", "alice")] == [(entry.operation, entry.actor) for entry in status.history]
    assert ["run_stop_requested", "run_interrupted"] == [event.type for event in all_events(server)][-2:]


def test_an_interrupted_run_keeps_what_it_had(desk: Desk) -> None:
    """SS-101: the text streamed so far is its output."""

    def agent(ctx: Any, given: Any) -> Any:
        yield "so "
        yield "far"
        while True:
            ctx.sleep(1)

    desk.asm.register("talking", agent)
    server = desk.start("talking")
    desk.work()
    run_id = server.submit_run(1)
    wait_until(
        lambda: 2 == len(all_events(server, type="message_streamed")), description="both words are stored"
    )

    server.interrupt_run(run_id)

    with pytest.raises(errors.RunInterrupted) as ended:
        server.await_run(run_id)
    assert "so far" == ended.value.result.output


def test_a_queued_run_can_be_interrupted(desk: Desk) -> None:
    """SS-103, SS-102: it is withdrawn, with the same kind of receipt as any stop."""
    server = desk.start()
    run_id = server.submit_run(1)

    receipt = server.interrupt_run(run_id)

    expected = StopReceipt(
        run_id=run_id, state="withdrawn", status=RunStatus.INTERRUPTED, kind=StopKind.INTERRUPT
    )
    assert expected == receipt
    assert [] == server.status().queued_runs


def test_an_agent_that_stops_slowly_blocks_nobody(desk: Desk) -> None:
    """SS-104: the stop returns and the session answers while the agent is still cleaning up."""
    cleaning = threading.Event()

    def agent(ctx: Any, given: Any) -> None:
        def clean_up() -> None:
            cleaning.set()
            desk.gates.of("clean").wait(20)

        ctx.on_stop(clean_up)
        desk.gates.of("clean").wait(20)

    desk.asm.register("slow", agent)
    server = desk.start("slow")
    desk.work()
    run_id = server.submit_run(1)
    desk.running(server)

    assert "requested" == server.interrupt_run(run_id).state
    assert cleaning.wait(20)
    assert [run_id] == server.status().in_flight_runs
    desk.gates.open("clean")
    assert RunStatus.INTERRUPTED is desk.ended(server, run_id).status


def test_a_refused_operation_is_raised_and_told_for_each_run(desk: Desk) -> None:
    """SS-105: cancel_all answers for every id, with the receipt or the error."""
    server = desk.start()
    known, unknown = server.submit_run(1), new_id("run")

    answers = desk.asm.control.cancel_all([known, unknown])

    assert "withdrawn" == answers[known].state
    assert isinstance(answers[unknown], errors.RunNotFound)
    assert ["cancel"] == [entry.operation for entry in desk.asm.control.get_operation_history(known)]
