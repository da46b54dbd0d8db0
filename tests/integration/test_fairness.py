"""Who goes next: turns, positions, and what waits for a worker that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from asm_celery.config import Config
from asm_celery.model import Lease, Session
from asm_celery.queue.run_queue import Entry, Granted, Line
from tests.world import World


@pytest.fixture
def world(sqlite_config: Config) -> Iterator[World]:
    """One process with room for eight runs; agent ``elsewhere`` is consumed by nobody at first."""
    # nothing here dies: an announcement outlasts the slowest machine
    made = World(sqlite_config.model_copy(update={"lease_s": 600.0}))
    made.registry.register(
        "elsewhere", lambda ctx, value: value, queue=f"{sqlite_config.namespace}-elsewhere"
    )
    yield made
    made.close()


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_session_gets_its_second_turn_before_a_ready_one_gets_its_first(world: World, limit: int) -> None:
    """20 sessions of 3 runs: leases are granted in rounds, each session once a round, in the same order."""
    world.runtime.queue.limiter_set(limit, None)
    sessions = [world.session() for _ in range(20)]
    for _ in range(3):
        for session in sessions:
            world.submit(session)

    granted = [lease.session_id for lease in _run_all(world)]

    ids = [session.session_id for session in sessions]
    assert [*range(20), *range(20), *range(20)] == [ids.index(name) for name in granted]


def test_many_slots_do_not_bring_many_turns_in_a_row(world: World) -> None:
    """A session that is still ready after its turn queues behind those that wait."""
    world.runtime.queue.limiter_set(0, None)
    wide, narrow = world.session(max_concurrent_runs=3), world.session()
    for session in (wide, wide, wide, narrow, narrow):
        world.submit(session)

    world.runtime.promoter.settle(lambda: world.runtime.queue.limiter_set(1, None))

    granted = [lease.session_id for lease in _run_all(world)]
    both = [wide.session_id, narrow.session_id]
    assert [*both, *both, wide.session_id] == granted


def test_new_session_waits_for_room_and_those_with_work_go_on(world: World) -> None:
    """With one session in flight, its second slot is served and no other session begins."""
    world.runtime.queue.limiter_set(None, 1)
    wide, other = world.session(max_concurrent_runs=2), world.session()
    for session in (wide, other, wide):
        world.submit(session)

    assert [wide.session_id] * 2 == [lease.session_id for lease in world.bells.rung]
    assert other.session_id == _run_all(world)[-1].session_id


def test_submit_that_overtakes_its_predecessor_neither_starts_first_nor_stalls(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Position 2 reaches Redis before position 1: its doorbell is refused, and 1 runs, then 2."""
    session, queue = world.session(), world.runtime.queue
    late: list[tuple[Line, list[Entry]]] = []

    def lose(line: Line, entries: list[Entry], **_: Any) -> Granted:
        late.append((line, entries))
        return Granted(word="lost", leases=[])

    with monkeypatch.context() as patched:
        patched.setattr(queue, "enqueue", lose)
        first = world.submit(session)
    second = world.submit(session)
    assert [second] == [lease.run_id for lease in world.bells.rung]

    refused = world.try_start()

    assert refused is None
    assert [first] == [lease.run_id for lease in world.bells.rung]
    claim = world.start()
    queue.enqueue(*late[0])
    assert [] == world.bells.rung
    world.finish(claim)
    assert [second] == [lease.run_id for lease in world.bells.rung]
    assert second == world.start().run.run_id


def test_queue_without_workers_holds_no_limiter_slot(world: World) -> None:
    """Runs nobody can take are not leased, and those that someone can take start."""
    world.runtime.queue.limiter_set(1, None)
    idle, served = _session_elsewhere(world), world.session()
    world.submit(idle)
    run_id = world.submit(served)

    assert [run_id] == [lease.run_id for lease in world.bells.rung]


def test_queue_whose_workers_went_away_gives_its_slot_back(world: World) -> None:
    """A doorbell that no living worker can hear is taken back when it is next due."""
    world.runtime.queue.limiter_set(1, None)
    elsewhere = f"{world.config.namespace}-elsewhere"
    world.announce(1, executor="other", queues=[elsewhere])
    idle, served = world.submit(_session_elsewhere(world)), world.submit(world.session())
    assert [idle] == [lease.run_id for lease in world.bells.rung]

    world.runtime.queue.announce("other", "worker", 0, [elsewhere], hold_s=1, ring_s=0.001)

    assert [served] == _rung_when_due(world)


def test_doorbell_that_waits_for_a_busy_worker_makes_way_for_a_free_one(world: World) -> None:
    """At a full limiter, a lease in front of a busy worker yields to a run that could start at once."""
    queue, elsewhere = world.runtime.queue, f"{world.config.namespace}-elsewhere"
    queue.limiter_set(2, None)
    world.announce(1)
    queue.announce("other", "w-other", 1, [elsewhere], hold_s=60, ring_s=0.001)
    running, waiting = world.submit(world.session()), world.submit(world.session())
    world.start()
    assert [waiting] == [lease.run_id for lease in world.bells.rung]

    started = world.submit(_session_elsewhere(world))

    assert [started] == _rung_when_due(world)
    assert running != waiting


def test_free_worker_comes_before_one_that_could_only_hold_the_doorbell(world: World) -> None:
    """The last limiter slot goes to a queue with a free worker, though another session waited longer."""
    queue, elsewhere = world.runtime.queue, f"{world.config.namespace}-elsewhere"
    world.announce(1)
    world.announce(1, executor="other", queues=[elsewhere])
    queue.limiter_set(1, None)
    world.submit(world.session())
    claim = world.start()
    world.submit(world.session())
    free = world.submit(_session_elsewhere(world))

    world.runtime.promoter.settle(lambda: queue.limiter_set(2, None))

    assert [free] == [lease.run_id for lease in world.bells.rung]
    world.finish(claim)


def _run_all(world: World) -> list[Lease]:
    """Answer every doorbell, oldest first, end each run at once; return the doorbells in their order."""
    answered = []
    while world.bells.rung:
        lease = world.bells.rung[0]
        answered.append(lease)
        world.finish(world.start())
    return answered


def _rung_when_due(world: World) -> list[str]:
    """Let the time of every doorbell come, look once, and return what was rung."""
    world.bells.rung.clear()
    queue = world.runtime.queue
    for run_id in queue.known():
        queue._client.zadd(f"{world.config.keys.root}dispatched", {run_id: 0}, xx=True)
    rung = queue.ring()
    return [lease.run_id for lease in [*rung.repeated, *rung.granted]]


def _session_elsewhere(world: World) -> Session:
    return world.runtime.submission.start_session(Session.new("elsewhere"))
