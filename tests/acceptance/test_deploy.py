"""A deploy costs time and nothing else: workers are replaced under load, and recovery has nothing to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from asm_celery import AgentSessions, Event, SessionServer
from asm_celery.states import TERMINAL_EVENTS, EventType, RunStatus
from tests.acceptance.conftest import FULL, Gate, StartWorker
from tests.acceptance.ledger import Ledger
from tests.history import anomalies
from tests.waiting import wait_until
from tests.workers import WorkerProcess

pytestmark = pytest.mark.either_database

SESSIONS, RUNS, LONELY = (20, 15, 20) if FULL else (6, 4, 4)
# Long enough that some run when their worker's grace is over, short enough to wait for all.
WORK_S = 0.4
LONG_S = 2.5
GRACE_S = 1.0
# promised is one second; three times that is said to be enough on two busy cores
CLAIMS_UNTIL_S = 3.0


@contextmanager
def following(server: SessionServer) -> Iterator[list[Event]]:
    """Follow a session in a thread; the list grows meanwhile."""
    seen: list[Event] = []

    with server.subscribe() as subscription:
        thread = threading.Thread(target=seen.extend, args=(subscription,), daemon=True)
        thread.start()
        yield seen
    thread.join(10)


def deploy(worker: WorkerProcess) -> tuple[datetime, set[int]]:
    """Tell a worker to end; returns when it has heard, and the processes that executed its runs."""
    main = psutil.Process(worker.pid)
    pids = {worker.pid, *(child.pid for child in main.children())}
    worker.terminate()
    wait_until(lambda: "Warm shutdown" in worker.log, description="it has heard")
    return datetime.now(UTC), pids


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_rolling_restart_loses_nothing_and_uses_up_no_attempt(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger, gate: Gate, pool: str
) -> None:
    """Runs that may be entered again are handed back, the others end as interrupted; P18 holds."""
    options = {"pool": pool, "concurrency": 4, "shutdown_grace_s": GRACE_S, "lease_s": 15.0}
    first, second = worker(**options), worker(**options)
    busy = [asm.start_session("work") for _ in range(SESSIONS)]
    held = [asm.start_session("gate") for _ in range(3)]
    lonely = [asm.start_session("work", max_concurrent_runs=2) for _ in range(LONELY)]
    with following(busy[0]) as seen:
        # these cannot end before their workers have
        gated = [server.submit_run({"gate": str(gate)}, max_attempts=2) for server in held]
        again = [server.submit_run(WORK_S, max_attempts=2) for _ in range(RUNS) for server in busy]
        once = [server.submit_run(LONG_S) for server in lonely]
        wait_until(lambda: set(gated) <= set(ledger.entered()), description="they are executed", timeout=30)
        told = []
        for old in (first, second):
            told.append(deploy(old))
            worker(**options)
            old.wait(timeout=40)
        gate.open()
        for server in [*busy, *lonely, *held]:
            server.drain(timeout=300 if FULL else 90)

    logs = {server.session_id: server.get_events(limit=1000) for server in [*busy, *lonely, *held]}
    events = [event for log in logs.values() for event in log]
    runs = {run_id: asm.get_run(run_id) for run_id in [*gated, *again, *once]}
    assert {RunStatus.COMPLETED} == {runs[run_id].status for run_id in [*gated, *again]}
    assert {1} == {runs[run_id].attempt for run_id in [*gated, *again]}
    for run_id in once:
        ending = (runs[run_id].status, (runs[run_id].error or {}).get("code"))
        assert ending in [(RunStatus.COMPLETED, None), (RunStatus.INTERRUPTED, "worker_shutdown")]
    entered = ledger.entered()
    assert [1] * len(once) == [entered.count(run_id) for run_id in once]
    # some had to be handed back, and nothing was left to recovery
    requeued = [event for event in events if event.type == EventType.RUN_REQUEUED]
    assert requeued
    assert {"worker_shutdown"} == {event.data["error_code"] for event in requeued}
    for told_at, pids in told:
        late = [
            event.run_id
            for event in events
            if event.type == EventType.RUN_STARTED
            and int(str(event.data["executor"]).split(":")[1]) in pids
            and event.timestamp > told_at + timedelta(seconds=CLAIMS_UNTIL_S)
        ]
        assert [] == late
    for server in busy:
        submitted = [run.run_id for run in server.list_runs(limit=1000)]
        assert [] == anomalies(logs[server.session_id], slots=1, submitted=submitted)
    assert [event.sequence for event in logs[busy[0].session_id]] == [event.sequence for event in seen]
    assert len(runs) == sum(event.type in TERMINAL_EVENTS for event in events)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_second_sigterm_hurries(asm: AgentSessions, worker: StartWorker, pool: str) -> None:
    """The first waits for what runs; the second asks it to leave, and its end is stored all the same."""
    one = worker(pool=pool, concurrency=2, shutdown_grace_s=600.0, lease_s=15.0)
    server = asm.start_session("work")
    run_id = server.submit_run(600)
    wait_until(lambda: server.status().in_flight_count, description="it runs")

    one.terminate()
    wait_until(lambda: "Warm shutdown" in one.log, description="it heard the first")
    assert not server.get_run(run_id).is_terminal
    one.terminate()
    one.wait(timeout=20)

    run = server.get_run(run_id)
    assert (RunStatus.INTERRUPTED, "worker_shutdown") == (run.status, (run.error or {})["code"])
