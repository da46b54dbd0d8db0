"""Order and slots over many sessions, on real workers: asserted from the event log and the agents' ledger."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from asm_celery import AgentSessions, Event, SessionServer
from asm_celery.dispatch import CeleryDispatcher
from tests.acceptance import noise
from tests.acceptance.conftest import FULL, Gate, StartWorker
from tests.acceptance.ledger import Ledger
from tests.history import anomalies, most_running
from tests.waiting import wait_until

pytestmark = pytest.mark.either_database

SESSIONS, RUNS = (200, 20) if FULL else (40, 6)
# under noise each doorbell costs three messages, and claims are refused on purpose
NOISY_SESSIONS = SESSIONS if FULL else 20
PATIENCE_S = 900.0 if FULL else 90.0
# Two busy cores must not look like a dead worker; and no doorbell is repeated, so that a lost one stalls.
SETTINGS = {"lease_s": 10.0, "ring_s": 60.0}


@dataclass(frozen=True, slots=True)
class Line:
    """A session, its slots, and its run ids in the order of their submits."""

    server: SessionServer
    slots: int
    submitted: list[str]


def submit_all(asm: AgentSessions, sessions: int) -> list[Line]:
    """Start sessions of 1 and of 3 slots in turn, and submit their runs from 8 threads."""
    lines = [
        Line(asm.start_session("work", max_concurrent_runs=slots), slots, [])
        for slots in (1 if number % 2 else 3 for number in range(sessions))
    ]

    def submit(mine: Sequence[Line]) -> None:
        for number in range(RUNS):
            for line in mine:
                # the first of three take longer, so that a wrong start would overtake them
                line.submitted.append(line.server.submit_run(0.02 if number % 3 == 0 else 0.0))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(submit, [lines[part::8] for part in range(8)]))
    return lines


def whole_log(server: SessionServer) -> list[Event]:
    """Read all events of a session, in pages."""
    events: list[Event] = []
    while page := server.get_events(after=len(events), limit=1000):
        events += page
    return events


def check(lines: Sequence[Line], ledger: Ledger) -> None:
    """Wait until all is done, and read what happened."""
    for line in lines:
        line.server.drain(timeout=PATIENCE_S)
    logs = [whole_log(line.server) for line in lines]

    wrong = [
        f"{line.server.session_id}: {sentence}"
        for line, events in zip(lines, logs, strict=True)
        for sentence in anomalies(events, slots=line.slots, submitted=line.submitted)
    ]
    assert [] == wrong
    entered = ledger.entered()
    assert len(entered) == len(set(entered)) == sum(len(line.submitted) for line in lines)
    for line in lines:
        session_id = line.server.session_id
        assert ledger.most_at_once(session_id) <= line.slots
        if line.slots == 1:
            assert line.submitted == ledger.entered(session_id)


def check_three(asm: AgentSessions, gate: Gate) -> None:
    """Fill the slots of one session, which in a crowd of fair turns seldom has all its slots taken."""
    three = asm.start_session("gate", max_concurrent_runs=3)
    submitted = [three.submit_run({"gate": str(gate)}) for _ in range(7)]

    wait_until(lambda: three.status().in_flight_count == 3, description="three runs are in flight")
    assert submitted[:3] == three.status().in_flight_runs
    gate.open()
    three.drain(timeout=PATIENCE_S)

    events = whole_log(three)
    assert [] == anomalies(events, slots=3, submitted=submitted)
    assert 3 == most_running(events)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_runs_start_in_the_order_of_their_submits_and_never_more_than_the_slots(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger, gate: Gate, pool: str
) -> None:
    """On two prefork workers and on one of eight threads: FIFO at 1 slot, the first three at 3 slots."""
    if pool == "prefork":
        for _ in range(2):
            worker(pool="prefork", concurrency=2, **SETTINGS)
    else:
        worker(pool="threads", concurrency=8, **SETTINGS)

    lines = submit_all(asm, SESSIONS)

    check(lines, ledger)
    check_three(asm, gate)


def test_order_holds_when_every_message_comes_three_times_and_in_any_order(
    asm: AgentSessions,
    worker: StartWorker,
    ledger: Ledger,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A repeated or late doorbell changes nothing but time."""
    monkeypatch.setattr(CeleryDispatcher, "dispatch", noise.noisy())
    monkeypatch.setattr(CeleryDispatcher, "bell", None)
    workers = [
        worker(pool=pool, concurrency=concurrency, **SETTINGS, **{noise.VARIABLE: 1})
        for pool, concurrency in (("prefork", 2), ("threads", 4))
    ]

    lines = submit_all(asm, NOISY_SESSIONS)

    check(lines, ledger)
    # else nothing was shown: the last copies may still be on their way
    assert sum(one.log.count(" received") for one in workers) > 2 * NOISY_SESSIONS * RUNS
    check_three(asm, gate)
