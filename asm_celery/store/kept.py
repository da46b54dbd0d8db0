"""Statements of the hot paths: built once, compiled once for a database, executed by its driver.

SQLAlchemy's own execution of a kept statement costs five times what SQLite needs to do it: it looks the
statement up by its structure, makes a context of the execution and a result of the answer.  Here a statement
is a text, the order of its parameters and the names of its columns.  Errors are SQLAlchemy's all the same.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, Dialect, TypeDecorator, bindparam, func, insert, select
from sqlalchemy.dialects.postgresql import ARRAY


class Kept:
    """One statement.

    Args:
        statement: a SELECT, INSERT, UPDATE or DELETE; its parameters are `bindparam`s, none of them expanding.
    """

    def __init__(self, statement: Any) -> None:
        self.statement = statement
        self._texts: dict[str, _Text] = {}

    def first(self, connection: Connection, **values: Any) -> Any:
        """Execute; return the first row, with its columns as attributes, or None."""
        rows = self.rows(connection, **values)
        return rows[0] if rows else None

    def rows(self, connection: Connection, **values: Any) -> list[Any]:
        """Execute; return all rows.  Values that the statement does not name are left out."""
        text = self._text(connection)
        return [text.row(row) for row in _execute(connection, text, text.parameters(values))]

    def each(self, connection: Connection, values: Sequence[dict[str, Any]]) -> None:
        """Insert each of `values`, which name every column of the table; one round trip."""
        if len(values) > 1 and connection.dialect.name == "postgresql":
            self._at_once.rows(connection, **{name: [one[name] for one in values] for name in values[0]})
            return
        text = self._text(connection)
        if values:
            _execute(connection, text, [text.parameters(one) for one in values])

    @cached_property
    def _at_once(self) -> Kept:
        """The same for arrays of values, in a single statement.

        A driver's own way for many rows is a pipeline: many statements before the server is told that they
        end.  A client that is frozen or cut off in the middle of them holds its locks for ever, because none
        of the server's timeouts counts there.
        """
        table = self.statement.table
        names = [column.name for column in table.c]
        given = [bindparam(column.name, type_=ARRAY(column.type)) for column in table.c]
        rows = func.unnest(*given).table_valued(*names).render_derived()
        return Kept(insert(table).from_select(names, select(*(rows.c[name] for name in names))))

    def _text(self, connection: Connection) -> _Text:
        dialect = connection.dialect
        text = self._texts.get(dialect.name)
        if text is None:
            text = self._texts[dialect.name] = _Text(self.statement, dialect)
        return text


class _Text:
    """A statement as one driver takes it."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.sql = str(compiled)
        self._is_positional = compiled.positional
        binds = {name: bind for bind, name in compiled.bind_names.items()}
        self._names = list(compiled.positiontup if compiled.positional else binds)
        self._slots = [
            (binds[name].key if binds[name].required else None, binds[name].value) for name in self._names
        ]
        converts = [binds[name].type.dialect_impl(dialect).bind_processor(dialect) for name in self._names]
        self._binding = [(place, convert) for place, convert in enumerate(converts) if convert]
        columns = statement.exported_columns
        self.has_rows = bool(columns)
        # of what drivers return, only the types of our own mean something else
        self._reading: list[tuple[int, Any]] = [
            (place, column.type.result_processor(dialect, None))
            for place, column in enumerate(columns)
            if isinstance(column.type, TypeDecorator)
        ]
        record: Any = namedtuple  # noqa: PYI024 - the names of its fields are known only here
        self._make = record("Row", columns.keys(), rename=True)._make

    def parameters(self, values: dict[str, Any]) -> Any:
        """Return the values as the driver takes them."""
        taken = [constant if name is None else values[name] for name, constant in self._slots]
        for place, convert in self._binding:
            taken[place] = convert(taken[place])
        return tuple(taken) if self._is_positional else dict(zip(self._names, taken, strict=True))

    def row(self, row: Sequence[Any]) -> Any:
        """Return a row of the driver with names."""
        if self._reading:
            row = list(row)
            for place, convert in self._reading:
                row[place] = convert(row[place])
        return self._make(row)


def _execute(connection: Connection, text: _Text, parameters: Any) -> list[Any]:
    if _is_heard(connection):
        told = connection.exec_driver_sql(text.sql, parameters)
        return list(told.all()) if told.returns_rows else []
    if not connection.in_transaction():
        connection.begin()
    driver: Any = connection.connection
    cursor = None
    try:
        cursor = driver.cursor()
        if not isinstance(parameters, list):
            cursor.execute(text.sql, parameters)
        elif len(parameters) == 1:
            # for one row a driver's way for many is a longer one
            cursor.execute(text.sql, parameters[0])
        else:
            cursor.executemany(text.sql, parameters)
        # asked of the cursor, it would describe each of its columns
        rows = cursor.fetchall() if text.has_rows else []
        cursor.close()
    except BaseException as cause:  # noqa: BLE001 - as SQLAlchemy does, it also sees a Ctrl-C and raises it again
        # what it does for its own: names the error, and gives up the connection if it was cut
        connection._handle_dbapi_exception(cause, text.sql, parameters, cursor, None)
    return rows


def _is_heard(connection: Connection) -> bool:
    """Return whether a tracer, or a test, listens to what this connection executes."""
    if not (connection._has_events or connection.engine._has_events):
        return False
    # an engine with an isolation level of its own has events too, of another kind
    heard = connection.dispatch
    return bool(heard.before_cursor_execute or heard.after_cursor_execute)
