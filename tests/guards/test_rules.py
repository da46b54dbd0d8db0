"""One small test a guard of the protocol: each fails when that guard is taken away (`test_removed.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import update

from asm_celery.config import Config
from asm_celery.errors import (
    IdempotencyConflict,
    InvalidOperation,
    LeaseLost,
    QueueFull,
    StorageConnectionFailed,
    StorageError,
)
from asm_celery.model import Event, Session, now
from asm_celery.moves.coordinator import Claim
from asm_celery.moves.promotion import entries_of, line_of
from asm_celery.queue.run_queue import Entry, Held, Line
from asm_celery.states import RunStatus, SessionStatus, StopKind
from asm_celery.store.tables import runs
from asm_celery.testing import Seams, fail
from tests.world import World

pytestmark = pytest.mark.breaks_invariants


@pytest.fixture
def world(sqlite_config: Config) -> Iterator[World]:
    """One process with room for eight runs; the rules know no database."""
    made = World(sqlite_config)
    yield made
    made.close()


def write(world: World, run_id: str, **columns: Any) -> None:
    """Write columns of a run as no move would."""
    with world.runtime.log.transaction() as tx:
        tx.runs._connection.execute(update(runs).where(runs.c.run_id == run_id).values(**columns))


def claims(world: World, run_id: str, claim: int = 1) -> bool:
    """Claim a run in SQL, whatever Redis says."""
    with world.runtime.log.transaction() as tx:
        return tx.runs.claim(run_id, claim, executor="e", nonce="n") is not None


def said(claim: Claim, *words: str) -> list[Event]:
    """Events of an attempt."""
    about = {"run_id": claim.run.run_id, "attempt": claim.run.attempt}
    return [Event.new("message_streamed", claim.run.session_id, **about, data={"content": w}) for w in words]


def replaced(world: World, **options: Any) -> tuple[Session, Claim, Claim]:
    """An attempt that was taken for dead, and the one that came after it."""
    session = world.session()
    run_id = world.submit(session, max_attempts=3, **options)
    zombie = world.start()
    world.runtime.coordinator.lose(run_id, 1, "executor", message="it was silent")
    write(world, run_id, not_before=None)
    world.runtime.coordinator.give_back(run_id, 1, "executor")
    queue = world.runtime.queue
    bells = [*world.bells.rung, *queue.ring().granted]
    again = next((bell for bell in bells if bell.claim == 2), None)
    if again is None:
        with world.runtime.store.read() as tx:
            [own] = tx.runs.open_page(run_ids=[run_id])
        again = next(
            bell for bell in queue.enqueue(line_of(own), entries_of([own])).leases if bell.run_id == run_id
        )
    world.bells.rung.clear()
    return session, zombie, world.start(again, executor="second")


def test_an_append_of_an_older_claim_is_refused(world: World) -> None:
    """The fence of append: same position, older number."""
    session, zombie, _ = replaced(world)

    with pytest.raises(LeaseLost):
        world.runtime.coordinator.append(zombie, said(zombie, "late"), 0)

    assert "message_streamed" not in world.types(session)


def test_an_append_is_refused_at_another_position(world: World) -> None:
    """The position of append: what is stored already is not stored again."""
    session = world.session()
    world.submit(session)
    claim = world.start()

    for _ in range(2):
        world.runtime.coordinator.append(claim, said(claim, "once"), 0)

    assert 1 == world.types(session).count("message_streamed")


def test_an_end_of_an_older_claim_is_refused(world: World) -> None:
    """The fence of finish."""
    _, zombie, current = replaced(world)

    with pytest.raises(LeaseLost):
        world.finish(zombie, output="late")

    assert RunStatus.RUNNING == world.run(current.run.run_id).status


def test_an_end_is_refused_at_another_position(world: World) -> None:
    """The position of finish: an event whose append was answered too late is not stored twice."""
    session = world.session()
    world.submit(session)
    claim = world.start()
    events = said(claim, "once")
    world.runtime.coordinator.append(claim, events, 0)

    with world.runtime.log.transaction() as tx:
        ended = tx.runs.finish(claim.run.run_id, 1, RunStatus.COMPLETED, position=0, count=1)

    assert ended is None


def test_an_end_of_an_older_claim_is_not_taken_for_the_present_one(world: World) -> None:
    """The signature: a lost attempt's worker must not read its run's end as its own answer."""
    session = world.session()
    run_id = world.submit(session)
    zombie = world.start()
    world.runtime.coordinator.lose(run_id, 1, "executor", message="it was silent")

    with pytest.raises(LeaseLost):
        world.finish(zombie, output="late")


def test_a_run_that_was_asked_to_stop_is_not_completed(world: World) -> None:
    """The stop condition of finish."""
    world.submit(world.session())
    claim = world.start()
    world.runtime.stopper.request(claim.run.run_id, StopKind.CANCEL)

    assert RunStatus.CANCELLED == world.finish(claim, output="late").status


def test_a_run_that_was_asked_to_stop_is_not_repeated(world: World) -> None:
    """The stop condition of requeue."""
    world.submit(world.session(), max_attempts=3)
    claim = world.start()
    world.runtime.stopper.request(claim.run.run_id, StopKind.CANCEL)

    assert RunStatus.CANCELLED == world.finish(claim, RunStatus.FAILED, error={"code": "x"}).status


def test_a_failure_of_an_older_claim_gives_nothing_back(world: World) -> None:
    """The fence of requeue."""
    _, zombie, current = replaced(world)

    with pytest.raises(LeaseLost):
        world.finish(zombie, RunStatus.FAILED, error={"code": "x"})

    assert RunStatus.RUNNING == world.run(current.run.run_id).status


def test_the_last_attempt_is_not_given_back(world: World) -> None:
    """The attempts of requeue, whoever counts them before."""
    run_id = world.submit(world.session())
    world.start()

    with world.runtime.log.transaction() as tx:
        again = tx.runs.requeue(run_id, 1, delay_s=0)

    assert again is None


def test_a_running_run_is_not_claimed(world: World) -> None:
    """The status of claim."""
    run_id = world.submit(world.session())
    world.start()

    assert not claims(world, run_id, 2)


def test_a_claim_names_the_next_number(world: World) -> None:
    """The number of claim: an old doorbell claims nothing."""
    run_id = world.submit(world.session())
    write(world, run_id, claims=1)

    assert not claims(world, run_id, 1)


def test_a_run_in_back_off_is_not_claimed(world: World) -> None:
    """The due time of claim."""
    run_id = world.submit(world.session(), max_attempts=2)
    world.finish(world.start(), RunStatus.FAILED, error={"code": "x"})

    assert not claims(world, run_id, 2)


def test_a_back_off_that_a_jumped_clock_has_written_is_over(world: World) -> None:
    """SQLite takes the time of whoever writes; no back-off is as long as an hour."""
    run_id = world.submit(world.session(), max_attempts=2)
    world.finish(world.start(), RunStatus.FAILED, error={"code": "x"})
    write(world, run_id, not_before=now() + timedelta(hours=1))

    with world.runtime.store.read() as tx:
        assert [0] == [run.waits_ms for run in tx.runs.open_page(run_ids=[run_id])]
    assert claims(world, run_id, 2)


def test_a_run_behind_an_open_one_is_not_claimed(world: World) -> None:
    """Order and slots of claim."""
    session = world.session()
    _, second = world.submit(session), world.submit(session)

    assert not claims(world, second)


def test_a_waiting_run_that_was_asked_to_stop_is_not_claimed(world: World) -> None:
    """The stop condition of claim."""
    run_id = world.submit(world.session())
    write(world, run_id, stop_requested="cancel")

    assert not claims(world, run_id)


def test_a_run_of_a_paused_session_is_not_started(world: World) -> None:
    """The session's state, looked at again under the counter's lock."""
    session = world.session()
    run_id = world.submit(session)
    with world.runtime.log.transaction() as tx:
        tx.sessions.move(session.session_id, SessionStatus.PAUSED, [SessionStatus.ACTIVE])

    assert world.try_start() is None
    assert RunStatus.PENDING == world.run(run_id).status


def test_a_claim_of_another_delivery_is_not_taken_for_ones_own(world: World) -> None:
    """The nonce of claim: after a lost answer, only who signed it has it."""
    world.submit(world.session())
    bell = world.bells.rung[0]
    world.start(bell, executor="first")
    # Redis has lost the lease and granted it anew, and this one's transaction fails
    queue, seams = world.runtime.queue, Seams()
    queue.finish(bell.run_id)
    other = World(world.config, slots=0)
    other.runtime = seams.install(World(world.config, slots=0).runtime)
    line = Line(session_id=bell.session_id, slots=1, state="active", version=0)
    entry = Entry(run_id=bell.run_id, agent="agent", position=1, queue=bell.queue, status="pending", claims=0)
    [again] = queue.enqueue(line, [entry]).leases
    seams.break_at("store.transaction", by=fail)

    assert other.try_start(again, executor="second") is None
    other.close()


def test_a_finished_run_is_not_asked_to_stop(world: World) -> None:
    """The status of request_stop."""
    run_id = world.submit(world.session())
    world.finish(world.start())

    world.runtime.stopper.request(run_id, StopKind.CANCEL)

    assert world.run(run_id).stop_requested is None


def test_the_first_request_to_stop_stays(world: World) -> None:
    """Set once: the second request changes nothing."""
    run_id = world.submit(world.session())
    world.start()

    for kind in (StopKind.INTERRUPT, StopKind.CANCEL):
        world.runtime.stopper.request(run_id, kind)

    assert StopKind.INTERRUPT == world.run(run_id).stop_requested


def test_a_running_run_is_not_withdrawn(world: World) -> None:
    """The status of withdraw."""
    run_id = world.submit(world.session())
    world.start()

    assert "requested" == world.runtime.stopper.request(run_id, StopKind.CANCEL).state


def test_a_stop_of_a_claim_that_has_passed_stops_nothing(world: World) -> None:
    """A late revoke must not hit the next attempt."""
    _, _, current = replaced(world)
    run_id = current.run.run_id

    assert "passed" == world.runtime.stopper.request(run_id, StopKind.CANCEL, only_claim=1).state


def test_a_key_is_one_run(world: World) -> None:
    """The idempotency key, looked up under the counter's lock."""
    session = world.session()
    run_id = world.submit(session, "x", idempotency_key="key")

    try:
        again = world.submit(session, "x", idempotency_key="key")
    except StorageError:
        # the unique index is the last guard, and does not know what to answer
        again = "refused"

    assert run_id == again
    with pytest.raises(IdempotencyConflict):
        world.submit(session, "y", idempotency_key="key")


