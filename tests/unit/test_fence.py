"""How long a process may execute unheard; the clock is the only thing made up here."""

from __future__ import annotations

import pytest

from asm_celery.worker.fence import STORE_GRACE_S, Fence, Verdict, Witness
from tests.unit.test_silence import Clock

LEASE_S, LOOK_S, ASK_S = 15.0, 0.5, 3.0


def fence() -> tuple[Fence, Clock]:
    """A fence that begins now."""
    clock = Clock()
    return Fence(lease_s=LEASE_S, look_s=LOOK_S, ask_s=ASK_S, clock=clock), clock


def look_for(it: Fence, clock: Clock, seconds: float, *heard: Witness) -> list[Verdict]:
    """Look every `LOOK_S`, with these witnesses answering all the time; returns the verdicts."""
    verdicts = []
    for _ in range(round(seconds / LOOK_S)):
        clock.now += LOOK_S
        for witness in heard:
            it.confirm(witness, clock.now)
        verdicts.append(it.look())
    return verdicts


def test_unheard_by_both_it_leaves_and_then_falls_before_others_judge() -> None:
    """At 0.6 and 0.8 of the lease, that is at 9 and 12 of 15 s."""
    it, clock = fence()

    verdicts = look_for(it, clock, 14)

    assert (17, 23) == (verdicts.index(Verdict.LEAVE), verdicts.index(Verdict.FALL))


def test_without_redis_it_goes_on_for_ever() -> None:
    """SQL vouches."""
    it, clock = fence()

    assert {Verdict.STAY} == set(look_for(it, clock, 3600, Witness.SQL))


def test_without_sql_it_goes_on_for_the_grace_of_the_store() -> None:
    """Redis vouches, but what is produced meanwhile waits in memory."""
    it, clock = fence()

    assert {Verdict.STAY} == set(look_for(it, clock, STORE_GRACE_S - 1, Witness.REDIS))
    assert Verdict.LEAVE == look_for(it, clock, 1, Witness.REDIS)[-1]


@pytest.mark.parametrize("pause_s", [2.0, 14.0, 3600.0])
def test_a_process_that_stood_still_asks_before_it_judges(pause_s: float) -> None:
    """It may still be the owner, if nobody watched: its next beat tells."""
    it, clock = fence()
    look_for(it, clock, 1, Witness.SQL)

    clock.now += pause_s
    assert Verdict.STAY == it.look()
    it.confirm(Witness.SQL, clock.now)

    assert {Verdict.STAY} == set(look_for(it, clock, 60, Witness.SQL))


def test_a_process_that_stood_still_and_hears_nothing_falls_soon() -> None:
    """Another executes its runs by now."""
    it, clock = fence()
    clock.now += 20

    verdicts = look_for(it, clock, ASK_S + LOOK_S)

    assert Verdict.FALL == verdicts[-1]
    assert {Verdict.STAY} == set(verdicts[:-2])


def test_an_answer_counts_from_when_its_beat_was_raised() -> None:
    """The answer may have been on its way for long, and others count from what they saw."""
    it, clock = fence()
    raised_at = it.now()
    look_for(it, clock, 8.5)

    it.confirm(Witness.REDIS, raised_at)

    assert [Verdict.LEAVE] == look_for(it, clock, LOOK_S)
