"""Nothing that is written beside the log grows for ever: what operators asked, and who executed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from asm_celery.config import Config
from asm_celery.model import Session
from asm_celery.moves import retention
from asm_celery.operations import ControlOperations
from asm_celery.states import SessionStatus, StopKind
from tests.world import World


@pytest.fixture
def world(config: Config) -> Iterator[World]:
    """One process."""
    made = World(config)
    yield made
    made.close()


def count(world: World, table: str) -> int:
    """How many rows a table has."""
    with world.runtime.store._engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def cancel(world: World, run_id: str) -> None:
    """Ask for it; that is written down."""
    world.runtime.stopper.request(run_id, StopKind.CANCEL, reason=None, by="test")


def cancelled(world: World, session: Session, runs: int = 1) -> list[str]:
    """Submit runs and cancel each."""
    submitted = [world.submit(session, number) for number in range(runs)]
    for run_id in submitted:
        cancel(world, run_id)
    return submitted


def test_what_was_asked_of_a_run_goes_with_the_last_event_of_its_log(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open run keeps its history, and so does one whose events are kept; also when it takes many pages."""
    monkeypatch.setattr(retention, "_PAGE", 3)
    old, kept = world.session(), world.session(max_concurrent_runs=2)
    gone = cancelled(world, old, runs=10)
    stays = cancelled(world, kept)
    opened = world.submit(kept)
    world.start(next(lease for lease in world.bells.rung if lease.run_id == opened))
    cancel(world, opened)
    assert 12 == count(world, "control_operations")

    world.runtime.retention.prune(before=None, keep=20, session_id=None)

    assert 12 == count(world, "control_operations"), "each has events yet"
    world.runtime.retention.prune(before=datetime.now(UTC) + timedelta(hours=1), keep=0, session_id=None)
    control = ControlOperations(lambda: world.runtime)
    assert [[]] * 11 == [control.get_operation_history(run_id) for run_id in [*gone, *stays]]
    assert ["cancel"] == [one.operation for one in control.get_operation_history(opened)]


def test_a_deleted_session_leaves_nothing_of_what_was_asked_of_its_runs(world: World) -> None:
    """Nobody could ask for it any more."""
    session, other = world.session(), world.session()
    cancelled(world, session, runs=3)
    cancelled(world, other)
    world.runtime.control.move_session(session.session_id, SessionStatus.COMPLETED)

    world.runtime.control.delete_session(session.session_id)

    assert 1 == count(world, "control_operations")


def test_an_executor_that_ended_without_a_word_is_forgotten_after_a_day(world: World) -> None:
    """The next executor that comes removes its row; one that was seen today stays."""
    for name in ("long_ago", "today"):
        world.beat(name, {})
    with world.runtime.store._engine.begin() as connection:
        connection.execute(
            text("UPDATE executors SET seen_at = seen_at - 86401000000 WHERE executor = 'long_ago'")
        )

    World(world.config).close()

    assert 1 == count(world, "executors")
