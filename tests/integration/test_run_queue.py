"""Corners of the scripts, each as the smallest story that showed it."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
import redis

from asm_celery.keys import Keys
from asm_celery.queue.run_queue import Entry, Granted, Line, RunQueue
from tests.model.consistency import inconsistency, leftovers
from tests.model.server_states import look

LONG_S = 1e6


class Desk:
    """A namespace with an open gate, and short words for calls."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.namespace = f"t{uuid4().hex[:12]}"
        self.root = Keys(self.namespace).root
        self.queue = RunQueue(client, Keys(self.namespace))
        self.queue.begin_restore("restorer", hold_s=LONG_S)
        self.queue.open_gate("restorer")
        self.announce("e1", 1, "q")
        self.announce("e2", 1, "r")

    def announce(self, executor: str, slots: int, queue: str) -> Granted:
        return self.queue.announce(executor, f"w-{executor}", slots, [queue], hold_s=LONG_S, ring_s=LONG_S)

    def tell(
        self, *entries: Entry, slots: int = 1, state: str = "active", version: int = 0
    ) -> list[tuple[str, int]]:
        line = Line(session_id=entries[0].run_id[0], slots=slots, state=state, version=version)
        return pairs(self.queue.enqueue(line, entries))

    def give_back(self, run_id: str, claim: int, *entries: Entry, verdict: str = "keep") -> Granted:
        line = Line(session_id=run_id[0], slots=1, state="active", version=0)
        return self.queue.give_back(run_id, claim, "e1", line, entries, verdict=verdict)

    def pass_time(self, *commands: tuple[str, ...]) -> None:
        for verb, key, *rest in commands:
            self.client.execute_command(verb, self.root + key, *rest)  # type: ignore[no-untyped-call]


@pytest.fixture
def desk(redis_url: str) -> Iterator[Desk]:
    """A namespace of the test's own, whose keys agree with each other at the end."""
    client = redis.Redis.from_url(redis_url)
    made = Desk(client)
    yield made
    _, facts = look(client, made.namespace)
    for run_id in facts.runs:
        made.queue.finish(run_id)
    _, empty = look(client, made.namespace)
    for key in client.scan_iter(match=f"{made.root}*", count=1000):
        client.delete(key)
    client.close()
    assert "" == inconsistency(facts)
    assert not leftovers(empty) - {"turn"}


def entry(
    run_id: str, *, status: str = "pending", claims: int = 0, queue: str = "q", waits_ms: int = 0
) -> Entry:
    """A run named by its session and position: ``a1``."""
    return Entry(
        run_id=run_id,
        agent="agent",
        position=int(run_id[1:]),
        queue=queue,
        status=status,
        claims=claims,
        executor="e1" if status == "running" else None,
        waits_ms=waits_ms,
    )


def pairs(granted: Granted) -> list[tuple[str, int]]:
    """Run and claim number of each lease."""
    return [(lease.run_id, lease.claim) for lease in granted.leases]


def test_run_found_running_from_another_queue_leaves_no_load_behind(desk: Desk) -> None:
    """A lease is counted in the queue that SQL says, and is taken from the same one at its end."""
    desk.tell(entry("a1", queue="nobody"))

    desk.tell(entry("a1", queue="q", status="running", claims=1))
    desk.queue.finish("a1")

    assert [("b1", 1)] == desk.tell(entry("b1"))
    assert [("c1", 1)] == desk.tell(entry("c1"))


def test_run_that_came_due_is_not_granted_beyond_the_capacity_of_its_queue(desk: Desk) -> None:
    """A session stands in line for its second run; its first comes due, and its queue has no worker."""
    desk.queue.limiter_set(0, None)
    desk.tell(entry("a1", queue="nobody", claims=1, waits_ms=10**9), entry("a2", queue="q"), slots=2)
    desk.pass_time(("HSET", "run:a1", "not_before", "1"))

    granted = desk.queue.limiter_set(9, None)

    assert [] == pairs(granted)
    assert [("b1", 1)] == desk.tell(entry("b1"))


def test_caller_slot_that_ended_by_itself_leaves_nothing_behind(desk: Desk) -> None:
    """Nor does its session, once its time is over."""
    desk.queue.limiter_acquire("runs", "mine", hold_s=LONG_S, session_id="s")
    desk.pass_time(("ZADD", "callers:runs", "XX", "0", "mine"))

    desk.queue.limiter_status()

    _, facts = look(desk.client, desk.namespace)
    assert not [key for key in facts.keys if key.startswith("callers")]


def test_gate_that_was_opened_is_said_to_be_open(desk: Desk) -> None:
    """The answer may be lost, so the restorer may ask again."""
    assert "open" == desk.queue.open_gate("restorer").word
    assert "open" == desk.queue.begin_restore("another", hold_s=1)


def test_run_that_ended_meanwhile_is_not_leased_to_its_executor_again(desk: Desk) -> None:
    """A refused claim tells what ran when it was read; that has ended since, and must not hold the line."""
    desk.tell(entry("a2"))
    desk.queue.begin("a2", 1, "e1", "nonce")
    ran = entry("a1", status="running", claims=1)

    granted = desk.give_back("a2", 1, entry("a2"), ran)

    assert [("a2", 1)] == pairs(granted)
    assert {"a2"} == desk.queue.known()


def test_delay_of_a_lacking_agent_stays_when_the_run_is_told_again(desk: Desk) -> None:
    """Neither a repeated call nor a neighbour's give_back rings a worker that lacks the agent at once."""
    desk.tell(entry("a1"))
    desk.queue.begin("a1", 1, "e1", "nonce")
    assert [] == pairs(desk.give_back("a1", 1, entry("a1"), verdict="lacking"))

    assert [] == pairs(desk.give_back("a1", 1, entry("a1"), verdict="lacking"))
    assert [] == desk.tell(entry("a1"))

    assert [("a1", 2)] == desk.tell(entry("a1", claims=1))


def test_late_enqueue_does_not_resume_a_paused_session(desk: Desk) -> None:
    """The higher version of a session's state stays, whatever call brings it."""
    desk.tell(entry("a1"))
    desk.queue.session_state("a", "paused", 1)

    desk.tell(entry("a2"), version=0)
    desk.queue.finish("a1")

    assert [("a2", 1)] == pairs(desk.queue.session_state("a", "active", 2))


def test_turn_is_kept_when_a_session_changes_its_line(desk: Desk) -> None:
    """A session that waits with work in flight, and then without, does not go to the back."""
    desk.queue.limiter_set(2, None)
    desk.announce("e3", 9, "q")
    desk.tell(entry("a1"), entry("a2"), entry("a3"), slots=3)
    desk.tell(entry("b1"))
    assert [("a3", 1)] == pairs(desk.queue.finish("a1"))
    desk.tell(entry("a4"), slots=3)

    assert [("b1", 1)] == pairs(desk.queue.finish("a2"))
    assert [("a4", 1)] == pairs(desk.queue.finish("a3"))