def test_a_full_session_refuses(world: World) -> None:
    """The bound of open runs, counted under the counter's lock."""
    session, other = world.session(max_queued_runs=0), World(world.config, slots=0)
    # by another process: the one that filled it would not come as far as the lock
    other.submit(session)
    other.close()

    with pytest.raises(QueueFull):
        world.submit(session)


def test_a_completed_session_refuses(world: World) -> None:
    """The state at admission."""
    session = world.session()
    world.runtime.control.move_session(session.session_id, SessionStatus.COMPLETED)

    with pytest.raises(InvalidOperation):
        world.submit(session)


def test_a_session_with_open_runs_is_not_completed(world: World) -> None:
    """The count at completion."""
    session = world.session()
    world.submit(session)

    with pytest.raises(InvalidOperation):
        world.runtime.control.move_session(session.session_id, SessionStatus.COMPLETED)


def test_an_ended_run_takes_no_more_events(world: World) -> None:
    """A run's terminal event is its last."""
    session = world.session()
    world.submit(session)
    run = world.finish(world.start())

    with pytest.raises(InvalidOperation):
        world.runtime.submission.append_events(
            session, [Event.new("note", session.session_id, run_id=run.run_id)]
        )


def test_a_session_moves_only_where_the_table_says(world: World) -> None:
    """The sources of a session's move."""
    session = world.session()
    world.runtime.control.move_session(session.session_id, SessionStatus.PAUSED)

    with world.runtime.log.transaction() as tx:
        moved = tx.sessions.move(session.session_id, SessionStatus.DRAINING, [SessionStatus.ACTIVE])

    assert moved is None


