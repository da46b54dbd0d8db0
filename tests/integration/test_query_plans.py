"""The reads that recur stay cheap however many ended runs and old events there are: they use their index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from asm_celery.store.database import Transaction

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
