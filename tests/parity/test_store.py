"""Rows ST-1 to ST-49 of the parity table: what is stored, through the public face, on both databases."""

from __future__ import annotations

import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any

import alembic.command
import pytest
from sqlalchemy import create_engine, inspect

from asm_celery import Config, Event, SessionServer, errors
from asm_celery.moves.coordinator import Claim, Outcome
from asm_celery.states import RunStatus, SessionStatus
from asm_celery.store.schema import VERSION_TABLE, _settings, migrate
from tests.parity.desk import Desk, all_events
from tests.waiting import wait_until


def notes(server: SessionServer, count: int, **values: Any) -> list[Event]:
    """Make events, unstored."""
    return [Event.new("note", server.session_id, data={"n": n}, **values) for n in range(count)]


def test_a_session_is_read_as_it_was_stored(desk_on_each: Desk) -> None:
    """ST-1, ST-43: also with keys that nobody here knows, in any alphabet."""
    odd = {"ключ": [1, {"深い": None}], "a.b": "\ud800 lone", "n": 1.5}

    server = desk_on_each.start(session_id="s", metadata=odd, max_concurrent_runs=3)

    [stored] = desk_on_each.another().list_sessions()
    assert ("s", "echo", SessionStatus.ACTIVE) == (stored.session_id, stored.agent, stored.status)
    assert (odd, 3, 2) == (stored.metadata, stored.max_concurrent_runs, stored.last_sequence)
    assert server.session_id == stored.session_id


def test_starting_the_same_session_again_makes_no_second_row(desk_on_each: Desk) -> None:
    """ST-3: attached three times is one row, as it was stored first."""
    for slots in (1, 2, 3):
        desk_on_each.start(session_id="s", max_concurrent_runs=slots, if_exists="attach")

    assert [1] == [session.max_concurrent_runs for session in desk_on_each.asm.list_sessions()]


def test_sessions_are_listed_oldest_first_in_pages(desk_on_each: Desk) -> None:
    """ST-4: status and agent combine, limit bounds, `after` goes on."""
    asm = desk_on_each.asm
    ids = [desk_on_each.start(("echo", "boom")[n % 2], session_id=f"s{n}").session_id for n in range(6)]
    asm.attach("s0").complete()
    asm.attach("s3").pause()

    def listed(**filters: Any) -> list[str]:
        return [session.session_id for session in asm.list_sessions(**filters)]

    assert ids == listed()
    assert ["s0", "s1"] == listed(limit=2)
    assert ["s2", "s3"] == listed(limit=2, after="s1")
    assert ["s1", "s5"] == listed(status="active", agent="boom")
    assert ["s0"] == listed(status="completed")
    assert [] == listed(status="paused", agent="echo")
    with pytest.raises(errors.InvalidStatus):
        listed(status="sleeping")
    with pytest.raises(errors.ValidationError):
        listed(limit=0)


def test_a_deleted_session_is_gone_with_all_it_had(desk_on_each: Desk) -> None:
    """ST-5, ST-6, ST-49: runs and events too; a handle that is left cannot bring it back."""
    server = desk_on_each.start(session_id="s")
    run_id = server.submit_run(1)
    with pytest.raises(errors.InvalidOperation, match="1 open runs"):
        desk_on_each.asm.delete_session("s")
    server.cancel_run(run_id)
    server.complete()

    desk_on_each.asm.delete_session("s")

    assert [] == desk_on_each.asm.list_sessions() == server.get_events()
    for gone in (
        lambda: desk_on_each.asm.attach("s"),
        lambda: server.submit_run(2),
        lambda: server.append_events(notes(server, 1)),
        lambda: desk_on_each.asm.delete_session("s"),
    ):
        with pytest.raises(errors.SessionNotFound):
            gone()
    with pytest.raises(errors.RunNotFound):
        desk_on_each.asm.get_run(run_id)