def test_a_setting_that_has_changed_is_not_swapped(world: World) -> None:
    """The compare-and-set of the hold."""
    with world.runtime.log.transaction() as tx:
        tx.settings.put("hold_test", "new")
        swapped = tx.settings.swap("hold_test", "old", "mine")

    assert not swapped


def test_an_attempt_is_an_orphan_at_the_second_look_only(world: World) -> None:
    """A claim is committed a moment before its attempt is registered."""
    run_id = world.submit(world.session())
    world.start(executor="quick")

    world.runtime.recovery.beat("quick", {})

    assert RunStatus.RUNNING == world.run(run_id).status


def test_a_doorbell_of_another_claim_begins_nothing(world: World) -> None:
    """The claim number of begin."""
    run_id = world.submit(world.session())

    assert not world.runtime.queue.begin(run_id, 2, "e", "n")


def test_a_lease_begins_for_one_delivery(world: World) -> None:
    """The nonce of begin: a repeated message is spare, a repeated call is not."""
    run_id = world.submit(world.session())
    begin = world.runtime.queue.begin

    assert [True, True, False] == [bool(begin(run_id, 1, "e", nonce)) for nonce in ("n", "n", "other")]


@pytest.mark.parametrize("changed", ["claim", "executor", "beat"])
def test_a_lease_that_has_changed_is_not_taken_over(world: World, changed: str) -> None:
    """Compare-and-set on what the observer saw."""
    run_id = world.submit(world.session())
    world.start(executor="alive")
    seen = {"claim": 1, "executor": "alive", "beat": 0} | {changed: "other" if changed == "executor" else 7}

    held = Held(run_id=run_id, session_id="s", **seen)  # type: ignore[arg-type]

    assert not world.runtime.queue.take_over(held, "observer")


