"""How events get from an attempt to its log: in order, in batches, none lost and none twice."""

from __future__ import annotations

import threading

import pytest

from asm_celery.errors import InvalidEventType, LeaseLost, StopRun, StorageConnectionFailed, StorageError
from asm_celery.model import Event
from asm_celery.worker.outbox import Outbox
from tests.unit.attempts import held
from tests.waiting import wait_until


class Clocked:
    """An outbox whose time passes when a test says so; the test is its agent and its writer."""

    def __init__(self, *, window_s: float = 5.0, batch_size: int = 3) -> None:
        self.now = 100.0
        with held() as it:
            self._lock = threading.Lock()
            self.box = Outbox(
                it.attempt,
                it.claim,
                window_s=window_s,
                batch_size=batch_size,
                lock=self._lock,
                wake=threading.Condition(self._lock),
                clock=lambda: self.now,
            )

    def put(self, *, at: float) -> float | None:
        """Emit an event at this time; returns when the next batch is due."""
        self.now = at
        self.box.put(Event.new("n", "ses_1"), 1)
        return self.box.due_at

    def store(self, *, at: float) -> int:
        """Take the next batch at this time and store it; returns how many events it has."""
        self.now = at
        with self._lock:
            batch = self.box.take()
            self.box.settle(self.box.position + len(batch))
        return len(batch)


def test_the_first_event_after_a_quiet_moment_is_due_at_once() -> None:
    """Nobody knows of companions to come, and whoever follows the run waits for this one."""
    clocked = Clocked(window_s=5.0)

    first = clocked.put(at=100.0)
    clocked.store(at=100.0)
    later = clocked.put(at=117.0)

    assert (100.0, 117.0) == (first, later)


def test_a_busy_attempt_commits_once_a_window() -> None:
    """But for one batch that may come early: what comes later waits for companions."""
    clocked = Clocked(window_s=5.0)
    due = []
    for number in range(5):
        came = 100.0 + number / 10
        due.append(clocked.put(at=came))
        clocked.store(at=due[-1] or 0.0)

    assert [100.0, 100.1, 105.0, 110.0, 115.0] == due


def test_companions_share_the_batch_of_the_first_that_waits() -> None:
    """What comes while another waits is due with it."""
    clocked = Clocked(window_s=5.0, batch_size=10)
    for at in (100.0, 100.1):
        clocked.put(at=at)
        clocked.store(at=at)

    assert [105.0] * 3 == [clocked.put(at=at) for at in (101.0, 102.0, 104.9)]
    assert 3 == clocked.store(at=105.0)


def test_an_agent_of_one_event_a_window_never_waits_for_a_late_one() -> None:
    """Neither its own lateness nor the writer's adds up."""
    clocked = Clocked(window_s=5.0)
    came = [100.0, 108.0, 110.0, 115.0, 120.5, 125.0]

    due = []
    for at in came:
        due.append(clocked.put(at=at))
        clocked.store(at=at + 1.0)

    assert came == due


def test_no_event_waits_longer_than_the_window_for_companions() -> None:
    """Also not after many batches that were taken early because they were full."""
    clocked = Clocked(window_s=5.0, batch_size=2)
    for tenth in range(10):
        clocked.put(at=100.0 + tenth / 10)
        full = clocked.put(at=100.0 + tenth / 10)
        assert full is not None
        assert full <= 100.0 + tenth / 10, "a full batch is due at once"
        clocked.store(at=100.0 + tenth / 10)

    due = clocked.put(at=101.0)

    assert due is not None
    assert 101.0 < due <= 101.0 + 5.0


def test_what_a_full_batch_left_is_due_within_the_window() -> None:
    """It has waited already, for the batch before it."""
    clocked = Clocked(window_s=5.0, batch_size=2)
    for _ in range(3):
        clocked.put(at=100.0)

    assert 2 == clocked.store(at=101.0)

    due = clocked.box.due_at
    assert due is not None
    assert due <= 101.0 + 5.0


def test_no_window_is_no_wait() -> None:
    """`event_batch_ms=0` turns it off."""
    clocked = Clocked(window_s=0.0)
    clocked.put(at=100.0)
    clocked.store(at=101.0)

    assert 101.0 == clocked.put(at=101.0)


def test_the_writer_stores_a_first_event_without_waiting_for_the_window() -> None:
    """However long it is."""
    with held(batch_s=3600.0) as it:
        it.context.emit("first")

        wait_until(lambda: it.log.events, description="the first event is stored")


