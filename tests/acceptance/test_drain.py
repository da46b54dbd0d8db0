"""Draining, pausing, completing and deleting a session: nothing is lost and every refusal says why."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import pytest

from asm_celery import AgentSessions, errors
from asm_celery.config import Config
from asm_celery.queue.run_queue import Entry, Granted, Line, RunQueue
from asm_celery.states import RunStatus, SessionStatus
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.ledger import Ledger
from tests.history import anomalies
from tests.waiting import wait_until


def test_drain_returns_when_all_is_done_and_says_what_is_left_when_it_is_not(
    asm: AgentSessions, worker: StartWorker, gate: Gate
) -> None:
    """DrainTimeout names what is in flight, what is queued and why; the work goes on, and the next drain ends."""
    worker(pool="threads")
    server = asm.start_session("gate")
    server.drain(timeout=0)
    runs = [server.submit_run({"gate": str(gate)}) for _ in range(3)]
    wait_until(lambda: server.status().in_flight_runs == runs[:1], description="the first run is in flight")

    with pytest.raises(errors.DrainTimeout) as impatient:
        server.drain(timeout=0.2)

    assert (runs[:1], runs[1:]) == (impatient.value.in_flight, impatient.value.queued)
    assert "1 running, 2 waiting behind them" == impatient.value.why
    assert impatient.value.why in str(impatient.value)
    assert ("timeout", True) == (impatient.value.code, isinstance(impatient.value, TimeoutError))
    # accept=True left the door open
    runs.append(server.submit_run({"gate": str(gate)}))
    gate.open()
    server.drain(timeout=30)
    assert {RunStatus.COMPLETED} == {run.status for run in server.list_runs()}
    assert [] == anomalies(server.get_events(limit=1000), slots=1, submitted=runs)


def test_a_drain_without_a_timeout_waits_as_long_as_it_takes(
    asm: AgentSessions, worker: StartWorker, gate: Gate
) -> None:
    """It has not returned while a run is held, and returns after its end."""
    worker(pool="threads")
    server = asm.start_session("gate")
    runs = [server.submit_run({"gate": str(gate)}) for _ in range(2)]
    seen: list[list[RunStatus]] = []

    def drain() -> None:
        server.drain(timeout=None)
        seen.append([run.status for run in server.list_runs()])

    draining = threading.Thread(target=drain)
    draining.start()
    wait_until(lambda: server.status().subscribers == 1, description="it listens")
    assert [] == seen
    gate.open()
    draining.join(30)

    assert [[RunStatus.COMPLETED] * len(runs)] == seen


def test_a_drain_that_waits_in_vain_says_why(
    asm: AgentSessions, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """Paused, without a worker, behind the limit: the reason is in the error."""

    def why(name: str) -> str:
        with pytest.raises(errors.DrainTimeout) as impatient:
            servers[name].drain(timeout=0.05)
        return impatient.value.why

    servers = {name: asm.start_session("gate") for name in ("paused", "alone", "limited")}
    servers["paused"].pause()
    for server in servers.values():
        server.submit_run({"gate": str(gate)})

    assert "the session is paused: resume() it" == why("paused")
    assert "no worker has taken them" in why("alone")
    worker(pool="threads", max_parallel_runs=1)
    wait_until(lambda: len(ledger.entered()) == 1, description="one of both runs, under a limit of one")
    waits = "limited" if servers["alone"].status().in_flight_count else "alone"
    assert "the limit of 1 parallel runs is reached" == why(waits)
    gate.open()
    servers["paused"].resume()
    for server in servers.values():
        server.drain()


def test_a_session_drained_with_accept_false_takes_no_runs_until_it_is_resumed(
    asm: AgentSessions, worker: StartWorker, gate: Gate
) -> None:
    """Admission is closed for every process and stays so; what was accepted is finished."""
    worker(pool="threads")
    server = asm.start_session("gate")
    runs = [server.submit_run({"gate": str(gate)}) for _ in range(2)]

    with pytest.raises(errors.DrainTimeout):
        server.drain(timeout=0.1, accept=False)

    assert SessionStatus.DRAINING == server.status().status
    with AgentSessions(asm.config) as other, pytest.raises(errors.SessionDraining) as refused:
        other.attach(server.session_id).submit_run({"gate": str(gate)})
    assert "session_draining" == refused.value.code
    gate.open()
    server.drain(accept=False)
    assert [RunStatus.COMPLETED] * 2 == [run.status for run in server.list_runs()]
    with pytest.raises(errors.SessionDraining):
        server.submit_run({"gate": str(gate)})

    server.resume()
    runs.append(server.submit_run({"gate": str(gate)}))
    server.drain()
    events = server.get_events(limit=1000)
    assert [] == anomalies(events, slots=1, submitted=runs)
    told = [event.type for event in events if event.type.startswith("session_")]
    assert ["session_created", "session_started", "session_draining", "session_resumed"] == told


def test_a_paused_session_finishes_what_runs_and_starts_nothing(
    asm: AgentSessions, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """Submits are accepted meanwhile, also in a worker's new life, and `resume` starts them in order."""
    first_worker = worker(pool="threads")
    server = asm.start_session("gate")
    runs = [server.submit_run({"gate": str(gate)}) for _ in range(2)]
    wait_until(lambda: ledger.entered() == runs[:1], description="the first run is in flight")

    server.pause()
    server.pause()
    runs.append(server.submit_run({"gate": str(gate)}))
    gate.open()
    server.await_run(runs[0])
    first_worker.stop()
    worker(pool="threads")
    # work of another session goes through the new worker, so the paused one could have, too
    assert "alive" == asm.start_session("echo").execute_run("alive").output

    assert runs[:1] == ledger.entered(server.session_id)
    assert (SessionStatus.PAUSED, runs[1:]) == (server.status().status, server.status().queued_runs)
    server.resume()
    server.drain()
    events = server.get_events(limit=1000)
    assert [] == anomalies(events, slots=1, submitted=runs)
    assert 1 == sum(event.type == "session_paused" for event in events)


