"""The life of an attempt on real SQL and Redis; only the doorbells are recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from asm_celery.config import Config
from asm_celery.errors import LeaseLost, StorageConnectionFailed
from asm_celery.model import Event, Lease
from asm_celery.moves.outcome import Outcome
from asm_celery.states import RunStatus, SessionStatus, StopKind
from tests.waiting import wait_until
from tests.world import World


@pytest.fixture
def world(config: Config) -> Iterator[World]:
    """One process with room for eight runs."""
    made = World(config)
    yield made
    made.close()


def test_second_run_waits_until_the_first_has_finished(world: World) -> None:
    """With one slot, the doorbell of run 2 is rung when run 1 has ended (SS-22, SS-23)."""
    session = world.session()
    first, second = world.submit(session), world.submit(session)
    assert [first] == [lease.run_id for lease in world.bells.rung]

    world.finish(world.start())

    assert [second] == [lease.run_id for lease in world.bells.rung]
    assert RunStatus.PENDING == world.run(second).status


def test_run_started_is_stored_with_the_claim(world: World) -> None:
    """A claim and its event are one transaction, written before user code is entered."""
    session = world.session()
    run_id = world.submit(session)

    claim = world.start()

    assert ["run_queued", "run_started"] == world.types(session, run_id)
    assert (1, 1, "executor") == (claim.number, claim.run.attempt, world.run(run_id).executor)


def test_a_doorbell_rung_twice_starts_one_attempt(world: World) -> None:
    """Messages may be repeated: one claim number begins once."""
    session = world.session()
    world.submit(session)
    bell = world.bells.rung[0]

    claims = [world.try_start(bell, executor=f"executor-{n}") for n in range(3)]

    assert [True, False, False] == [claim is not None for claim in claims]


def test_an_early_doorbell_is_refused_by_sql_and_given_back(world: World) -> None:
    """Redis may be wrong about order: SQL refuses, the lease is returned, and the true head is rung."""
    session = world.session()
    first, second = world.submit(session), world.submit(session)
    world.bells.rung.clear()
    queue = world.runtime.queue
    # Redis forgets the first run, and so leases the second
    queue.finish(first)
    rung = queue.ring()
    early = [lease for lease in rung.granted if lease.run_id == second] or [
        Lease(
            run_id=second,
            session_id=session.session_id,
            agent="agent",
            claim=1,
            queue=world.config.default_queue,
        )
    ]

    refused = world.try_start(early[0])

    assert refused is None
    assert RunStatus.PENDING == world.run(second).status
    assert first == world.bells.rung[0].run_id
    world.finish(world.start())
    assert second == world.bells.rung[0].run_id


def test_an_append_is_stored_once_when_the_answer_to_commit_is_lost(world: World) -> None:
    """The attempt's own position makes a repeated append an answer, not a second event."""
    session = world.session()
    run_id = world.submit(session)
    claim = world.start()
    event = Event.new("message_streamed", session.session_id, run_id=run_id, data={"content": "x"})
    with _losing_commit_answers(world), pytest.raises(StorageConnectionFailed):
        world.runtime.coordinator.append(claim, [event], 0)

    position = world.runtime.coordinator.append(claim, [event], 0)

    assert 1 == position
    assert 1 == world.types(session, run_id).count("message_streamed")


def test_a_claim_whose_commit_answer_was_lost_is_known_by_its_nonce(world: World) -> None:
    """The executor re-reads the row: it owns the claim it cannot remember winning."""
    session = world.session()
    run_id = world.submit(session)
    with _losing_commit_answers(world):
        claim = world.try_start()

    assert claim is not None
    assert (RunStatus.RUNNING, 1) == (world.run(run_id).status, world.run(run_id).attempt)


