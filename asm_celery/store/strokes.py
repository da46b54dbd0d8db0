"""Moves in one stroke, on PostgreSQL.

A transaction takes a trip to the server for its BEGIN, for each statement and for its COMMIT; a stroke is one
statement, one trip and one commit.  What a guard refuses here changes nothing, and goes the long way, which
says why.  The statements themselves are in `stroke_moves`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, exc

from asm_celery.model import Event, Run, Session, with_sequences
from asm_celery.states import RunStatus
from asm_celery.store import run_moves, stroke_moves
from asm_celery.store.events import row_of
from asm_celery.store.faults import code_of
from asm_celery.store.kept import Kept
from asm_celery.store.run_queries import to_run
from asm_celery.store.sessions import Counter, counter_of, session_of

_DIVIDED_BY_ZERO: Final = "22012"


class Strokes:
    """The strokes of one connection, each a transaction of its own; None: a guard failed and nothing happened."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def append(
        self, run_id: str, session_id: str, claim: int, position: int, said: list[Event]
    ) -> list[Event] | None:
        """Store events of an attempt that stands at this event position; returns them with their numbers."""
        found = self._told(
            run_moves.advance(),
            session_id,
            said,
            p_run_id=run_id,
            p_claim=claim,
            p_position=position,
            p_new_position=position + len(said),
        )
        return None if found is None else found[1]

    def finish(
        self,
        run: Run,
        claim: int,
        status: RunStatus,
        position: int,
        said: list[Event],
        values: dict[str, Any],
    ) -> tuple[datetime, list[Event]] | None:
        """End an attempt's run that nobody asked to stop; the last of `said` is its terminal event."""
        found = self._told(
            run_moves.finish(True, True, frozenset(values), is_whole=False),
            run.session_id,
            said,
            p_run_id=run.run_id,
            p_claim=claim,
            p_status=status.value,
            p_stop=None,
            p_position=position,
            p_new_position=position + len(said) - 1,
            **{f"p_{name}": value for name, value in values.items()},
        )
        return None if found is None else (found[0].ended_at, found[1])

    def accept(self, queued: Event, **values: Any) -> tuple[Counter, str, int] | None:
        """Add a waiting run; returns the counter with its numbers, the run's queue, how many were open before."""
        said = {f"e_{name}": value for name, value in row_of(queued).items()}
        row = stroke_moves.accepted().first(
            self._connection, p_session_id=queued.session_id, p_run_id=queued.run_id, **said, **values
        )
        return None if row is None else (counter_of(row), row.queue, row.depth)

    def start(self, claim: int, executor: str, nonce: str, event: Event) -> tuple[Run, Session, int] | None:
        """Claim the run of `event` for its agent; returns it with its session and the event's number."""
        said = {f"e_{name}": value for name, value in row_of(event).items()}
        try:
            row = stroke_moves.started().first(
                self._connection,
                p_run_id=event.run_id,
                p_claim=claim,
                p_executor=executor,
                p_quoted_executor=json.dumps(executor),
                p_nonce=nonce,
                p_agent=event.provider,
                **said,
            )
        except exc.DataError as cause:
            if code_of(cause.orig) != _DIVIDED_BY_ZERO:
                raise
            return None
        if row is None:
            return None
        return to_run(row), session_of(row, "its_"), row.last_sequence

    def _told(
        self, move: Kept, session_id: str, said: Sequence[Event], **values: Any
    ) -> tuple[Any, list[Event]] | None:
        rows = [row_of(event) for event in said]
        given = {f"e_{column.name}": [row[column.name] for row in rows] for column in stroke_moves.SAID}
        row = stroke_moves.told_of_move(move).first(
            self._connection, p_session_id=session_id, p_count=len(rows), **given, **values
        )
        return None if row is None else (row, with_sequences(list(said), row.drawn - len(rows) + 1))
