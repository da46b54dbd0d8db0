"""Any number of processes may hold a session: its slots stay one, and all of them see the same."""

from __future__ import annotations

import pytest

from asm_celery import AgentSessions, errors
from asm_celery.config import Config
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.elsewhere import Elsewhere, together
from tests.acceptance.ledger import Ledger
from tests.history import anomalies, most_running
from tests.waiting import wait_until

RUNS = 12


@pytest.mark.either_database
def test_two_processes_never_double_the_slots(
    asm: AgentSessions, env: dict[str, str], worker: StartWorker, ledger: Ledger
) -> None:
    """Both submit at once to sessions of 1 and 2 slots, and two workers of four have room for all of it."""
    workers = [worker(pool=pool, concurrency=4, lease_s=10.0) for pool in ("prefork", "threads")]
    servers = {slots: asm.start_session("work", max_concurrent_runs=slots) for slots in (1, 2)}
    submitters = [
        Elsewhere("submit", env, session_id=server.session_id, inputs=[0.02] * RUNS, threads=2)
        for server in servers.values()
        for _ in range(2)
    ]

    answers = [answer["run_id"] for part in together(submitters) for answer in part]

    for slots, server in servers.items():
        server.drain()
        events = server.get_events(limit=1000)
        assert [] == anomalies(events, slots=slots)
        assert slots == most_running(events)
        assert ledger.most_at_once(server.session_id) <= slots
    assert sorted(answers) == sorted(run.run_id for one in servers.values() for run in one.list_runs())
    assert 4 * RUNS == len(ledger.entered())
    assert not any(one.has_ended for one in workers)


def test_attaching_keeps_the_stored_settings(asm: AgentSessions, config: Config) -> None:
    """Whatever a second process says of slots and bound, the session's own hold; another agent is refused."""
    asm.start_session("work", session_id="chat-42", max_concurrent_runs=2, max_queued_runs=7)

    with AgentSessions(config) as other:
        attached = other.start_session(
            "work", session_id="chat-42", if_exists="attach", max_concurrent_runs=9, max_queued_runs=0
        )
        with pytest.raises(errors.AlreadyExists):
            other.start_session("work", session_id="chat-42")
        with pytest.raises(errors.InvalidOperation, match="belongs to agent 'work'"):
            other.start_session("echo", session_id="chat-42", if_exists="attach")

        report = attached.status()
        assert (2, 7) == (report.max_concurrent_runs, report.max_queued_runs)
        assert report == other.attach("chat-42").status() == asm.attach("chat-42").status()


@pytest.mark.either_database
def test_both_processes_see_the_same_status_and_count_all_subscribers(
    asm: AgentSessions, env: dict[str, str], worker: StartWorker, gate: Gate
) -> None:
    """`status()` is one truth; subscribers are summed over processes, and a killed one's are left out."""
    worker(pool="threads")
    server = asm.start_session("gate", max_concurrent_runs=2)
    runs = [server.submit_run({"gate": str(gate)}) for _ in range(5)]
    wait_until(lambda: server.status().in_flight_count == 2, description="two runs are in flight")
    held = [server.subscribe(), server.subscribe()]
    with Elsewhere("follow", env, session_id=server.session_id, subscribers=3) as other:
        other.go().answer()

        wait_until(lambda: server.status().subscribers == 5, description="all five are seen from here")
        seen = wait_until(
            lambda: (seen := other.again())["subscribers"] == 5 and seen, description="and from there"
        )

        assert 3 == seen["held"]
        report = server.status()
        assert (runs[:2], runs[2:]) == (report.in_flight_runs, report.queued_runs)
        assert (2, 3) == (report.in_flight_count, report.queued_count)
        assert (report.in_flight_runs, report.queued_runs) == (seen["in_flight"], seen["queued"])
        held.pop().close()
        wait_until(lambda: other.again()["subscribers"] == 4, description="one less is seen from there")
        other.kill()
    wait_until(lambda: server.status().subscribers == 1, description="the killed process's are left out")
    held.pop().close()
    wait_until(lambda: server.status().subscribers == 0, description="nobody subscribes")
    gate.open()
    server.drain()
    assert (0, 0) == (server.status().in_flight_count, server.status().queued_count)
