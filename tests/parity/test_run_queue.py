"""Rows RQ-1 to RQ-7 of the parity table: the session's line in Redis, through its typed wrapper."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from asm_celery import Config, errors
from asm_celery.model import Lease, Session, new_id
from asm_celery.queue.connection import connect
from asm_celery.queue.run_queue import Entry, Granted, Line, RunQueue
from tests.parity.desk import Desk


@pytest.fixture
def queue(sqlite_config: Config) -> Iterator[RunQueue]:
    """An open gate and one worker that takes one run at a time."""
    client = connect(sqlite_config)
    made = RunQueue(client, sqlite_config.keys)
    restorer = new_id("res")
    assert "mine" == made.begin_restore(restorer, hold_s=5)
    assert "open" == made.open_gate(restorer).word
    made.announce("e", "w", 10, ["q"], hold_s=60, ring_s=60)
    yield made
    client.close()


def enqueue(queue: RunQueue, *names: str, first: int = 1) -> Granted:
    """Add runs of these names to session ``s`` of one slot, at positions from `first` on."""
    entries = [
        Entry(run_id=name, agent="a", position=first + at, queue="q", status="pending", claims=0)
        for at, name in enumerate(names)
    ]
    return queue.enqueue(Line(session_id="s", slots=1, state="active", version=0), entries)


def emptied(queue: RunQueue, granted: list[Lease]) -> list[str]:
    """Take what was granted and all that follows; return the runs in the order of their leases."""
    order = []
    while granted:
        [lease] = granted
        order.append(lease.run_id)
        assert queue.begin(lease.run_id, lease.claim, "e", "nonce")
        granted = queue.finish(lease.run_id).leases
    return order


def test_a_new_line_is_empty(queue: RunQueue) -> None:
    """RQ-1."""
    assert set() == queue.known()
    assert [] == queue.ring().granted


def test_first_in_first_out_then_empty(queue: RunQueue) -> None:
    """RQ-2: a run is leased when the one before it is forgotten, because it has ended."""
    waiting = enqueue(queue, "a", "b", "c")

    assert ["a", "b", "c"] == emptied(queue, waiting.leases)
    assert set() == queue.known()
    assert [] == queue.ring().granted


def test_a_full_line_refuses_and_stays_as_it_was(desk: Desk) -> None:
    """RQ-3: the bound is SQL's: a refused submit reaches neither the table nor Redis."""
    server = desk.start(max_queued_runs=1)
    held = [server.submit_run(word) for word in "ab"]

    with pytest.raises(errors.QueueFull):
        server.submit_run("c")

    assert held == server.status().queued_runs
    assert set(held) == desk.asm._runtime().queue.known()


def test_removing_from_the_middle_keeps_the_order(queue: RunQueue) -> None:
    """RQ-4: what is left comes out as before."""
    waiting = enqueue(queue, "a", "b", "c", "d")

    assert "waiting" == queue.finish("b").word

    assert ["a", "c", "d"] == emptied(queue, waiting.leases)


def test_removing_what_is_not_there_says_so(queue: RunQueue) -> None:
    """RQ-5: and changes nothing."""
    enqueue(queue, "a")

    assert "absent" == queue.finish("b").word
    assert {"a"} == queue.known()


def test_the_default_bound_is_a_hundred() -> None:
    """RQ-6: as the setting says."""
    assert 100 == Config.default("max_queued_runs") == Session.new("a").max_queued_runs


def test_a_run_is_in_line_once(queue: RunQueue) -> None:
    """RQ-7: enqueued again, while it waits or is leased, it is the same entry and grants nothing."""
    waiting = enqueue(queue, "a", "b")

    assert [] == enqueue(queue, "a", "b").leases
    assert [] == enqueue(queue, "b", first=2).leases

    assert {"a", "b"} == queue.known()
    assert ["a", "b"] == emptied(queue, waiting.leases)