def test_a_lease_of_another_is_not_given_back(world: World) -> None:
    """Compare-and-set on claim and executor."""
    run_id = world.submit(world.session())
    world.start(executor="alive")

    give_back = world.runtime.coordinator.give_back

    assert ["absent", "absent"] == [give_back(run_id, 1, "another"), give_back(run_id, 2, "alive")]
    assert ["alive"] == [held.executor for held in world.runtime.queue.observe()]


def test_a_beat_of_another_executor_renews_nothing(world: World) -> None:
    """Who was taken over hears of it."""
    run_id = world.submit(world.session())
    world.start(executor="alive")

    assert {run_id: "taken"} == world.runtime.queue.renew("another", {run_id: 1})


def test_a_claim_whose_lease_was_taken_over_is_not_held(world: World) -> None:
    """Who gets its answer late hears it before the agent is entered."""
    world.submit(world.session())
    claim = world.start()
    [lease] = world.runtime.queue.observe()
    world.runtime.queue.take_over(lease, "observer")

    assert not world.runtime.coordinator.still_holds(claim)


def test_a_claim_whose_run_was_ended_meanwhile_is_not_held(world: World) -> None:
    """Redis has forgotten it then, as if it had been emptied: SQL tells the two apart."""
    world.submit(world.session())
    claim = world.start()
    [lease] = world.runtime.queue.observe()
    world.runtime.recovery.take_over(lease)

    assert not world.runtime.coordinator.still_holds(claim)


