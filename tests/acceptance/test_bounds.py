"""A session takes no more than its slots and its bound, whoever submits and from wherever."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from asm_celery import AgentSessions, SessionServer, errors
from asm_celery.config import Config
from asm_celery.states import TERMINAL_EVENTS
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.elsewhere import Elsewhere, together
from tests.acceptance.ledger import Ledger
from tests.history import anomalies, most_open
from tests.waiting import wait_until

RACERS, PROCESSES = 50, 4


def rows(asm: AgentSessions, server: SessionServer, config: Config) -> tuple[list[str], int, set[bytes]]:
    """Return all that a submit could leave behind: runs, the last sequence, what Redis knows."""
    runs = [run.run_id for run in server.list_runs(limit=1000)]
    with redis.Redis.from_url(config.redis_url) as client:
        known = client.smembers(f"{config.keys.root}known")
    return runs, len(server.get_events(limit=1000)), known


def held(server: SessionServer, gate: Gate) -> str:
    """Submit a run and wait until it executes; it holds its slot until the gate opens."""
    run_id = server.submit_run({"gate": str(gate)})
    wait_until(lambda: server.status().in_flight_runs == [run_id], description="the run is in flight")
    return run_id


def test_the_seventh_submit_is_refused_and_leaves_no_row(
    asm: AgentSessions, config: Config, worker: StartWorker, gate: Gate
) -> None:
    """One slot and a bound of five hold six runs; the refusal says limit and depth, and writes nothing."""
    worker(pool="threads")
    server = asm.start_session("gate", max_queued_runs=5)
    accepted = [held(server, gate)] + [server.submit_run({"gate": str(gate)}) for _ in range(5)]
    before = rows(asm, server, config)

    with pytest.raises(errors.QueueFull) as refused:
        server.submit_run({"gate": str(gate)})

    assert (6, 6) == (refused.value.limit, refused.value.depth)
    assert "max_runs_exceeded" == refused.value.code
    assert "6 open runs" in str(refused.value)
    assert before == rows(asm, server, config)
    assert accepted == before[0]
    report = server.status()
    assert (accepted[:1], accepted[1:]) == (report.in_flight_runs, report.queued_runs)
    # a bound is not a wall: when one has ended there is room again, and all that was accepted runs
    gate.open()
    server.await_run(accepted[0])
    accepted.append(server.submit_run({"gate": str(gate)}))
    server.drain()
    assert [] == anomalies(server.get_events(limit=1000), slots=1, submitted=accepted)


def test_one_slot_and_a_bound_of_two_take_three_of_four(asm: AgentSessions) -> None:
    """The bound counts waiting runs only: a free slot takes one more, whether a worker is there or not."""
    server = asm.start_session("echo", max_queued_runs=2)
    accepted = [server.submit_run(number) for number in range(3)]

    with pytest.raises(errors.QueueFull):
        server.submit_run(4)

    assert accepted == [run.run_id for run in server.list_runs()]


def test_a_bound_of_zero_runs_when_idle_and_refuses_when_busy(
    asm: AgentSessions, worker: StartWorker, gate: Gate
) -> None:
    """Nothing may wait in a session of bound 0, and nothing accepted is lost."""
    worker(pool="threads")
    server = asm.start_session("gate", max_queued_runs=0)
    first = held(server, gate)

    with pytest.raises(errors.QueueFull) as refused:
        server.submit_run({"gate": str(gate)})
    gate.open()

    assert (1, 1) == (refused.value.limit, refused.value.depth)
    assert first == server.await_run(first).run_id
    assert "again" == server.execute_run({"gate": str(gate), "value": "again"}).output
    assert 2 == len(server.list_runs())


@pytest.mark.parametrize(
    "bounds", [{"max_queued_runs": -1}, {"max_concurrent_runs": 0}, {"max_queued_runs": "five"}]
)
def test_bounds_that_break_the_rule_are_refused_at_the_door(
    asm: AgentSessions, bounds: dict[str, object]
) -> None:
    """A slot count below 1 or a negative bound starts no session."""
    with pytest.raises(errors.ValidationError) as refused:
        asm.start_session("echo", **bounds)  # type: ignore[arg-type]

    assert next(iter(bounds)) in str(refused.value)
    assert [] == asm.list_sessions()


def test_fifty_racing_submitters_never_exceed_the_bound(
    asm: AgentSessions, env: dict[str, str], worker: StartWorker, gate: Gate
) -> None:
    """Of 50 submits of 4 processes at the same moment six are accepted: five may wait, one may run."""
    worker(pool="threads")
    server = asm.start_session("gate", max_queued_runs=5)
    shares = [RACERS // PROCESSES + (part < RACERS % PROCESSES) for part in range(PROCESSES)]
    racers = [
        Elsewhere(
            "submit",
            env,
            session_id=server.session_id,
            inputs=[{"gate": str(gate)}] * share,
            threads=share,
        )
        for share in shares
    ]

    answers = [answer for part in together(racers) for answer in part]

    accepted = {answer["run_id"] for answer in answers if "run_id" in answer}
    refused = [answer for answer in answers if "run_id" not in answer]
    assert (6, 44) == (len(accepted), len(refused))
    assert [{"refused": "max_runs_exceeded", "limit": 6, "depth": 6}] * 44 == refused
    assert accepted == {run.run_id for run in server.list_runs()}
    gate.open()
    server.drain()
    assert 6 == most_open(server.get_events(limit=1000))


def test_the_bound_holds_while_runs_end_and_submitters_race(
    asm: AgentSessions, env: dict[str, str], worker: StartWorker, ledger: Ledger, tmp_path: Path
) -> None:
    """Each end makes room for one; the log shows never more than six open runs, and none lost."""
    worker(pool="threads")
    server = asm.start_session("echo", max_queued_runs=5)
    racers = [
        Elsewhere(
            "submit",
            env,
            session_id=server.session_id,
            inputs=[f"{part}.{number}" for number in range(25)],
            threads=6,
        )
        for part in range(PROCESSES)
    ]

    answers = [answer for part in together(racers) for answer in part]

    accepted = {answer["run_id"] for answer in answers if "run_id" in answer}
    server.drain()
    events = server.get_events(limit=1000)
    assert [] == anomalies(events, slots=1)
    assert 2 <= most_open(events) <= 6
    assert len(accepted) == sum(event.type in TERMINAL_EVENTS for event in events)
    assert accepted == set(ledger.entered(server.session_id))
