"""Flower's buttons mean what they say, and its page tells how the runs ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from asm_celery import AgentSessions, errors
from asm_celery.config import Config
from asm_celery.states import RunStatus
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.ledger import Ledger
from tests.conftest import environment
from tests.stops.flower import PressedFlower
from tests.stops.stage import ZOO
from tests.waiting import wait_until

pytestmark = pytest.mark.either_database

POOLS = pytest.mark.parametrize("pool", ["prefork", "threads"])
STATES = {
    RunStatus.COMPLETED: "SUCCESS",
    RunStatus.FAILED: "FAILURE",
    RunStatus.CANCELLED: "REVOKED",
    RunStatus.INTERRUPTED: "REVOKED",
    RunStatus.TIMEOUT: "REVOKED",
}


@pytest.fixture
def flower(config: Config, tmp_path: Path) -> Iterator[PressedFlower]:
    """A Flower of this test's installation."""
    started = PressedFlower(environment(config), tmp_path)
    yield started
    started.stop()


def is_heard(asm: AgentSessions, flower: PressedFlower) -> None:
    """Wait until Flower hears the worker: of what was before it knows nothing."""
    probe = asm.start_session("linger")
    wait_until(
        lambda: flower.state(probe.submit_run(0.0, on_busy="interrupt")),
        description="Flower hears the worker",
        timeout=30.0,
    )
    probe.drain()


def wait_for_state(flower: PressedFlower, run_id: str, state: str) -> None:
    """Wait until Flower shows a state."""
    wait_until(lambda: flower.state(run_id) == state, description=f"Flower shows {run_id} as {state}")


@POOLS
def test_terminate_cancels_a_running_run(
    asm: AgentSessions, flower: PressedFlower, worker: StartWorker, ledger: Ledger, gate: Gate, pool: str
) -> None:
    """It ends `cancelled` with the reason `revoked`; who runs beside it goes on, who waits behind it starts."""
    worker(ZOO, pool=pool, concurrency=2, options=["-E"], lease_s=10.0)
    is_heard(asm, flower)
    beside = asm.start_session("neighbour")
    beside_id = beside.submit_run(str(gate))
    server = asm.start_session("polite_sync")
    run_id, next_id = server.submit_run(None), server.submit_run("next")
    wait_until(lambda: {beside_id, run_id} <= set(ledger.entered()), description="both run")
    wait_for_state(flower, run_id, "STARTED")

    flower.press(run_id, terminate=True)

    with pytest.raises(errors.RunCancelled):
        server.await_run(run_id, timeout=20.0)
    assert "revoked" == server.get_run(run_id).stop_reason
    assert "next" == server.await_run(next_id, timeout=20.0).output
    gate.open()
    assert "unharmed" == beside.await_run(beside_id, timeout=20.0).output
    wait_for_state(flower, run_id, "REVOKED")
    wait_for_state(flower, next_id, "SUCCESS")
    wait_for_state(flower, beside_id, "SUCCESS")


@POOLS
def test_revoke_cancels_a_run_that_waits(
    asm: AgentSessions, flower: PressedFlower, worker: StartWorker, ledger: Ledger, gate: Gate, pool: str
) -> None:
    """Its doorbell is on the way to a busy worker: it ends `cancelled` before that is free, and never starts."""
    worker(ZOO, pool=pool, concurrency=1, options=["-E"], lease_s=10.0)
    is_heard(asm, flower)
    busy, server = asm.start_session("neighbour"), asm.start_session("polite_sync")
    busy_id = busy.submit_run(str(gate))
    wait_until(lambda: busy_id in ledger.entered(), description="the worker is busy")
    run_id = server.submit_run(None)
    wait_until(lambda: asm.limiter.get_status().active_runs == 2, description="it is leased")

    flower.press(run_id, terminate=False)

    with pytest.raises(errors.RunCancelled):
        server.await_run(run_id, timeout=20.0)
    assert "revoked" == server.get_run(run_id).stop_reason
    assert not gate.path.exists()
    gate.open()
    assert "unharmed" == busy.await_run(busy_id, timeout=20.0).output
    assert "next" == server.execute_run("next", timeout=20.0).output
    assert run_id not in ledger.entered()
    wait_until(lambda: asm.limiter.get_status().active_runs == 0, description="no slot is held")


@POOLS
def test_its_states_agree_with_how_the_runs_ended(
    asm: AgentSessions, flower: PressedFlower, worker: StartWorker, ledger: Ledger, pool: str
) -> None:
    """Completed is SUCCESS, failed is FAILURE, whatever was stopped is REVOKED, also by its own timeout."""
    worker(ZOO, pool=pool, concurrency=2, options=["-E"], lease_s=10.0)
    is_heard(asm, flower)
    good, bad, stopped = (asm.start_session(agent) for agent in ("linger", "fail", "polite_sync"))
    runs = {good.submit_run(0.0): good, bad.submit_run("no"): bad}
    for stop in (stopped.cancel_run, stopped.interrupt_run, lambda run_id: None):
        run_id = stopped.submit_run(None, run_timeout=1.0)
        runs[run_id] = stopped
        wait_until(lambda run_id=run_id: run_id in ledger.entered(), description="it is entered")
        stop(run_id)
        with suppress(errors.RunEnded):
            stopped.await_run(run_id, timeout=20.0)
    for run_id, server in runs.items():
        wait_until(lambda s=server, r=run_id: s.get_run(r).is_terminal, description="it has ended")

    assert list(STATES) == [server.get_run(run_id).status for run_id, server in runs.items()]
    for run_id, server in runs.items():
        wait_for_state(flower, run_id, STATES[server.get_run(run_id).status])


def test_a_purge_loses_nothing(asm: AgentSessions, worker: StartWorker, ledger: Ledger, gate: Gate) -> None:
    """Doorbells that were purged from the broker are rung again: every run completes, in its first attempt."""
    worker(ZOO, pool="prefork", concurrency=1, lease_s=10.0)
    busy = asm.start_session("neighbour")
    busy_id = busy.submit_run(str(gate))
    wait_until(lambda: busy_id in ledger.entered(), description="the worker is busy")
    servers = [asm.start_session("linger") for _ in range(5)]
    runs = [(server, server.submit_run(0.0)) for server in servers for _ in range(4)]
    wait_until(
        lambda: asm.limiter.get_status().active_runs == 2, description="a doorbell waits in the broker"
    )

    purged = wait_until(asm.celery_app.control.purge, description="there was something to purge")

    assert purged >= 1
    gate.open()
    for server, run_id in runs:
        result = server.await_run(run_id, timeout=60.0)
        assert (RunStatus.COMPLETED, 1) == (result.status, result.attempts)
    assert sorted(run_id for _, run_id in runs) == sorted(set(ledger.entered()) - {busy_id})
