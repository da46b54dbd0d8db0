"""Pausing one run in real workers: it rests where its agent lets it, and the wish outlives whatever dies."""

from __future__ import annotations

import contextlib
import logging
import os
import signal

import pytest

from asm_celery import AgentSessions, Config, SessionServer, errors
from asm_celery.cli.program import run as asm_command
from asm_celery.model import Event
from asm_celery.states import RunStatus
from tests.acceptance.conftest import Gate, StartWorker
from tests.conftest import environment
from tests.waiting import wait_until

pytestmark = pytest.mark.either_database


def steps(server: SessionServer, run_id: str) -> list[Event]:
    """The steps the run's agent has told of."""
    found: list[Event] = []
    while page := server.get_events(
        after=found[-1].sequence if found else 0, limit=1000, run_id=run_id, type="step"
    ):
        found += page
    return found


def stepping(server: SessionServer, run_id: str, *, attempt: int = 1) -> None:
    """Wait until its agent takes further steps, in this attempt."""
    seen = len(steps(server, run_id))
    wait_until(lambda: len(steps(server, run_id)) > seen + 2, description=f"{run_id} takes steps", timeout=30)
    assert attempt == steps(server, run_id)[-1].attempt


def resting(server: SessionServer, run_id: str) -> int:
    """Wait until it takes no more steps; returns how many it took."""
    counts: list[int] = []

    def is_still() -> bool:
        counts.append(len(steps(server, run_id)))
        # an agent's step takes 10 ms, and 30 looks several times that
        return len(counts) > 30 and len(set(counts[-30:])) == 1

    wait_until(is_still, description=f"{run_id} rests", timeout=30)
    return counts[-1]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_run_rests_and_goes_on_in_a_real_worker(
    asm: AgentSessions, worker: StartWorker, gate: Gate, pool: str
) -> None:
    """Asked by a process that knows no agents; its neighbour goes on, and the session's line keeps waiting."""
    worker(pool=pool, concurrency=2)
    server, other = asm.start_session("patient"), asm.start_session("patient")
    run_id, neighbour = (one.submit_run({"gate": str(gate)}) for one in (server, other))
    behind = server.submit_run({"gate": str(gate)})
    stepping(server, run_id)

    assert "paused" == asm.control.pause(run_id, by="alice").state

    taken = resting(server, run_id)
    stepping(other, neighbour)
    assert taken == len(steps(server, run_id))
    assert ("paused", [behind]) == (
        asm.control.get_operation_status(run_id).state,
        server.status().queued_runs,
    )
    assert "resumed" == asm.control.resume(run_id).state
    stepping(server, run_id)
    gate.open()
    assert server.await_run(run_id, timeout=30).output > taken


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("how", ["cancel", "interrupt", "timeout"])
def test_a_resting_run_can_be_stopped(
    asm: AgentSessions, worker: StartWorker, gate: Gate, pool: str, how: str
) -> None:
    """By request and by its own run_timeout, which goes on while it rests; the next run starts."""
    worker(pool=pool, concurrency=1)
    server = asm.start_session("patient")
    run_id = server.submit_run({"gate": str(gate)}, run_timeout=3 if how == "timeout" else None)
    stepping(server, run_id)
    asm.control.pause(run_id)
    resting(server, run_id)

    if how != "timeout":
        getattr(asm.control, how)(run_id)

    ends = {"cancel": errors.RunCancelled, "interrupt": errors.RunInterrupted, "timeout": errors.RunTimeout}
    with pytest.raises(ends[how]):
        server.await_run(run_id, timeout=30)
    with pytest.raises(errors.InvalidOperation):
        asm.control.resume(run_id)
    gate.open()
    assert 0 <= server.execute_run({"gate": str(gate)}, timeout=30).output


def test_a_pause_outlives_its_worker(asm: AgentSessions, worker: StartWorker, gate: Gate) -> None:
    """The process is killed: the next attempt starts at the old place, and rests before its first step."""
    worker(pool="prefork", concurrency=1)
    server = asm.start_session("patient")
    run_id = server.submit_run({"gate": str(gate)}, max_attempts=2)
    stepping(server, run_id)
    asm.control.pause(run_id)
    taken = resting(server, run_id)

    os.kill(int(str(server.get_run(run_id).executor).split(":")[1]), signal.SIGKILL)
    wait_until(
        lambda: server.get_run(run_id).status is RunStatus.RUNNING and server.get_run(run_id).attempt == 2,
        description="it is entered again",
        timeout=30,
    )

    assert taken == resting(server, run_id)
    asm.control.resume(run_id)
    stepping(server, run_id, attempt=2)
    gate.open()
    server.await_run(run_id, timeout=30)


def test_a_pause_that_no_message_tells_is_heard_with_the_beat(
    asm: AgentSessions, config: Config, worker: StartWorker, gate: Gate
) -> None:
    """Who asks cannot reach Redis: the agent rests and goes on all the same, a beat later."""
    worker(pool="threads", concurrency=1)
    server = asm.start_session("patient")
    run_id = server.submit_run({"gate": str(gate)})
    stepping(server, run_id)
    changes = {"redis_url": "redis://127.0.0.1:1/0", "connect_timeout_s": 0.3}
    with AgentSessions(config.model_copy(update=changes)) as deaf:
        assert "paused" == deaf.control.pause(run_id).state
        resting(server, run_id)
        assert "resumed" == deaf.control.resume(run_id).state

    stepping(server, run_id)
    gate.open()
    server.await_run(run_id, timeout=30)


def test_an_operator_pauses_a_run_from_the_command_line(
    asm: AgentSessions,
    config: Config,
    worker: StartWorker,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``asm pause RUN`` and ``asm resume RUN``; ``asm status`` shows it, and refusals have their exit codes."""
    for name, value in environment(config).items():
        monkeypatch.setenv(name, value)
    worker(pool="threads", concurrency=2)
    server, other = asm.start_session("patient"), asm.start_session("gate")
    run_id, plain = (one.submit_run({"gate": str(gate)}) for one in (server, other))
    stepping(server, run_id)

    with contextlib.ExitStack() as stack:
        root = logging.getLogger()
        stack.callback(setattr, root, "handlers", root.handlers)
        codes = [int(asm_command([*words])) for words in (["pause", run_id], ["status", run_id])]
        shown = capsys.readouterr().out
        codes += [int(asm_command([*words])) for words in (["resume", run_id], ["pause", plain])]
        told = capsys.readouterr()

    assert [0, 0, 0, 5] == codes
    assert f"{run_id} paused (running)" in shown
    assert "running (paused)" in shown
    assert f"{run_id} resumed (running)" in told.out
    assert "does not declare the capability 'pause'" in told.err
    assert "@" in asm.control.get_operation_history(run_id)[0].actor
    gate.open()
    for one, run in ((server, run_id), (other, plain)):
        one.await_run(run, timeout=30)
