"""Group commit: what threads write at the same moment shares one COMMIT, and each has its own answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection
from sqlalchemy import event as listening

from asm_celery.config import Config
from asm_celery.errors import InvalidOperation
from asm_celery.events.log import LogTransaction
from asm_celery.model import Event, Session
from asm_celery.moves.outcome import Outcome
from asm_celery.states import RunStatus
from asm_celery.store.database import Store
from asm_celery.store.faults import CommitUnknown, Conflict, retried
from asm_celery.testing import Crash
from tests.waiting import wait_until
from tests.world import World

Unit = Callable[[LogTransaction], Any]
MANY = 4


class Group:
    """A transaction that is held open until others wait for it, and what became of all of them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.log = world.runtime.log
        self.threads = ThreadPoolExecutor(MANY + 1)
        self.commits = 0
        self._is_open, self._goes_on = threading.Event(), threading.Event()
        listening.listen(world.runtime.store._engine, "commit", self._count)

    def lead(self, ending: Unit = lambda tx: "led") -> Future[Any]:
        """Have a thread open the transaction, and stay in it until `gather` ends."""

        def unit(tx: LogTransaction) -> Any:
            self._is_open.set()
            assert self._goes_on.wait(30)
            return ending(tx)

        leading = self.threads.submit(self.log.grouped, unit)
        assert self._is_open.wait(30)
        self.commits = 0
        return leading

    def gather(self, acts: Sequence[Callable[[], Any]]) -> list[Future[Any]]:
        """Have a thread do each, and let the leader go on when all wait for its transaction."""
        following = [self.threads.submit(act) for act in acts]
        grouping = self.log._grouping
        assert grouping is not None
        wait_until(lambda: len(grouping._waiting) == len(acts), description="all wait for the leader")
        self._goes_on.set()
        return following

    def _count(self, _connection: Connection) -> None:
        self.commits += 1


@pytest.fixture
def world(sqlite_config: Config) -> Iterator[World]:
    """A process whose transactions take along what waits, however slow the machine is."""
    made = World(sqlite_config.model_copy(update={"group_commit_ms": 1000.0}))
    yield made
    made.close()


@pytest.fixture
def group(world: World) -> Iterator[Group]:
    """A group of its threads."""
    made = Group(world)
    yield made
    made.threads.shutdown()


def waiting(world: World) -> list[Session]:
    """Start sessions, each with a run whose doorbell was rung."""
    sessions = [world.session() for _ in range(MANY)]
    for session in sessions:
        world.submit(session)
    return sessions


def saying(session: Session) -> Unit:
    """Return a unit that appends an event."""
    return lambda tx: tx.append(session.session_id, [Event.new("note", session.session_id)])


@contextmanager
def answered(
    store: Store, monkeypatch: pytest.MonkeyPatch, how: Callable[[Connection], None]
) -> Iterator[None]:
    """Have the next COMMIT done by `how`, which raises."""
    commit = store._commit

    def once(connection: Connection) -> None:
        monkeypatch.setattr(store, "_commit", commit)
        how(connection)

    monkeypatch.setattr(store, "_commit", once)
    yield


def lose_answer(connection: Connection) -> None:
    """Commit, and not know it."""
    connection.commit()
    raise CommitUnknown("the answer was lost by a test")


def lose_commit(connection: Connection) -> None:
    """Not commit, and not know it."""
    connection.rollback()
    raise CommitUnknown("the commit was lost by a test")


def die_behind(connection: Connection) -> None:
    """Commit, and end there."""
    connection.commit()
    raise Crash("behind COMMIT")


def test_claims_and_ends_of_several_threads_share_a_commit(world: World, group: Group) -> None:
    """Each thread gets its own claim, and what it wrote is published; so it is with the ends."""
    sessions = waiting(world)
    published: list[str] = []
    group.log.bus.publish = lambda events: published.extend(event.type for event in events)  # type: ignore[method-assign]

    leading = group.lead()
    claims = [one.result(30) for one in group.gather([world.start] * MANY)]
    at_start, again = group.commits, Group(world)
    again.lead()
    ended = [one.result(30) for one in again.gather([partial(world.finish, claim) for claim in claims])]
    again.threads.shutdown()

    assert ("led", 1, 1) == (leading.result(), at_start, again.commits)
    assert {session.session_id for session in sessions} == {claim.run.session_id for claim in claims}
    assert [RunStatus.COMPLETED] * MANY == [run.status for run in ended]
    assert ["run_started"] * MANY + ["run_completed"] * MANY == published


def test_submits_of_several_threads_share_a_commit_and_one_refused_spoils_only_itself(
    world: World, group: Group
) -> None:
    """A unit that raises is taken back alone, with its events; the others' numbers have no hole."""
    session = world.session()

    def spoil(tx: LogTransaction) -> None:
        saying(session)(tx)
        raise InvalidOperation("it is refused")

    group.lead()
    refused, *accepted = group.gather(
        [lambda: group.log.grouped(spoil), *[lambda: world.submit(session)] * (MANY - 1)]
    )

    assert isinstance(refused.exception(30), InvalidOperation)
    assert MANY - 1 == len({one.result(30) for one in accepted})
    assert 1 == group.commits
    assert ["run_queued"] * (MANY - 1) == world.types(session)[2:]


