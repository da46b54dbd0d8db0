"""What must be true of a database after any test whatever, read by plain SQL past all of our own code."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import psycopg

from asm_celery.config import Config
from asm_celery.states import TERMINAL, TERMINAL_EVENT, TERMINAL_EVENTS

Rows = list[Any]


class Snapshot:
    """One consistent look at a database, from which every check reads."""

    def __init__(self, config: Config) -> None:
        with connection(config) as sql:

            def rows(statement: str) -> Rows:
                return [tuple(row) for row in sql.execute(statement).fetchall()]

            self.sessions: list[tuple[str, int]] = rows(
                "SELECT session_id, max_concurrent_runs FROM sessions"
            )
            self.counters = rows(
                "SELECT session_id, last_sequence, last_position, first_sequence FROM session_counters"
            )
            self.runs = rows(
                "SELECT run_id, session_id, position, status FROM runs ORDER BY session_id, position"
            )
            self.events = rows(
                "SELECT session_id, sequence, run_id, type FROM events ORDER BY session_id, sequence"
            )


def check(config: Config) -> None:
    """Run every check below on the config's database.

    Raises:
        AssertionError: all that is wrong, a line each.
    """
    snapshot = Snapshot(config)
    wrong = [
        *sequences_have_holes(snapshot),
        *endings_disagree(snapshot),
        *starts_out_of_order(snapshot),
    ]
    assert not wrong, "the database breaks its promises:\n  " + "\n  ".join(wrong)


def sequences_have_holes(snapshot: Snapshot) -> Iterator[str]:
    """A session's events are numbered without a hole from where its log begins up to its counter."""
    sequences = defaultdict(list)
    for session_id, sequence, _, _ in snapshot.events:
        sequences[session_id].append(sequence)
    positions = defaultdict(list)
    for _, session_id, position, _ in snapshot.runs:
        positions[session_id].append(position)
    known = {session_id for session_id, *_ in snapshot.counters}
    for session_id in sorted({session_id for session_id, _ in snapshot.sessions} ^ known):
        yield f"{session_id}: a session has a counter row and the other way round"
    for session_id, last_sequence, last_position, first_sequence in snapshot.counters:
        if sequences[session_id] != list(range(first_sequence, last_sequence + 1)):
            yield f"{session_id}: counted {last_sequence} events, stored {sequences[session_id]}"
        if max(positions[session_id], default=0) > last_position:
            yield f"{session_id}: counted {last_position} positions, stored {positions[session_id]}"


def endings_disagree(snapshot: Snapshot) -> Iterator[str]:
    """A terminal run has exactly one terminal event, of its status, its last; an open run has none."""
    written = defaultdict(list)
    for _, _, run_id, kind in snapshot.events:
        written[run_id].append(kind)
    pruned = {session_id for session_id, _, _, first_sequence in snapshot.counters if first_sequence > 1}
    for run_id, session_id, _, status in snapshot.runs:
        if session_id in pruned and not written[run_id]:
            continue
        endings = [kind for kind in written[run_id] if kind in TERMINAL_EVENTS]
        expected = [str(TERMINAL_EVENT[status])] if status in TERMINAL else []
        if endings != expected:
            yield f"{run_id}: it is {status}, its terminal events are {endings}"
        elif expected and written[run_id][-1] != expected[0]:
            yield f"{run_id}: {written[run_id][-1]} was written after its {expected[0]}"


def starts_out_of_order(snapshot: Snapshot) -> Iterator[str]:
    """A run starts only while fewer than `max_concurrent_runs` runs before it are unfinished."""
    slots: dict[str, int] = dict(snapshot.sessions)
    line = defaultdict(list)
    for run_id, session_id, _, _ in snapshot.runs:
        line[session_id].append(run_id)
    ended: set[str] = set()
    pruned = {session_id for session_id, _, _, first_sequence in snapshot.counters if first_sequence > 1}
    for session_id, sequence, run_id, kind in snapshot.events:
        if session_id in pruned:
            continue
        if kind in TERMINAL_EVENTS:
            ended.add(run_id)
        elif kind == "run_started" and run_id in line[session_id]:
            before = line[session_id][: line[session_id].index(run_id)]
            unfinished = [other for other in before if other not in ended]
            if len(unfinished) >= slots[session_id]:
                yield (
                    f"{run_id} started at {session_id} #{sequence} with {slots[session_id]} slots, while "
                    f"before it were unfinished: {unfinished}"
                )


@contextlib.contextmanager
def connection(config: Config) -> Iterator[Any]:
    """Open a plain connection to the config's database, in one transaction that only reads."""
    url = config.database_url
    if url.startswith("sqlite:///"):
        path = url.removeprefix("sqlite:///")
        lite = sqlite3.connect(path, timeout=20.0, isolation_level=None)
        with contextlib.closing(lite):
            lite.execute("BEGIN")
            yield lite
    else:
        with psycopg.connect(url.replace("+psycopg", "", 1)) as post:
            post.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            post.read_only = True
            yield post
