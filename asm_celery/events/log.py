"""The event log: write, commit, then publish; the only door to a writing transaction.

Subscribers are not here; they read pages with `EventLog.page`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from asm_celery.errors import StorageConnectionFailed
from asm_celery.events.bus import Bus
from asm_celery.events.cursor import Page
from asm_celery.model import Event, Run, with_sequences
from asm_celery.states import SessionStatus
from asm_celery.store.database import Store, Transaction
from asm_celery.store.faults import CommitUnknown, Conflict


class _Absent(Exception):
    """Leaves a transaction, so that it is rolled back."""


class LogTransaction:
    """A writing transaction: the repositories of the store, and the log's two verbs."""

    def __init__(self, transaction: Transaction) -> None:
        self.sessions = transaction.sessions
        self.agents = transaction.agents
        self.runs = transaction.runs
        self.events = transaction.events
        self.executors = transaction.executors
        self.settings = transaction.settings
        self.operations = transaction.operations
        self._written: list[Event] = []

    @property
    def written(self) -> Sequence[Event]:
        """What is published if this transaction commits, in order of writing."""
        return self._written

    def append(
        self,
        session_id: str,
        events: list[Event],
        *,
        states: Collection[SessionStatus] | None = None,
    ) -> list[Event] | None:
        """Number the events with the session's next sequences and store them.

        Takes the lock of the session's counter row until the end of the transaction, so run rows must
        have been written before.  Two statements.

        Returns:
            the events as stored; None when there is no such session or its state is not in `states`.
        """
        counter = self.sessions.draw(session_id, sequences=len(events), states=states)
        if counter is None:
            return None
        numbered = with_sequences(events, counter.last_sequence - len(events) + 1)
        self.write(numbered)
        return numbered

    def write(self, numbered: Sequence[Event]) -> None:
        """Store events that carry numbers drawn in this transaction; one statement."""
        if numbered:
            self.events.insert(numbered)
            self._written.extend(numbered)


class EventLog:
    """The durable log of every session."""

    def __init__(self, store: Store, bus: Bus) -> None:
        self.store = store
        self.bus = bus

    @contextmanager
    def transaction(self, **options: bool) -> Iterator[LogTransaction]:
        """Open a writing transaction; no Redis and no Celery call belongs inside.

        Args:
            options: those of `Store.transaction`.

        Guarantee: a clean exit commits and then publishes what was appended; an exception rolls back
        and publishes nothing.  A failed publication never surfaces.  A lost answer to COMMIT is looked up,
        if an event was written.

        Raises:
            StorageError: the database refused or cannot be reached.
            CommitUnknown: the answer to COMMIT was lost, and the database has been away since.
        """
        writing = None
        try:
            with self.store.transaction(**options) as transaction:
                writing = LogTransaction(transaction)
                yield writing
        except CommitUnknown as unknown:
            if writing is None or not writing.written:
                raise
            if not self._has_committed(writing.written[0].event_id, unknown):
                raise Conflict("the transaction was lost before its COMMIT: try again") from unknown
        if writing is not None:
            self.bus.publish(writing.written)

    def _has_committed(self, event_id: str, unknown: CommitUnknown) -> bool:
        """Return whether the transaction that wrote this event was committed; raises `unknown` if none says."""
        until = time.monotonic() + self.store.patience_s
        while True:
            try:
                with self.store.transaction() as looking:
                    if looking.events.holds(event_id):
                        return True
                    raise _Absent
            except _Absent:
                return False
            except StorageConnectionFailed:
                if time.monotonic() > until:
                    raise unknown from None
            time.sleep(random.uniform(0.05, 0.2))

    def page(
        self,
        session_id: str,
        *,
        after: int,
        limit: int,
        run_id: str | None = None,
        types: frozenset[str] | None = None,
    ) -> Page:
        """Return at most `limit` events after a sequence, in order, and the head read before them.

        Two statements, each with its own snapshot: the page may hold events above its head, but below
        the last of them nothing is missing, because commit order is number order.

        Raises:
            StorageError: the database refused or cannot be reached.
        """
        with self.store.read() as transaction:
            head = transaction.sessions.last_sequence(session_id)
            events = transaction.events.page(session_id, after=after, limit=limit, run_id=run_id, types=types)
        return Page(events=tuple(events), head=head, full=len(events) >= limit)

    def ended_runs(self, run_ids: list[str]) -> list[Run]:
        """Return those of the runs that are terminal, in any order. One statement.

        Raises:
            StorageError: the database refused or cannot be reached.
        """
        with self.store.read() as transaction:
            return transaction.runs.ended(run_ids)
