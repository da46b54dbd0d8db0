"""Repair on real SQL and Redis: what died is decided, what was forgotten is found, limits hold."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import update

from asm_celery.config import Config
from asm_celery.model import Event
from asm_celery.moves import recovery
from asm_celery.states import RunStatus, StopKind
from asm_celery.store.tables import runs
from tests.waiting import wait_until
from tests.world import World


@pytest.fixture
def world(config: Config) -> Iterator[World]:
    """One process with room for eight runs."""
    made = World(config)
    yield made
    made.close()


def repair_until(world: World, status: RunStatus, run_id: str) -> None:
    """Run repair passes until a run has a status."""

    def reached() -> bool:
        world.tick()
        return world.run(run_id).status is status

    wait_until(reached, description=f"{run_id} is {status}")


def wipe(config: Config) -> None:
    """Lose everything in Redis, as a flush does."""
    client = redis.Redis.from_url(config.redis_url)
    for key in client.scan_iter(match=f"{config.keys.root}*", count=1000):
        client.delete(key)
    client.close()


def test_a_silent_attempt_ends_worker_lost_and_frees_everything(world: World) -> None:
    """No beat for lease_s: the run is failed, its slots are free, the next run is rung (SS-171, SS-174)."""
    session = world.session()
    first, second = world.submit(session), world.submit(session)
    world.start(executor="dead")

    repair_until(world, RunStatus.FAILED, first)

    assert "worker_lost" == (world.run(first).error or {})["code"]
    assert second in [lease.run_id for lease in world.bells.rung]
    assert 1 == world.runtime.limiter.get_status().active_runs


def test_a_silent_attempt_with_attempts_left_is_entered_again(world: World) -> None:
    """max_attempts=2: the run waits at its old position and gets claim 2."""
    session = world.session()
    run_id = world.submit(session, max_attempts=2)
    world.start(executor="dead")

    repair_until(world, RunStatus.PENDING, run_id)
    bell = wait_until(
        lambda: world.tick() and next(iter(world.bells.rung), None),
        description="the doorbell of claim 2",
    )

    assert (run_id, 2) == (bell.run_id, bell.claim)
    assert RunStatus.COMPLETED == world.finish(world.start()).status


def test_an_attempt_that_beats_is_never_taken_over(world: World, config: Config) -> None:
    """A beat raised in time keeps its run, however long it runs."""
    session = world.session()
    run_id = world.submit(session)
    claim = world.start(executor="alive")
    until = time.monotonic() + 1.5 * config.lease_s

    def beaten() -> bool:
        world.beat("alive", {run_id: claim.number})
        world.runtime.recovery.repair()
        return time.monotonic() > until

    wait_until(beaten, description="it has beaten for longer than a lease lasts")

    assert RunStatus.RUNNING == world.run(run_id).status


def test_a_lease_that_was_begun_and_never_claimed_is_given_back(world: World) -> None:
    """A worker that dies between begin and claim costs time only: no attempt is used."""
    session = world.session()
    run_id = world.submit(session)
    bell = world.bells.rung.pop()
    world.runtime.queue.begin(run_id, bell.claim, "dead", "nonce")

    again = wait_until(
        lambda: world.tick() and next(iter(world.bells.rung), None),
        description="the doorbell is rung again",
    )

    assert (2, 0) == (again.claim, world.run(run_id).attempt)
    assert run_id == world.start().run.run_id


def test_a_lease_taken_over_before_its_claim_can_claim_no_more(world: World) -> None:
    """An executor that slept between begin and claim must not run beside whoever got its limiter slot."""
    world.runtime.limiter.set_limits(max_parallel_runs=1)
    first, second = (world.submit(world.session()) for _ in range(2))
    slept = world.bells.rung.pop()
    world.runtime.queue.begin(first, slept.claim, "asleep", "nonce")

    (silent,) = world.runtime.queue.observe()
    assert world.runtime.recovery.take_over(silent)
    assert second == world.start(executor="awake").run.run_id
    with world.runtime.log.transaction() as tx:
        woken = tx.runs.claim(first, slept.claim, executor="asleep", nonce="nonce")

    assert woken is None
    assert (RunStatus.PENDING, 0) == (world.run(first).status, world.run(first).attempt)


def test_a_claim_granted_before_redis_was_emptied_is_refused_after_the_restore(
    world: World, config: Config
) -> None:
    """Redis forgot who had begun what: its slot is another's by then."""
    world.runtime.limiter.set_limits(max_parallel_runs=1)
    first, second = (world.submit(world.session()) for _ in range(2))
    late = world.bells.rung.pop()
    world.runtime.queue.begin(first, late.claim, "late", "nonce")

    wipe(config)
    wait_until(lambda: world.tick() and world.bells.rung, description="Redis is restored")
    started = [world.start(executor="prompt").run.run_id]
    with world.runtime.log.transaction() as tx:
        claimed = tx.runs.claim(first, late.claim, executor="late", nonce="nonce")

    assert claimed is None
    assert started[0] in (first, second)


