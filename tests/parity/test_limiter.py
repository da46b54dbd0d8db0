"""Rows CL-1 to CL-18 and CI-1 to CI-3 of the parity table: the global limiter."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asm_celery import ConcurrencyLimiter, Config, errors
from asm_celery.limiter import LimiterStatus, Limits
from asm_celery.states import RunStatus
from tests.parity.desk import Desk
from tests.waiting import wait_until


@pytest.fixture
def limiter(desk: Desk) -> ConcurrencyLimiter:
    """A limiter of 3 sessions and 5 runs."""
    desk.asm.limiter.set_limits(max_parallel_sessions=3, max_parallel_runs=5)
    return desk.asm.limiter


def test_limits_are_echoed(desk_on_each: Desk) -> None:
    """CL-1, CL-2: those set, in every process; 100 sessions and 50 runs before."""
    assert Limits(max_parallel_sessions=100, max_parallel_runs=50) == desk_on_each.asm.limiter.get_limits()

    given = desk_on_each.asm.limiter.set_limits(max_parallel_sessions=10, max_parallel_runs=20)

    assert Limits(max_parallel_sessions=10, max_parallel_runs=20) == given
    assert given == desk_on_each.another(max_parallel_runs=7).limiter.get_limits()
    changed = desk_on_each.asm.limiter.set_limits(max_parallel_runs=21)
    assert Limits(max_parallel_sessions=10, max_parallel_runs=21) == changed


def test_infinity_is_no_limit(desk: Desk) -> None:
    """CL-3: a hundred and one sessions; available is infinite."""
    limiter = desk.asm.limiter
    limiter.set_limits(max_parallel_sessions=math.inf, max_parallel_runs=math.inf)

    for number in range(101):
        limiter.acquire_session_slot(f"s{number}")

    status = limiter.get_status()
    assert (101, math.inf, math.inf) == (
        status.active_sessions,
        status.available_session_slots,
        status.available_run_slots,
    )
    assert math.inf == limiter.get_limits().max_parallel_runs


def test_the_session_limit_holds(limiter: ConcurrencyLimiter) -> None:
    """CL-4, CL-5, CI-1: up to the limit, and no further; the message says both numbers."""
    for number in range(3):
        limiter.acquire_session_slot(f"s{number}")

    with pytest.raises(
        errors.SessionLimitExceeded, match=r"Maximum parallel sessions limit of 3.* 3 active"
    ) as full:
        limiter.acquire_session_slot("s3")

    assert ("max_sessions_exceeded", 3, 3) == (full.value.code, full.value.limit, full.value.active)
    limiter.release_session_slot("s1")
    limiter.acquire_session_slot("s3")


def test_the_run_limit_holds_over_all_sessions(limiter: ConcurrencyLimiter) -> None:
    """CL-8, CL-9, CL-10, CI-2: three and two in two sessions are five; a parent is not asked for (CL-15)."""
    for number in range(5):
        limiter.acquire_run_slot("ab"[number // 3], f"r{number}")

    with pytest.raises(errors.RunLimitExceeded, match="limit of 5") as full:
        limiter.acquire_run_slot("c", "r5")

    assert ("max_runs_exceeded", 5, 5) == (full.value.code, full.value.limit, full.value.active)
    assert full.value.retryable
    limiter.release_run_slot("r0")
    limiter.acquire_run_slot("c", "r5")
    assert 0 == limiter.get_status().active_sessions


def test_the_same_slot_counts_once(limiter: ConcurrencyLimiter) -> None:
    """CL-6, CL-11: acquired twice, also when the limiter is full."""
    for number in range(3):
        limiter.acquire_session_slot(f"s{number}")
    limiter.acquire_session_slot("s0")
    limiter.acquire_run_slot("s0", "r")
    limiter.acquire_run_slot("s0", "r")

    assert (3, 1) == (limiter.get_status().active_sessions, limiter.get_status().active_runs)


def test_releasing_is_always_fine(limiter: ConcurrencyLimiter) -> None:
    """CL-7, CL-12: once, twice, or never acquired."""
    limiter.acquire_session_slot("s")
    limiter.acquire_run_slot("s", "r")

    for _ in range(2):
        limiter.release_run_slot("r")
        limiter.release_session_slot("s")
    limiter.release_run_slot("never")
    limiter.release_session_slot("never")

    assert (0, 0) == (limiter.get_status().active_sessions, limiter.get_status().active_runs)


def test_status_tells_what_is_taken_and_what_is_left(limiter: ConcurrencyLimiter) -> None:
    """CL-13: never below 0, also when the limit was lowered under what is taken."""
    limiter.acquire_session_slot("s")
    for number in range(2):
        limiter.acquire_run_slot("s", f"r{number}")

    expected = LimiterStatus(
        active_sessions=1,
        active_runs=2,
        max_parallel_sessions=3,
        max_parallel_runs=5,
        available_session_slots=2,
        available_run_slots=3,
    )
    assert expected == limiter.get_status()
    limiter.set_limits(max_parallel_runs=1)
    assert (2, 0) == (limiter.get_status().active_runs, limiter.get_status().available_run_slots)


def test_releasing_a_session_releases_its_runs(limiter: ConcurrencyLimiter) -> None:
    """CL-14: and nobody else's."""
    limiter.acquire_session_slot("a")
    limiter.acquire_run_slot("a", "r1")
    limiter.acquire_run_slot("a", "r2")
    limiter.acquire_run_slot("b", "r3")

    limiter.release_session_slot("a")

    assert (0, 1) == (limiter.get_status().active_sessions, limiter.get_status().active_runs)


