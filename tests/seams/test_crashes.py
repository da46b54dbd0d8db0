"""A process that dies before or after any call of any move loses nothing; another one finds what it left.

The calls are found by a run that only records, so a new call of a move has its seam by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import product

import pytest

from asm_celery.errors import AsmError
from asm_celery.testing import Crash, Moment, crash, fail
from tests.acceptance.conftest import FULL
from tests.checkers import Fault, check
from tests.checkers.collect import collect
from tests.seams.moves import MOVES, Act
from tests.seams.stage import VICTIM_PID, Rescuer, Stage

Seam = tuple[int, Moment]
# whose answers are lost in the quick suite
CORE = (
    "submit",
    "submit with a key",
    "start",
    "append",
    "finish completed",
    "finish failed, to be repeated",
    "cancel running",
    "take over",
)
READS = ("store.read", "queue.observe", "queue.known", "queue.check_server", "queue.limiter_status")


@pytest.mark.parametrize("name", MOVES)
def test_a_crash_between_any_two_calls_of_a_move_loses_nothing(name: str, rescuer: Rescuer) -> None:
    """Every accepted run ends once, in order; no slot, lease or key is left."""

    def die(stage: Stage, act: Act, nth: int, when: Moment) -> None:
        stage.seams.break_at(nth=nth, when=when, by=crash)
        try:
            act()
        except Crash:
            return
        # a transaction that its move left was rolled back: nothing is behind it
        assert (when, stage.seams.calls[nth - 1]) == ("after", "store.transaction")

    calls = recorded(name, rescuer)
    # before the first call, and behind each one: behind one that only reads is behind the one before it
    behind: list[Seam] = [
        (nth, "after") for nth, call in enumerate(calls, start=1) if FULL or call not in READS
    ]
    at_each(name, rescuer, [(1, "before"), *behind], die)


@pytest.mark.parametrize("name", MOVES if FULL else CORE)
def test_a_lost_answer_to_any_call_of_a_move_changes_nothing(name: str, rescuer: Rescuer) -> None:
    """A commit that happened and says it did not: the caller tries again, and it is done once.

    At full size also each script and each read, and calls that failed and did not happen.
    """

    def lose(stage: Stage, act: Act, nth: int, when: Moment) -> None:
        stage.seams.break_at(nth=nth, when=when, by=fail)
        try:
            act()
        except AsmError:
            act()

    calls = recorded(name, rescuer)
    told = [
        nth
        for nth, call in enumerate(calls, start=1)
        if call == "store.transaction" or (FULL and call.startswith(("store.", "queue.")))
    ]
    moments: tuple[Moment, ...] = ("after", "before") if FULL else ("after",)
    at_each(name, rescuer, list(product(told, moments)), lose)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_crash_behind_the_first_commit_of_each_move_loses_nothing(rescuer: Rescuer) -> None:
    """The moves know no database, so one seam of each shows that PostgreSQL keeps it too."""

    def die(stage: Stage, act: Act, nth: int, when: Moment) -> None:
        stage.seams.break_at("store.transaction", nth, when=when, by=crash)
        with suppress(Crash):
            act()

    for name in MOVES:
        at_each(name, rescuer, [(1, "after")], die, judges=False)
    judge(rescuer)


def at_each(
    name: str,
    rescuer: Rescuer,
    seams: list[Seam],
    perform: Callable[[Stage, Act, int, Moment], None],
    *,
    judges: bool = True,
) -> None:
    """Play the move once a seam, rescue each time, and judge the whole history at the end."""
    for nth, when in seams:
        stage = Stage(rescuer.config, rescuer)
        act = MOVES[name](stage)
        stage.seams.clear()
        try:
            perform(stage, act, nth, when)
            stage.rescue()
        except BaseException as cause:
            cause.add_note(f"{name}: broken {when} call {nth} of {stage.seams.calls}")
            raise
    if judges:
        judge(rescuer)


def judge(rescuer: Rescuer) -> None:
    """Let the checkers look at everything that happened in this installation."""
    died = Fault(kind="crash", at=0.0, pids=frozenset({VICTIM_PID}))
    assert [] == check(collect(rescuer.config, faults=[died]))


def recorded(name: str, rescuer: Rescuer) -> list[str]:
    """Return the calls a move makes where nothing breaks; what it leaves is found too."""
    stage = Stage(rescuer.config, rescuer)
    act = MOVES[name](stage)
    stage.seams.clear()
    act()
    calls = list(stage.seams.calls)
    stage.rescue()
    return calls