def test_a_dead_executors_leases_are_free_at_once(world: World) -> None:
    """Whoever saw it die need not wait for its silence: what it ran, and what it had only begun."""
    session = world.session()
    ran = world.submit(session)
    world.start(executor="dead")
    begun = world.submit(world.session(), max_attempts=1)
    bell = world.bells.rung.pop()
    world.runtime.queue.begin(begun, bell.claim, "dead", "nonce")

    world.runtime.recovery.bury("dead")

    assert "worker_lost" == (world.run(ran).error or {})["code"]
    assert (begun, 2) == (world.bells.rung[0].run_id, world.bells.rung[0].claim)
    assert begun == world.start().run.run_id
    assert [] == [held for held in world.runtime.queue.observe() if held.executor == "dead"]


def test_an_unanswered_doorbell_is_rung_again(world: World) -> None:
    """A lost message costs ring_s."""
    session = world.session()
    run_id = world.submit(session)
    world.bells.rung.clear()

    bell = wait_until(
        lambda: world.tick() and next(iter(world.bells.rung), None),
        description="the doorbell is rung again",
    )

    assert (run_id, 1) == (bell.run_id, bell.claim)


def test_redis_emptied_is_restored_with_limits_and_order(world: World, config: Config) -> None:
    """After a flush nothing is promoted until what runs holds its slots again; order is by position."""
    world.runtime.limiter.set_limits(max_parallel_runs=2)
    sessions = [world.session() for _ in range(3)]
    runs = [[world.submit(session) for _ in range(3)] for session in sessions]
    held = {claim.run.run_id: claim for claim in (world.start(executor="alive") for _ in range(2))}
    wipe(config)

    assert [] == world.runtime.queue.ring().granted
    world.announce()
    world.beat("alive", {run_id: claim.number for run_id, claim in held.items()})

    assert 2 == world.runtime.limiter.get_status().active_runs
    assert [] == world.bells.rung
    for claim in held.values():
        world.finish(claim)
    order = []
    while world.tick() and world.bells.rung:
        claim = world.start()
        order.append(claim.run.run_id)
        world.finish(claim)
    for line in runs:
        assert line == [run_id for run_id in [*held, *order] if run_id in line]


def test_a_pending_run_unknown_to_redis_is_found(world: World) -> None:
    """A submitter that died between SQL and Redis is made good by the repair pass (SS-17)."""
    session = world.session()
    run_id = world.submit(session)
    world.runtime.queue.finish(run_id)
    world.bells.rung.clear()

    wait_until(lambda: world.tick() and world.bells.rung, description="the run is rung for")

    assert run_id == world.start().run.run_id


def test_a_terminal_run_known_to_redis_is_removed(world: World) -> None:
    """A finisher that died between SQL and Redis frees its slot by the repair pass."""
    session = world.session()
    first, second = world.submit(session), world.submit(session)
    claim = world.start()
    with world.runtime.log.transaction() as tx:
        tx.runs.finish(first, claim.number, RunStatus.COMPLETED)
        tx.append(session.session_id, [Event.new("run_completed", session.session_id, run_id=first)])

    wait_until(lambda: world.tick() and world.bells.rung, description="the next run is rung for")

    assert second == world.bells.rung[0].run_id


