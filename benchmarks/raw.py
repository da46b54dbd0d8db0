"""One table in the database itself, written by the database's own client."""

from __future__ import annotations

import sqlite3
from itertools import count
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import psycopg

from benchmarks.asm_module import TEXT

_COLUMNS = (
    "session_id text not null, sequence bigint not null, type text, data text, "
    "primary key (session_id, sequence)"
)


class RawTable:
    """Rows like small events, with one key and nothing else; on SQLite in a file of its own, beside the database."""

    def __init__(self, database_url: str) -> None:
        self._key = uuid4().hex
        self._numbers = count(1)
        self._connection: Any
        if database_url.startswith("sqlite:///"):
            path = database_url.removeprefix("sqlite:///") + ".raw"
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=60.0)
            self._connection.execute("pragma journal_mode=wal")
            self._connection.execute("pragma synchronous=normal")
            self._begin, self._place = "begin immediate", "?"
        else:
            url = database_url.replace("postgresql+psycopg://", "postgresql://")
            self._connection = psycopg.connect(url, autocommit=True, prepare_threshold=0)
            self._begin, self._place = "begin", "%s"
        self._connection.execute(f"create table if not exists raw ({_COLUMNS})")

    def insert(self, rows: int) -> None:
        """Insert rows by one statement, and commit."""
        one = f"({', '.join([self._place] * 4)})"
        values: list[object] = []
        for _ in range(rows):
            values += [self._key, next(self._numbers), "note", TEXT]
        self._connection.execute(self._begin)
        self._connection.execute(f"insert into raw values {', '.join([one] * rows)}", values)
        self._connection.execute("commit")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
