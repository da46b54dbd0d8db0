"""One limit over all sessions: never exceeded, shared in turns, and held by nothing that cannot run."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from asm_celery import AgentSessions
from asm_celery.agent import AgentRegistry
from asm_celery.config import Config
from asm_celery.moves.coordinator import Outcome
from asm_celery.queue.run_queue import Entry, Granted, Line, RunQueue
from asm_celery.runtime import Runtime
from asm_celery.server import SessionServer
from asm_celery.states import RunStatus
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.ledger import Ledger
from tests.history import anomalies
from tests.waiting import wait_until
from tests.world import RecordingDispatcher

LIMIT, SESSIONS, RUNS = 2, 20, 3
# four children on two busy cores must not look dead
LEASE_S = 10.0


def turns_before_a_first(entered: Iterable[str]) -> int:
    """Return how many sessions had no turn yet when one first got its second, at most; 0 is fair."""
    turns: Counter[str] = Counter()
    for session_id in entered:
        turns[session_id] += 1
        if turns[session_id] > 1:
            return SESSIONS - len(turns)
    return 0


def is_declared(server: SessionServer) -> bool:
    """True once a worker has written the terms of the session's agent, its queue among them."""
    with server.runtime.store.read() as transaction:
        return transaction.agents.get(server.agent) is not None


@pytest.mark.either_database
def test_all_runs_complete_two_at_once_and_sessions_take_turns(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger
) -> None:
    """A global limit of two is kept by four children, nothing is lost, and every session has its turn."""
    servers = [asm.start_session("work") for _ in range(SESSIONS)]
    submitted = [[server.submit_run(0.02) for _ in range(RUNS)] for server in servers]

    # all are ready before the first slot is there
    for _ in range(2):
        worker(concurrency=2, lease_s=LEASE_S, max_parallel_runs=LIMIT)
    for server in servers:
        server.drain()

    assert LIMIT == asm.limiter.get_limits().max_parallel_runs
    assert SESSIONS * RUNS == len(ledger.entered())
    assert LIMIT == ledger.most_at_once()
    entered = [entry.session_id for entry in ledger.entries() if entry.what == "enter"]
    # two are on their way at once, so the agents may be entered in another order than was granted
    assert turns_before_a_first(entered) <= LIMIT
    for server, runs in zip(servers, submitted, strict=True):
        assert [] == anomalies(server.get_events(limit=1000), slots=1, submitted=runs)
    wait_until(lambda: asm.limiter.get_status().active_runs == 0, description="no slot is held any more")
    assert 0 == asm.limiter.get_status().active_sessions


def test_leases_are_granted_exactly_in_turns(asm: AgentSessions, config: Config) -> None:
    """No session gets its second lease before every ready one got its first, its third before its second."""
    servers = [asm.start_session("agent") for _ in range(SESSIONS)]
    for server in servers:
        for number in range(RUNS):
            server.submit_run(number)
    bells = RecordingDispatcher()
    # announced once, for longer than this takes
    settings = config.model_copy(update={"max_parallel_runs": LIMIT, "lease_s": 120.0})
    runtime = Runtime(settings, AgentRegistry(), bells)
    runtime.recovery.announce("executor", "worker", 100, [config.default_queue])
    done = 0
    while done < len(bells.rung):
        assert len(bells.rung) - done <= LIMIT
        lease = bells.rung[done]
        claim = runtime.coordinator.start(
            lease.run_id, lease.claim, "executor", "nonce", knows=lambda name: name
        )
        assert claim is not None
        runtime.coordinator.finish(claim, Outcome(status=RunStatus.COMPLETED), [], 0)
        done += 1
    runtime.close()

    granted = [lease.session_id for lease in bells.rung]
    order = [server.session_id for server in servers]
    assert order * RUNS == granted


def test_a_submit_that_reaches_redis_late_neither_is_overtaken_nor_stalls(
    asm: AgentSessions, config: Config, worker: StartWorker, ledger: Ledger
) -> None:
    """Position 2 is heard of first and its claim is refused; position 1 starts, then position 2."""
    # with a comparison of SQL and Redis once a minute, only the refused claim can bring the first
    worker(pool="threads", ring_s=60)
    server = asm.start_session("echo")
    is_second_known = threading.Event()

    class LateQueue(RunQueue):
        def enqueue(self, line: Line, entries: Iterable[Entry], **more: Any) -> Granted:
            is_second_known.wait(20)
            return super().enqueue(line, entries, **more)

    slow = AgentSessions(config)
    late = slow.attach(server.session_id)
    queue = late.runtime.queue
    late.runtime.__dict__["queue"] = LateQueue(queue._client, config.keys, url=config.redis_url)
    first: list[str] = []
    submitting = threading.Thread(target=lambda: first.append(late.submit_run("first")))
    submitting.start()
    wait_until(lambda: len(server.list_runs()) == 1, description="the first is in SQL")

    second = server.submit_run("second")
    refused = wait_until(lambda: server.await_run(second, timeout=30), description="the second has ended")
    is_second_known.set()
    submitting.join()
    slow.close()

    # the refusal itself brought the first: nobody waited for its submitter
    assert "second" == refused.output
    assert [*first, second] == ledger.entered()
    assert [] == anomalies(server.get_events(), slots=1, submitted=[*first, second])


@pytest.mark.either_database
def test_an_agent_whose_queue_has_no_worker_holds_no_slot(
    asm: AgentSessions, config: Config, worker: StartWorker, ledger: Ledger
) -> None:
    """Work that nobody can take waits in our line: the others have the whole limit, and it runs later."""
    worker(pool="threads", max_parallel_runs=LIMIT, queues=[config.default_queue])
    wait_until(
        lambda: is_declared(asm.start_session("remote")),
        description="the worker has said where its agents run",
    )
    waiting: list[tuple[SessionServer, str]] = []
    for _ in range(5):
        server = asm.start_session("remote")
        waiting.append((server, server.submit_run("far")))
    assert {f"{config.default_queue}.remote"} == {server.get_run(run_id).queue for server, run_id in waiting}
    assert 0 == asm.limiter.get_status().active_runs

    near = [asm.start_session("work") for _ in range(4)]
    for server in near:
        server.submit_run(0.05)
        server.submit_run(0.05)
    for server in near:
        server.drain()

    assert 2 == ledger.most_at_once()
    assert ["pending"] * 5 == [server.get_run(run_id).status for server, run_id in waiting]
    wait_until(lambda: asm.limiter.get_status().active_runs == 0, description="no slot is held any more")
    worker(pool="threads", queues=[f"{config.default_queue}.remote"])
    assert ["far"] * 5 == [server.await_run(run_id).output for server, run_id in waiting]


@pytest.mark.either_database
def test_a_limit_raised_while_runs_wait_lets_them_start(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger, gate: Gate
) -> None:
    """`set_limits` holds at once, for every process."""
    worker(pool="threads", concurrency=4, max_parallel_runs=1)
    servers = [asm.start_session("gate") for _ in range(4)]
    for server in servers:
        server.submit_run({"gate": str(gate)})
    wait_until(lambda: len(ledger.entered()) == 1, description="one runs")
    assert 1 == asm.limiter.get_status().active_runs

    asm.limiter.set_limits(max_parallel_runs=3)

    wait_until(lambda: len(ledger.entered()) == 3, description="three run")
    assert 3 == asm.limiter.get_status().active_runs
    asm.limiter.set_limits(max_parallel_runs=1)
    gate.open()
    for server in servers:
        server.drain()
    assert 3 == ledger.most_at_once()
