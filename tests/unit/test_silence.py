"""Judging silence by the observer's own clock; the clock is the only thing made up here."""

from __future__ import annotations

from asm_celery.moves.silence import Silence
from asm_celery.queue.run_queue import Held

LEASE_S, LOOK_S = 15.0, 2.0


class Clock:
    """A monotonic clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Read it."""
        return self.now


def lease(beat: int) -> Held:
    """A begun lease whose beat reads so."""
    return Held(run_id="run", session_id="session", claim=1, executor="executor", beat=beat)


def look(
    silence: Silence, clock: Clock, beat: int, *, times: int = 1, vouched: int | None = None
) -> list[Held]:
    """Look a number of times, `LOOK_S` apart, at a lease whose beat reads `beat`."""
    dead: list[Held] = []
    for _ in range(times):
        clock.now += LOOK_S
        vouchers = {} if vouched is None else {"run": ("executor", vouched)}
        dead = silence.judge([lease(beat)], lambda quiet, vouchers=vouchers: vouchers)
    return dead


def observer() -> tuple[Silence, Clock]:
    """An observer that begins now."""
    clock = Clock()
    return Silence(lease_s=LEASE_S, look_s=LOOK_S, clock=clock), clock


def test_a_beat_that_does_not_change_for_lease_s_is_dead() -> None:
    """Silence counts from the first look, not from any time written by another machine."""
    silence, clock = observer()

    assert [] == look(silence, clock, 7, times=8)
    assert [lease(7)] == look(silence, clock, 7)


def test_a_beat_that_changes_is_alive_for_ever() -> None:
    """Any change, also one at the last moment, begins the count anew."""
    silence, clock = observer()

    for beat in range(20):
        assert [] == look(silence, clock, beat, times=7)


def test_a_paused_observer_starts_all_counts_anew() -> None:
    """What it did not see it does not judge: a pause, an outage, a clock jump."""
    silence, clock = observer()
    look(silence, clock, 7, times=7)
    clock.now += 3600

    assert [] == look(silence, clock, 7, times=8)
    assert [lease(7)] == look(silence, clock, 7)


def test_a_beat_in_sql_vouches_for_a_run_that_redis_does_not_hear() -> None:
    """A worker that only lost Redis is alive."""
    silence, clock = observer()

    for sql_beat in range(20):
        assert [] == look(silence, clock, 7, times=2, vouched=sql_beat)


def test_a_silent_witness_vouches_for_nothing() -> None:
    """Both witnesses silent: dead within lease_s and half of it again."""
    silence, clock = observer()

    assert [] == look(silence, clock, 7, times=8, vouched=3)
    assert [lease(7)] == look(silence, clock, 7, times=4, vouched=3)


def test_a_new_holder_of_a_run_is_timed_from_its_own_beginning() -> None:
    """A lease taken over by an observer is another lease."""
    silence, clock = observer()
    look(silence, clock, 7, times=8)
    taken = Held(run_id="run", session_id="session", claim=1, executor="observer", beat=7)
    clock.now += LOOK_S

    assert [] == silence.judge([taken], lambda quiet: {})
