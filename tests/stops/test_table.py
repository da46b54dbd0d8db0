"""The table of stops: every agent, however it behaves, ends as it was asked, soon, and alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from asm_celery import SessionServer
from asm_celery.model import Event
from asm_celery.states import TERMINAL_EVENTS, EventType, RunStatus
from tests.acceptance.conftest import FULL, Gate
from tests.history import anomalies
from tests.stops.cells import REASON, STATUS, Cell, cells
from tests.stops.conftest import Stages
from tests.stops.stage import BOUND_S, Stage
from tests.stops.table import PROPERTY
from tests.stops.tracks import TOKEN, alive_with, beats, is_left
from tests.waiting import wait_until

# Long enough to be entered in, and shorter than a body may hold the GIL before its worker is ended.
RUN_TIMEOUT_S = 1.0
# A run that is late is still measured; one that never ends must not cost the next cells.
PATIENCE_S = BOUND_S + 6.0
# The pipeline, and each process of it, hears nothing but SIGKILL.
DEAF_PIPELINE = """
trap '' INT TERM
(trap '' INT TERM; while :; do sleep 0.2; echo on; done) | (trap '' INT TERM; cat) &
while :; do sleep 0.2; done | cat
"""

ALL = [pytest.param(cell, id=str(cell)) for cell in cells(full=FULL)]


def stop(stage: Stage, how: str, server: SessionServer, run_id: str) -> None:
    """Ask for a run to stop, as the cell says."""
    if how == "cancel":
        server.cancel_run(run_id)
    elif how == "interrupt":
        server.interrupt_run(run_id)
    elif how != "run_timeout":
        # what Flower's two buttons, and `celery control`, send
        stage.asm.celery_app.control.revoke(run_id, terminate=how == "terminate")


def asked_at(how: str, told_at: datetime, started: Event) -> datetime:
    """Return when the stop was asked for: a timeout by the clock, another by us."""
    return started.timestamp + timedelta(seconds=RUN_TIMEOUT_S) if how == "run_timeout" else told_at


@pytest.mark.parametrize("cell", ALL)
def test_a_stopped_run_ends_as_asked_and_in_time_and_alone(
    stages: Stages, cell: Cell, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """One terminal event, of the right kind, within the bound; nothing of it is left; its neighbours go on."""
    stage = stages(cell.pool, cell.database)
    gate, token = Gate(tmp_path / "gate"), uuid4().hex
    if cell.takes_neighbours_along:
        stage.keep()
    worker = stage.worker
    neighbour, neighbour_id = stage.neighbour(gate)
    server = stage.asm.start_session(cell.agent)
    given = {"command": DEAF_PIPELINE, "env": {TOKEN: token}} if cell.agent == "shell" else None
    run_id = server.submit_run(given, run_timeout=RUN_TIMEOUT_S if cell.stop == "run_timeout" else None)
    next_id = server.submit_run("next")
    stage.wait_until_entered(run_id)
    if cell.agent == "shell":
        wait_until(lambda: len(alive_with(token)) >= 5, description="the pipeline runs")
    try:
        told_at = datetime.now(UTC)
        stop(stage, cell.stop, server, run_id)
        wait_until(
            lambda: server.get_run(run_id).is_terminal, description="the run has ended", timeout=PATIENCE_S
        )

        events = server.get_events(limit=1000, run_id=run_id)
        (started,) = (event for event in events if event.type == EventType.RUN_STARTED)
        (ended,) = (event for event in events if event.type in TERMINAL_EVENTS)
        took_s = (ended.timestamp - asked_at(cell.stop, told_at, started)).total_seconds()
        record_property(PROPERTY, f"{cell.agent} {cell.stop} {cell.pool} {cell.database} {took_s:.2f}")
        run = server.get_run(run_id)
        assert STATUS[cell.stop] == run.status
        assert REASON.get(cell.stop) == run.stop_reason
        assert took_s <= BOUND_S
        wait_until(lambda: not alive_with(token), description="no process of the run is alive")

        check_neighbour(stage, cell, neighbour, neighbour_id, gate)
        assert "next" == server.await_run(next_id, timeout=30.0).output
        # a thread that was given up ends with its worker, which makes place for another one
        wait_until(lambda: is_left(stage.ledger, run_id), description="the agent's code executes no more")
        log = server.get_events(limit=1000)
        assert [] == anomalies(log, slots=1, submitted=[run_id, next_id])
        assert [run_id, next_id] == stage.ledger.entered(server.session_id)
        assert cell.takes_neighbours_along or not worker.has_ended
    except BaseException:
        # whatever it has come to, the next cell begins with a worker like new
        stage.replace_worker()
        raise
    finally:
        gate.open()


def check_neighbour(stage: Stage, cell: Cell, neighbour: SessionServer, run_id: str, gate: Gate) -> None:
    """See that the run beside lives on, and ends by itself; with its worker, where that must end."""
    if cell.takes_neighbours_along:
        wait_until(lambda: neighbour.get_run(run_id).is_terminal, description="the neighbour's fate is known")
        # the supervisor's turn
        assert stage.worker
        return
    seen = len(beats(stage.ledger, run_id))
    wait_until(lambda: len(beats(stage.ledger, run_id)) > seen, description="the neighbour lives on")
    gate.open()
    result = neighbour.await_run(run_id, timeout=20.0)
    assert (RunStatus.COMPLETED, "unharmed", 1) == (result.status, result.output, result.attempts)
    assert [run_id] == stage.ledger.entered(neighbour.session_id)
