"""When the main process of a prefork worker ends a child, and when it does not."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from types import SimpleNamespace

import pytest

from asm_celery.worker import board as board_module
from asm_celery.worker import children as module
from asm_celery.worker.board import Board, ChildSeat, Seat
from asm_celery.worker.children import OBEY_S, ChildWatch
from tests.waiting import wait_until

# a prefork pool forks too, whatever threads there are
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

FORK = multiprocessing.get_context("fork")
SILENCE_S = 4.0
GRACE_S = 5.0
# more often than this process can be taken for one that was not scheduled
STEP_S = 0.5


class Child:
    """A forked process that executes a run until it is told something else."""

    def __init__(self, board: Board, number: int, *, obeys: bool, run_id: str = "run_a") -> None:
        self.executor = f"host:{number}:0"
        self._obeys = obeys
        self._run_id = run_id
        self._line, theirs = FORK.Pipe()
        self.process = FORK.Process(target=self._execute, args=(board, theirs))
        self.process.start()
        self.pid = self.process.pid or 0
        assert self._line.recv() == "is here"

    def leave(self) -> bool:
        """Have it leave its run; returns what it learns by that."""
        self._line.send("leave")
        return bool(self._line.recv())

    def exit(self, number: int = signal.SIGKILL) -> None:
        """End it, and leave it unreaped, as a pool does for a while."""
        os.kill(self.pid, number)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def ended_by(self) -> int:
        """Return the signal that ended it."""
        self.process.join(20)
        return -(self.process.exitcode or 0)

    def _execute(self, board: Board, line: Connection) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if self._obeys else signal.SIG_IGN)
        seat = ChildSeat(board, self.executor)
        if self._run_id:
            seat.begin(self._run_id, 1, GRACE_S)
        line.send("is here")
        while line.recv():
            line.send(seat.leave())


class Watched:
    """A watch whose clock is moved by hand, and the signals it sends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        self.sent: list[tuple[int, int]] = []
        self.board = Board(4)
        self._children: list[Child] = []
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(board_module, "time", clock)
        monkeypatch.setattr(board_module, "os", SimpleNamespace(kill=self._kill, getpid=os.getpid))
        self.watch = ChildWatch(self.board, silence_s=SILENCE_S)

    def child(self, *, obeys: bool = True, run_id: str = "run_a") -> Child:
        child = Child(self.board, len(self._children), obeys=obeys, run_id=run_id)
        self._children.append(child)
        return child

    def tick(self, *children: Child) -> None:
        """Give a sign of life in their names: their memory is ours."""
        for seat in self.board.taken():
            if seat.pid in {child.pid for child in children}:
                self.board.tick(seat.number)

    def pass_by(self, seconds: float, *alive: Child) -> None:
        """Let time pass with a look every half second, while some give signs of life."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + STEP_S, until)
            self.tick(*alive)
            self.watch.look()

    def words(self) -> list[str]:
        """Return the executors that were said to be dead."""
        self.board._incoming.setblocking(False)
        return [word["executor"] for word in iter(self.board.hear, None) if word["do"] == "bury"]

    def close(self) -> None:
        for child in self._children:
            child.process.kill()
            child.process.join()
        self.board._outgoing.close()
        self.board._incoming.close()
        self.board._locks.close()

    def _kill(self, pid: int, number: int) -> None:
        self.sent.append((pid, number))
        os.kill(pid, number)


@pytest.fixture
def it(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """A watch that looks when it is told to."""
    made = Watched(monkeypatch)
    yield made
    made.close()


def test_a_child_is_told_to_end_when_its_grace_is_over(it: Watched) -> None:
    """Not before; it is asked by run and claim, in a thread that does nothing else."""
    child = it.child()
    it.watch.ask_to_end("run_a", 1)
    it.watch.look()
    it.pass_by(GRACE_S - 0.1, child)
    assert [] == it.sent

    it.pass_by(0.2, child)

    assert signal.SIGTERM == child.ended_by()
    assert [(child.pid, signal.SIGTERM)] == it.sent


def test_a_child_that_does_not_obey_is_killed(it: Watched) -> None:
    """It has a moment to leave its agent and store the end, and no more."""
    child = it.child(obeys=False)
    it.board.ask_to_end("run_a", 1, at=it.now)
    it.watch.look()
    it.pass_by(OBEY_S - 0.1, child)
    assert [(child.pid, signal.SIGTERM)] == it.sent

    it.pass_by(0.2, child)

    assert signal.SIGKILL == child.ended_by()
    assert [(child.pid, signal.SIGTERM), (child.pid, signal.SIGKILL)] == it.sent


def test_a_child_that_has_left_its_run_may_take_its_time_to_end(it: Watched) -> None:
    """It stores the run's end; that it was told to end, it learns by leaving."""
    child = it.child(obeys=False)
    it.board.ask_to_end("run_a", 1, at=it.now)
    it.watch.look()

    assert child.leave()
    it.pass_by(10 * OBEY_S)

    assert [(child.pid, signal.SIGTERM)] == it.sent


