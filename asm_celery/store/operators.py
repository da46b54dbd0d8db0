"""What operators and workers leave behind: settings, executors and their beats, the control history."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from asm_celery.model import new_id
from asm_celery.store.sessions import insert_into
from asm_celery.store.tables import control_operations, events, executors, instant_in, microseconds, settings


class Settings:
    """Operator settings, such as the limits: the environment seeds them once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def seed(self, key: str, value: str) -> bool:
        """Write a value if the key has none yet; False: it has."""
        seeded = self._connection.execute(
            insert_into(self._connection, settings)
            .values(key=key, value=value, updated_at=instant_in(0))
            .on_conflict_do_nothing(index_elements=["key"])
            .returning(settings.c.key)
        )
        return seeded.first() is not None

    def put(self, key: str, value: str) -> None:
        """Write a value."""
        self._connection.execute(
            insert_into(self._connection, settings)
            .values(key=key, value=value, updated_at=instant_in(0))
            .on_conflict_do_update(index_elements=["key"], set_={"value": value, "updated_at": instant_in(0)})
        )

    def get(self, key: str) -> tuple[str, datetime] | None:
        """Return a value and since when it is so, or None."""
        row = self._connection.execute(select(settings).where(settings.c.key == key)).first()
        return None if row is None else (row.value, row.updated_at)

    def swap(self, key: str, old: str | None, new: str) -> bool:
        """Write a value where the present one is `old` (None: there is none); False: it is not."""
        values = {"value": new, "updated_at": instant_in(0)}
        if old is None:
            insert = insert_into(self._connection, settings).values(key=key, **values)
            swap = insert.on_conflict_do_nothing(index_elements=["key"]).returning(settings.c.key)
        else:
            changed = update(settings).where(settings.c.key == key, settings.c.value == old)
            swap = changed.values(**values).returning(settings.c.key)
        return self._connection.execute(swap).first() is not None

    def all(self) -> dict[str, str]:
        """Return every setting."""
        return {row.key: row.value for row in self._connection.execute(select(settings))}


class Executors:
    """The processes that run attempts, and the beat each raises in SQL."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def beat(self, executor: str, worker: str) -> None:
        """Raise the executor's beat by one, adding its row at the first time."""
        self._connection.execute(
            insert_into(self._connection, executors)
            .values(executor=executor, worker=worker, beat=1, started_at=instant_in(0), seen_at=instant_in(0))
            .on_conflict_do_update(
                index_elements=["executor"],
                set_={"beat": executors.c.beat + 1, "seen_at": instant_in(0)},
            )
        )

    def beats(self, of: Collection[str]) -> dict[str, int]:
        """Return the beats of these executors; those without a row are left out."""
        rows = self._connection.execute(
            select(executors.c.executor, executors.c.beat).where(executors.c.executor.in_(list(of)))
        )
        return {row.executor: row.beat for row in rows}

    def worker_of(self, executor: str | None) -> str | None:
        """Return the Celery worker that an executor belongs to; None when it has not beaten yet."""
        found = select(executors.c.worker).where(executors.c.executor == executor)
        return self._connection.execute(found).scalar() or None

    def all(self) -> dict[str, datetime]:
        """Return when each known executor was last seen, by its database's clock."""
        return {
            row.executor: row.seen_at
            for row in self._connection.execute(select(executors.c.executor, executors.c.seen_at))
        }

    def remove(self, executor: str) -> None:
        """Forget an executor that ended in good order."""
        self._connection.execute(delete(executors).where(executors.c.executor == executor))

    def forget(self, silent_s: float) -> None:
        """Remove the rows of executors not seen for so long; they hold nothing."""
        self._connection.execute(
            delete(executors).where(executors.c.seen_at < instant_in(-microseconds(silent_s)))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlOperation:
    """One control operation on a run: what, who, when, and what came of it."""

    run_id: str
    session_id: str
    operation: str
    actor: str
    result: str
    at: datetime


class ControlHistory:
    """The durable history of control operations."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def record(self, run_id: str, session_id: str, operation: str, actor: str, result: str) -> None:
        """Add one entry."""
        self._connection.execute(
            control_operations.insert().values(
                operation_id=new_id("op"),
                session_id=session_id,
                run_id=run_id,
                operation=operation,
                actor=actor[:200],
                result=result[:500],
                at=instant_in(0),
            )
        )

    def forget(self, *, after: str, limit: int) -> str | None:
        """Remove, of the next entries by id, those on runs of whose log nothing is left.

        Returns:
            the last id looked at; None when there are no more.
        """
        table = control_operations.c
        page = select(table.operation_id).where(table.operation_id > after).order_by(table.operation_id)
        looked: list[str] = list(self._connection.execute(page.limit(limit)).scalars())
        if not looked:
            return None
        has_events = select(events.c.run_id).where(events.c.run_id == table.run_id).exists()
        self._connection.execute(
            delete(control_operations).where(table.operation_id.in_(looked), ~has_events)
        )
        return looked[-1]

    def of(self, run_id: str) -> list[ControlOperation]:
        """Return the operations on a run, oldest first."""
        rows = self._connection.execute(
            select(control_operations)
            .where(control_operations.c.run_id == run_id)
            .order_by(control_operations.c.at, control_operations.c.operation_id)
        )
        return [
            ControlOperation(
                run_id=row.run_id,
                session_id=row.session_id,
                operation=row.operation,
                actor=row.actor,
                result=row.result,
                at=row.at,
            )
            for row in rows
        ]
