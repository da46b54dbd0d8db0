"""Raising a stop in an agent's code from another thread: there, at once, and nowhere else."""

from __future__ import annotations

import random
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from asm_celery.agent import AgentRegistry
from asm_celery.config import Config
from asm_celery.errors import StopRun
from asm_celery.model import Run, Session
from asm_celery.moves.coordinator import Claim
from asm_celery.moves.outcome import Outcome
from asm_celery.states import RunStatus
from asm_celery.worker import reach as module
from asm_celery.worker.attempt import Attempts
from asm_celery.worker.executor import Executor
from asm_celery.worker.ladder import ThreadPlace
from asm_celery.worker.reach import Reach, prepare
from asm_celery.worker.writer import EventWriter
from tests.waiting import wait_until

RACES = 3000
# turns of a loop: about as long as a thread takes to wake another
MOST = 4000
PATIENCE_S = 20.0


class Beside:
    """Two things at once: an agent's body, and what another thread does to it meanwhile."""

    def __init__(self, *, is_main: bool) -> None:
        self._is_main = is_main

    def __call__(self, body: Callable[[], object], other: Callable[[], object]) -> None:
        here, there = (body, other) if self._is_main else (other, body)
        escaped: list[BaseException] = []

        def run() -> None:
            try:
                there()
            except BaseException as cause:  # noqa: BLE001 - a stop that got out is the worst of all
                escaped.append(cause)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        here()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert not escaped


@pytest.fixture
def prepared() -> Iterator[None]:
    """This process as one whose main thread can be reached."""
    known = signal.getsignal(module.SIGNAL)
    prepare()
    yield
    signal.signal(module.SIGNAL, known)


@pytest.fixture
def eager() -> Iterator[None]:
    """Threads take turns as often as they can, so that races meet."""
    known = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(known)


@pytest.fixture(params=["main", "thread"])
def beside(request: pytest.FixtureRequest, prepared: None) -> Beside:
    """The body in the main thread, where a signal reaches it, and in another."""
    return Beside(is_main=request.param == "main")


def stopped(reach: Reach, agent: Callable[[], object]) -> StopRun | None:
    """Execute an agent as an executor does; returns what was raised in it."""
    raised = None
    try:
        reach.enter()
        agent()
    except StopRun as stop:
        raised = stop
    reach.leave()
    return raised


def spin() -> None:
    """Compute for ever."""
    while True:
        pass


def test_an_agent_that_only_computes_is_stopped(beside: Beside) -> None:
    """And it learns why."""
    reach, inside = Reach(), threading.Event()
    raised: list[StopRun | None] = []

    def agent() -> None:
        inside.set()
        spin()

    beside(
        lambda: raised.append(stopped(reach, agent)),
        lambda: inside.wait(PATIENCE_S) and reach.throw(StopRun("interrupt")),
    )

    assert ["interrupt"] == [stop and stop.kind for stop in raised]


def test_a_system_call_in_the_main_thread_is_interrupted(prepared: None) -> None:
    """A prefork child that reads from a silent server need not be killed for it."""
    reach, inside = Reach(), threading.Event()
    raised: list[StopRun | None] = []
    ours, theirs = socket.socketpair()

    def agent() -> None:
        inside.set()
        ours.recv(1)

    with ours, theirs:
        Beside(is_main=True)(
            lambda: raised.append(stopped(reach, agent)),
            lambda: inside.wait(PATIENCE_S) and reach.throw(StopRun("cancel")),
        )

    assert ["cancel"] == [stop and stop.kind for stop in raised]


