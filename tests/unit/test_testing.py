"""`Seams` counts the calls of a process, and breaks exactly the one that is named."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from asm_celery import AgentSessions
from asm_celery.config import Config
from asm_celery.errors import InvalidOperation, StorageConnectionFailed
from asm_celery.testing import Crash, Seams, crash, fail, kill, stall
from tests.world import World


@pytest.fixture
def world(sqlite_config: Config) -> Iterator[World]:
    """A process whose doorbells are recorded; another one announced capacity."""
    World(sqlite_config).close()
    made = World(sqlite_config, slots=0)
    yield made
    made.close()


def test_the_calls_of_a_move_are_counted_in_their_order(world: World) -> None:
    """SQL, then the announcement, then Redis, then the doorbell: what a submit is made of."""
    seams = Seams()
    seams.install(world.runtime)
    session = world.session()
    seams.clear()

    world.submit(session)

    assert [
        "queue.check_server",
        "store.transaction",
        "bus.publish",
        "queue.enqueue",
        "dispatcher.dispatch",
    ] == seams.calls


def test_a_crash_before_a_transaction_leaves_nothing_and_behind_it_everything(world: World) -> None:
    """The two sides of a commit are told apart."""
    seams = Seams()
    seams.install(world.runtime)
    session = world.session()

    for when, count in (("before", 0), ("after", 1)):
        seams.break_at("store.transaction", when=when, by=crash)  # type: ignore[arg-type]
        with pytest.raises(Crash):
            world.submit(session)
        assert count == len(world.server(session).list_runs())


def test_the_nth_call_breaks_and_breaks_once(world: World) -> None:
    """Only the call that was named is broken, and the next one is whole again."""
    seams = Seams()
    seams.install(world.runtime)
    session = world.session()
    seams.break_at("queue.enqueue", nth=2, by=crash)

    world.submit(session)
    with pytest.raises(Crash):
        world.submit(session)
    world.submit(session)

    assert 3 == len(world.server(session).list_runs())


def test_a_failing_store_says_so_as_the_real_one_does(world: World) -> None:
    """Callers meet the error they would meet."""
    seams = Seams()
    seams.install(world.runtime)
    seams.break_at("store.read", by=fail)

    with pytest.raises(StorageConnectionFailed):
        world.run("run_x")


def test_a_stalled_call_is_late_and_happens(world: World) -> None:
    """A pause of the process is no loss."""
    seams = Seams()
    seams.install(world.runtime)
    session = world.session()
    seams.break_at("queue.enqueue", by=stall(0.05))
    began = time.monotonic()

    world.submit(session)

    assert time.monotonic() - began >= 0.05
    assert 1 == len(world.bells.rung)


def test_a_killed_process_dies_at_the_call(sqlite_config: Config) -> None:
    """SIGKILL between the commit and Redis: the run is in SQL, and nobody was told."""
    with AgentSessions(sqlite_config) as asm:
        asm.register("agent", lambda ctx, value: value)
        seams = Seams()
        with seams.watch(asm):
            child = os.fork()
            if child == 0:
                server = asm.start_session("agent", session_id="chat")
                seams.break_at("store.transaction", when="after", by=kill)
                server.submit_run("hello")
                os._exit(1)
            _, status = os.waitpid(child, 0)

        assert signal.SIGKILL == os.WTERMSIG(status)
        assert ["pending"] == [run.status for run in asm.attach("chat").list_runs()]


def test_seams_come_before_the_first_use(world: World) -> None:
    """A move that holds its collaborators already cannot be broken any more."""
    world.session()

    with pytest.raises(InvalidOperation, match="before its first use"):
        Seams().install(world.runtime)


def test_sessions_are_whole_again_behind_the_block(sqlite_config: Config) -> None:
    """Only what is built while they are watched has seams."""
    seams = Seams()
    with AgentSessions(sqlite_config) as asm:
        with seams.watch(asm):
            pass
        asm.list_sessions()

    assert [] == seams.calls