def test_the_writer_lets_a_busy_attempt_wait_unless_its_batch_is_full() -> None:
    """The third batch in a window is due at its end."""
    with held(batch_s=3600.0, batch_size=3) as it:
        for number in range(2):
            it.context.emit("early")
            wait_until(lambda: len(it.log.events) == number + 1, description="it is stored at once")  # noqa: B023
        for _ in range(4):
            it.context.emit("n")
        wait_until(lambda: len(it.log.events) == 5, description="the full batch is stored")

        left = it.writer.close(it.outbox)

        assert ["n"] == [event.type for event in left.events]


def test_events_that_come_together_are_stored_together() -> None:
    """One transaction takes up to `event_batch_size` events, in order."""
    with held(is_open=False, batch_size=10) as it:
        for number in range(25):
            it.context.emit("n", {"n": number})
        it.log.is_open.set()

        wait_until(lambda: len(it.log.events) == 25, description="all events are stored")

        assert list(range(25)) == [event.data["n"] for event in it.log.events]
        assert len(it.log.batches) <= 4
        assert all(len(batch) <= 10 for batch in it.log.batches)


def test_a_batch_that_was_not_answered_is_sent_again_as_it_was() -> None:
    """The lost answer may have been a yes: only the same batch at the same place is known to be the same."""
    with held(is_open=False) as it:
        it.log.troubles = [StorageConnectionFailed(), StorageConnectionFailed()]
        it.context.emit("first")
        it.log.is_open.set()
        wait_until(lambda: len(it.log.tried) == 1, description="the first try has failed")
        it.context.emit("second")

        wait_until(lambda: len(it.log.events) == 2, description="both events are stored")

        assert [["first"], ["first"], ["first"], ["second"]] == [
            [event.type for event in batch] for batch in it.log.tried
        ]


def test_what_an_attempt_leaves_tells_the_unanswered_batch_from_the_rest() -> None:
    """The end of the attempt sends it again, unchanged, before its own last transaction."""
    with held() as it:
        it.log.troubles = [StorageConnectionFailed() for _ in range(100)]
        it.context.emit("sent")
        wait_until(lambda: it.log.tried, description="the batch was tried")
        it.context.emit("waits")

        left = it.writer.close(it.outbox)

        assert ["sent"] == [event.type for event in left.unsettled]
        assert ["waits"] == [event.type for event in left.events]
        assert 0 == left.position


def test_closing_waits_for_the_write_that_is_under_way() -> None:
    """Else the end of the attempt would not know its place in the log."""
    with held(is_open=False) as it:
        it.context.emit("slow")
        wait_until(lambda: it.outbox.is_writing, description="the batch is being written")
        threading.Timer(0.05, it.log.is_open.set).start()

        left = it.writer.close(it.outbox)

        assert ([], [], 1) == (left.unsettled, left.events, left.position)


def test_a_lost_claim_stops_the_attempt() -> None:
    """Its further events are refused where they are emitted."""
    with held() as it:
        it.log.troubles = [LeaseLost()]
        it.context.emit("first")

        wait_until(lambda: it.attempt.is_lost, description="the attempt knows that it is lost")

        with pytest.raises(StopRun) as raised:
            it.context.emit("second")
        assert "lost" == raised.value.kind


def test_events_the_database_refuses_fail_the_attempt_and_not_the_writer() -> None:
    """One attempt's bad event does not keep the others' from being stored."""
    with held() as it:
        it.log.troubles = [StorageError("the event id is taken")]
        it.context.emit("bad")
        wait_until(lambda: it.outbox.failure, description="the attempt has failed")
        other = it.writer.open(it.attempt, it.claim)

        other.put(it.log.tried[0][0], 1)

        wait_until(lambda: it.log.events, description="the other's event is stored")
        left = it.writer.close(it.outbox)
        assert left.failure is not None
        assert "storage_error" == left.failure.code


def test_an_invalid_event_leaves_the_outbox_as_it_was() -> None:
    """A refused emit costs its agent an exception and nothing else."""
    with held() as it:
        try:
            it.context.emit("run_completed")
        except InvalidEventType:
            it.context.emit("fine")

        wait_until(lambda: it.log.events, description="the next event is stored")

        assert [("fine", {})] == it.log.told
