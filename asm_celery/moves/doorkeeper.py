"""Refuse at once what is certainly refused: a read that waits for nobody, before the lock that all wait for.

A refusal writes nothing, so a read may say it.  What is accepted, the transaction alone decides.
"""

from __future__ import annotations

from typing import Final

from asm_celery.errors import InvalidOperation, QueueFull
from asm_celery.events.log import EventLog
from asm_celery.model import Session
from asm_celery.moves.admission import SubmitOptions, refuse_closed, refuse_full

REFUSALS: Final = (InvalidOperation, QueueFull)
"""What says that a session takes no run now."""
# A hundred bytes each; who is forgotten waits for the lock once.
_REMEMBERED: Final = 10_000


class Doorkeeper:
    """Remembers which sessions are likely to refuse, and looks at these before they are asked for a lock.

    A submit to any other session costs no statement for it.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._shut: set[str] = set()

    def expect(self, session_id: str) -> None:
        """Look before the next submit: this session has refused one, or was filled by one."""
        if len(self._shut) >= _REMEMBERED:
            self._shut.clear()
        self._shut.add(session_id)

    def check(self, session: Session, options: SubmitOptions) -> None:
        """Refuse a run that its session would refuse now; two reads, none for a session that takes runs.

        Raises:
            InvalidOperation, SessionDraining, QueueFull, SessionBusy: as the submit itself would.
            StorageConnectionFailed: no database.
        """
        session_id, key = session.session_id, options.idempotency_key
        if session_id not in self._shut or options.on_busy == "interrupt":
            return
        with self._log.store.read() as tx:
            counter = tx.sessions.counter(session_id)
            try:
                if counter is not None:
                    refuse_closed(session_id, counter.state)
                    refuse_full(session, options.on_busy, tx.runs.count_open(session_id))
            except REFUSALS:
                # asked last: a run of this key that filled the session is seen by now
                if key is None or tx.runs.by_key(session_id, key) is None:
                    raise
                return
        self._shut.discard(session_id)