def test_a_run_that_waits_longer_than_queue_timeout_ends_timeout(world: World) -> None:
    """Status timeout, code queue_timeout, the agent never called."""
    session = world.session()
    blocker, waiting = world.submit(session), world.submit(session, queue_timeout=0.2)
    world.start(executor="alive")

    repair_until(world, RunStatus.TIMEOUT, waiting)

    assert "queue_timeout" == (world.run(waiting).error or {})["code"]
    assert ["run_queued", "run_timeout"] == world.types(session, waiting)
    assert blocker == world.run(blocker).run_id


def test_a_run_that_executes_longer_than_run_timeout_is_asked_to_stop(world: World) -> None:
    """The repair pass asks too, should its executor not; it ends timeout with code run_timeout (SS-49)."""
    session = world.session()
    run_id = world.submit(session, run_timeout=0.2)
    claim = world.start()

    def asked() -> bool:
        world.beat("executor", {run_id: claim.number})
        world.runtime.recovery.repair()
        return world.run(run_id).stop_requested is not None

    wait_until(asked, description="a stop is requested")
    run = world.finish(claim, output="partial")

    assert (RunStatus.TIMEOUT, "partial") == (run.status, run.output)
    assert "run_timeout" == (run.error or {})["code"]


@pytest.mark.breaks_invariants
def test_a_damaged_row_is_named_once_and_passed_over(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overdue or silent, and however many: what is healthy and stands behind them is mended all the same."""
    monkeypatch.setattr(recovery, "_OVERDUE", 1)
    silent = world.submit(world.session())
    world.start(executor="dead")
    waiting = [world.submit(world.session(), queue_timeout=0.05) for _ in range(3)]
    late, lost = world.submit(world.session(), queue_timeout=0.1), world.submit(world.session())
    world.start(next(bell for bell in world.bells.rung if bell.run_id == lost), executor="dead")
    with world.runtime.log.transaction() as tx:
        damaged = runs.c.run_id.in_([silent, *waiting])
        tx.runs._connection.execute(update(runs).where(damaged).values(input="{"))

    repair_until(world, RunStatus.TIMEOUT, late)
    repair_until(world, RunStatus.FAILED, lost)

    named = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert sorted([silent, *waiting]) == sorted(line.split()[0].removeprefix("run=") for line in named)


def test_an_executor_ends_what_runs_under_its_id_and_it_does_not_execute(world: World) -> None:
    """An attempt whose thread is gone is found by its own executor at its second beat."""
    session = world.session()
    run_id = world.submit(session)
    world.start(executor="forgetful")

    for _ in range(2):
        world.runtime.recovery.beat("forgetful", {})

    assert (RunStatus.FAILED, "worker_lost") == (
        world.run(run_id).status,
        (world.run(run_id).error or {})["code"],
    )


def test_a_beat_tells_of_stops_and_of_lost_claims(world: World) -> None:
    """The guaranteed path of a stop request: the beat's own transaction reads it."""
    session = world.session(max_concurrent_runs=2)
    stopped, lost = world.submit(session), world.submit(session)
    claims = {claim.run.run_id: claim.number for claim in (world.start(), world.start())}
    world.runtime.stopper.request(stopped, StopKind.CANCEL)
    world.runtime.coordinator.lose(lost, 1, "executor", message="taken for dead")

    beat = world.runtime.recovery.beat("executor", claims)

    assert ({stopped: StopKind.CANCEL}, {lost}) == (beat.stops, beat.lost)


def test_limits_in_the_table_outlive_the_environment(world: World, config: Config) -> None:
    """The environment seeds the limits once; later only set_limits changes them."""
    world.runtime.limiter.set_limits(max_parallel_runs=3, max_parallel_sessions=2)
    wipe(config)
    other = World(config.model_copy(update={"max_parallel_runs": 99}))

    limits = other.runtime.limiter.get_limits()

    assert (3, 2) == (limits.max_parallel_runs, limits.max_parallel_sessions)
    assert 3 == other.runtime.limiter.get_status().max_parallel_runs
    other.close()
