"""What a submit does when the session is busy: decided in its transaction, and positions never move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from asm_celery import AgentSessions, SessionServer, errors
from asm_celery.model import Event
from asm_celery.states import TERMINAL_EVENTS, RunStatus
from tests.acceptance.conftest import Gate, StartWorker
from tests.acceptance.elsewhere import Elsewhere, together
from tests.acceptance.ledger import Ledger
from tests.history import anomalies
from tests.waiting import wait_until

pytestmark = pytest.mark.either_database

PROCESSES = 10

POLICIES = ["enqueue", "reject", "interrupt"]
# situation -> statuses of the runs that are there before
SITUATIONS: dict[str, list[str]] = {
    "idle": ["completed"],
    "running": ["completed", "running"],
    "queued": ["completed", "running", "pending", "pending"],
    "full": ["completed", "running", "pending", "pending", "pending"],
    "paused": ["completed", "pending", "pending"],
}


@dataclass(frozen=True)
class Outcome:
    """What must be true when the submit has returned, and nobody else has done anything.

    Attributes:
        statuses: of all runs by position, the new one last; ``stopping`` for one that was asked to.
        events: what the submit wrote, as (type, index of the run by position).
        refused: the error, where nothing was written.
    """

    statuses: list[str]
    events: list[tuple[str, int]]
    refused: type[errors.AsmError] | None = None


def expected(policy: str, situation: str) -> Outcome:
    """The table."""
    before = SITUATIONS[situation]
    new = len(before)
    is_busy = any(status in ("running", "pending") for status in before)
    if policy == "reject" and is_busy:
        return Outcome(before, [], errors.SessionBusy)
    if policy == "enqueue" and situation == "full":
        return Outcome(before, [], errors.QueueFull)
    added = [("run_queued", new)]
    if policy != "interrupt":
        return Outcome([*before, "pending"], added)
    ends = {"running": "stopping", "pending": "interrupted"}
    words = {"running": "run_stop_requested", "pending": "run_interrupted"}
    return Outcome(
        [*(ends.get(status, status) for status in before), "pending"],
        [*((words[status], place) for place, status in enumerate(before) if status in words), *added],
    )


def statuses(server: SessionServer) -> list[str]:
    """The runs by position: the status of each, or that it is stopping."""
    runs = server.list_runs(limit=100)
    assert list(range(1, len(runs) + 1)) == [run.position for run in runs]
    return ["stopping" if run.status == "running" and run.stop_requested else str(run.status) for run in runs]


def written(server: SessionServer, after: int) -> list[tuple[str, int]]:
    """The events behind a sequence, each with the place of its run."""
    places = {run.run_id: run.position - 1 for run in server.list_runs(limit=100)}
    return [(event.type, places[event.run_id or ""]) for event in server.get_events(after=after, limit=1000)]


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_submit_to_a_busy_session_does_what_its_policy_says(
    asm: AgentSessions, worker: StartWorker, gate: Gate, ledger: Ledger, policy: str, situation: str
) -> None:
    """Exact states and events of each policy in each situation; refused, it has left no trace."""
    worker(pool="threads", concurrency=2, stop_grace_s=60)
    server = asm.start_session("stubborn", max_queued_runs=3)
    done = server.execute_run({"gate": __file__, "value": 0}, timeout=30).run_id
    if situation == "paused":
        server.pause()
    runs = [done, *(server.submit_run({"gate": str(gate)}) for _ in SITUATIONS[situation][1:])]
    if "running" in SITUATIONS[situation]:
        wait_until(lambda: ledger.entered() == runs[:2], description="the first of them executes")
    assert SITUATIONS[situation] == statuses(server)
    head = server.get_events(limit=1000)[-1].sequence
    wanted = expected(policy, situation)

    # idle, the new run would start at once: what its own submit wrote is looked at before
    asm.control.hold()
    if wanted.refused is not None:
        with pytest.raises(wanted.refused):
            server.submit_run({"gate": str(gate), "value": "new"}, on_busy=policy)
    else:
        runs.append(server.submit_run({"gate": str(gate), "value": "new"}, on_busy=policy))

    assert wanted.statuses == statuses(server)
    by_run = sorted(wanted.events[:-1], key=lambda event: runs[event[1]])
    assert [*by_run, *wanted.events[-1:]] == written(server, head)
    assert runs == [run.run_id for run in server.list_runs(limit=100)]
    asm.control.release()
    gate.open()
    server.resume()
    server.drain(timeout=30)
    ended = {"pending": "completed", "running": "completed", "stopping": "interrupted"}
    assert [ended.get(status, status) for status in wanted.statuses] == statuses(server)
    assert [] == anomalies(server.get_events(limit=1000), slots=1, submitted=runs)
    withdrawn = [run for run, status in zip(runs, wanted.statuses, strict=True) if status == "interrupted"]
    assert not set(withdrawn) & set(ledger.entered()), "what was withdrawn was never entered"


def test_the_same_key_submitted_again_interrupts_nothing(
    asm: AgentSessions, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """A repeated submit is the first one: it returns its run and stops neither that nor another."""
    worker(pool="threads")
    server = asm.start_session("gate")
    given = {"gate": str(gate)}
    first = server.submit_run(given, on_busy="interrupt", idempotency_key="k")
    wait_until(lambda: ledger.entered() == [first], description="it executes")
    behind = server.submit_run(given)

    assert first == server.submit_run(given, on_busy="interrupt", idempotency_key="k")

    assert ["running", "pending"] == statuses(server)
    gate.open()
    server.drain(timeout=30)
    assert [first, behind] == ledger.entered()


def test_interrupting_submits_of_ten_processes_leave_one_runner_and_an_ordered_line(
    asm: AgentSessions, env: dict[str, str], worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """Each stops all that were before it: the last one runs, every other has ended, none was lost or doubled."""
    worker(pool="threads", concurrency=4)
    server = asm.start_session("gate", max_queued_runs=50)
    racers = [
        Elsewhere(
            "submit",
            env,
            session_id=server.session_id,
            inputs=[{"gate": str(gate), "value": [part, number]} for number in range(3)],
            threads=3,
            on_busy="interrupt",
        )
        for part in range(PROCESSES)
    ]

    answers = [answer for part in together(racers) for answer in part]

    accepted = {answer["run_id"] for answer in answers if "run_id" in answer}
    assert {"session_busy"} >= {answer["refused"] for answer in answers if "refused" in answer}
    runs = server.list_runs(limit=100)
    assert accepted == {run.run_id for run in runs}
    assert list(range(1, len(runs) + 1)) == [run.position for run in runs]
    *others, last = runs
    wait_until(lambda: server.status().in_flight_runs == [last.run_id], description="the last one runs alone")
    wait_until(lambda: not server.status().queued_runs, description="nothing waits")
    assert {RunStatus.INTERRUPTED} == {server.get_run(run.run_id).status for run in others}
    gate.open()
    assert last.run_id == server.await_run(last.run_id, timeout=30).run_id
    events = log_of(server)
    assert [] == anomalies(events, slots=1, submitted=[run.run_id for run in runs])
    assert len(runs) == sum(event.type in TERMINAL_EVENTS for event in events)
    assert 1 == ledger.most_at_once(server.session_id)
    # whoever was accepted first is stopped by those behind it, and by nobody before it
    order = {run.run_id: run.position for run in runs}
    queued: set[int] = set()
    for event in events:
        place = order.get(event.run_id or "", 0)
        if event.type == "run_queued":
            queued.add(place)
        elif event.type == "run_interrupted" and event.data.get("reason") == "on_busy":
            assert place in queued


def log_of(server: SessionServer) -> list[Event]:
    """The whole log."""
    found: list[Event] = []
    while page := server.get_events(after=found[-1].sequence if found else 0, limit=1000):
        found += page
    return found


def test_cancelling_what_waits_moves_the_others_up(
    asm: AgentSessions, worker: StartWorker, gate: Gate, ledger: Ledger
) -> None:
    """The agent is never called, the others keep their order, and each is one place nearer its start."""
    worker(pool="prefork", concurrency=2)
    server = asm.start_session("gate")
    running, *waiting = [server.submit_run({"gate": str(gate), "value": number}) for number in range(6)]
    wait_until(lambda: ledger.entered() == [running], description="the first run executes")
    assert waiting == server.status().queued_runs
    positions = {run.run_id: run.position for run in server.list_runs()}

    cancelled = [waiting[0], waiting[2]]
    receipts = [server.cancel_run(run_id) for run_id in cancelled]

    kept = [waiting[1], waiting[3], waiting[4]]
    assert ["withdrawn"] * 2 == [receipt.state for receipt in receipts]
    assert kept == server.status().queued_runs
    assert positions == {run.run_id: run.position for run in server.list_runs()}
    for run_id in cancelled:
        with pytest.raises(errors.RunCancelled):
            server.await_run(run_id)
    gate.open()
    server.drain(timeout=30)
    assert [running, *kept] == ledger.entered()
    assert [RunStatus.CANCELLED] * 2 == [server.get_run(run_id).status for run_id in cancelled]
    assert [] == anomalies(server.get_events(limit=1000), slots=1, submitted=[running, *waiting])


Stop = Callable[[SessionServer, AgentSessions, str], Any]
STOPS: dict[str, Stop] = {
    "cancel": lambda server, asm, run_id: server.cancel_run(run_id),
    "interrupt": lambda server, asm, run_id: server.interrupt_run(run_id),
    "operator": lambda server, asm, run_id: asm.control.cancel(run_id, by="alice"),
    "whole session": lambda server, asm, run_id: asm.control.interrupt_session(server.session_id),
}


@pytest.mark.parametrize("how", STOPS)
def test_a_doorbell_on_its_way_starts_no_withdrawn_run(
    asm: AgentSessions, worker: StartWorker, ledger: Ledger, how: str
) -> None:
    """Leased and sent, and stopped before a worker hears it: the agent is never called."""
    asm._runtime().recovery.announce("nobody", "worker", 1, [asm.config.default_queue])
    server = asm.start_session("echo")
    run_id = server.submit_run("x")

    STOPS[how](server, asm, run_id)
    worker(pool="threads")

    assert "y" == asm.start_session("echo").execute_run("y", timeout=30).output
    assert server.get_run(run_id).is_terminal
    assert run_id not in ledger.entered()
