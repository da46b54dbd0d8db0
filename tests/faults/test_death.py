"""Processes that die or stand still: their runs are decided soon, once, and nobody else's are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asm_celery import AgentSessions, Event, SessionServer, errors
from asm_celery.config import Config
from asm_celery.states import RunStatus
from tests import invariants
from tests.acceptance.conftest import FULL, Gate, StartWorker, asm, gate, ledger, worker
from tests.acceptance.ledger import VARIABLE, Ledger
from tests.acceptance.test_redis_away import OwnRedis, own_redis
from tests.conftest import environment
from tests.faults.stage import Clock
from tests.faults.stores import PostgresServer
from tests.history import anomalies
from tests.waiting import wait_until
from tests.workers import ROOT, WorkerProcess

# fixtures of the acceptance tests that are the same here
__all__ = ["asm", "gate", "ledger", "own_redis", "worker"]

pytestmark = pytest.mark.either_database

MODULE = "tests.faults.dying"
ACCEPTANCE = "tests.acceptance.agents_module"
# Silence is judged after these: whoever is quicker has not waited for it.
PATIENT = {"lease_s": 30.0, "beat_s": 3.0}
# What is promised of a killed child and a killed worker, and what is left to two busy cores.
CHILD_S, WORKER_S, TIMES = 5.0, 20.0, 3


def lost(server: SessionServer, run_id: str) -> float:
    """Wait for a run that its worker lost; return how long that took."""
    began = time.monotonic()
    with pytest.raises(errors.RunFailed) as failed:
        server.await_run(run_id, timeout=WORKER_S * TIMES)
    assert "worker_lost" == failed.value.code
    return time.monotonic() - began


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_killed_by_kill_9_is_buried_at_once(
    asm: AgentSessions,
    worker: StartWorker,
    gate: Gate,
    ledger: Ledger,
    pool: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Its guard has it written what becomes of its runs: long before any lease runs out."""
    dying = worker(pool=pool, **PATIENT)
    servers = [asm.start_session("gate") for _ in range(2)]
    runs = [server.submit_run({"gate": str(gate)}, max_attempts=1 + n) for n, server in enumerate(servers)]
    wait_until(lambda: len(ledger.entered()) == 2, description="both are in flight")
    worker(pool="threads", **PATIENT)
    follower = servers[0].submit_run({"gate": str(gate), "value": "next"})

    dying.die()

    took_s = lost(servers[0], runs[0])
    record_property("seconds", f"{took_s:.2f}")
    assert took_s < PATIENT["lease_s"] / 2
    wait_until(lambda: servers[1].get_run(runs[1]).attempt == 2, description="the other is entered again")
    gate.open()
    assert "next" == servers[0].await_run(follower, timeout=30).output
    assert RunStatus.COMPLETED == servers[1].await_run(runs[1], timeout=30).status
    wait_until(lambda: asm.limiter.get_status().active_runs == 0, description="nothing is held any more")


def test_what_a_burial_must_know_is_in_nobodys_command_line_or_environment(
    asm: AgentSessions, worker: StartWorker, config: Config
) -> None:
    """Passwords of the stores reach the guard through its pipe."""
    started = worker(pool="threads")

    (guard,) = started.guards()

    for secret in (config.database_url, config.namespace):
        assert secret not in " ".join(guard.cmdline())
        assert secret not in "\n".join(value for name, value in guard.environ().items() if name != "PWD")


@pytest.mark.parametrize("attempts", [1, 3] if FULL else [3])
def test_a_poison_run_ends_failed_after_its_attempts(
    asm: AgentSessions,
    worker: StartWorker,
    ledger: Ledger,
    attempts: int,
    record_property: Callable[[str, object], None],
) -> None:
    """It kills its child each time; its session goes on, and its neighbours are untouched."""
    living = worker(MODULE, pool="prefork", retry_backoff_s=0.2)
    server, other = asm.start_session("poison"), asm.start_session("gate")
    run_id = server.submit_run(None, max_attempts=attempts)
    gate_path = ledger.path.with_name("gate")
    neighbour = other.submit_run({"gate": str(gate_path), "value": "unharmed"})

    took_s = lost(server, run_id)

    record_property("seconds", f"{took_s:.2f}")
    assert took_s < attempts * CHILD_S * TIMES
    assert [run_id] * attempts == [one for one in ledger.entered() if one == run_id]
    gate_path.touch()
    assert "unharmed" == other.await_run(neighbour, timeout=30).output
    assert [] == anomalies(server.get_events(limit=1000), slots=1, submitted=[run_id])
    assert not living.has_ended


