"""Read a history from SQL, Redis and the agents' ledger, past all of our own code."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import redis

from asm_celery.config import Config
from tests.acceptance.ledger import Ledger
from tests.checkers.record import History, Logged, RunRow, SessionRow
from tests.invariants import connection

_SESSIONS = """
    SELECT s.session_id, s.max_concurrent_runs, c.last_sequence, c.last_position
    FROM sessions s JOIN session_counters c ON c.session_id = s.session_id
"""
_RUNS = """
    SELECT run_id, session_id, position, status, attempt, max_attempts, claims, event_position,
           idempotency_key, output, error
    FROM runs
"""
_EVENTS = """
    SELECT session_id, sequence, type, run_id, event_id, attempt, data
    FROM events ORDER BY session_id, sequence
"""


def collect(
    config: Config, *, ledger: Path | None = None, processes: Iterable[int] = (), **seen: Any
) -> History:
    """Return the history of an installation, as it is now, in one consistent look at SQL.

    Args:
        ledger: the file of the agents' book.
        processes: ids of processes that must have ended; those that live are leaks.
        seen: what callers and the nemesis recorded: submits, stops, awaited, transcripts, limits, faults.
    """
    history = History(**seen)
    with connection(config) as sql:
        for row in sql.execute(_SESSIONS).fetchall():
            history.sessions[row[0]] = SessionRow(
                session_id=row[0], slots=row[1], last_sequence=row[2], last_position=row[3]
            )
        for row in sql.execute(_RUNS).fetchall():
            history.runs[row[0]] = _run(row)
        for session_id, *rest in sql.execute(_EVENTS).fetchall():
            history.events.setdefault(session_id, []).append(_logged(*rest))
    history.ledger = Ledger(ledger).entries() if ledger is not None else ()
    history.keys = redis_keys(config)
    history.processes = [pid for pid in processes if is_alive(pid)]
    return history


def redis_keys(config: Config) -> list[str]:
    """Return the names of all keys of the namespace, without its root."""
    root = config.keys.root
    with contextlib.closing(redis.Redis.from_url(config.redis_url, decode_responses=True)) as client:
        return sorted(key.removeprefix(root) for key in client.scan_iter(match=f"{root}*", count=1000))


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def _run(row: Any) -> RunRow:
    error = json.loads(row[10]) if row[10] else None
    return RunRow(
        run_id=row[0],
        session_id=row[1],
        position=row[2],
        status=row[3],
        attempt=row[4],
        max_attempts=row[5],
        claims=row[6],
        event_position=row[7],
        idempotency_key=row[8],
        output=json.loads(row[9]) if row[9] else None,
        error_code=error.get("code") if error else None,
    )


def _logged(sequence: int, kind: str, run_id: str | None, event_id: str, attempt: int, text: str) -> Logged:
    data = json.loads(text)
    mark = data.get("n")
    return Logged(
        sequence=sequence,
        type=kind,
        run_id=run_id,
        event_id=event_id,
        attempt=attempt,
        data=data if kind.startswith("run_") else {},
        mark=mark if type(mark) is int else None,
    )