def test_pausing_and_resuming_while_runs_start_stalls_nothing(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger
) -> None:
    """A claim that meets a pause is given back, and the next resume starts it: no repair is needed."""
    worker(pool="threads", concurrency=4, ring_s=60)
    server = asm.start_session("work", max_concurrent_runs=2)
    runs = []
    for number in range(60):
        runs.append(server.submit_run(0.005))
        (server.pause if number % 2 else server.resume)()
    server.resume()

    server.drain(timeout=20)

    assert [] == anomalies(server.get_events(limit=1000), slots=2, submitted=runs)
    assert sorted(runs) == sorted(ledger.entered())


def test_a_submit_that_reaches_redis_after_the_resume_does_not_bring_the_pause_back(
    asm: AgentSessions, config: Config, worker: StartWorker
) -> None:
    """Redis has forgotten the empty session when `resume` comes, and then hears of the older state."""
    worker(pool="threads")
    server = asm.start_session("echo")
    server.pause()
    with AgentSessions(config) as other:
        late = other.attach(server.session_id)

        class LateQueue(RunQueue):
            def enqueue(self, line: Line, entries: Iterable[Entry], **more: Any) -> Granted:
                assert "paused" == line.state
                server.resume()
                return super().enqueue(line, entries, **more)

        client = late.runtime.queue._client
        late.runtime.__dict__["queue"] = LateQueue(client, config.keys, url=config.redis_url)
        run_id = late.submit_run("x")

        assert "x" == late.await_run(run_id, timeout=15).output


def test_a_completed_session_is_closed_for_good(asm: AgentSessions) -> None:
    """It needs to be empty first; then it takes no runs, cannot be resumed, and its followers end."""
    server = asm.start_session("echo")
    run_id = server.submit_run("x")
    with pytest.raises(errors.InvalidOperation, match="1 open runs"):
        server.complete()
    assert SessionStatus.ACTIVE == server.status().status
    server.cancel_run(run_id)

    with server.subscribe() as events:
        server.complete()
        server.complete()
        types = [event.type for event in events]

    assert "session_completed" == types[-1]
    assert 1 == types.count("session_completed")
    with pytest.raises(errors.InvalidOperation, match="is completed"):
        server.submit_run("y")
    for move in (server.resume, server.pause):
        with pytest.raises(errors.InvalidTransition):
            move()
    server.drain(accept=False)
    assert SessionStatus.COMPLETED == server.status().status


def test_only_a_drained_or_completed_session_can_be_deleted(asm: AgentSessions) -> None:
    """Active, paused or with open runs it stays; deleted, it is gone with its runs and events."""
    active, paused, draining, completed = (asm.start_session("echo") for _ in range(4))
    paused.pause()
    run_id = draining.submit_run("x")
    with pytest.raises(errors.DrainTimeout):
        draining.drain(timeout=0, accept=False)
    completed.complete()

    for kept in (active, paused, draining):
        with pytest.raises(errors.InvalidOperation, match="cannot be deleted"):
            asm.delete_session(kept.session_id)
    draining.cancel_run(run_id)
    for gone in (draining, completed):
        asm.delete_session(gone.session_id)

    assert [active.session_id, paused.session_id] == [session.session_id for session in asm.list_sessions()]
    with pytest.raises(errors.RunNotFound):
        asm.get_run(run_id)
    assert [] == draining.get_events()
    for ask in (lambda: asm.attach(draining.session_id), draining.status, lambda: draining.submit_run("y")):
        with pytest.raises(errors.SessionNotFound):
            ask()