def test_a_child_that_runs_out_of_memory_costs_its_run_only(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger
) -> None:
    """As the kernel's killer does it: no word, no traceback."""
    living = worker(MODULE, pool="prefork")
    server = asm.start_session("hungry")

    run_id = server.submit_run(4096)

    assert lost(server, run_id) < CHILD_S * TIMES
    assert 1 << 20 == server.execute_run(1, timeout=30).output
    assert not living.has_ended


def test_a_worker_frozen_beyond_its_lease_writes_nothing_when_it_thaws(
    asm: AgentSessions, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """Its runs were entered again elsewhere, or ended; it hears that they are lost, and goes on cleanly."""
    frozen = worker(pool="threads")
    again, once = asm.start_session("gate"), asm.start_session("gate")
    runs = [
        again.submit_run({"gate": str(gate), "value": "again"}, max_attempts=2),
        once.submit_run({"gate": str(gate)}),
    ]
    wait_until(lambda: len(ledger.entered()) == 2, description="both are in flight")
    living = worker(pool="threads")

    with standing_still(frozen):
        lost(once, runs[1])
        wait_until(
            lambda: len({entry.pid for entry in ledger.entries(again.session_id)}) == 2,
            description="it is entered again elsewhere",
        )
    wait_until(
        lambda: sum(entry.what == "leave" and entry.pid == frozen.pid for entry in ledger.entries()) == 2,
        description="the thawed worker has left both",
    )
    gate.open()

    result = again.await_run(runs[0], timeout=30)
    assert (RunStatus.COMPLETED, 2, "again") == (result.status, result.attempts, result.output)
    for server, run_id in zip((again, once), runs, strict=True):
        assert [] == anomalies(server.get_events(limit=1000), slots=1, submitted=[run_id])
    living.kill()
    assert "on" == asm.start_session("echo").execute_run("on", timeout=60).output
    assert not frozen.has_ended


def test_an_observer_that_stood_still_declares_nobody_dead(
    asm: AgentSessions, config: Config, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """All that it did not see is unknown to it."""
    living = worker(pool="threads")
    server = asm.start_session("gate")
    run_id = server.submit_run({"gate": str(gate), "value": "alive"})
    wait_until(lambda: ledger.entered() == [run_id], description="it is in flight")
    observer = worker(pool="threads")

    with standing_still(observer):
        until = time.monotonic() + 2 * config.lease_s
        wait_until(lambda: time.monotonic() > until, description="two leases have passed")
    until = time.monotonic() + 2 * config.lease_s
    wait_until(lambda: time.monotonic() > until, description="and two more")
    gate.open()

    assert "alive" == server.await_run(run_id, timeout=30).output
    assert "taken over" not in observer.log + living.log


def test_an_agent_that_holds_the_interpreter_of_a_threads_worker_is_stopped_in_time(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger
) -> None:
    """The guard kills the worker at 0.8 of its lease, and has its runs written at once."""
    worker(MODULE, pool="threads", lease_s=6.0, beat_s=1.0, repair_s=5.0)
    server = asm.start_session("hold")
    run_id = server.submit_run(None)
    wait_until(lambda: ledger.entered() == [run_id], description="it holds the interpreter")
    began = time.monotonic()

    server.cancel_run(run_id)

    with pytest.raises(errors.RunCancelled):
        server.await_run(run_id, timeout=60)
    # nobody else is there to judge its silence
    assert time.monotonic() - began < TIMES * 6.0


@pytest.mark.skipif(not FULL, reason="the quick suite kills PostgreSQL with them")
def test_everything_killed_at_once_and_started_again_loses_nothing(
    config: Config, worker: StartWorker, own_redis: OwnRedis, ledger: Ledger, tmp_path: Path
) -> None:
    """Workers, Redis and the client by SIGKILL: every run that was accepted has exactly one end."""
    settings = {"redis_url": own_redis.url, "connect_timeout_s": 1.0, "max_attempts": 2}

    def restart() -> None:
        own_redis.kill()
        own_redis.give_back()

    kill_and_start_again(config.model_copy(update=settings), settings, worker, ledger, tmp_path, restart)


def test_everything_and_postgresql_killed_at_once_and_started_again_loses_nothing(
    sqlite_config: Config, start_worker: StartWorker, own_redis: OwnRedis, ledger: Ledger, tmp_path: Path
) -> None:
    """The database too, with its commits as durable as in production."""
    sql = PostgresServer()
    settings = {"redis_url": own_redis.url, "database_url": sql.url, "max_attempts": 2}
    here = sqlite_config.model_copy(update={**settings, "connect_timeout_s": 1.0})

    def start(pool: str, concurrency: int = 2, **_: object) -> WorkerProcess:
        env = {**environment(here), VARIABLE: str(ledger.path)}
        return start_worker(ACCEPTANCE, pool=pool, concurrency=concurrency, env=env)

    def restart() -> None:
        own_redis.kill()
        sql.kill()
        sql.start()
        own_redis.give_back()

    try:
        kill_and_start_again(here, {}, start, ledger, tmp_path, restart)
        invariants.check(here)
    finally:
        sql.stop()


def kill_and_start_again(
    here: Config,
    settings: dict[str, object],
    worker: StartWorker,
    ledger: Ledger,
    folder: Path,
    restart: Callable[[], None],
) -> None:
    """Kill workers and client under load, restart the stores, start workers; see that nothing is lost."""
    workers = [worker(pool=pool, **settings) for pool in ("prefork", "threads")]
    accepted = folder / "accepted"
    client = subprocess.Popen(
        [sys.executable, "-c", _CLIENT, str(accepted)],
        env={**os.environ, **environment(here), "PYTHONPATH": str(ROOT)},
    )
    enough = 400 if FULL else 40
    wait_until(lambda: len(_lines(accepted)) >= enough, description="many are accepted", timeout=60)
    wait_until(lambda: len(ledger.entered()) > enough / 10, description="many are in flight")

    client.kill()
    for one in workers:
        one.kill()
    client.wait(20)
    restart()
    for pool in ("prefork", "threads"):
        worker(pool=pool, concurrency=4, **settings)

    lines: dict[str, list[str]] = {}
    for session_id, run_id in (line.split() for line in _lines(accepted)):
        lines.setdefault(session_id, []).append(run_id)
    with AgentSessions(here) as web:
        for session_id, runs in lines.items():
            server = web.attach(session_id)
            server.drain(timeout=120)
            events = all_events(server)
            assert set(runs) <= {event.run_id for event in events}
            assert [] == anomalies(events, slots=1)
        wait_until(lambda: web.limiter.get_status().active_runs == 0, description="nothing is held any more")


@pytest.mark.parametrize("is_worker", [True, False] if FULL else [True])
def test_a_wall_clock_that_jumps_kills_nobody(
    asm: AgentSessions,
    config: Config,
    worker: StartWorker,
    gate: Gate,
    ledger: Ledger,
    tmp_path: Path,
    is_worker: bool,
) -> None:
    """Of the worker that executes, or of the one that watches it: hours ahead, and back."""
    clock = Clock(tmp_path)
    if not clock.environment:
        pytest.skip("no C compiler to make what shifts a clock")
    living = worker(pool="threads", **(clock.environment if is_worker else {}))
    server = asm.start_session("gate")
    run_id = server.submit_run({"gate": str(gate), "value": "alive"}, max_attempts=2)
    wait_until(lambda: ledger.entered() == [run_id], description="it is in flight")
    observer = worker(pool="threads", **({} if is_worker else clock.environment))

    for seconds in (3600, -3600, 0):
        clock.set(seconds)
        until = time.monotonic() + 1.5 * config.lease_s
        wait_until(lambda until=until: time.monotonic() > until, description="a lease has passed")
    gate.open()

    result = server.await_run(run_id, timeout=30)
    assert ("alive", 1) == (result.output, result.attempts)
    assert "taken over" not in living.log + observer.log


def all_events(server: SessionServer) -> list[Event]:
    """Return a session's whole log."""
    events: list[Event] = []
    while page := server.get_events(after=len(events), limit=1000):
        events += page
    return events


_CLIENT = """
import sys
from asm_celery import AgentSessions
with AgentSessions.from_env() as asm:
    servers = [asm.start_session("work", max_queued_runs=100_000) for _ in range(8)]
    with open(sys.argv[1], "a", buffering=1) as accepted:
        while True:
            for server in servers:
                accepted.write(f"{server.session_id} {server.submit_run(0.02)}\\n")
"""


def _lines(path: Path) -> list[str]:
    # the last one may be half written
    return path.read_text().split("\n")[:-1] if path.exists() else []


@contextmanager
def standing_still(worker: WorkerProcess) -> Iterator[None]:
    """Have a worker of threads and its guard stand still within the block, as a paused machine does."""
    pids = [worker.pid, *(guard.pid for guard in worker.guards())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
