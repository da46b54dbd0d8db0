"""The reads that recur stay cheap however many ended runs and old events there are: they use their index."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import create_engine, event, insert, text

from asm_celery.store.database import Transaction
from asm_celery.store.tables import runs, session_counters, sessions

NOW = datetime.now(UTC)
LIVE = 10_000

SCAN = re.compile(r"\bSCAN (?!page|anon|CONSTANT)(?!\w+ USING)")

READS: dict[str, tuple[Callable[[Transaction], object], str]] = {
    "open runs of a session": (lambda tx: tx.runs.count_open("s"), "runs_open"),
    "the line of a session": (lambda tx: tx.runs.open_of("s"), "runs_open"),
    "pages of open runs": (lambda tx: tx.runs.open_page(after="run_1"), "runs_open_id"),
    "the restore's voiding of claims": (
        lambda tx: tx.runs.void_page(after="run_1", limit=500),
        "runs_open_id",
    ),
    "runs of an executor": (lambda tx: tx.runs.held_by("e"), "runs_executor"),
    "overdue runs": (lambda tx: tx.runs.overdue(), "runs_queue_deadline"),
    "overdue attempts": (lambda tx: tx.runs.overdue(), "runs_deadline"),
    "open runs by their ids": (lambda tx: tx.runs.open_page(run_ids=["run_1", "run_2"]), "runs_"),
    "the beats of executors": (lambda tx: tx.executors.beats(["e", "f"]), "executors"),
    "a page of a log": (lambda tx: tx.events.look("s", after=7, limit=9, at=7), "events"),
    "a page of a run in a log": (
        lambda tx: tx.events.look("s", after=7, limit=9, run_id="run_1", types=["a"]),
        "events_run",
    ),
    "what retention may remove": (lambda tx: tx.events.prefix("s", first=1, last=9, before=NOW), "runs_open"),
    "a run by its key": (lambda tx: tx.runs.by_key("s", "k"), "runs_key"),
    "the claim's count of lower positions": (
        lambda tx: tx.runs.claim("run_1", 1, executor="e", nonce="n"),
        "runs_open",
    ),
}


@pytest.fixture
def connection(database_url: str) -> Iterator[Any]:
    """A connection to a database whose planner prefers any index to a scan, as it would with many rows."""
    engine = create_engine(database_url)
    with engine.connect() as made:
        if engine.dialect.name == "postgresql":
            made.execute(text("SET enable_seqscan = off"))
        yield made
        made.rollback()
    engine.dispose()


@pytest.mark.parametrize("read", READS)
def test_a_recurring_read_uses_its_index(connection: Any, read: str) -> None:
    """A partial index serves only a query that spells its condition out."""
    call, index = READS[read]
    seen: list[tuple[str, Any]] = []

    def keep(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", keep)
    call(Transaction(connection))
    event.remove(connection, "before_cursor_execute", keep)

    explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    plans = [
        " ".join(str(row) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters))
        for statement, parameters in seen
    ]
    assert any(index in plan for plan in plans), plans
    # nothing is read as a whole: PostgreSQL says Seq Scan, SQLite SCAN and a name that is no subquery's
    scans = [plan for plan in plans if "Seq Scan" in plan or SCAN.search(plan)]
    assert [] == scans


def test_ten_thousand_live_runs_are_read_in_a_second(connection: Any) -> None:
    """What the repair pass and its comparison ask of SQL, beside as many ended runs.

    The bound is three times what is promised, for a machine that does other things too.
    """
    _fill(connection)
    tx = Transaction(connection)
    took = []

    for _ in range(3):
        began = time.monotonic()
        after, seen = "", 0
        while page := tx.runs.open_page(after=after):
            after, seen = page[-1].run_id, seen + len(page)
        overdue = tx.runs.overdue()
        took.append(time.monotonic() - began)

    assert min(took) < 3.0
    assert (LIVE, []) == (seen, overdue)
    asked = [f"run_{number:05d}" for number in range(1, 1500)]
    assert asked == [run.run_id for run in tx.runs.open_page(run_ids=asked)], "all that were asked for"


def _fill(connection: Any) -> None:
    now = {"created_at": NOW}
    names = [{"session_id": f"ses_{number:03d}"} for number in range(500)]
    row = {"agent": "a", "metadata": "{}", **now}
    connection.execute(
        insert(sessions),
        [
            {**name, **row, "max_concurrent_runs": 100, "max_queued_runs": 0, "updated_at": NOW}
            for name in names
        ],
    )
    connection.execute(insert(session_counters), names)
    row |= {"queue": "q", "input": "null", "input_digest": "", "executor": "e"}
    for status, ended_at, first, last in (("running", None, 0, LIVE), ("completed", NOW, LIVE, 2 * LIVE)):
        connection.execute(
            insert(runs),
            [
                {
                    **row,
                    **names[number % 500],
                    "run_id": f"run_{number:05d}",
                    "position": number + 1,
                    "status": status,
                    "ended_at": ended_at,
                    "deadline": datetime(2100, 1, 1, tzinfo=UTC),
                }
                for number in range(first, last)
            ],
        )
    connection.execute(text("ANALYZE"))