def test_a_slot_of_a_dead_process_frees_itself(desk: Desk) -> None:
    """CL-16: it is a lease; while its process lives, it is renewed."""
    living, dying = desk.asm.limiter, desk.another(lease_s=0.3, beat_s=0.1).limiter
    living.acquire_run_slot("s", "kept")
    dying.acquire_run_slot("s", "lost")
    assert 2 == living.get_status().active_runs

    dying.close()

    wait_until(lambda: 1 == living.get_status().active_runs, description="the dead one's slot is free")
    living.acquire_run_slot("s", "kept")
    assert 1 == living.get_status().active_runs


def test_a_slot_is_renewed_as_long_as_it_is_held(sqlite_config: Config) -> None:
    """CL-16: three times its lease later it is still there."""
    desk = Desk(sqlite_config.model_copy(update={"lease_s": 1.5, "beat_s": 0.5}))
    limiter, watched = desk.asm.limiter, desk.asm._runtime().queue
    limiter.acquire_run_slot("s", "r")
    renewals: list[str] = []
    renew = watched.limiter_renew

    def noting(*arguments: Any, **options: Any) -> list[str]:
        words = renew(*arguments, **options)
        renewals.extend(words)
        return words

    watched.limiter_renew = noting  # type: ignore[method-assign]

    wait_until(lambda: 9 <= len(renewals), description="it was renewed nine times")

    assert {"held"} == set(renewals)
    assert 1 == limiter.get_status().active_runs
    desk.close()


def test_acquiring_can_wait(limiter: ConcurrencyLimiter) -> None:
    """CL-17: up to a time; a full limiter does not fail who is patient."""
    for number in range(5):
        limiter.acquire_run_slot("s", f"r{number}")
    with pytest.raises(errors.RunLimitExceeded):
        limiter.acquire_run_slot("s", "hasty", timeout=0.1)

    with ThreadPoolExecutor(1) as threads:
        patient = threads.submit(limiter.acquire_run_slot, "s", "patient", timeout=20)
        limiter.release_run_slot("r0")

        assert patient.result(20) is None
    assert 5 == limiter.get_status().active_runs


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "5", True, math.nan, -math.inf])
def test_a_wrong_limit_is_refused(desk: Desk, wrong: Any) -> None:
    """CL-18: nothing changes."""
    for name in ("max_parallel_runs", "max_parallel_sessions"):
        with pytest.raises(errors.ValidationError, match=name):
            desk.asm.limiter.set_limits(**{name: wrong})

    assert Limits(max_parallel_sessions=100, max_parallel_runs=50) == desk.asm.limiter.get_limits()


def test_a_whole_life_leaves_nothing_behind(desk: Desk) -> None:
    """CI-3: run, cancel, release: counts are 0 and the history has the one cancel."""
    server = desk.start("gate")
    desk.work()
    run_id = server.submit_run("x")
    desk.running(server)
    assert (1, 1) == (
        desk.asm.limiter.get_status().active_sessions,
        desk.asm.limiter.get_status().active_runs,
    )

    desk.asm.control.cancel(run_id)
    assert RunStatus.CANCELLED is desk.ended(server, run_id).status

    wait_until(lambda: 0 == desk.asm.limiter.get_status().active_runs, description="its slot is free")
    assert 0 == desk.asm.limiter.get_status().active_sessions
    assert ["cancel"] == [entry.operation for entry in desk.asm.control.get_operation_history(run_id)]


def test_callers_and_runs_share_one_limit(desk: Desk) -> None:
    """CL-10: what a caller holds, no run gets; what it gives back starts the next run."""
    desk.asm.limiter.set_limits(max_parallel_runs=1)
    desk.asm.limiter.acquire_run_slot("mine", "own work")
    server = desk.start()
    desk.work()

    run_id = server.submit_run("x")
    assert [run_id] == server.status().queued_runs
    desk.asm.limiter.release_run_slot("own work")

    assert "x" == server.await_run(run_id).output