def test_a_run_is_read_as_it_is_now(desk_on_each: Desk) -> None:
    """ST-7, ST-10: every change is seen at once, by everybody; the active runs can be asked for."""
    server = desk_on_each.start("gate")
    other = desk_on_each.another().attach(server.session_id)
    desk_on_each.work()
    run_id = server.submit_run("x", metadata={"ключ": 1})
    desk_on_each.running(server)

    assert [run_id] == [run.run_id for run in other.list_runs(status="running")]
    assert ({"ключ": 1}, "x", 1) == (
        other.get_run(run_id).metadata,
        other.get_run(run_id).input,
        other.get_run(run_id).attempt,
    )
    desk_on_each.gates.open("x")
    desk_on_each.ended(server, run_id)
    assert [] == other.list_runs(status="running")
    assert (RunStatus.COMPLETED, "x") == (other.get_run(run_id).status, other.get_run(run_id).output)


def test_runs_are_listed_in_the_order_of_submission(desk_on_each: Desk) -> None:
    """ST-9: of this session only, by status, in pages; no runs are an empty list."""
    server, other = desk_on_each.start(), desk_on_each.start()
    run_ids = [server.submit_run(n) for n in range(5)]
    server.cancel_run(run_ids[1])
    server.interrupt_run(run_ids[2])

    def listed(**filters: Any) -> list[str]:
        return [run.run_id for run in server.list_runs(**filters)]

    assert run_ids == listed()
    assert run_ids[:2] == listed(limit=2)
    assert run_ids[3:] == listed(after=run_ids[2])
    assert run_ids[1:3] == listed(status=["cancelled", "interrupted"])
    assert [] == other.list_runs()
    with pytest.raises(errors.InvalidStatus):
        listed(status="asleep")


def test_a_callers_events_are_numbered_and_kept_in_order(desk_on_each: Desk) -> None:
    """ST-11, ST-12, ST-14, ST-15: 1, 2, 3 ...; a number given is overridden; what is stored never changes."""
    server = desk_on_each.start()
    given = notes(server, 3, sequence=77, metadata={"k": "v"}, correlation_id="c", provider="me")

    stored = server.append_events(given)

    assert [3, 4, 5] == [event.sequence for event in stored]
    assert stored == server.get_events(after=2)
    assert [(event.event_id, event.type, event.data, event.metadata) for event in given] == [
        (event.event_id, event.type, event.data, event.metadata) for event in stored
    ]
    assert 5 == desk_on_each.asm.list_sessions()[0].last_sequence


def test_a_session_without_events_is_at_0(desk_on_each: Desk) -> None:
    """ST-22: the number of the last event of an unknown session."""
    with desk_on_each.asm._runtime().store.read() as tx:
        assert 0 == tx.sessions.last_sequence("unknown")


def test_after_and_before_are_exclusive_and_everything_combines(desk_on_each: Desk) -> None:
    """ST-13, ST-23, ST-24: run, type, both ends; the limit comes last."""
    server = desk_on_each.start()
    run_id = server.submit_run(1)
    server.append_events([*notes(server, 6), *notes(server, 2, run_id=run_id)])

    def found(**filters: Any) -> list[int]:
        return [event.sequence for event in server.get_events(**filters)]

    assert [5, 6] == found(after=4, before=7)
    assert [3, 10, 11] == found(run_id=run_id)
    assert [10, 11] == found(run_id=run_id, type="note")
    assert [1, 3] == found(type=["session_created", "run_queued"])
    assert [10] == found(after=3, run_id=run_id, type=["note"], limit=1)
    assert [4, 5, 6] == found(after=2, type="note", limit=3)
    assert [] == found(after=11)


def test_since_includes_its_moment(desk_on_each: Desk) -> None:
    """ST-26: at or after, on both databases."""
    server = desk_on_each.start()
    first = notes(server, 1)[0]
    later = Event.new("note", server.session_id, timestamp=first.timestamp + timedelta(microseconds=1))
    server.append_events([first, later])

    def count(since: Any) -> int:
        return len(server.get_events(after=2, since=since))

    assert (2, 1) == (count(first.timestamp), count(later.timestamp))
    assert 0 == count(later.timestamp + timedelta(microseconds=1))