def test_an_attempt_is_lost_with_its_own_executor_only(world: World) -> None:
    """An observer's late verdict on one executor says nothing of another."""
    run_id = world.submit(world.session())
    world.start(executor="alive")

    assert world.runtime.coordinator.lose(run_id, 1, "another", message="it was silent") is None

    assert RunStatus.RUNNING == world.run(run_id).status


def test_a_number_that_was_taken_over_is_never_claimed(world: World) -> None:
    """An executor that slept between its lease and its claim finds the number used up."""
    run_id = world.submit(world.session())

    assert world.runtime.coordinator.lose(run_id, 1, "asleep", message="it was silent") is None

    assert not claims(world, run_id, 1)


def test_a_claim_that_was_recalled_in_vain_is_never_made(world: World) -> None:
    """A server that executes a statement long after its connection was cut finds the number used up."""
    run_id = world.submit(world.session())

    assert world.runtime.coordinator.recall(run_id, 1, "cut off", "nonce") is None

    assert not claims(world, run_id, 1)


def test_a_number_that_was_granted_before_a_restore_is_never_claimed(world: World) -> None:
    """Redis forgot who had begun it, and grants its slot anew."""
    run_id = world.submit(world.session())
    with redis.Redis.from_url(world.config.redis_url) as client:
        client.delete(f"{world.config.keys.root}gate")
    world.tick()

    assert not claims(world, run_id, 1)


def test_sweeping_a_session_leaves_what_it_rightly_holds(world: World) -> None:
    """A lease that was granted a moment after the look is no stray."""
    session = world.session()
    run_id = world.submit(session)
    world.start()

    world.runtime.queue.sweep("active", session.session_id)

    assert [run_id] == [held.run_id for held in world.runtime.queue.observe()]


def test_a_cold_redis_grants_nothing(world: World) -> None:
    """The gate: empty, it could grant what runs already, beyond every limit."""
    session = world.session()
    run_id = world.submit(session)
    with world.runtime.store.read() as tx:
        [own] = tx.runs.open_page(run_ids=[run_id])
    queue, root = world.runtime.queue, world.config.keys.root
    queue.finish(run_id)
    with redis.Redis.from_url(world.config.redis_url) as client:
        client.delete(f"{root}gate")

    assert [] == queue.enqueue(line_of(own), entries_of([own])).leases


def test_a_gate_of_another_server_process_is_closed(world: World) -> None:
    """After a restart with its data, or a failover, what is in Redis may be old."""
    with redis.Redis.from_url(world.config.redis_url) as client:
        client.set(f"{world.config.keys.root}gate", "0" * 40)

    assert "mine" == world.runtime.queue.begin_restore("r", hold_s=1)


def test_a_redis_that_lost_its_leases_grants_nothing(world: World) -> None:
    """Evicted, the set of leases would count as none; the restore writes it again."""
    world.runtime.limiter.set_limits(max_parallel_runs=2)
    running = [world.submit(world.session()) for _ in range(2)]
    for _ in running:
        world.start()
    with redis.Redis.from_url(world.config.redis_url) as client:
        client.delete(f"{world.config.keys.root}leases")

    world.submit(world.session())
    assert [] == world.bells.rung
    world.tick()

    assert sorted(running) == sorted(held.run_id for held in world.runtime.queue.observe())
    assert [] == world.bells.rung


def test_one_restorer_restores(world: World) -> None:
    """The right to restore has one owner, and only the owner opens the gate."""
    queue = world.runtime.queue
    with redis.Redis.from_url(world.config.redis_url) as client:
        client.delete(f"{world.config.keys.root}gate")

    assert ["mine", "busy"] == [queue.begin_restore(name, hold_s=9) for name in ("one", "two")]
    assert ["lost", "open"] == [queue.open_gate(name).word for name in ("two", "one")]


def test_an_older_state_of_a_session_is_not_kept(world: World) -> None:
    """The version of session_state: calls arrive in any order."""
    session = world.session()
    world.submit(session)
    queue = world.runtime.queue
    queue.session_state(session.session_id, "paused", 2)

    assert "older" == queue.session_state(session.session_id, "active", 1).word


