"""A worker that dies by SIGKILL: its runs are decided soon, and nothing of it stays taken."""

from __future__ import annotations

import os
import signal
import time

import pytest

from asm_celery import AgentSessions, errors
from asm_celery.config import Config
from asm_celery.states import RunStatus
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.ledger import Ledger
from tests.history import anomalies
from tests.waiting import wait_until

pytestmark = pytest.mark.either_database

# 20 s are promised at the defaults, of which lease and repair period are 17
REST_S = 3.0
TIMES = 3


def test_the_runs_of_a_killed_worker_end_and_the_next_ones_start(
    asm: AgentSessions, config: Config, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """Both runs end `worker_lost`, the limiter they filled is free, and their followers run elsewhere."""
    dying = worker(pool="prefork", max_parallel_runs=2)
    servers = [asm.start_session("gate") for _ in range(2)]
    runs = [server.submit_run({"gate": str(gate)}) for server in servers]
    wait_until(lambda: set(ledger.entered()) == set(runs), description="both runs are in flight")
    followers = [server.submit_run({"gate": str(gate), "value": "next"}) for server in servers]
    worker(pool="threads")
    assert 2 == asm.limiter.get_status().active_runs

    dying.kill()
    killed_at = time.monotonic()
    lost = []
    for server, run_id in zip(servers, runs, strict=True):
        with pytest.raises(errors.RunFailed) as failed:
            server.await_run(run_id, timeout=30)
        lost.append(failed.value)
    took_s = time.monotonic() - killed_at

    assert ["worker_lost"] * 2 == [one.code for one in lost]
    assert took_s < TIMES * (config.lease_s + config.repair_s + REST_S)
    wait_until(lambda: set(ledger.entered()) == {*runs, *followers}, description="the next runs have started")
    # theirs, and not the dead worker's: the limit is two
    assert 2 == asm.limiter.get_status().active_runs
    gate.open()
    for server, run_id, follower in zip(servers, runs, followers, strict=True):
        assert "next" == server.await_run(follower).output
        events = server.get_events(limit=1000)
        assert [] == anomalies(events, slots=1, submitted=[run_id, follower])
    wait_until(lambda: asm.limiter.get_status().active_runs == 0, description="no slot is held any more")
    assert 0 == asm.limiter.get_status().active_sessions


def test_a_run_with_attempts_left_is_entered_again_before_its_followers(
    asm: AgentSessions, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """It waits at its old position and completes in attempt 2; a run asked to stop is not entered again."""
    dying = worker(pool="threads", concurrency=3)
    alone, crowd = asm.start_session("gate"), asm.start_session("gate", max_concurrent_runs=2)
    first = {server: server.submit_run({"gate": str(gate)}, max_attempts=2) for server in (alone, crowd)}
    stopped = asm.start_session("gate")
    stopped_id = stopped.submit_run({"gate": str(gate)}, max_attempts=2)
    wait_until(lambda: len(ledger.entered()) == 3, description="three runs are in flight")
    lines = {
        server: [run_id, *(server.submit_run({"gate": str(gate)}) for _ in range(3))]
        for server, run_id in first.items()
    }

    dying.kill()
    assert "requested" == stopped.cancel_run(stopped_id).state
    worker(pool="threads", concurrency=4)
    for server, run_id in first.items():
        wait_until(
            lambda server=server, run_id=run_id: server.get_run(run_id).attempt == 2,
            description="it was entered again",
            timeout=30,
        )
    gate.open()

    for server, run_id in first.items():
        result = server.await_run(run_id)
        assert (RunStatus.COMPLETED, 2) == (result.status, result.attempts)
        server.drain()
        events = server.get_events(limit=1000)
        slots = server.status().max_concurrent_runs
        assert [] == anomalies(events, slots=slots, submitted=lines[server])
        of_first = [event for event in events if event.run_id == run_id]
        types = [event.type for event in of_first]
        assert ["run_queued", "run_started", "run_requeued", "run_started", "run_completed"] == types
        assert "worker_lost" == of_first[2].data["error_code"]
    entries = [entry for entry in ledger.entries(alone.session_id) if entry.what == "enter"]
    once = [(run_id, 1) for run_id in lines[alone][1:]]
    assert [(first[alone], 1), (first[alone], 2), *once] == [(one.run_id, one.attempt) for one in entries]
    with pytest.raises(errors.RunCancelled):
        stopped.await_run(stopped_id)
    assert [stopped_id] == ledger.entered(stopped.session_id)


def test_a_killed_child_costs_its_run_only(
    asm: AgentSessions, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """One child of a prefork worker is killed: its run ends, its neighbour's goes on, the worker lives."""
    living = worker(pool="prefork", concurrency=2)
    servers = [asm.start_session("gate") for _ in range(2)]
    runs = [server.submit_run({"gate": str(gate), "value": "alive"}) for server in servers]
    wait_until(lambda: len(ledger.entered()) == 2, description="both runs are in flight")
    killed = ledger.entries()[0]
    of = runs.index(killed.run_id)

    os.kill(killed.pid, signal.SIGKILL)

    with pytest.raises(errors.RunFailed) as failed:
        servers[of].await_run(runs[of], timeout=30)
    assert "worker_lost" == failed.value.code
    again = servers[of].submit_run({"gate": str(gate), "value": "again"})
    gate.open()
    assert "again" == servers[of].await_run(again).output
    assert "alive" == servers[1 - of].await_run(runs[1 - of]).output
    assert not living.has_ended
