"""A session that is known to be full, or closed, refuses at once: without the lock that submits wait for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from asm_celery import errors
from asm_celery.config import Config
from asm_celery.states import SessionStatus
from tests.waiting import wait_until
from tests.world import World

# a refusal takes less than 100 ms; what is left to busy cores is times 3
BOUND_S = 0.3


@pytest.fixture
def world(config: Config) -> Iterator[World]:
    """A web process."""
    made = World(config, slots=0)
    yield made
    made.close()


@pytest.fixture
def other(config: Config) -> Iterator[World]:
    """Another process of the same installation."""
    made = World(config, slots=0)
    yield made
    made.close()


def test_a_full_session_refuses_while_another_holds_its_lock(world: World, other: World) -> None:
    """Whoever filled it looks before it waits: the refusal is there within the bound, again and again."""
    session = world.session(max_queued_runs=0)
    world.submit(session)

    with other.runtime.log.transaction() as tx:
        tx.sessions.draw(session.session_id)
        took_s = []
        for _ in range(3):
            began = time.perf_counter()
            with pytest.raises(errors.QueueFull) as refused:
                world.submit(session)
            took_s.append(time.perf_counter() - began)

    assert (1, 1) == (refused.value.limit, refused.value.depth)
    assert min(took_s) < BOUND_S


def test_who_was_refused_once_is_refused_without_the_lock(world: World, other: World) -> None:
    """By whatever the session refuses: a run that another process has open, or its state."""
    busy, closed = world.session(), world.session()
    other.submit(busy)
    world.runtime.control.move_session(closed.session_id, SessionStatus.DRAINING)
    refusals = [(busy, {"on_busy": "reject"}, errors.SessionBusy), (closed, {}, errors.SessionDraining)]
    for session, options, error in refusals:
        with pytest.raises(error):
            world.submit(session, **options)

    with other.runtime.log.transaction() as tx:
        for session in sorted((busy, closed), key=lambda one: one.session_id):
            tx.sessions.draw(session.session_id)
        for session, options, error in refusals:
            with pytest.raises(error):
                world.submit(session, **options)


def test_a_crowd_of_submits_that_wait_does_not_keep_refusals_waiting(world: World, other: World) -> None:
    """Writers that wait for a lock leave half of the connections to those who read."""
    full, slow = world.session(max_queued_runs=0), world.session()
    world.submit(full)
    crowd = 2 * world.config.pool_size

    with ThreadPoolExecutor(crowd) as pool:
        with other.runtime.log.transaction() as tx:
            tx.sessions.draw(slow.session_id)
            waiting = [pool.submit(world.submit, slow) for _ in range(crowd)]
            wait_until(lambda: not world.runtime.store._writing._value, description="all writers wait")
            began = time.perf_counter()
            with pytest.raises(errors.QueueFull):
                world.submit(full)
            took_s = time.perf_counter() - began
        accepted = {one.result() for one in waiting}

    assert crowd == len(accepted)
    # far below the 5 s and more that a seat is waited for
    assert took_s < 10 * BOUND_S


def test_a_known_key_is_its_run_also_in_a_full_session(world: World) -> None:
    """Asking again is no new run, so nothing refuses it; another input is a conflict as ever."""
    session = world.session(max_queued_runs=0)
    run_id = world.submit(session, "value", idempotency_key="key")

    assert run_id == world.submit(session, "value", idempotency_key="key")
    with pytest.raises(errors.IdempotencyConflict):
        world.submit(session, "other", idempotency_key="key")


def test_a_session_that_was_full_takes_runs_when_it_has_room(world: World, other: World) -> None:
    """Also when another process made the room; and `interrupt` makes its own."""
    session = world.session(max_queued_runs=0)
    first = world.submit(session)
    with pytest.raises(errors.QueueFull):
        world.submit(session)
    other.server(session).cancel_run(first)

    second = world.submit(session)
    third = world.submit(session, on_busy="interrupt")

    assert [second, third] == [run.run_id for run in world.server(session).list_runs(after=first)]
