"""A small test for each guard that stands in a single statement of PostgreSQL (`test_removed.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from asm_celery.config import Config
from asm_celery.errors import QueueFull, SessionDraining
from asm_celery.events.log import LogTransaction
from asm_celery.model import Run
from asm_celery.moves import at_once
from asm_celery.states import RunStatus, SessionStatus
from tests.waiting import wait_until
from tests.world import World

pytestmark = pytest.mark.breaks_invariants


@pytest.fixture
def world(postgresql_config: Config) -> Iterator[World]:
    """One process with room for eight runs."""
    made = World(postgresql_config)
    yield made
    made.close()


@contextmanager
def behind(
    world: World, write: Callable[[LogTransaction], Any], act: Callable[[], Any]
) -> Iterator[Future[Any]]:
    """Have `act` wait for a lock that `write` has taken, and commit; yields what becomes of it."""
    url = world.config.database_url.replace("+psycopg", "")
    with ThreadPoolExecutor(1) as thread, psycopg.connect(url, autocommit=True) as observer:
        waits = "SELECT 1 FROM pg_locks JOIN pg_database ON datname = current_database() WHERE NOT granted"
        with world.runtime.log.transaction() as tx:
            write(tx)
            acting = thread.submit(act)
            wait_until(lambda: observer.execute(waits).fetchone(), description="it waits for the lock")
        yield acting


def test_a_full_session_takes_no_run(world: World) -> None:
    """The open runs are counted in the statement that would add one."""
    session = world.session(max_queued_runs=0)
    world.submit(session)
    world.runtime.submission._doorkeeper._shut.clear()

    with pytest.raises(QueueFull):
        world.submit(session)


def test_a_draining_session_takes_no_run(world: World) -> None:
    """Nor one that is completed."""
    session = world.session()
    world.runtime.control.move_session(session.session_id, SessionStatus.DRAINING)

    with pytest.raises(SessionDraining):
        world.submit(session)


def test_a_count_from_before_the_wait_is_not_trusted(world: World) -> None:
    """Another's run fills the session while a submit waits for its lock: what it has counted is old."""
    session = world.session(max_queued_runs=0)

    def fill(tx: LogTransaction) -> None:
        counter = tx.sessions.draw(session.session_id, sequences=1, positions=1)
        assert counter is not None
        run = Run.new(session.session_id, agent=session.agent)
        tx.runs._connection.exec_driver_sql(
            "INSERT INTO runs (run_id, session_id, position, agent, queue, status, input, input_digest, metadata,"
            " created_at) VALUES (%s, %s, %s, %s, 'q', 'pending', '1', 'd', '{}', 0)",
            (run.run_id, session.session_id, counter.last_position, session.agent),
        )

    with behind(world, fill, lambda: world.submit(session)) as submitting, pytest.raises(QueueFull):
        submitting.result(timeout=20)


def test_a_pause_that_is_being_written_holds_back_what_would_start(world: World) -> None:
    """A claim that waited for it finds the session paused, and takes back what it has done."""
    session = world.session()
    run_id = world.submit(session)

    def pause(tx: LogTransaction) -> None:
        tx.sessions.move(session.session_id, SessionStatus.PAUSED, [SessionStatus.ACTIVE])

    def start() -> object:
        return at_once.start(world.runtime.log, run_id, 1, "e", "n", agent=session.agent)

    with behind(world, pause, start) as starting:
        assert starting.result(timeout=20) is None

    assert world.run(run_id).status is RunStatus.PENDING


def test_a_run_of_another_agent_is_not_started(world: World) -> None:
    """What Redis says of a run's agent may be wrong, and who knows that one may not know this one."""
    run_id = world.submit(world.session())

    assert at_once.start(world.runtime.log, run_id, 1, "e", "n", agent="another") is None
    assert world.run(run_id).status is RunStatus.PENDING
