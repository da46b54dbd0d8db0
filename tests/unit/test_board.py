"""What a worker's main process and its children know of each other, with real processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import select
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

from asm_celery.worker.board import Board, ChildSeat, Seat
from tests.waiting import wait_until

# a prefork pool forks too, whatever threads there are
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

FORK = multiprocessing.get_context("fork")
RACES = 1000
PATIENCE_S = 20.0


class Children:
    """Forked processes, each with a line to the test; ended with it."""

    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []

    def fork(self, act: Callable[[Connection], object]) -> tuple[BaseProcess, Connection]:
        """Have a child do it; the first thing it says is waited for."""
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=act, args=(theirs,))
        process.start()
        theirs.close()
        self._processes.append(process)
        return process, ours

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


@pytest.fixture
def children() -> Iterator[Children]:
    """Processes that end with the test."""
    made = Children()
    yield made
    made.end()


@pytest.fixture
def board() -> Iterator[Board]:
    """Four seats."""
    made = Board(4)
    yield made
    made._outgoing.close()
    made._incoming.close()
    made._locks.close()


def test_children_that_come_at_once_sit_apart(board: Board, children: Children) -> None:
    """Each has one seat, in the name of its process and its executor."""

    def sit(line: Connection) -> None:
        ChildSeat(board, f"host:{os.getpid()}:0")
        line.send("sits")
        line.recv()

    forked = [children.fork(sit) for _ in range(4)]
    for _, line in forked:
        line.recv()

    expected = {(process.pid, f"host:{process.pid}:0") for process, _ in forked}
    assert expected == {(seat.pid, seat.executor) for seat in board.taken()}
    assert [0, 1, 2, 3] == [seat.number for seat in board.taken()]


def test_a_seat_that_was_given_up_is_free(board: Board) -> None:
    """And a board that is full says so."""
    seats = [ChildSeat(board, "host:1:0") for _ in range(4)]
    with pytest.raises(RuntimeError, match="none of 4 seats is free"):
        ChildSeat(board, "host:1:1")

    seats[2].stand_up()
    ChildSeat(board, "host:1:2")

    assert "host:1:2" == board.read(2).executor


def test_a_seat_says_which_run_its_child_executes(board: Board) -> None:
    """From before the agent is entered until after it was left."""
    seat = ChildSeat(board, "host:1:0")
    seat.begin("run_a", 3, 2.5)
    inside = board.read(0)

    seat.leave()

    assert ("run_a", 3, 2.5, False, 0.0) == (
        inside.run_id,
        inside.claim,
        inside.grace_s,
        inside.is_struck,
        inside.end_at,
    )
    assert ("", 0, os.getpid()) == (board.read(0).run_id, board.read(0).claim, board.read(0).pid)


def test_a_tick_changes_nothing_but_the_tick(board: Board) -> None:
    """Its seat and its neighbour's stay as they are."""
    first, second = ChildSeat(board, "host:1:0"), ChildSeat(board, "host:1:1")
    second.begin("run_b", 1, 1.0)
    before = [board.read(0), board.read(1)]

    first.tick()

    after = board.read(0)
    assert before[0].tick < after.tick
    assert [before[0].packed()[21:], before[1]] == [after.packed()[21:], board.read(1)]


def test_only_the_run_and_the_claim_that_are_named_are_struck(board: Board, children: Children) -> None:
    """A child that executes something else by now is left alone."""

    def execute(line: Connection) -> None:
        ChildSeat(board, "host:1:0").begin("run_a", 2, 1.0)
        line.send("executes")
        line.recv()

    process, line = children.fork(execute)
    line.recv()
    pid = process.pid or 0

    others = [
        Seat(number=0, pid=pid, run_id="run_a", claim=1),
        Seat(number=0, pid=pid, run_id="run_b", claim=2),
        Seat(number=0, pid=pid + 1, run_id="run_a", claim=2),
        Seat(number=0, pid=pid),
        Seat(number=1, pid=pid, run_id="run_a", claim=2),
    ]
    refused = [board.strike(other, signal.SIGKILL) for other in others]
    assert [False] * len(others) == refused
    assert not board.read(0).is_struck

    assert board.strike(Seat(number=0, pid=pid, run_id="run_a", claim=2), signal.SIGTERM)
    process.join(PATIENCE_S)
    assert (-signal.SIGTERM, True) == (process.exitcode, board.read(0).is_struck)


def test_a_child_between_two_runs_is_never_struck(board: Board) -> None:
    """Not even by one that read its seat while there was no run."""
    ChildSeat(board, "host:1:0")

    assert not board.strike(board.read(0), signal.SIGKILL)


