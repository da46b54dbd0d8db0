"""The event log: write, commit, then publish; the only door to a writing transaction.

Subscribers are not here; they read pages with `EventLog.page`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from asm_celery.events.bus import Bus
from asm_celery.events.cursor import Page
from asm_celery.model import Event, Run, with_sequences
from asm_celery.states import SessionStatus
from asm_celery.store.database import Store, Transaction


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
    def transaction(self) -> Iterator[LogTransaction]:
        """Open a writing transaction; no Redis and no Celery call belongs inside.

        Guarantee: a clean exit commits and then publishes what was appended; an exception rolls back
        and publishes nothing.  A failed publication never surfaces.

        Raises:
            StorageError: the database refused or cannot be reached.
        """
        with self.store.transaction() as transaction:
            writing = LogTransaction(transaction)
            yield writing
        self.bus.publish(writing.written)

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
