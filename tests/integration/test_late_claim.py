"""A claim that SQL answers late: Redis is asked for its lease before its agent is entered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from asm_celery.config import Config
from asm_celery.errors import CoordinationUnavailable, StorageConnectionFailed
from asm_celery.moves.coordinator import Claim
from asm_celery.queue.run_queue import Held
from asm_celery.states import RunStatus
from tests.integration.station import Station, station
from tests.waiting import wait_until


class CutOff:
    """An executing process from which SQL has just gone away: it answers claims when it is told to, and no beat.

    Attributes:
        seen: what each agent saw when it was entered, and its process was judged at once: its stop.
        has_fallen: set once the process was to be ended.
    """

    def __init__(self, here: Station, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str | None] = []
        self.has_fallen = threading.Event()
        self._here = here
        self._begun_at: float | None = None
        self._answers = threading.Event()
        self._heartbeat: Any = here.host._heartbeat
        moves, start = here.runtime.coordinator, here.runtime.coordinator.start

        def answered_late(*what: Any, **options: Any) -> Claim | None:
            self._begun_at = time.monotonic()
            claim = start(*what, **options)
            self._answers.wait(20)
            return claim

        monkeypatch.setattr(moves, "start", answered_late)
        monkeypatch.setattr(here.runtime.recovery, "beat", _raising(StorageConnectionFailed("it is away")))
        monkeypatch.setattr(self._heartbeat._place, "fall", self.has_fallen.set)

    def agent(self, ctx: Any, given: Any) -> Any:
        """Have the process judged before any renewal, and return the input."""
        self._heartbeat.look()
        self.seen.append(ctx.stop_kind)
        return given

    def wait_until_claimed(self, run_id: str) -> Held:
        """Wait until SQL has committed the claim, whose answer is on its way; return the lease."""

        def look() -> Held | None:
            with self._here.runtime.store.read() as tx:
                run = tx.runs.get(run_id)
            is_running = run is not None and run.status is RunStatus.RUNNING
            return self._here.runtime.queue.observe()[0] if is_running else None

        return wait_until(look, description=f"{run_id} is claimed")

    def answer(self, *, after_s: float) -> None:
        """Let SQL answer the claim so long after it was asked, and wait until the doorbell is done with."""
        wait_until(
            lambda: self._begun_at is not None and time.monotonic() - self._begun_at >= after_s,
            description=f"SQL has been silent for {after_s:g} s",
        )
        self._answers.set()
        for thread in self._here._threads:
            thread.join(10)


def _raising(cause: Exception) -> Any:
    def away(*_: Any, **__: Any) -> Any:
        raise cause

    return away


def unobserved(config: Config) -> Config:
    """Nobody looks for silent leases but the test: they are as old as it makes them."""
    return config.model_copy(update={"repair_s": 60.0})


@pytest.fixture
def here(config: Config) -> Iterator[Station]:
    """An executing process on both databases."""
    with station(unobserved(config)) as made:
        yield made


@pytest.fixture
def lite(sqlite_config: Config) -> Iterator[Station]:
    """The same on SQLite only, for what does not depend on the database."""
    with station(unobserved(sqlite_config)) as made:
        yield made


def test_a_claim_that_is_late_by_most_of_a_lease_is_executed_when_redis_vouches(
    here: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its silence counts from when Redis was asked for its lease, so neither it nor its process is ended."""
    late = CutOff(here, monkeypatch)
    server = here.session(late.agent)
    run_id = server.submit_run("done")
    late.wait_until_claimed(run_id)

    late.answer(after_s=0.9 * here.runtime.config.lease_s)

    assert ([None], False) == (late.seen, late.has_fallen.is_set())
    run = here.ended(server, run_id)
    assert (RunStatus.COMPLETED, "done") == (run.status, run.output)


def test_a_late_claim_whose_lease_redis_has_lost_is_executed(
    lite: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can take over what is not there."""
    late = CutOff(lite, monkeypatch)
    server = lite.session(late.agent)
    run_id = server.submit_run("done")
    late.wait_until_claimed(run_id)
    lite.runtime.queue.finish(run_id)

    late.answer(after_s=0.9 * lite.runtime.config.lease_s)

    assert ([None], False) == (late.seen, late.has_fallen.is_set())
    assert RunStatus.COMPLETED == lite.ended(server, run_id).status


@pytest.mark.parametrize("is_written", [True, False], ids=["fate written", "fate unwritten"])
def test_a_late_claim_whose_lease_was_taken_over_never_enters_its_agent(
    here: Station, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    """What becomes of the run is for whoever took it over, who may be about to write it."""
    late = CutOff(here, monkeypatch)
    server, runtime = here.session(late.agent), here.runtime
    run_id = server.submit_run("done")
    lease = late.wait_until_claimed(run_id)
    if is_written:
        assert runtime.recovery.take_over(lease)
    else:
        assert runtime.queue.take_over(lease, "observer")

    late.answer(after_s=2 * runtime.config.beat_s)

    assert [] == late.seen
    if not is_written:
        assert RunStatus.RUNNING == server.get_run(run_id).status
        runtime.coordinator.lose(run_id, lease.claim, lease.executor, message="taken over by the test")
        runtime.coordinator.give_back(run_id, lease.claim, "observer")
    run = here.ended(server, run_id)
    assert (RunStatus.FAILED, "worker_lost") == (run.status, (run.error or {})["code"])


def test_a_late_claim_that_neither_store_vouches_for_is_stopped_and_its_process_ended(
    lite: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is silent too, so its silence counts from its doorbell: others may be about to take it over."""
    late = CutOff(lite, monkeypatch)
    server = lite.session(late.agent)
    run_id = server.submit_run("done")
    lease = late.wait_until_claimed(run_id)
    monkeypatch.setattr(lite.runtime.queue, "renew", _raising(CoordinationUnavailable("it is away")))

    late.answer(after_s=0.9 * lite.runtime.config.lease_s)

    assert late.has_fallen.wait(10)
    # the process judges itself on its own too, and may have stopped the attempt before its agent looked
    assert late.seen in (["lost"], [])
    assert RunStatus.RUNNING == server.get_run(run_id).status
    lite.runtime.recovery.take_over(lease)


def test_a_quick_claim_asks_redis_nothing_more(sqlite_config: Config) -> None:
    """What is younger than half a beat needs no renewal."""
    slow_beats = sqlite_config.model_copy(update={"beat_s": 20.0, "lease_s": 60.0})
    with station(slow_beats) as here:
        server = here.session(lambda ctx, given: given)
        asked: list[Claim] = []
        here.runtime.coordinator.still_holds = asked.append  # type: ignore[assignment,method-assign]

        result = server.execute_run("done", timeout=20)

    assert (RunStatus.COMPLETED, []) == (result.status, asked)