def test_a_child_is_struck_in_its_run_or_not_at_all(board: Board, children: Children) -> None:
    """Whoever leaves while it is struck either hears of it by leaving, or gets no signal, ever."""

    def execute(line: Connection) -> None:
        hits: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: hits.append(number))
        while (number := line.recv()) is not None:
            seat = ChildSeat(board, "host:1:0")
            seat.begin(f"run_{number}", 1, 1.0)
            for _ in range(random.randrange(20)):
                os.sched_yield()
            while number % 10 == 0 and not board.read(0).is_struck:
                os.sched_yield()
            is_struck = seat.leave()
            seat.stand_up()
            line.send((is_struck, len(hits)))

    process, line = children.fork(execute)
    races: list[tuple[bool, bool]] = []
    strikes = 0
    for number in range(RACES):
        who = Seat(number=0, pid=process.pid or 0, run_id=f"run_{number}", claim=1)
        line.send(number)
        is_hit = False
        while not is_hit and not line.poll():
            # some early, some late, so that the two meet; on a busy machine these still make sure of both ends:
            # the child waits for one in ten, and is spared in one
            for _ in range(random.randrange(400)):
                pass
            is_hit = number % 10 != 5 and board.strike(who, signal.SIGTERM)
        strikes += is_hit
        is_struck, hits = line.recv()
        races.append((is_hit, is_struck))
        assert strikes == hits, f"race {number}: {races[-1]}"
    line.send(None)
    process.join(PATIENCE_S)

    assert {(True, True), (False, False)} == set(races)
    assert 0 == process.exitcode


def test_the_seat_of_a_process_that_was_killed_is_not_locked(board: Board, children: Children) -> None:
    """The kernel drops its lock, so the main process never waits for a dead child."""

    def hold(line: Connection) -> None:
        ChildSeat(board, "host:1:0").begin("run_a", 1, 1.0)
        with board.held(0):
            line.send("holds")
            line.recv()

    process, line = children.fork(hold)
    line.recv()
    process.kill()
    process.join()

    with board.held(0) as seat:
        assert "run_a" == seat.run_id


def test_a_seat_is_held_by_one_process_at_a_time(board: Board, children: Children) -> None:
    """Reading and writing it is one step: nothing that is added is lost."""
    each = 300

    def add(line: Connection) -> None:
        line.recv()
        for _ in range(each):
            with board.held(0) as seat:
                board.write(Seat(number=0, pid=1, claim=seat.claim + 1))
        line.send("done")

    lines = [children.fork(add)[1] for _ in range(3)]
    for line in lines:
        line.send("go")
    for line in lines:
        line.recv()

    assert 3 * each == board.read(0).claim


def test_a_word_is_heard_by_one_child(board: Board, children: Children) -> None:
    """Whichever is first; none is lost and none is heard twice."""

    def listen(line: Connection) -> None:
        board.keep_incoming()
        line.send("listens")
        while (word := board.hear()) is not None:
            line.send(word)

    lines = [children.fork(listen)[1] for _ in range(3)]
    for line in lines:
        line.recv()
    words = [{"do": "cancel", "task_id": f"run_{number}"} for number in range(60)]
    heard: list[dict[str, Any]] = []

    def collect() -> bool:
        for line in lines:
            while line.poll():
                heard.append(line.recv())
        return len(heard) >= len(words)

    for word in words:
        wait_until(lambda word=word: board.say(**word), description="there is room for a word")  # type: ignore[misc]
    wait_until(collect, description="all words were heard")

    assert sorted(map(json.dumps, words)) == sorted(map(json.dumps, heard))


def test_a_word_waits_for_a_child_and_too_many_are_refused(board: Board) -> None:
    """Saying something never blocks the main process's loop."""
    said = 0
    while board.say(do="cancel", task_id=f"run_{said}"):
        said += 1

    assert 10 < said
    assert ["run_0", "run_1"] == [(board.hear() or {})["task_id"] for _ in range(2)]


def test_children_hear_the_end_of_the_main_process(children: Children) -> None:
    """However it ended: there is nobody left to say anything."""

    def lead(line: Connection) -> None:
        board = Board(2)
        for _ in range(2):
            if not os.fork():
                board.keep_incoming()
                line.send("listens")
                line.send(board.hear())
                os._exit(0)
        signal.pause()

    process, line = children.fork(lead)
    assert ["listens", "listens"] == [line.recv() for _ in range(2)]
    assert not line.poll()

    process.kill()

    assert select.select([line], [], [], PATIENCE_S)[0]
    assert [None, None] == [line.recv() for _ in range(2)]


def test_the_sooner_of_two_ends_is_kept(board: Board) -> None:
    """Asking again never gives an agent more time; its ladder may ask for the end now."""
    seat = ChildSeat(board, "host:1:0")
    seat.begin("run_a", 1, 1000.0)
    ends = []

    for at in (None, 50.0, 70.0, 20.0, None):
        assert board.ask_to_end("run_a", 1, at=at)
        ends.append(board.read(0).end_at)

    began_at = board.read(0).tick
    assert 1000.0 <= ends[0] - began_at < 1060.0
    assert [50.0, 50.0, 20.0, 20.0] == ends[1:]


def test_only_a_child_that_executes_the_claim_is_asked_to_end(board: Board) -> None:
    """And its next run begins without an end."""
    seat = ChildSeat(board, "host:1:0")
    seat.begin("run_a", 2, 1.0)
    assert [False, False] == [board.ask_to_end("run_a", 1), board.ask_to_end("run_b", 2)]
    assert 0.0 == board.read(0).end_at

    seat.end("run_a", 2)
    assert 0.0 < board.read(0).end_at
    seat.leave()
    seat.begin("run_a", 3, 1.0)

    assert 0.0 == board.read(0).end_at
