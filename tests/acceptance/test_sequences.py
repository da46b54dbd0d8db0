"""A session's log is numbered 1, 2, 3 ... whoever writes to it at once, and an event is stored once."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from asm_celery import AgentSessions, Event, SessionServer, errors
from tests.acceptance.conftest import FULL, Gate, StartWorker
from tests.acceptance.elsewhere import Elsewhere, together
from tests.waiting import wait_until

EVENTS = 10_000 if FULL else 2_000
PROCESSES, WRITERS = 2, 4
SIZE = 10


def message(server: SessionServer, **values: Any) -> Event:
    """Make an event of the session that is not stored yet."""
    return Event.new("message_received", server.session_id, **values)


def sequences(server: SessionServer) -> list[int]:
    """Read all sequences of a session, in pages."""
    found: list[int] = []
    while page := server.get_events(after=len(found), limit=1000):
        found += [event.sequence for event in page]
    return found


def test_eight_writers_number_their_events_without_a_hole(
    asm: AgentSessions, env: dict[str, str], worker: StartWorker, gate: Gate
) -> None:
    """Four threads in each of two processes append, each batch twice, while an agent streams into the log."""
    worker(pool="threads", lease_s=10.0)
    server = asm.start_session("speak")
    run_id = server.submit_run({"words": [f"{number} " for number in range(200)], "gate": str(gate)})
    batches = EVENTS // (PROCESSES * WRITERS * SIZE)
    writers = [
        Elsewhere(
            "append",
            env,
            session_id=server.session_id,
            writers=WRITERS,
            batches=batches,
            size=SIZE,
            name=str(part),
        )
        for part in range(PROCESSES)
    ]

    told = dict(pair for answer in together(writers) for pair in answer)
    gate.open()
    result = server.await_run(run_id)

    # two events of the session, and of the run: queued, started, 200 words, completed
    total = 2 + EVENTS + 203
    assert list(range(1, total + 1)) == sequences(server)
    assert EVENTS == len(told) == len(set(told.values()))
    stored = {
        event.event_id: event.sequence
        for after in range(0, total, 1000)
        for event in server.get_events(after=after, limit=1000, type="message_received")
    }
    assert told == stored
    assert "".join(f"{number} " for number in range(200)) == result.output


def test_a_repeated_event_id_returns_the_first_sequence(asm: AgentSessions) -> None:
    """Storing an event again, alone or among new ones, returns it as first stored and writes no row (ST-16)."""
    server = asm.start_session("echo")
    first, second = message(server, data={"n": 1}), message(server, data={"n": 2})

    (stored,) = server.append_events([first])
    (again,) = server.append_events([Event.from_map({**first.to_map(), "data": {"n": 99}})])
    both = server.append_events([second, first])

    assert 3 == stored.sequence
    assert stored == again
    assert [4, 3] == [event.sequence for event in both]
    assert [1, 2, 3, 4] == sequences(server)
    assert [{"n": 1}, {"n": 2}] == [event.data for event in server.get_events(after=2)]


def test_a_batch_is_numbered_in_its_order_and_its_duplicates_are_one(asm: AgentSessions) -> None:
    """A batch gets contiguous numbers in input order; the same event twice in it is one row (ST-19, ST-20)."""
    server = asm.start_session("echo")
    one, two = message(server), message(server)

    answer = server.append_events([one, two, one])

    assert [3, 4, 3] == [event.sequence for event in answer]
    assert [one.event_id, two.event_id, one.event_id] == [event.event_id for event in answer]
    assert [] == server.append_events([])
    assert [1, 2, 3, 4] == sequences(server)


def test_a_callers_number_is_overridden(asm: AgentSessions) -> None:
    """The log numbers its events, whatever they say (ST-15)."""
    server = asm.start_session("echo")

    (stored,) = server.append_events([message(server, sequence=700)])

    assert 3 == stored.sequence


def test_an_event_id_of_another_session_is_a_conflict(asm: AgentSessions) -> None:
    """Event ids are global: another session's is refused and nothing of the batch is written (ST-17)."""
    mine, other = asm.start_session("echo"), asm.start_session("echo")
    (stored,) = other.append_events([message(other)])

    with pytest.raises(errors.AlreadyExists) as refused:
        mine.append_events([message(mine), message(mine, event_id=stored.event_id)])

    assert stored.event_id in str(refused.value)
    assert other.session_id in str(refused.value)
    assert [1, 2] == sequences(mine)
    assert [1, 2, 3] == sequences(other)


def test_what_is_no_event_of_the_session_is_refused_whole(asm: AgentSessions) -> None:
    """A non-event, or an event of another session, is a validation error and nothing is written (ST-21)."""
    mine, other = asm.start_session("echo"), asm.start_session("echo")

    for wrong in ({"type": "message_received"}, message(other), None):
        with pytest.raises(errors.ValidationError):
            mine.append_events([message(mine), wrong])  # type: ignore[list-item]

    assert [1, 2] == sequences(mine)


def test_a_caller_cannot_write_the_runtimes_words(asm: AgentSessions) -> None:
    """How a run goes is told by the runtime alone, once: no caller ends a run by an event."""
    server = asm.start_session("echo")
    run_id = server.submit_run("x")

    for word in ("run_completed", "run_started", "session_completed"):
        with pytest.raises(errors.InvalidEventType):
            server.append_events([Event.new(word, server.session_id, run_id=run_id)])

    assert [1, 2, 3] == sequences(server)


def test_a_run_that_has_ended_takes_no_more_events(asm: AgentSessions) -> None:
    """A terminal event is its run's last one; what was stored before may be repeated."""
    server, other = asm.start_session("echo"), asm.start_session("echo")
    run_id, foreign = server.submit_run("x"), other.submit_run("y")
    early, late = message(server, run_id=run_id), message(server, run_id=run_id)
    (stored,) = server.append_events([early])
    server.cancel_run(run_id)

    with pytest.raises(errors.InvalidOperation, match="has ended cancelled"):
        server.append_events([early, late])
    with pytest.raises(errors.RunNotFound):
        server.append_events([message(server, run_id=foreign)])

    assert [stored] == server.append_events([early])
    assert 5 == server.get_run(run_id).last_sequence
    assert [1, 2, 3, 4, 5] == sequences(server)


def test_events_for_a_deleted_session_are_refused(asm: AgentSessions) -> None:
    """An append to a session that is not there any more raises SessionNotFound (ST-18)."""
    server = asm.start_session("echo")
    server.complete()
    asm.delete_session(server.session_id)

    with pytest.raises(errors.SessionNotFound):
        server.append_events([message(server)])


def test_a_reader_who_waits_is_answered_by_the_next_matching_event(asm: AgentSessions) -> None:
    """`get_events(wait_timeout=...)` returns at once, when the event comes, or empty (ST-27 to ST-30)."""
    server = asm.start_session("echo")
    news: list[list[Event]] = []

    assert [1, 2] == [event.sequence for event in server.get_events(wait_timeout=30)]
    assert [] == server.get_events(after=2, wait_timeout=0.05)
    with AgentSessions(asm.config) as elsewhere:
        reader = elsewhere.attach(server.session_id)

        def read() -> None:
            news.append(reader.get_events(after=2, type="tool_call_started", wait_timeout=30))

        waiting = threading.Thread(target=read)
        waiting.start()
        wait_until(lambda: server.status().subscribers == 1, description="the reader waits")
        server.append_events([message(server)])
        server.append_events([Event.new("tool_call_started", server.session_id)])
        waiting.join()

    assert [[4]] == [[event.sequence for event in page] for page in news]
