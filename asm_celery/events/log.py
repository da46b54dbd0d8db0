"""The event log: write, commit, then publish; the only door to a writing transaction.

Subscribers are not here; they read pages with `EventLog.page`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from asm_celery.errors import StorageConnectionFailed
from asm_celery.events.bus import Bus
from asm_celery.events.cursor import Page, Place, refusal, removed
from asm_celery.events.grouping import Grouping
from asm_celery.model import Event, Run, mark_of, with_sequences
from asm_celery.states import SessionStatus
from asm_celery.store.database import Store, Transaction
from asm_celery.store.faults import CommitUnknown, Conflict
from asm_celery.store.strokes import Strokes

T = TypeVar("T")
# what a statement answered, and the events it wrote
Stroke = tuple[T, Sequence[Event]]


class _Absent(Exception):
    """Leaves a transaction, so that it is rolled back."""


class LogTransaction:
    """A writing transaction: the repositories of the store, and the log's two verbs."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
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

    @contextmanager
    def part(self) -> Iterator[None]:
        """Do something that an exception undoes, and nothing else; see `Transaction.part`."""
        count = len(self._written)
        try:
            with self._transaction.part():
                yield
        except BaseException:
            del self._written[count:]
            raise

    def append(
        self,
        session_id: str,
        events: list[Event],
        *,
        states: frozenset[SessionStatus] | None = None,
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
    """The durable log of every session.

    Attributes:
        has_strokes: whether `at_once` can write here.
    """

    def __init__(self, store: Store, bus: Bus, *, window_s: float = 0.0) -> None:
        self.store = store
        self.bus = bus
        # on SQLite a transaction has no trips to save, and shares its commit
        self.has_strokes = store.dialect == "postgresql"
        # PostgreSQL shares the flushes of its connections by itself, and rows of several sessions would be
        # locked for as long as the whole group takes
        shares = window_s > 0 and store.dialect == "sqlite"
        self._grouping = Grouping(self._committed, window_s=window_s) if shares else None

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
        with self._committed(**options) as writing:
            yield writing
        self.bus.publish(writing.written)

    def grouped(self, unit: Callable[[LogTransaction], T]) -> T:
        """Return what `unit` returns in a writing transaction, which units of other threads may share.

        Args:
            unit: may be called again from the beginning, and by another thread: all it does is in the
                transaction.

        Guarantee: as of `transaction`, for each unit alone: one that raises spoils only itself.

        Raises:
            as `transaction`; Conflict: it was rolled back for another's sake.
        """
        if self._grouping is None:
            with self.transaction() as tx:
                return unit(tx)
        written: list[Event] = []

        def noting(tx: LogTransaction) -> T:
            count = len(tx.written)
            answer = unit(tx)
            written[:] = tx.written[count:]
            return answer

        answer: T = self._grouping.settle(self._grouping.enter(noting))
        self.bus.publish(written)
        return answer

    def at_once(self, stroke: Callable[[Strokes], Stroke[T] | None]) -> T | None:
        """Return what a single statement wrote, and publish it; None: nothing happened, go the long way.

        Raises:
            StorageError: as `transaction`; CommitUnknown: the connection was cut before the answer, and the
                server may execute it even later.  The caller must make sure of one of both.
        """
        try:
            with self.store.transaction(at_once=True) as transaction:
                done = stroke(transaction.strokes)
        except Conflict:
            return None
        if done is None:
            return None
        answer, written = done
        self.bus.publish(written)
        return answer

    @contextmanager
    def _committed(self, **options: bool) -> Iterator[LogTransaction]:
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
        at: int = 0,
    ) -> Page:
        """Return at most `limit` events after a sequence, in order, and how far the log goes.

        One statement.  Below the last of the events nothing is missing, because commit order is number
        order.

        Args:
            at: also tell which event stands at this sequence.

        Raises:
            StorageError: the database refused or cannot be reached.
        """
        with self.store.read() as transaction:
            look = transaction.events.look(
                session_id, after=after, limit=limit, run_id=run_id, types=types, at=at
            )
        return Page(
            events=look.events,
            head=look.head,
            full=len(look.events) >= limit,
            first=look.first,
            mark=None if look.id_at is None else mark_of(look.id_at),
            is_whole=look.is_whole,
        )

    def check(self, session_id: str, seen: Place | None) -> None:
        """Make sure that the log goes on behind an event that was seen; one statement, none for None.

        Raises:
            CursorGone, CursorAhead, CursorMismatch: it does not.
        """
        if seen is None:
            return
        page = self.page(session_id, after=seen.sequence, limit=1, at=seen.sequence)
        refused = refusal(session_id, seen, seen.sequence, page) or removed(session_id, seen, page)
        if refused is not None:
            raise refused

    def ended_runs(self, run_ids: list[str]) -> list[Run]:
        """Return those of the runs that are terminal, in any order. One statement.

        Raises:
            StorageError: the database refused or cannot be reached.
        """
        with self.store.read() as transaction:
            return transaction.runs.ended(run_ids)
