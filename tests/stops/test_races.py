"""Stops against what happens by itself: whoever comes first decides, once, and the receipts say so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from asm_celery import AgentSessions, SessionServer
from asm_celery.model import StopReceipt
from tests.acceptance.conftest import FULL, StartWorker
from tests.acceptance.ledger import Ledger
from tests.stops.racing import Aim, Race, in_lanes, outcomes, verdicts
from tests.stops.stage import ZOO
from tests.waiting import wait_until

pytestmark = pytest.mark.either_database

CANCELS, INTERRUPTS, CLAIMS, PAIRS = (500, 200, 200, 100) if FULL else (60, 40, 40, 24)
# An agent that needs so long leaves time for a stop to come before its end.
WORK_S = 0.01
# Two busy cores must not look like a dead worker.
SETTINGS = {"lease_s": 10.0, "beat_s": 0.5, "stop_grace_s": 5.0}

Stop = Callable[[SessionServer, str], StopReceipt]
Note = Callable[[str, object], None]


def cancel(server: SessionServer, run_id: str) -> StopReceipt:
    """Cancel."""
    return server.cancel_run(run_id)


def interrupt(server: SessionServer, run_id: str) -> StopReceipt:
    """Interrupt."""
    return server.interrupt_run(run_id)


def ended(server: SessionServer, run_id: str) -> None:
    """Wait for the end of a race."""
    wait_until(lambda: server.get_run(run_id).is_terminal, description=f"{run_id} has ended", timeout=30.0)


@pytest.fixture(params=["prefork", "threads"])
def zoo(request: pytest.FixtureRequest, worker: StartWorker) -> str:
    """A worker of the zoo, in either pool."""
    worker(ZOO, pool=request.param, concurrency=2 if request.param == "prefork" else 4, **SETTINGS)
    return str(request.param)


@pytest.mark.parametrize(("stop", "count"), [(cancel, CANCELS), (interrupt, INTERRUPTS)])
def test_a_stop_and_the_end_of_a_run_decide_once(
    asm: AgentSessions, ledger: Ledger, zoo: str, stop: Stop, count: int, record_property: Note
) -> None:
    """A run that is stopped while it ends has one end, and the receipt names it."""

    def lane(races: int) -> list[Race]:
        server, aim, found = asm.start_session("linger"), Aim(2 * WORK_S), []
        for _ in range(races):
            # long enough that a slow machine, too, is early now and then
            run_id = server.submit_run(WORK_S * 4 ** (len(found) % 4))
            with server.subscribe(run_id=run_id, type="run_started") as started:
                assert started.get(30.0), f"{run_id} was not started"
            aim.wait()
            receipt = stop(server, run_id)
            aim.correct(was_late=receipt.state == "already_terminal")
            ended(server, run_id)
            found.append(Race(server=server, run_id=run_id, receipts=[receipt]))
        return found

    races = in_lanes(count, lane)

    record_property("outcomes", outcomes(races))
    assert [] == verdicts(races, ledger)
    # else nothing was raced
    assert {"requested", "already_terminal"} <= {race.receipts[0].state for race in races}


def test_a_cancel_and_a_claim_decide_once(
    asm: AgentSessions, ledger: Ledger, zoo: str, record_property: Note
) -> None:
    """A run that is cancelled while a worker claims it never starts, or is stopped; the receipt says which."""

    def lane(races: int) -> list[Race]:
        server, aim, found = asm.start_session("linger"), Aim(0.01), []
        for _ in range(races):
            run_id = server.submit_run(60.0)
            aim.wait()
            receipt = server.cancel_run(run_id)
            aim.correct(was_late=receipt.state == "requested")
            ended(server, run_id)
            found.append(Race(server=server, run_id=run_id, receipts=[receipt]))
        return found

    races = in_lanes(CLAIMS, lane)

    record_property("outcomes", outcomes(races))
    assert [] == verdicts(races, ledger)
    assert {"requested", "withdrawn"} <= {race.receipts[0].state for race in races}


def test_the_first_of_two_stops_decides(
    asm: AgentSessions, ledger: Ledger, zoo: str, record_property: Note
) -> None:
    """A run that is cancelled and interrupted at once ends as the first request says, and both are told so."""

    def lane(races: int) -> list[Race]:
        server, found = asm.start_session("linger"), []
        with ThreadPoolExecutor(2) as two:
            for number in range(races):
                run_id = server.submit_run(60.0)
                # every third one waits or is being claimed
                if number % 3:
                    with server.subscribe(run_id=run_id, type="run_started") as started:
                        assert started.get(30.0), f"{run_id} was not started"
                together = threading.Barrier(2)

                def at_once(
                    stop: Stop, run_id: str = run_id, together: threading.Barrier = together
                ) -> StopReceipt:
                    together.wait(10.0)
                    return stop(server, run_id)

                receipts = list(two.map(at_once, (cancel, interrupt)))
                ended(server, run_id)
                found.append(Race(server=server, run_id=run_id, receipts=receipts))
        return found

    races = in_lanes(PAIRS, lane)

    record_property("outcomes", outcomes(races))
    assert [] == verdicts(races, ledger)