def test_finish_is_written_once_when_the_answer_to_commit_is_lost(world: World) -> None:
    """Finishing again after a lost answer returns what was stored; there is one terminal event."""
    session = world.session()
    run_id = world.submit(session)
    claim = world.start()
    with _losing_commit_answers(world), pytest.raises(StorageConnectionFailed):
        world.finish(claim, output="done")

    run = world.finish(claim, output="done")

    assert (RunStatus.COMPLETED, "done") == (run.status, run.output)
    assert 1 == world.types(session, run_id).count("run_completed")


def test_a_submit_whose_commit_answer_was_lost_is_accepted_once(world: World) -> None:
    """The caller gets the id of the run that is stored."""
    session = world.session()
    with _losing_commit_answers(world):
        run_id = world.submit(session, "x")

    assert [run_id] == [run.run_id for run in world.server(session).list_runs()]
    assert [run_id] == [lease.run_id for lease in world.bells.rung]


def test_a_failed_attempt_waits_again_at_its_old_position(world: World, config: Config) -> None:
    """With attempts left, followers never overtake; the last failure is the run's (attempts 1, 2)."""
    session = world.session()
    first, second = world.submit(session, max_attempts=2), world.submit(session)
    error = {"code": "agent_error", "message": "boom", "details": {}}

    world.finish(world.start(), RunStatus.FAILED, error=error)

    assert (RunStatus.PENDING, 1) == (world.run(first).status, world.run(first).attempt)
    assert RunStatus.PENDING == world.run(second).status
    assert [] == [lease.run_id for lease in world.bells.rung if lease.run_id == second]
    again = _wait_for_doorbell(world, first)
    assert (2, f"{first}.2") == (again.claim, again.task_id)
    ended = world.finish(world.start(again), RunStatus.FAILED, error=error)
    assert (RunStatus.FAILED, 2) == (ended.status, ended.attempt)
    assert ["run_queued", "run_started", "run_requeued", "run_started", "run_failed"] == world.types(
        session, first
    )


def test_an_attempt_handed_back_uses_up_no_attempt(world: World) -> None:
    """A deploy gives the run to another worker at its old position: claim 2, attempt 1."""
    session = world.session()
    first, _second = world.submit(session), world.submit(session)

    world.finish(world.start(), RunStatus.PENDING)

    assert (RunStatus.PENDING, 0) == (world.run(first).status, world.run(first).attempt)
    claim = world.start()
    assert (first, 2, 1) == (claim.run.run_id, claim.number, claim.run.attempt)


def test_an_attempt_that_lost_its_claim_writes_nothing(world: World) -> None:
    """A worker taken for dead is fenced: its events and its end are refused (SS-84, SS-85)."""
    session = world.session()
    run_id = world.submit(session, max_attempts=2)
    zombie = world.start()
    world.runtime.coordinator.lose(run_id, 1, "executor", message="it was silent")
    event = Event.new("message_streamed", session.session_id, run_id=run_id, data={"content": "late"})

    for write in (
        lambda: world.runtime.coordinator.append(zombie, [event], 0),
        lambda: world.finish(zombie, output="late"),
    ):
        with pytest.raises(LeaseLost):
            write()

    assert RunStatus.PENDING == world.run(run_id).status
    assert "message_streamed" not in world.types(session, run_id)


@pytest.mark.parametrize(
    ("kind", "status"),
    [(StopKind.CANCEL, RunStatus.CANCELLED), (StopKind.INTERRUPT, RunStatus.INTERRUPTED)],
)
def test_a_late_success_after_a_stop_request_is_partial_output(
    world: World, kind: StopKind, status: RunStatus
) -> None:
    """Once the request is committed the run can end only as it says; one terminal event (SS-84, SS-85)."""
    session = world.session()
    run_id = world.submit(session)
    claim = world.start()
    receipt = world.runtime.stopper.request(run_id, kind)

    run = world.finish(claim, output="partial")

    assert ("requested", kind) == (receipt.state, receipt.kind)
    assert (status, "partial") == (run.status, run.output)
    assert [f"run_{status}"] == [
        name
        for name in world.types(session, run_id)
        if name in ("run_cancelled", "run_interrupted", "run_completed")
    ]


