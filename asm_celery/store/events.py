"""Events: inserted once, never changed, read in pages by number."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, true

from asm_celery.codec import decode, encode
from asm_celery.model import Event
from asm_celery.states import EventType
from asm_celery.store.kept import Kept
from asm_celery.store.sessions import insert_into
from asm_celery.store.tables import events, instant_in, is_open, runs, session_counters

# The door has checked the size already; this only bounds what the runtime itself writes.
_MAX_BYTES = 1 << 27
_INSERT = Kept(insert(events))


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A session's log in one instant.

    Attributes:
        head, first: its last sequence (0: no such session), and the one it begins with.
        events: the page asked for.
        id_at: the id of the event at the place asked about, or None.
        is_whole: True when the first event of the run asked for is there.
    """

    head: int = 0
    first: int = 1
    events: tuple[Event, ...] = ()
    id_at: str | None = None
    is_whole: bool = False


class Events:
    """Statements on `events`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def insert(self, numbered: Sequence[Event]) -> None:
        """Add events that have their numbers; one statement."""
        if numbered:
            _INSERT.each(self._connection, [row_of(event) for event in numbered])

    def page(
        self,
        session_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        since: datetime | None = None,
        limit: int = 500,
        run_id: str | None = None,
        types: Collection[str] | None = None,
    ) -> list[Event]:
        """Return at most `limit` events numbered above `after` (and below `before`), in order.

        Reads by the primary key, so the cost is that of the page, whatever the log holds.

        Args:
            since: only events with a timestamp at or after this.
            run_id, types: only events of this run, of one of these types.
        """
        query = (
            select(events)
            .where(events.c.session_id == session_id, events.c.sequence > after)
            .order_by(events.c.sequence)
            .limit(limit)
        )
        if before is not None:
            query = query.where(events.c.sequence < before)
        if since is not None:
            query = query.where(events.c.created_at >= since)
        if run_id is not None:
            query = query.where(events.c.run_id == run_id)
        if types is not None:
            query = query.where(events.c.type.in_(sorted(types)))
        return [_event(row) for row in self._connection.execute(query)]

    def look(
        self,
        session_id: str,
        *,
        after: int,
        limit: int,
        run_id: str | None = None,
        types: Collection[str] | None = None,
        at: int = 0,
    ) -> Look:
        """Return a page of a session's log, how far the log goes, and which event is `at` a sequence.

        One statement, so that retention or a restore cannot come between the answers; each of its parts
        reads by the primary key, the one about the run by index events_run.
        """
        wanted = select(events).where(events.c.session_id == session_id, events.c.sequence > after)
        if run_id is not None:
            wanted = wanted.where(events.c.run_id == run_id)
        if types is not None:
            wanted = wanted.where(events.c.type.in_(sorted(types)))
        page = wanted.order_by(events.c.sequence).limit(limit).subquery()
        # another name than in the page, so that neither is taken for the other's
        other = events.alias("other")
        id_at = select(other.c.event_id).where(other.c.session_id == session_id, other.c.sequence == at)
        begins = select(other.c.type).where(other.c.run_id == run_id).order_by(other.c.sequence).limit(1)
        counters = session_counters.c
        rows = self._connection.execute(
            select(
                counters.last_sequence.label("head"),
                counters.first_sequence.label("first"),
                id_at.scalar_subquery().label("id_at"),
                *([] if run_id is None else [begins.scalar_subquery().label("begins")]),
                page,
            )
            .select_from(session_counters.outerjoin(page, true()))
            .where(counters.session_id == session_id)
            .order_by(page.c.sequence)
        ).all()
        if not rows:
            return Look()
        return Look(
            head=rows[0].head,
            first=rows[0].first,
            id_at=rows[0].id_at,
            is_whole=getattr(rows[0], "begins", None) == EventType.RUN_QUEUED,
            events=tuple(_event(row) for row in rows if row.sequence is not None),
        )

    def is_whole(self, run_id: str) -> bool:
        """Return whether the first event of a run is stored (index events_run)."""
        first = select(events.c.type).where(events.c.run_id == run_id).order_by(events.c.sequence).limit(1)
        return self._connection.execute(first).scalar() == EventType.RUN_QUEUED

    def holds(self, event_id: str) -> bool:
        """Return whether an event of this id is stored, once nobody is about to store or forget it.

        For the look after a lost COMMIT, which the server may still be busy with: writing the same id
        waits for it, reading would not.  Where the answer is False a row was added: roll back.
        """
        values = dict.fromkeys(("type", "data", "metadata"), "") | {"created_at": instant_in(0)}
        row = self._connection.execute(
            insert_into(self._connection, events)
            .values(session_id=event_id, sequence=1, event_id=event_id, **values)
            .on_conflict_do_nothing(index_elements=["event_id"])
            .returning(events.c.event_id)
        ).first()
        return row is None

    def prefix(self, session_id: str, *, first: int, last: int, before: datetime | None) -> int:
        """Return up to where the events from `first` to `last` may be removed; below `first`: none may.

        What an open run has written stays, and so does what is not older than `before`, with all behind it.
        """
        opened = select(func.min(events.c.sequence)).join(runs, runs.c.run_id == events.c.run_id)
        stay = self._connection.execute(opened.where(runs.c.session_id == session_id, is_open(runs))).scalar()
        last = min(last, stay - 1) if stay is not None else last
        if before is not None and last >= first:
            young = select(func.min(events.c.sequence)).where(
                events.c.session_id == session_id,
                events.c.sequence.between(first, last),
                events.c.created_at >= before,
            )
            found = self._connection.execute(young).scalar()
            last = found - 1 if found is not None else last
        return last

    def remove_up_to(self, session_id: str, sequence: int) -> None:
        """Remove a prefix of a session's log; the caller writes down where it begins now."""
        self._connection.execute(
            delete(events).where(events.c.session_id == session_id, events.c.sequence <= sequence)
        )

    def by_ids(self, event_ids: Collection[str]) -> dict[str, Event]:
        """Return the stored events of these ids, by id; ids that are not stored are left out."""
        rows = self._connection.execute(select(events).where(events.c.event_id.in_(list(event_ids))))
        return {row.event_id: _event(row) for row in rows}


def row_of(event: Event) -> dict[str, Any]:
    """Return the columns of an event."""
    return {
        "session_id": event.session_id,
        "sequence": event.sequence,
        "event_id": event.event_id,
        "run_id": event.run_id,
        "type": str(event.type),
        "data": encode(event.data, what="event data", max_bytes=_MAX_BYTES),
        "metadata": encode(event.metadata, what="event metadata", max_bytes=_MAX_BYTES),
        "attempt": event.attempt,
        "provider": event.provider,
        "correlation_id": event.correlation_id,
        "schema_version": event.schema_version,
        "created_at": event.timestamp,
    }


def _event(row: Any) -> Event:
    return Event(
        session_id=row.session_id,
        sequence=row.sequence,
        event_id=row.event_id,
        run_id=row.run_id,
        type=row.type,
        data=decode(row.data),
        metadata=decode(row.metadata),
        attempt=row.attempt,
        provider=row.provider,
        correlation_id=row.correlation_id,
        schema_version=row.schema_version,
        timestamp=row.created_at,
    )
