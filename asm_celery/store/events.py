"""Events: inserted once, never changed, read in pages by number."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from asm_celery.codec import decode, encode
from asm_celery.model import Event
from asm_celery.store.sessions import insert_into
from asm_celery.store.tables import events, instant_in

# The door has checked the size already; this only bounds what the runtime itself writes.
_MAX_BYTES = 1 << 27
_INSERT = insert(events)


class Events:
    """Statements on `events`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def insert(self, numbered: Sequence[Event]) -> None:
        """Add events that have their numbers; one statement."""
        if numbered:
            self._connection.execute(_INSERT, [_row(event) for event in numbered])

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

    def by_ids(self, event_ids: Collection[str]) -> dict[str, Event]:
        """Return the stored events of these ids, by id; ids that are not stored are left out."""
        rows = self._connection.execute(select(events).where(events.c.event_id.in_(list(event_ids))))
        return {row.event_id: _event(row) for row in rows}


def _row(event: Event) -> dict[str, Any]:
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


def _event(row: Row[Any]) -> Event:
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
