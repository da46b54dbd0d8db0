"""A worker that is cut off: from one witness it goes on, from both it stops before others take over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url

from asm_celery import AgentSessions
from asm_celery.config import Config
from asm_celery.states import RunStatus
from tests.acceptance.conftest import Gate, StartWorker, asm, gate, ledger, worker
from tests.acceptance.ledger import Ledger
from tests.faults.proxy import Link, Mode, Network
from tests.waiting import wait_until
from tests.workers import WorkerProcess

# fixtures of the acceptance tests that are the same here
__all__ = ["asm", "gate", "ledger", "worker"]

# SQLite is a file: nobody is cut off from it
pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

CLOCKS = {"lease_s": 4.0, "beat_s": 0.5, "repair_s": 0.5, "connect_timeout_s": 1.0}


class Remote:
    """A worker that reaches its stores over links, and those."""

    def __init__(self, network: Network, config: Config, start: StartWorker, pool: str) -> None:
        stores = make_url(config.database_url)
        folder = Path(str(stores.query["host"]))
        self.redis = network.link(Path(config.redis_url.removeprefix("unix://").partition("?")[0]))
        self.sql = network.link(folder / ".s.PGSQL.5432")
        over = stores.set(host="127.0.0.1", port=self.sql.port, query={})
        self.worker: WorkerProcess = start(
            pool=pool,
            redis_url=f"redis://127.0.0.1:{self.redis.port}/0",
            database_url=over.render_as_string(hide_password=False),
            **CLOCKS,
        )


@pytest.fixture
def network() -> Iterator[Network]:
    """Where links live."""
    with Network() as made:
        yield made


@pytest.mark.parametrize(("pool", "agent"), [("prefork", "stubborn"), ("threads", "gate")])
def test_a_worker_cut_off_from_both_stops_before_another_takes_over(
    asm: AgentSessions,
    config: Config,
    worker: StartWorker,
    network: Network,
    gate: Gate,
    ledger: Ledger,
    pool: str,
    agent: str,
) -> None:
    """What leaves is asked to, and what does not is ended with its process: nobody executes beside it."""
    remote = Remote(network, config, worker, pool)
    server = asm.start_session(agent)
    run_id = server.submit_run({"gate": str(gate), "value": "once"}, max_attempts=2)
    wait_until(lambda: ledger.entered() == [run_id], description="it is in flight")
    worker(pool="threads", **CLOCKS)

    for link in (remote.redis, remote.sql):
        link.set(Mode.HOLE)
    wait_until(lambda: len(ledger.entered()) == 2, description="another has taken over", timeout=60)

    first, *between, second = ledger.entries()
    assert ("enter", "enter") == (first.what, second.what)
    assert ["leave"] == [entry.what for entry in between] or _has_ended(first.pid)
    gate.open()
    result = server.await_run(run_id, timeout=60)
    assert (RunStatus.COMPLETED, 2) == (result.status, result.attempts)


@pytest.mark.parametrize("store", ["redis", "sql"])
def test_a_worker_cut_off_from_one_store_keeps_its_run(
    asm: AgentSessions,
    config: Config,
    worker: StartWorker,
    network: Network,
    gate: Gate,
    ledger: Ledger,
    store: str,
) -> None:
    """The other vouches for it, however the first one hangs."""
    remote = Remote(network, config, worker, "prefork")
    server = asm.start_session("gate")
    run_id = server.submit_run({"gate": str(gate), "value": "once"}, max_attempts=2)
    wait_until(lambda: ledger.entered() == [run_id], description="it is in flight")
    observer = worker(pool="threads", **CLOCKS)
    link: Link = getattr(remote, store)

    link.set(Mode.HOLE)
    _let_pass(3 * CLOCKS["lease_s"])
    link.set(Mode.PASS)
    gate.open()

    result = server.await_run(run_id, timeout=60)
    assert (RunStatus.COMPLETED, 1) == (result.status, result.attempts)
    assert [run_id] == ledger.entered()
    assert "taken over" not in observer.log


def test_a_worker_whose_claim_sql_answers_late_keeps_its_run(
    asm: AgentSessions, config: Config, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """While the claim hangs nobody renews its lease; Redis vouches again before the agent is entered."""
    server = asm.start_session("gate")
    run_id = server.submit_run({"gate": str(gate), "value": "once"}, max_attempts=2)
    with _locked(config, "SELECT 1 FROM runs FOR UPDATE") as claims:
        # it is judged before its first renewal, and silent for most of a lease while nobody looks for that
        worker(pool="prefork", concurrency=1, **{**CLOCKS, "beat_s": 1.3, "repair_s": 60.0})
        wait_until(asm._runtime().queue.observe, description="its lease has begun")
        with _locked(config, "LOCK TABLE executors IN EXCLUSIVE MODE"):
            _let_pass(0.8 * CLOCKS["lease_s"])
            claims.rollback()
            wait_until(ledger.entered, description="it is in flight")
            _let_pass(1.0)

            assert not _has_ended(ledger.entries()[0].pid)
    gate.open()
    result = server.await_run(run_id, timeout=60)
    assert (RunStatus.COMPLETED, 1) == (result.status, result.attempts)
    assert [run_id] == ledger.entered()


@contextmanager
def _locked(config: Config, statement: str) -> Iterator[Connection]:
    """Make SQL hang for who needs what a statement locks, until the connection is rolled back."""
    engine = create_engine(config.database_url)
    try:
        with engine.connect() as connection:
            connection.execute(text(statement))
            yield connection
    finally:
        engine.dispose()


def _let_pass(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, description=f"{seconds:g} s have passed")


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
