"""Statements that the driver executes itself answer, and fail, as they do through SQLAlchemy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import bindparam, create_engine, event, exc, insert, literal, select

from asm_celery.model import now
from asm_celery.store.kept import Kept
from asm_celery.store.tables import executors

_INSERT = Kept(insert(executors))
_READ = Kept(
    select(executors.c.executor, executors.c.seen_at, literal("100 %").label("share"))
    .where(executors.c.executor >= bindparam("p_from"))
    .order_by(executors.c.executor)
)


@pytest.fixture
def connection(database_url: str) -> Iterator[Any]:
    """A connection to either database."""
    engine = create_engine(database_url)
    with engine.connect() as made:
        yield made
    engine.dispose()


@pytest.mark.parametrize("is_listened_to", [False, True])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_rows_are_those_of_sqlalchemy(connection: Any, count: int, is_listened_to: bool) -> None:
    """Types of our own are converted both ways, constants stay, and who listens changes nothing."""
    heard: list[str] = []
    if is_listened_to:
        event.listen(connection, "before_cursor_execute", lambda *what: heard.append(what[2]))

    _INSERT.each(connection, [_row(number) for number in range(count)])
    rows = _READ.rows(connection, p_from="e", p_other="left out")

    assert list(connection.execute(_READ.statement, {"p_from": "e"})) == rows
    assert [(f"e{number}", "100 %") for number in range(count)] == [(row.executor, row.share) for row in rows]
    assert is_listened_to == bool(heard)


def test_many_rows_are_one_statement_for_a_server(connection: Any) -> None:
    """A client frozen between several would hold its locks for ever: a server does not time what is to come."""
    is_many: list[bool] = []
    event.listen(connection, "before_cursor_execute", lambda *what: is_many.append(what[5]))

    _INSERT.each(connection, [_row(number) for number in range(3)])

    assert [connection.dialect.name == "sqlite"] == is_many


def test_what_was_written_is_in_the_connections_transaction(connection: Any) -> None:
    """It begins one where there is none, so a rollback takes it back."""
    _INSERT.each(connection, [_row(1)])
    connection.rollback()

    assert _READ.first(connection, p_from="e") is None


def test_an_error_of_the_driver_is_one_of_sqlalchemy(connection: Any) -> None:
    """It says what the driver said, and is read by its code as ever."""
    _INSERT.each(connection, [_row(1)])

    with pytest.raises(exc.IntegrityError) as refused:
        _INSERT.each(connection, [_row(1)])

    assert isinstance(refused.value.orig, connection.dialect.dbapi.IntegrityError)


def test_a_value_that_was_forgotten_is_not_taken_for_null(connection: Any) -> None:
    """A statement with a parameter left open is not executed."""
    with pytest.raises(KeyError):
        _READ.rows(connection)


def _row(number: int) -> dict[str, Any]:
    at = now()
    return {"executor": f"e{number}", "worker": "w", "beat": 1, "started_at": at, "seen_at": at}
