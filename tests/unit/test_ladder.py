"""The rungs from a requested stop to its end, in order, for every kind of agent."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from asm_celery.errors import StopRun
from asm_celery.model import Run, Session
from asm_celery.moves.coordinator import Claim
from asm_celery.states import RunStatus
from asm_celery.worker.attempt import Attempt
from asm_celery.worker.board import Board, ChildSeat
from asm_celery.worker.ladder import LAST_S, ChildPlace, ThreadPlace, lead_down

GRACE_S = 8.0


class Walked(Attempt):
    """An attempt whose waiting takes no time, and what was done to it.

    Args:
        leaves_in: the wait in which its agent leaves; 0 for never.
        hears_in: the wait in which its agent hears of the stop; 0 for never.
    """

    def __init__(self, *, leaves_in: int = 0, hears_in: int = 0, grace_s: float = GRACE_S) -> None:
        session = Session.new("echo")
        run = Run.new(session.session_id, agent="echo", attempt=1, claims=1, status=RunStatus.RUNNING)
        super().__init__(run.run_id, 1)
        self.begin(Claim(run=run, session=session, number=1, executor="host:1:0"), grace_s)
        self.steps: list[object] = []
        self.thrown: list[str] = []
        self.reach = cast(Any, self)
        self._leaves_in = leaves_in
        self._hears_in = hears_in
        self._waits = 0
        self.stop("interrupt")

    def has_left(self, within: float) -> bool:
        self._waits += 1
        self.steps.append(round(within, 2))
        if self._waits == self._hears_in:
            self.hear()
        return self._waits == self._leaves_in

    def throw(self, stop: StopRun) -> bool:
        self.steps.append("throw")
        self.thrown.append(stop.kind)
        return True


class Ended:
    """A place that takes note in the attempt's own steps."""

    def end(self, attempt: Attempt) -> None:
        assert isinstance(attempt, Walked)
        attempt.steps.append("end")


def walk(attempt: Walked) -> list[object]:
    """Go down the ladder; returns the seconds waited and what was done between, in order."""
    lead_down(attempt, cast(Any, Ended()))
    return attempt.steps


def test_an_agent_that_leaves_when_it_is_asked_is_left_alone() -> None:
    """It has half of its grace for that, undisturbed."""
    assert [4.0] == walk(Walked(leaves_in=1))


def test_an_agent_that_has_heard_is_not_interrupted_in_its_clean_up() -> None:
    """It has its whole grace."""
    assert [4.0, 4.0] == walk(Walked(hears_in=1, leaves_in=2))


def test_an_agent_that_has_not_heard_after_half_its_grace_gets_the_stop_raised() -> None:
    """With the kind that was asked for, once; then it has the other half."""
    attempt = Walked(leaves_in=2)

    assert [4.0, "throw", 4.0] == walk(attempt)
    assert ["interrupt"] == attempt.thrown


def test_the_place_of_an_agent_that_does_not_leave_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    """Whether it has heard or not; the log says which run it was."""
    heard, deaf = Walked(hears_in=1), Walked()
    with caplog.at_level(logging.WARNING, logger="asm_celery.worker"):
        steps = [walk(heard), walk(deaf)]

    assert [[4.0, 4.0, "end"], [4.0, "throw", 4.0, "end"]] == steps
    assert (1, 1) == (caplog.text.count(heard.run_id), caplog.text.count(deaf.run_id))


def test_an_agent_without_grace_goes_down_all_rungs_at_once() -> None:
    """It is asked, thrown at and ended; no rung is left out."""
    assert [0.0, "throw", 0.0, "end"] == walk(Walked(grace_s=0.0))


def test_nothing_is_done_to_an_attempt_that_has_no_claim_yet() -> None:
    """It asks for itself before it enters its agent, and there is nothing to interrupt."""
    attempt = Walked()
    attempt.claim = None

    assert [] == walk(attempt)


def test_the_ladder_is_gone_down_once() -> None:
    """By the first stop; later ones change nothing."""
    led: list[Attempt] = []
    attempt = Attempt("run_a", 1, led.append)

    for kind in ("cancel", "interrupt", "shutdown"):
        attempt.stop(kind)
    attempt.end()
    attempt.stop("cancel")

    assert ["cancel"] == [attempt.stop_kind]
    assert [attempt] == led


def test_a_thread_gets_the_stop_raised_a_last_time_and_is_given_up() -> None:
    """Whatever it has heard: it has a second to leave."""
    given_up: list[Attempt] = []
    attempt = Walked()
    attempt.hear()

    ThreadPlace(given_up.append).end(attempt)

    assert ["throw", LAST_S] == attempt.steps
    assert [attempt] == given_up


def test_a_thread_that_leaves_in_the_last_second_is_not_given_up() -> None:
    """Its own end is stored, by itself."""
    given_up: list[Attempt] = []

    ThreadPlace(given_up.append).end(Walked(leaves_in=1))

    assert [] == given_up


def test_a_thread_is_never_told_that_its_process_must_end() -> None:
    """Its neighbours execute there."""
    place = ThreadPlace(lambda _: None)
    place.begin("run_a", 1, 0.0)

    assert not place.leave()


@pytest.fixture
def board() -> Iterator[Board]:
    """Seats for the child that this process plays."""
    made = Board(1)
    yield made
    made._outgoing.close()
    made._incoming.close()
    made._locks.close()


def test_a_child_asks_to_be_ended_for_the_attempt_it_executes(board: Board) -> None:
    """Now, and not in another grace; a ladder that comes too late asks for nothing."""
    attempt = Walked()
    place = ChildPlace(ChildSeat(board, "host:1:0"))
    place.begin("run_other", 1, GRACE_S)
    place.end(attempt)
    assert 0.0 == board.read(0).end_at

    place.begin(attempt.run_id, attempt.number, 1000.0)
    place.end(attempt)

    seat = board.read(0)
    assert 0.0 < seat.end_at <= seat.tick + 60.0


def test_a_child_that_was_told_to_end_learns_it_by_leaving(board: Board) -> None:
    """And one that gives its place up takes no seat from others."""
    place = ChildPlace(ChildSeat(board, "host:1:0"))
    place.begin("run_a", 1, GRACE_S)
    assert not place.leave()
    place.begin("run_b", 1, GRACE_S)
    with board.held(0) as seat:
        board.write(type(seat)(number=0, pid=os.getpid(), run_id="run_b", claim=1, is_struck=True))

    assert place.leave()

    place.close()
    assert [] == board.taken()