def test_closing_lets_waiting_readers_go(desk: Desk) -> None:
    """ST-32: with an empty list."""
    server = desk.another().attach(desk.start().session_id)

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(server.get_events, 2, wait_timeout=60)
        runtime = server._runtime_of()
        wait_until(lambda: runtime.hub._channels, description="the reader listens")
        runtime.close()

        assert [] == waiting.result(20)


def _claimed(desk: Desk, server: SessionServer) -> Claim:
    desk.announce()
    server.submit_run("x")
    lease = desk.rung[-1]
    claim = desk.asm._runtime().coordinator.start(
        lease.run_id, lease.claim, "nobody", "nonce", knows=desk.asm.registry.get
    )
    assert claim is not None
    return claim


def test_the_end_of_a_run_is_stored_whole(desk_on_each: Desk) -> None:
    """ST-33, RN-5, RN-7: last events, terminal event and status in one transaction."""
    server = desk_on_each.start()
    claim = _claimed(desk_on_each, server)
    last = notes(server, 2, run_id=claim.run.run_id)

    ended = desk_on_each.asm._runtime().coordinator.finish(
        claim, Outcome(status=RunStatus.COMPLETED, output={"a": 1}), last, 0
    )

    assert (RunStatus.COMPLETED, {"a": 1}) == (ended.status, ended.output)
    assert ended.ended_at is not None
    assert ["note", "note", "run_completed"] == [event.type for event in all_events(server)][-3:]


def test_an_end_with_an_event_that_cannot_be_stored_is_not_stored_at_all(desk_on_each: Desk) -> None:
    """ST-34, ST-40: neither status nor events are seen; the store lives on."""
    server = desk_on_each.start()
    [stored] = server.append_events(notes(server, 1))
    claim = _claimed(desk_on_each, server)
    copied = Event.new("note", server.session_id, run_id=claim.run.run_id, event_id=stored.event_id)
    coordinator, before = desk_on_each.asm._runtime().coordinator, all_events(server)

    with pytest.raises(errors.StorageError) as refused:
        coordinator.finish(claim, Outcome(status=RunStatus.COMPLETED), [copied], 0)

    assert "storage_write_failed" == refused.value.code
    assert (RunStatus.RUNNING, None) == (
        server.get_run(claim.run.run_id).status,
        server.get_run(claim.run.run_id).ended_at,
    )
    assert before == all_events(server)
    assert RunStatus.COMPLETED is coordinator.finish(claim, Outcome(status=RunStatus.COMPLETED), [], 0).status


def test_a_hundred_sessions_at_once_are_a_hundred_rows(desk_on_each: Desk) -> None:
    """ST-36: with ids of their own; and of a hundred starts of one id, one wins."""
    with ThreadPoolExecutor(16) as threads:
        made = list(threads.map(lambda _: desk_on_each.start().session_id, range(100)))
        shared = list(
            threads.map(lambda _: desk_on_each.start(session_id="s", if_exists="attach"), range(20))
        )

    stored = [session.session_id for session in desk_on_each.asm.list_sessions(limit=1000)]
    assert 101 == len(stored) == len(set(stored))
    assert set(made) < set(stored)
    assert {"s"} == {server.session_id for server in shared}


def test_mixed_work_on_one_session_succeeds(desk_on_each: Desk) -> None:
    """ST-37: submits, cancels, reads, pauses and deletes side by side; the last state is consistent."""
    server = desk_on_each.start(max_queued_runs=200)
    doomed = [desk_on_each.start() for _ in range(5)]
    for one in doomed:
        one.complete()

    def work(number: int) -> None:
        run_id = server.submit_run(number)
        server.pause()
        assert run_id in [run.run_id for run in server.list_runs(limit=1000)]
        if number % 2:
            server.cancel_run(run_id)
        server.resume()
        server.status()
        if number < len(doomed):
            desk_on_each.asm.delete_session(doomed[number].session_id)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(24)))

    statuses = [run.status for run in server.list_runs()]
    assert (12, 12) == (statuses.count(RunStatus.PENDING), statuses.count(RunStatus.CANCELLED))
    assert [server.session_id] == [session.session_id for session in desk_on_each.asm.list_sessions()]


