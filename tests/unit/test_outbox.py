"""How events get from an attempt to its log: in order, in batches, none lost and none twice."""

from __future__ import annotations

import threading

import pytest

from asm_celery.errors import InvalidEventType, LeaseLost, StopRun, StorageConnectionFailed, StorageError
from tests.unit.attempts import held
from tests.waiting import wait_until


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