def test_a_leader_that_is_refused_takes_nobody_with_it(world: World, group: Group) -> None:
    """Its transaction is rolled back before it takes others along; one of them leads the next."""
    session = world.session()

    def refuse(tx: LogTransaction) -> None:
        raise InvalidOperation("it is refused")

    leading = group.lead(refuse)
    following = group.gather([lambda: group.log.grouped(saying(session))] * MANY)

    assert [1] * MANY == [len(one.result(30)) for one in following]
    assert isinstance(leading.exception(30), InvalidOperation)
    assert ["note"] * MANY == world.types(session)[2:]


def test_a_part_that_ends_the_whole_transaction_costs_the_others_a_second_try(
    world: World, group: Group
) -> None:
    """A full disk rolls back all of it by itself: nobody is answered by what was not stored."""
    session = world.session()

    def end(tx: LogTransaction) -> None:
        tx._transaction._connection.exec_driver_sql("ROLLBACK")
        raise OSError("as a full disk does")

    group.lead(saying(session))
    following = group.gather([lambda: group.log.grouped(end), lambda: world.submit(session)])

    assert isinstance(following[0].exception(30), Conflict)
    assert following[1].result(30)
    assert ["run_queued"] == world.types(session)[2:]


@pytest.mark.parametrize("how", [lose_answer, lose_commit, die_behind])
def test_a_commit_without_an_answer_is_written_once_for_each_of_the_group(
    world: World, group: Group, monkeypatch: pytest.MonkeyPatch, how: Callable[[Connection], None]
) -> None:
    """Whether it was the answer or the COMMIT, and if its thread dies there: each claim is made once and known."""
    sessions = waiting(world)
    other = world.session()
    leading = group.lead(saying(other))

    with answered(world.runtime.store, monkeypatch, how):
        claims = [one.result(30) for one in group.gather([world.start] * MANY)]

    assert {session.session_id for session in sessions} == {claim.run.session_id for claim in claims}
    for session in sessions:
        assert 1 == world.types(session).count("run_started")
    failure = leading.exception(30)
    told: dict[Any, type] = {lose_answer: type(None), lose_commit: Conflict, die_behind: Crash}
    assert isinstance(failure, told[how])
    assert (how in (lose_answer, die_behind)) == ("note" in world.types(other))


def test_a_leader_that_is_cut_short_leaves_the_others_to_themselves(world: World, group: Group) -> None:
    """What is raised in its thread from outside is its own affair: the others' units are written by another."""
    session = world.session()
    cuts = [Crash("from outside")]

    def cut(tx: LogTransaction) -> str:
        if cuts:
            raise cuts.pop()
        return "written"

    leading = group.lead(saying(session))
    following = group.gather([lambda: retried(group.log.grouped)(cut), lambda: world.submit(session)])

    assert isinstance(leading.exception(30), Crash)
    assert "written" == following[0].result(30)
    assert following[1].result(30)
    assert ["run_queued"] == world.types(session)[2:]


def test_who_waits_for_a_leader_that_never_comes_back_goes_alone(world: World) -> None:
    """A thread that ended with the lead in its hand strands nobody."""
    session = world.session()
    grouping = world.runtime.log._grouping
    assert grouping is not None

    with grouping._lead:
        run_id = world.submit(session)

    assert RunStatus.PENDING is world.run(run_id).status


def test_without_a_window_each_move_has_its_own_transaction(sqlite_config: Config) -> None:
    """The setting 0 turns it off, and PostgreSQL never does it: it shares the flushes of its connections itself."""
    off = World(sqlite_config.model_copy(update={"group_commit_ms": 0.0}))

    assert off.runtime.log._grouping is None
    assert off.submit(off.session())
    off.close()


def test_threads_of_many_sessions_meet_and_every_run_ends_once(config: Config) -> None:
    """Submits, claims, events and ends of eight threads at once; the log of each session is whole and in order."""
    world = World(config)
    sessions = [world.session(max_queued_runs=100) for _ in range(6)]
    ended: list[str] = []

    def answer() -> bool:
        with suppress(IndexError):
            while True:
                claim = world.try_start(world.bells.rung.pop(0))
                if claim is not None:
                    notes = [Event.new("note", claim.run.session_id, run_id=claim.run.run_id)]
                    position = world.runtime.coordinator.append(claim, notes, 0)
                    done = Outcome(status=RunStatus.COMPLETED)
                    ended.append(world.runtime.coordinator.finish(claim, done, [], position).run_id)
        return len(ended) == 60

    def work(number: int) -> None:
        world.submit(sessions[number % 6])
        answer()

    with ThreadPoolExecutor(8) as threads:
        submitted = [threads.submit(work, number) for number in range(60)]
        for one in submitted:
            one.result(60)
        wait_until(lambda: world.tick() and answer(), description="every run has ended")

    told = ["run_completed", "run_queued", "run_started"]
    assert 60 == len({*ended})
    for session in sessions:
        assert sorted(told * 10) == sorted(kind for kind in world.types(session) if kind in told)
    world.close()
