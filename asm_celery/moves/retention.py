"""Retention: remove the oldest events of each session, and keep saying where its log begins.

Only prefixes go, and nothing of an open run or behind it; sessions and runs with their results stay.
What was asked of a run by operators goes with the last event of its log.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from asm_celery.checks import check_count, check_session_id, check_time
from asm_celery.errors import SessionNotFound, ValidationError
from asm_celery.events.log import EventLog
from asm_celery.store.faults import retried

# A batch holds the lock of its session's counter row: its writers wait for some hundredths of a second.
_BATCH: Final = 1000
_PAGE: Final = 500


class Retention:
    """The move that forgets."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def prune(self, *, before: datetime | None, keep: int, session_id: str | None) -> int:
        """Remove events, in batches of one transaction each; return how many.

        Guarantee: idempotent; a death in between leaves logs that begin where they say.

        Raises:
            ValidationError: neither bound was given, or one breaks a rule.
            SessionNotFound: there is no such session.
        """
        check_count(keep, what="keep", minimum=0, maximum=1 << 62)
        if before is None and not keep:
            raise ValidationError("say what may go: before=, an aware datetime, or keep=, a number of events")
        if before is not None:
            check_time(before, what="before")
        removed = 0
        for one in self._sessions(keep) if session_id is None else [check_session_id(session_id)]:
            while count := self._prune(one, before, keep, is_asked=session_id is not None):
                removed += count
        if session_id is None:
            self._forget_operations()
        return removed

    @retried
    def _prune(self, session_id: str, before: datetime | None, keep: int, *, is_asked: bool) -> int:
        with self._log.transaction() as tx:
            # no event is written while this looks
            counter = tx.sessions.draw(session_id)
            if counter is None:
                if is_asked:
                    raise SessionNotFound(
                        f"there is no session {session_id!r}: it was never started, or deleted"
                    )
                return 0
            first = tx.sessions.first_sequence(session_id)
            last = min(counter.last_sequence - keep, first + _BATCH - 1)
            last = tx.events.prefix(session_id, first=first, last=last, before=before)
            if last < first:
                return 0
            tx.events.remove_up_to(session_id, last)
            tx.sessions.begin_with(session_id, last + 1)
            return last - first + 1

    def _forget_operations(self) -> None:
        # one walk for all sessions: the table has no index by session
        last: str | None = ""
        while last is not None:
            last = self._forget_page(last)

    @retried
    def _forget_page(self, after: str) -> str | None:
        with self._log.transaction() as tx:
            return tx.operations.forget(after=after, limit=_PAGE)

    def _sessions(self, keep: int) -> Iterator[str]:
        after = ""
        while True:
            with self._log.store.read() as tx:
                page = tx.sessions.with_more_than(keep, after=after, limit=_PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1]