def test_the_first_stop_request_decides(world: World) -> None:
    """A later request gets the receipt of the first (SS-87)."""
    session = world.session()
    run_id = world.submit(session)
    world.start()
    stopper = world.runtime.stopper

    receipts = [stopper.request(run_id, kind) for kind in (StopKind.INTERRUPT, StopKind.CANCEL)]

    assert [StopKind.INTERRUPT, StopKind.INTERRUPT] == [receipt.kind for receipt in receipts]
    assert 1 == world.types(session, run_id).count("run_stop_requested")


def test_a_requested_stop_forbids_another_attempt(world: World) -> None:
    """A failure after a stop request ends the run as requested, attempts left or not."""
    session = world.session()
    run_id = world.submit(session, max_attempts=5)
    claim = world.start()
    world.runtime.stopper.request(run_id, StopKind.CANCEL)

    run = world.finish(claim, RunStatus.FAILED, error={"code": "agent_error", "message": "boom"})

    assert (RunStatus.CANCELLED, None) == (run.status, run.error)


def test_a_paused_session_refuses_a_claim_and_redis_learns_of_it(world: World) -> None:
    """A pause that Redis has not heard of still holds: the refused claim carries it there."""
    session = world.session()
    run_id = world.submit(session)
    with world.runtime.log.transaction() as tx:
        # the pause is committed, and its process dies before it tells Redis
        tx.sessions.move(session.session_id, SessionStatus.PAUSED, [SessionStatus.ACTIVE])
        tx.write(
            [
                Event.new(
                    "session_paused",
                    session.session_id,
                    sequence=tx.sessions.last_sequence(session.session_id),
                )
            ]
        )

    assert world.try_start() is None

    assert RunStatus.PENDING == world.run(run_id).status
    assert [] == world.bells.rung
    world.server(session).resume()
    assert [run_id] == [lease.run_id for lease in world.bells.rung]


def test_a_run_whose_agent_the_worker_lacks_is_given_back_with_a_delay(world: World) -> None:
    """The run waits, unclaimed and uncounted, for a worker that knows its agent."""
    session = world.session()
    run_id = world.submit(session)
    bell = world.bells.rung.pop()

    claim = world.runtime.coordinator.start(run_id, bell.claim, "stranger", "nonce", knows=lambda name: None)

    assert claim is None
    assert (RunStatus.PENDING, 0, 0) == (
        world.run(run_id).status,
        world.run(run_id).claims,
        world.run(run_id).attempt,
    )
    assert run_id == world.start(_wait_for_doorbell(world, run_id)).run.run_id


def test_usage_and_cost_are_stored_with_the_end(world: World) -> None:
    """What the executor summed up is part of the run (SM-30, RN-10)."""
    session = world.session()
    world.submit(session)
    outcome = Outcome(
        status=RunStatus.COMPLETED, output=1, token_usage={"input_tokens": 3}, cost_usd=0.5, turn_count=2
    )

    run = world.runtime.coordinator.finish(world.start(), outcome, [], 0)

    assert ({"input_tokens": 3}, 0.5, 2) == (run.token_usage, run.cost_usd, run.turn_count)


def _wait_for_doorbell(world: World, run_id: str) -> Lease:
    def rung() -> Lease | None:
        world.tick()
        return next((lease for lease in world.bells.rung if lease.run_id == run_id), None)

    found: Lease = wait_until(rung, description=f"the doorbell of {run_id}")
    world.bells.rung.clear()
    return found


@contextmanager
def _losing_commit_answers(world: World) -> Iterator[None]:
    """Commit, and then lose the answer: what a connection that breaks at that moment looks like."""
    store = world.runtime.store

    real = store.transaction

    @contextmanager
    def transaction(**options: bool) -> Iterator[Any]:
        with real(**options) as tx:
            yield tx
        raise StorageConnectionFailed("the answer to COMMIT was lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "transaction", transaction)
        yield