def test_our_own_code_is_finished_before_the_stop_is_raised(beside: Beside) -> None:
    """At the end of the outermost shield, and with the kind that was wanted."""
    reach, inside, thrown = Reach(), threading.Event(), threading.Event()
    done: list[str] = []
    raised: list[StopRun | None] = []

    def agent() -> None:
        with reach:
            with reach:
                inside.set()
                thrown.wait(PATIENCE_S)
                done.append("inner")
            done.append("outer")
        done.append("the agent went on")

    def throw() -> None:
        inside.wait(PATIENCE_S)
        done.append("thrown" if reach.throw(StopRun("timeout")) else "refused")
        thrown.set()

    beside(lambda: raised.append(stopped(reach, agent)), throw)

    assert ["thrown", "inner", "outer"] == done
    assert ["timeout"] == [stop and stop.kind for stop in raised]


def test_what_was_raised_is_not_raised_again_by_a_shield(beside: Beside) -> None:
    """An agent that cleans up after the stop may still emit."""
    reach, inside = Reach(), threading.Event()
    done: list[object] = []

    def agent() -> None:
        try:
            inside.set()
            spin()
        except StopRun:
            with reach:
                done.append("emitted")

    beside(
        lambda: done.append(stopped(reach, agent)),
        lambda: inside.wait(PATIENCE_S) and reach.throw(StopRun("cancel")),
    )

    assert ["emitted", None] == done


def test_an_agent_that_swallows_a_stop_can_be_stopped_again(beside: Beside) -> None:
    """The last rung throws once more, whatever was heard."""
    reach, inside, caught = Reach(), threading.Event(), threading.Event()
    raised: list[StopRun | None] = []

    def agent() -> None:
        try:
            inside.set()
            spin()
        except StopRun:
            caught.set()
        spin()

    def throw() -> None:
        inside.wait(PATIENCE_S)
        reach.throw(StopRun("cancel"))
        caught.wait(PATIENCE_S)
        reach.throw(StopRun("cancel"))

    beside(lambda: raised.append(stopped(reach, agent)), throw)

    assert caught.is_set()
    assert ["cancel"] == [stop and stop.kind for stop in raised]


def test_a_shield_of_another_thread_does_not_keep_the_body_from_being_stopped(beside: Beside) -> None:
    """The agent's own threads emit too; the body is not in our code because of that."""
    reach, inside = Reach(), threading.Event()
    raised: list[StopRun | None] = []

    def agent() -> None:
        inside.set()
        spin()

    def throw() -> None:
        inside.wait(PATIENCE_S)
        with reach:
            reach.throw(StopRun("cancel"))
            wait_until(lambda: raised, description="the body was left while another thread was shielded")

    beside(lambda: raised.append(stopped(reach, agent)), throw)

    assert ["cancel"] == [stop and stop.kind for stop in raised]


def test_nothing_is_thrown_at_a_body_that_is_not_there() -> None:
    """Neither before it was entered nor after it was left."""
    reach = Reach()

    before = reach.throw(StopRun("cancel"))
    reach.enter()
    reach.leave()
    after = reach.throw(StopRun("cancel"))

    assert (False, False, None) == (before, after, reach.thread)


def test_nothing_is_raised_once_the_body_was_left(beside: Beside, eager: None) -> None:
    """Storing the end, and the next run in the same thread, never meet the stop of the run before."""
    turn = threading.Barrier(2, timeout=PATIENCE_S)
    outcomes: list[str] = []
    now = Reach()

    def race(reach: Reach) -> str:
        ended = "returned"
        try:
            ended = "stopped" if stopped(reach, lambda: spend(random.randrange(MOST))) else "returned"
        except StopRun:
            # on the way into `leave`: the caller's to catch, and there is no second one
            reach.leave()
            ended = "stopped late"
        following = Reach()
        try:
            following.enter()
            spend(200)
        except StopRun:
            ended = "another run was stopped"
        following.leave()
        return ended

    def body() -> None:
        nonlocal now
        for _ in range(RACES):
            now = Reach()
            turn.wait()
            outcomes.append(race(now))
            turn.wait()

    def throw() -> None:
        for _ in range(RACES):
            turn.wait()
            spend(random.randrange(MOST))
            now.throw(StopRun("cancel"))
            turn.wait()

    beside(body, throw)

    assert RACES == len(outcomes)
    assert {"returned", "stopped"} <= set(outcomes) <= {"returned", "stopped", "stopped late"}