def test_an_older_state_does_not_come_with_a_run(world: World) -> None:
    """The version in enqueue: a late submit does not resume a paused session."""
    session = world.session()
    first = world.submit(session)
    queue = world.runtime.queue
    queue.session_state(session.session_id, "paused", 5)
    world.submit(session)

    assert [] == queue.finish(first).leases


def test_an_older_hold_is_not_kept(world: World) -> None:
    """The version of hold."""
    queue = world.runtime.queue
    queue.hold(True, 5)

    assert "held" == queue.hold(False, 4).word


def test_a_held_installation_grants_nothing(world: World) -> None:
    """The hold in promote."""
    world.runtime.holding.move(True, by="test")

    world.submit(world.session())

    assert [] == world.bells.rung


def test_what_redis_knows_under_a_higher_number_stays(world: World) -> None:
    """A late enqueue of an older reading does not end a newer lease."""
    session = world.session()
    run_id = world.submit(session)
    with world.runtime.store.read() as tx:
        [before] = tx.runs.open_page(run_ids=[run_id])
    world.start(executor="alive")

    world.runtime.queue.enqueue(line_of(before), entries_of([before]))

    assert ["alive"] == [held.executor for held in world.runtime.queue.observe()]


def test_no_more_than_the_limit_is_leased(world: World) -> None:
    """The limiter in promote."""
    world.runtime.limiter.set_limits(max_parallel_runs=1)

    for _ in range(2):
        world.submit(world.session())

    assert 1 == len(world.bells.rung)


def test_no_more_sessions_than_the_limit_have_work_in_flight(world: World) -> None:
    """The limit of sessions in promote."""
    world.runtime.limiter.set_limits(max_parallel_sessions=1)

    for _ in range(2):
        world.submit(world.session())

    assert 1 == len(world.bells.rung)


def test_no_more_is_leased_than_workers_can_take(world: World) -> None:
    """The capacity in promote: eight slots and one spare doorbell."""
    for _ in range(12):
        world.submit(world.session())

    assert 9 == len(world.bells.rung)


def test_only_the_first_runs_of_a_session_are_leased(world: World) -> None:
    """The claim's own rule in place."""
    session = world.session(max_concurrent_runs=2)

    for _ in range(4):
        world.submit(session)

    assert 2 == len(world.bells.rung)


def test_a_run_of_a_paused_session_is_not_leased(world: World) -> None:
    """The session's state in place."""
    session = world.session()
    world.runtime.control.move_session(session.session_id, SessionStatus.PAUSED)

    world.submit(session)

    assert [] == world.bells.rung


def test_a_caller_slot_that_ended_is_not_revived(world: World) -> None:
    """The holder of a caller's slot in limiter_renew."""
    renew = world.runtime.queue.limiter_renew

    assert ["ended"] == renew([("runs", "gone")], hold_s=9)
    assert 0 == world.runtime.queue.limiter_status()[0]


def test_a_full_limiter_refuses_a_caller(world: World) -> None:
    """The limit in limiter_acquire."""
    world.runtime.limiter.set_limits(max_parallel_runs=1)
    acquire = world.runtime.queue.limiter_acquire

    assert ["acquired", "full"] == [acquire("runs", name, hold_s=9)[0] for name in ("one", "two")]


def test_a_lost_answer_to_a_submit_is_looked_up(world: World) -> None:
    """A submit that raises accepted nothing."""
    seams = Seams()
    other = World(world.config, slots=0)
    other.runtime = seams.install(World(world.config, slots=0).runtime)
    session = other.session()
    seams.break_at("store.transaction", when="after", by=fail)
    accepted: list[str] = []

    try:
        accepted.append(other.submit(session))
    except StorageConnectionFailed:
        accepted.clear()

    assert accepted == [run.run_id for run in world.server(session).list_runs()]
    other.close()