def test_a_child_that_left_in_its_grace_is_not_told_to_end(it: Watched) -> None:
    """Its process lives on, for the next run."""
    child = it.child()
    it.watch.ask_to_end("run_a", 1)
    it.watch.look()

    assert not child.leave()
    it.pass_by(2 * GRACE_S, child)

    assert [] == it.sent


def test_only_the_silent_child_is_killed(it: Watched) -> None:
    """It holds its interpreter, so no gentle signal would be handled; its neighbours are well."""
    silent, well, idle = it.child(run_id="run_a"), it.child(run_id="run_b"), it.child(run_id="")
    it.pass_by(SILENCE_S - 0.1, well)
    assert [] == it.sent

    it.pass_by(0.6, well)

    assert {(silent.pid, signal.SIGKILL)} == set(it.sent)
    assert signal.SIGKILL == silent.ended_by()
    assert (True, True) == (well.process.is_alive(), idle.process.is_alive())


def test_a_pause_of_its_own_is_not_a_silence_of_its_children(it: Watched) -> None:
    """A machine that slept, or a worker that was stopped, wakes with all its children alive: they count anew."""
    child = it.child()
    it.watch.look()

    it.now += 100 * SILENCE_S
    it.watch.look()
    it.pass_by(SILENCE_S - 0.1)
    assert [] == it.sent

    it.pass_by(0.6)
    assert signal.SIGKILL == child.ended_by()


def test_the_executor_of_a_dead_child_is_buried_once(it: Watched) -> None:
    """Some child that lives is told, so that its runs need not wait for their leases; its seat is free."""
    dead, _ = it.child(run_id="run_a"), it.child(run_id="run_b")
    dead.exit()

    for _ in range(3):
        it.watch.look()

    assert [dead.executor] == it.words()
    assert ["run_b"] == [seat.run_id for seat in it.board.taken()]
    assert [] == it.sent


def test_a_dead_child_keeps_its_seat_until_somebody_can_be_told(it: Watched) -> None:
    """Its runs would wait for their leases else."""
    dead = it.child()
    dead.exit()
    while it.board.say(do="cancel", task_id="run_x"):
        pass
    it.watch.look()
    assert [dead.pid] == [seat.pid for seat in it.board.taken()]
    assert [] == it.words()

    it.watch.look()

    assert [dead.executor] == it.words()
    assert [] == it.board.taken()


def test_a_child_that_gave_its_seat_up_is_not_buried(it: Watched) -> None:
    """It has said goodbye itself."""
    seat = ChildSeat(it.board, "host:9:0")
    seat.stand_up()

    it.watch.look()

    assert [] == it.words()


def test_a_seat_that_has_another_child_by_now_is_not_freed(
    it: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stood up and ended after it was looked at, and its replacement sat down."""
    gone = ChildSeat(it.board, "host:1:0")
    known = module.has_died

    def meanwhile(pid: int) -> bool:
        monkeypatch.setattr(module, "has_died", known)
        gone.stand_up()
        with it.board.held(0):
            it.board.write(Seat(number=0, pid=os.getppid(), executor="host:2:0", run_id="run_b", claim=1))
        return True

    monkeypatch.setattr(module, "has_died", meanwhile)
    it.watch.look()

    assert "host:2:0" == it.board.read(0).executor


def test_a_child_counts_as_dead_before_and_after_it_was_reaped(it: Watched) -> None:
    """Its owner reaps it whenever it likes; looking takes nothing away."""
    child = it.child()
    assert not module.has_died(child.pid)

    child.exit()

    assert [True, True] == [module.has_died(child.pid) for _ in range(2)]
    child.process.join()
    assert -signal.SIGKILL == child.process.exitcode
    assert module.has_died(child.pid)


def test_the_thread_looks_by_itself_and_ends(it: Watched) -> None:
    """`stop` is heard at once."""
    it.child().exit()
    it.watch.start()

    wait_until(lambda: not it.board.taken(), description="the dead child's seat is free")
    it.watch.stop()

    assert not it.watch._thread.is_alive()