def test_concurrent_appends_are_numbered_without_a_gap(desk_on_each: Desk) -> None:
    """ST-38, ST-39: fifty single ones and ten batches of five, all there, contiguous in each batch."""
    server = desk_on_each.start()

    with ThreadPoolExecutor(8) as threads:
        singles = list(threads.map(lambda _: server.append_events(notes(server, 1)), range(50)))
        batches = list(threads.map(lambda _: server.append_events(notes(server, 5)), range(10)))

    assert list(range(1, 103)) == [event.sequence for event in all_events(server)]
    assert 100 == len({event.event_id for batch in singles + batches for event in batch})
    for batch in batches:
        first = batch[0].sequence
        assert list(range(first, first + 5)) == [event.sequence for event in batch]


def test_a_batch_of_thousands_is_stored(desk_on_each: Desk) -> None:
    """ST-41: beyond any number of bind parameters of one statement."""
    server = desk_on_each.start()

    stored = server.append_events(notes(server, 4000))

    assert list(range(3, 4003)) == [event.sequence for event in stored]
    assert 4002 == len(all_events(server))


def test_a_busy_database_is_waited_for(desk: Desk) -> None:
    """ST-41: another process that holds SQLite's write lock for a moment costs time only."""
    server = desk.start()
    path = desk.config.database_url.removeprefix("sqlite:///")

    with ThreadPoolExecutor(1) as threads, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        appended = threads.submit(server.append_events, notes(server, 1))
        assert not appended.done()
        other.execute("COMMIT")

        assert 1 == len(appended.result(20))


def test_the_downgrade_drops_everything(tmp_path: Any) -> None:
    """ST-42: nothing of ours is left but the table that remembers revisions."""
    url = f"sqlite:///{tmp_path / 'down.db'}"
    migrate(url)
    engine = create_engine(url)

    with engine.begin() as connection:
        settings = _settings()
        settings.attributes["connection"] = connection
        alembic.command.downgrade(settings, "base")

    assert [VERSION_TABLE] == inspect(engine).get_table_names()
    engine.dispose()


def test_tables_carry_the_rules(config: Config) -> None:
    """ST-46: unique numbers and positions, an index for every hot question."""
    engine = create_engine(config.database_url)
    with closing(engine.connect()) as connection:
        about = inspect(connection)
        tables = set(about.get_table_names())
        keys = {name: about.get_pk_constraint(name)["constrained_columns"] for name in tables}
        unique = [constraint["column_names"] for constraint in about.get_unique_constraints("runs")]
        indexes = {index["name"] for index in about.get_indexes("runs")}
    engine.dispose()

    assert {"sessions", "session_counters", "runs", "events", "executors", "settings"} < tables
    assert VERSION_TABLE in tables
    assert ["session_id", "sequence"] == keys["events"]
    assert [["session_id", "position"]] == unique
    assert {"runs_open", "runs_key", "runs_executor", "runs_open_id"} <= indexes


def test_reading_events_looks_at_one_session_only(desk: Desk) -> None:
    """ST-47: by the primary key, from the place on; other sessions cost nothing."""
    path = desk.config.database_url.removeprefix("sqlite:///")

    with closing(sqlite3.connect(path)) as lite:
        [plan] = lite.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM events WHERE session_id = 's' AND sequence > 7 ORDER BY sequence"
        ).fetchall()

    assert re.search(r"SEARCH events USING .*INDEX .* \(session_id=\? AND sequence>\?\)", plan[-1])
