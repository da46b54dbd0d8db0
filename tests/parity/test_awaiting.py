"""Rows SS-60 to SS-72 of the parity table: awaiting and executing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from asm_celery import errors
from asm_celery.states import RunStatus
from tests.parity.desk import Desk
from tests.waiting import wait_until


def test_a_result_can_be_awaited_any_number_of_times(desk: Desk) -> None:
    """SS-60, SS-66, SS-67: the answer is in SQL, also for a process that saw nothing of the run."""
    server = desk.start(session_id="s")
    desk.work()
    run_id = server.submit_run("x")

    first = server.await_run(run_id)

    assert first == server.await_run(run_id)
    assert first == desk.another().attach("s").await_run(run_id, timeout=5)
    assert (RunStatus.COMPLETED, "x") == (first.status, first.output)


def test_awaiting_a_failed_run_raises_its_error(desk: Desk) -> None:
    """SS-62, SS-68: the code and text of what the agent raised; any exception is an agent_error."""
    server = desk.start("boom")
    desk.work()

    with pytest.raises(errors.RunFailed, match="no luck") as ended:
        server.execute_run("no luck")

    assert "agent_error" == ended.value.code
    assert "ValueError" == ended.value.details["type"]
    assert RunStatus.FAILED is ended.value.result.status


def test_awaiting_a_run_cancelled_in_the_queue_raises_that(desk: Desk) -> None:
    """SS-63: at once, every time, and for those who waited already."""
    server = desk.start()
    run_id = server.submit_run(1)
    with ThreadPoolExecutor(1) as threads:
        early = threads.submit(server.await_run, run_id, 20)
        server.cancel_run(run_id)
        assert isinstance(early.exception(), errors.RunCancelled)

    for _ in range(2):
        with pytest.raises(errors.RunCancelled) as ended:
            server.await_run(run_id, timeout=5)
        assert ("cancelled", run_id) == (ended.value.code, ended.value.result.run_id)


def test_impatience_is_a_typed_error_and_changes_nothing(desk: Desk) -> None:
    """SS-64, SS-69, SS-71: the run goes on, and nothing is kept of who waited in vain."""
    server = desk.start("gate")
    desk.work()
    run_id = server.submit_run("x")
    desk.running(server)

    with pytest.raises(errors.AwaitTimeout) as refused:
        server.await_run(run_id, timeout=0.05)
    with pytest.raises(errors.AwaitTimeout) as executing:
        server.execute_run("y", timeout=0.05)

    assert ("timeout", run_id) == (refused.value.code, refused.value.run_id)
    assert isinstance(refused.value, TimeoutError)
    assert [] == desk.asm._runtime().hub._waiters.everyone()
    desk.gates.open("x", "y")
    assert "x" == server.await_run(run_id).output
    assert "y" == server.await_run(executing.value.run_id).output


def test_execute_is_submit_and_await(desk: Desk) -> None:
    """SS-70, SS-72: it returns the result, and raises what submit refuses."""
    server = desk.start("gate", max_queued_runs=0)
    desk.work()
    desk.gates.open("x")

    assert "x" == server.execute_run("x").output
    run_id = server.submit_run("shut")
    desk.running(server)
    with pytest.raises(errors.QueueFull):
        server.execute_run("y")
    desk.gates.open("shut")
    desk.ended(server, run_id)


def test_waiting_without_a_limit_is_allowed(desk: Desk) -> None:
    """SS-64: None is as long as it takes; a negative patience is refused."""
    server = desk.start("gate")
    desk.work()
    run_id = server.submit_run("x")
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(server.await_run(run_id, timeout=None).output))
    thread.start()

    with pytest.raises(errors.ValidationError):
        server.await_run(run_id, timeout=-1)
    desk.gates.open("x")

    wait_until(lambda: answers == ["x"], description="the patient one was answered")
    thread.join()