def spend(turns: int) -> None:
    """Compute for a moment."""
    for _ in range(turns):
        pass


class _Waiting(Reach):
    """Says when its body's thread is about to wait for the lock."""

    def __init__(self) -> None:
        self.is_next = threading.Event()
        super().__init__()

    @property
    def _lock(self) -> threading.Lock:
        if threading.get_ident() == self._thread:
            self.is_next.set()
        return self._real

    @_lock.setter
    def _lock(self, lock: threading.Lock) -> None:
        self._real = lock


def test_a_stop_that_meets_the_beginning_of_a_shield_leaves_no_shield_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thrower has the lock and the body waits for it: raised before the shield, or at its end."""
    reach, known = _Waiting(), module._class_of
    inside, is_thrown, caught = threading.Event(), threading.Event(), threading.Event()
    ended: list[str] = []

    def meet(stop: StopRun) -> type[StopRun]:
        # the thrower is in here with the lock held, the body comes for it
        reach.is_next.clear()
        is_thrown.set()
        reach.is_next.wait(PATIENCE_S)
        return known(stop)

    def agent() -> None:
        inside.set()
        is_thrown.wait(PATIENCE_S)
        try:
            with reach:
                pass
            spin()
        except StopRun:
            caught.set()
        wait_until(lambda: ended, description="the second stop was raised")

    def execute() -> None:
        if stopped(reach, agent) is not None:
            ended.append("stopped")

    monkeypatch.setattr(module, "_class_of", meet)
    body = threading.Thread(target=execute, daemon=True)
    body.start()
    inside.wait(PATIENCE_S)

    reach.throw(StopRun("cancel"))
    caught.wait(PATIENCE_S)
    monkeypatch.setattr(module, "_class_of", known)
    reach.throw(StopRun("cancel"))
    body.join(1)
    is_stopped = list(ended)
    ended.append("over")
    body.join(PATIENCE_S)

    assert ["stopped"] == is_stopped


def test_a_stop_that_comes_while_the_agent_is_being_left_does_not_leave_the_executor() -> None:
    """The run's end is stored, whichever instruction the stop strikes between the agent and `leave`."""
    session = Session.new("echo")
    run = Run.new(session.session_id, agent="echo", position=1, attempt=1, claims=1, status=RunStatus.RUNNING)
    stored: list[Outcome] = []

    class Moves:
        def start(self, *_: Any, **__: Any) -> Claim:
            return Claim(run=run, session=session, number=1, executor="host:1:0")

        def finish(self, claim: Claim, outcome: Outcome, *_: Any) -> Run:
            stored.append(outcome)
            return run

        def append(self, _: Claim, events: list[Any], position: int) -> int:
            return position + len(events)

    registry, attempts = AgentRegistry(), Attempts()
    moves = cast(Any, Moves())
    writer = EventWriter(moves.append, batch_s=0.001, batch_size=1)

    def agent(ctx: Any, _: object) -> str:
        [attempt] = attempts.all()
        leave = attempt.reach.leave

        def leaving() -> None:
            # as if it were raised at the first instruction of `leave`
            attempt.reach.leave = leave  # type: ignore[method-assign]
            raise StopRun("cancel")

        attempt.reach.leave = leaving  # type: ignore[method-assign]
        return "done"

    registry.register("echo", agent)
    executor = Executor(
        "host:1:0",
        config=Config(),
        registry=registry,
        coordinator=moves,
        attempts=attempts,
        writer=writer,
        history=lambda *_: [],
        place=ThreadPlace(lambda _: None),
    )
    try:
        executor.execute(run.run_id, 1)
    finally:
        writer.stop()

    assert 1 == len(stored)
