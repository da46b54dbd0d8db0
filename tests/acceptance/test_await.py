"""Awaiting a run, from anywhere: its result when it has ended, and an error that says how otherwise."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from asm_celery import AgentSessions, errors
from asm_celery.aio import AsyncAgentSessions
from asm_celery.config import Config
from asm_celery.embedded import EmbeddedServer
from asm_celery.model import new_id
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.elsewhere import Elsewhere
from tests.waiting import await_until, wait_until

THREADS, TASKS = 50, 50


def test_a_hundred_waiters_of_another_process_return_after_the_terminal_event(
    asm: AgentSessions,
    env: dict[str, str],
    worker: StartWorker,
    gate: Gate,
    record_property: Callable[[str, object], None],
) -> None:
    """50 threads and 50 coroutines await ten runs: each returns when the end is in the log, and soon."""
    worker(pool="threads", concurrency=10, lease_s=10.0)
    servers = [asm.start_session("gate") for _ in range(10)]
    runs = {server.submit_run({"gate": str(gate)}): server for server in servers}
    pairs = [[server.session_id, run_id] for run_id, server in runs.items()]
    with Elsewhere("wait_for", env, runs=pairs, threads=THREADS, tasks=TASKS) as other:
        assert "waiting" == other.go().answer()
        wait_until(lambda: all(server.status().in_flight_count for server in servers), description="all run")
        gate.open()
        answers = other.answer()

    endings = {run_id: server.get_events(run_id=run_id)[-1] for run_id, server in runs.items()}
    assert THREADS + TASKS == len(answers)
    waited = []
    for run_id, last_sequence, returned_at in answers:
        assert "run_completed" == endings[run_id].type
        assert endings[run_id].sequence == last_sequence
        waited.append(returned_at - endings[run_id].timestamp.timestamp())
    assert min(waited) >= 0
    p95_ms = statistics.quantiles(waited, n=20)[-1] * 1000
    record_property("await_p95_ms", round(p95_ms, 1))
    print(f"await_run by {len(waited)} waiters: p95 {p95_ms:.0f} ms after the terminal event")  # noqa: T201
    assert p95_ms < 2000


def test_an_unknown_run_is_not_waited_for(asm: AgentSessions) -> None:
    """An id that was never given out, one of another session and one that is no id: RunNotFound at once."""
    server, other = asm.start_session("echo"), asm.start_session("echo")
    foreign = other.submit_run("x")

    for run_id in (new_id("run"), foreign, "run_7", "", None):
        with pytest.raises(errors.RunNotFound) as refused:
            server.await_run(run_id, timeout=None)  # type: ignore[arg-type]
        assert "run_not_found" == refused.value.code


def test_a_finished_run_answers_when_every_process_was_restarted(
    config: Config, worker: StartWorker, tmp_path: Path
) -> None:
    """Web process, worker and Redis are new and Redis has forgotten all: SQL answers, and work goes on."""
    with EmbeddedServer.start(tmp_path / "redis", persistent=False) as redis:
        here = config.model_copy(update={"redis_url": redis.url})
        with AgentSessions(here) as asm:
            first_worker = worker(pool="threads", redis_url=redis.url)
            server = asm.start_session("echo", session_id="chat-42")
            run_id = server.submit_run({"answer": 42})
            result = server.await_run(run_id)
            broken = asm.start_session("fail")
            broken_id = broken.submit_run("no")
            with pytest.raises(errors.RunFailed) as failed:
                broken.await_run(broken_id)
            first_worker.stop()

    with AgentSessions(here) as asm:
        # with nothing there but SQL
        assert result == asm.attach("chat-42").await_run(run_id, timeout=0)
        with pytest.raises(errors.RunFailed) as again:
            asm.attach(broken.session_id).await_run(broken_id)
    with EmbeddedServer.start(tmp_path / "redis", persistent=False) as redis, AgentSessions(here) as asm:
        worker(pool="threads", redis_url=redis.url)
        server = asm.start_session("echo", session_id="chat-42", if_exists="attach")
        assert result == server.await_run(run_id)
        assert "next" == server.execute_run("next").output

    assert {"answer": 42} == result.output
    assert failed.value.result == again.value.result


def test_each_way_a_run_ends_has_its_error(asm: AgentSessions, worker: StartWorker, gate: Gate) -> None:
    """Completed gives the result; the others raise, with the result, a code and what was said."""
    worker(pool="threads", concurrency=4)
    closed = {"gate": str(gate)}

    failing = asm.start_session("fail")
    with pytest.raises(errors.RunFailed, match="out of paper") as failed:
        failing.execute_run("out of paper")
    assert ("failed", "agent_error", 1) == (
        failed.value.result.status,
        failed.value.code,
        failed.value.result.attempts,
    )
    assert "out of paper" == failed.value.result.error["message"]

    cancelling = asm.start_session("gate")
    cancelled_id = cancelling.submit_run(closed)
    cancelling.cancel_run(cancelled_id)
    with pytest.raises(errors.RunCancelled) as cancelled:
        cancelling.await_run(cancelled_id)
    assert ("cancelled", "cancelled") == (cancelled.value.result.status, cancelled.value.code)

    speaking = asm.start_session("speak")
    spoken_id = speaking.submit_run({"words": ["one ", "two"], **closed})
    wait_until(
        lambda: len(speaking.get_events(run_id=spoken_id, type="message_streamed")) == 2,
        description="both words are in the log",
    )
    speaking.interrupt_run(spoken_id)
    with pytest.raises(errors.RunInterrupted) as interrupted:
        speaking.await_run(spoken_id)
    assert ("interrupted", "interrupted") == (interrupted.value.result.status, interrupted.value.code)
    assert "one two" == interrupted.value.result.output

    timing = asm.start_session("gate")
    with pytest.raises(errors.RunTimeout) as timed_out:
        timing.execute_run(closed, run_timeout=0.3)
    assert ("timeout", "run_timeout") == (timed_out.value.result.status, timed_out.value.code)
    assert isinstance(timed_out.value, TimeoutError)

    waiting = asm.start_session("gate")
    goes_on = waiting.submit_run({**closed, "value": "done"})
    with pytest.raises(errors.RunTimeout) as waited_out:
        waiting.execute_run(closed, queue_timeout=0.3)
    assert ("timeout", "queue_timeout", 0) == (
        waited_out.value.result.status,
        waited_out.value.code,
        waited_out.value.result.attempts,
    )
    with pytest.raises(errors.AwaitTimeout) as impatient:
        waiting.await_run(goes_on, timeout=0.1)
    assert (goes_on, "timeout") == (impatient.value.run_id, impatient.value.code)
    assert isinstance(impatient.value, TimeoutError)
    assert not isinstance(impatient.value, errors.RunEnded)
    # the patience was the caller's: the run goes on
    gate.open()
    result = waiting.await_run(goes_on)
    assert ("completed", "done", None, 1) == (result.status, result.output, result.error, result.attempts)
    assert waiting.get_events(run_id=goes_on)[-1].sequence == result.last_sequence


async def test_a_coroutine_awaits_as_a_thread_does(config: Config, worker: StartWorker, gate: Gate) -> None:
    """`aio` gives the same results and raises the same errors."""
    worker(pool="threads")
    async with AsyncAgentSessions(config) as asm:
        gated, failing = await asm.start_session("gate"), await asm.start_session("fail")
        with pytest.raises(errors.RunNotFound):
            await gated.await_run(new_id("run"), timeout=None)
        with pytest.raises(errors.RunFailed, match="paper"):
            await failing.execute_run("paper")
        run_id = await gated.submit_run({"gate": str(gate), "value": 1})
        with pytest.raises(errors.AwaitTimeout):
            await gated.await_run(run_id, timeout=0.1)

        async def runs() -> bool:
            return bool((await gated.status()).in_flight_count)

        await await_until(runs, description="the run is in flight")
        gate.open()

        assert 1 == (await gated.await_run(run_id)).output


@pytest.mark.parametrize("timeout", [-1, float("nan"), "60"])
def test_a_timeout_that_is_no_time_is_refused(asm: AgentSessions, timeout: object) -> None:
    """A patience is a number of seconds from 0, or None."""
    server = asm.start_session("echo")
    run_id = server.submit_run("x")

    with pytest.raises(errors.ValidationError, match="timeout"):
        server.await_run(run_id, timeout=timeout)  # type: ignore[arg-type]
    with pytest.raises(errors.ValidationError, match="timeout"):
        server.execute_run("y", timeout=timeout)  # type: ignore[arg-type]

    # refused at the door: nothing was submitted
    assert 1 == len(server.list_runs())
