"""Doorbells that a worker has fetched and not begun, and those it leaves to others."""

from __future__ import annotations

import psutil
import pytest

from asm_celery import AgentSessions
from asm_celery.config import Config
from asm_celery.queue.connection import connect
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.ledger import Ledger
from tests.waiting import wait_until
from tests.workers import WorkerProcess

pytestmark = pytest.mark.either_database

# nothing is rung for again, and nobody taken for dead, while a test runs
QUIET = {"ring_s": 60.0, "lease_s": 60.0}


def test_what_a_killed_worker_had_fetched_is_rung_for_again(
    asm: AgentSessions, config: Config, worker: StartWorker, ledger: Ledger
) -> None:
    """The broker keeps no copy of it; its lease does, and another worker enters it, in its first attempt."""
    dying = worker(pool="prefork", concurrency=1, lease_s=60.0)
    server = asm.start_session("echo")
    warm = server.execute_run("warm").run_id
    _children(dying)[0].suspend()
    run_id = server.submit_run("a")
    wait_until(lambda: f"[{run_id}] received" in dying.log, description="the doorbell is fetched")
    assert [] == _of_broker(config, "unacked") == _waiting(config)

    dying.kill()
    worker(pool="threads", concurrency=1)
    result = server.await_run(run_id, timeout=30)

    assert (1, "a") == (result.attempts, result.output)
    assert [warm, run_id] == ledger.entered()


def test_what_an_ending_worker_has_fetched_it_still_executes(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger
) -> None:
    """It was told to end between fetching and beginning; nothing waits until it is rung for again."""
    ending = worker(pool="prefork", concurrency=1, **QUIET)
    server = asm.start_session("echo")
    warm = server.execute_run("warm").run_id
    (child,) = _children(ending)
    child.suspend()
    run_id = server.submit_run("a")
    wait_until(lambda: f"[{run_id}] received" in ending.log, description="the doorbell is fetched")

    ending.terminate()
    wait_until(lambda: "Warm shutdown" in ending.log, description="the worker is ending")
    child.resume()
    result = server.await_run(run_id, timeout=30)
    ending.wait()

    assert (1, "a") == (result.attempts, result.output)
    assert [warm, run_id] == ledger.entered()


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_busy_worker_leaves_the_doorbell_to_one_that_is_free(
    asm: AgentSessions, config: Config, worker: StartWorker, gate: Gate, pool: str
) -> None:
    """It holds none behind what it executes: the next run starts in a new worker while the first still runs."""
    busy = worker(pool=pool, concurrency=1, **QUIET)
    first = asm.start_session("gate")
    held = first.submit_run({"gate": str(gate)})
    wait_until(lambda: first.get_run(held).status == "running", description="the worker is busy")
    second = asm.start_session("echo")
    run_id = second.submit_run("b")
    wait_until(lambda: len(_waiting(config)) == 1, description="the next doorbell waits at the broker")

    worker(pool=pool, concurrency=1, **QUIET)

    assert "b" == second.await_run(run_id, timeout=20).output
    assert f"[{run_id}] received" not in busy.log
    gate.open()
    first.await_run(held)


def test_a_burst_beyond_the_threads_is_all_executed_by_one_worker(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger
) -> None:
    """Each thread that is free again lets the worker fetch the next doorbell."""
    servers = [asm.start_session("echo") for _ in range(5)]
    runs = [server.submit_run(n) for server in servers for n in range(4)]

    worker(pool="threads", concurrency=2, **QUIET)
    for server in servers:
        server.drain(timeout=60)

    assert sorted(runs) == sorted(ledger.entered())


def _children(worker: WorkerProcess) -> list[psutil.Process]:
    guards = {guard.pid for guard in worker.guards()}
    return [child for child in psutil.Process(worker.pid).children() if child.pid not in guards]


def _waiting(config: Config) -> list[bytes]:
    return connect(config).lrange(f"{config.keys.root}celery:{config.default_queue}", 0, -1)  # type: ignore[return-value]


def _of_broker(config: Config, name: str) -> list[bytes]:
    return connect(config).hkeys(f"{config.keys.root}celery:{name}")  # type: ignore[return-value]
