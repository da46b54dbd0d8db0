"""One reader's place in a session's log: merges pages of SQL with live notices, and finds gaps.

Pure: no lock, no clock, no IO.  Sequences are drawn under the lock of the session's counter row, so
commit order is number order and a hole below the head never fills later: one number is enough to know
what was seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from asm_celery.checks import check_count
from asm_celery.errors import CursorAhead, CursorGone, CursorMismatch, InvalidCursor, ValidationError
from asm_celery.model import Event, mark_of
from asm_celery.showing import shown
from asm_celery.states import EventType

_CURSOR: Final = re.compile(r"([1-9][0-9]{0,17})\.([0-9a-f]{8})\Z")


@dataclass(frozen=True, slots=True)
class Place:
    """An event that was seen: its sequence, and the mark of its id."""

    sequence: int
    mark: str

    def __str__(self) -> str:
        return f"{self.sequence}.{self.mark}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A live message: the events ``first..last`` of a session are committed.

    Attributes:
        events: all of them in order, or none of them when the message only rings.
    """

    first: int
    last: int
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What one read of SQL gave.

    Attributes:
        events: those after the place asked for that match the filter, by sequence; may be empty.
        head: the session's last sequence then; 0 when there is no such session.
        full: True when the limit cut the page, so that more may follow.
        first: where the log begins: what is below was removed by retention.
        mark: that of the event at the place asked about; None: there is none, or none was asked about.
        is_whole: True when nothing of the run asked for was removed, whatever else was.
    """

    events: tuple[Event, ...]
    head: int
    full: bool
    first: int = 1
    mark: str | None = None
    is_whole: bool = False


class Cursor:
    """Where a reader is: everything up to `position` has been taken, nothing after it.

    Guarantee: over any mix of lost, repeated and reordered notices and pages, each event is returned
    at most once, in order, and none is skipped as long as pages are read after each gap.
    """

    def __init__(self, from_sequence: int, seen: Place | None = None) -> None:
        self.position = max(from_sequence, 1) - 1
        self.seen = seen
        """The last event that was met, whether it matched or not."""
        self.known = seen.sequence if seen else 0
        """How far the log is known to go."""
        self._is_doubtful = False

    def offer(self, notice: Notice) -> tuple[list[Event], bool]:
        """Take a live notice.

        Returns:
            the events that are new, in order, and whether something before or in it must be read from SQL.
        """
        if self.seen is not None and notice.events and notice.first <= self.seen.sequence <= notice.last:
            same = mark_of(notice.events[self.seen.sequence - notice.first].event_id) == self.seen.mark
        else:
            same = notice.last > self.position
        if notice.last <= self.position and same:
            return [], False
        # An old notice may be late, or tell of another history, whose next event would seem to follow.
        self._is_doubtful = self._is_doubtful or not same
        if notice.first > self.position + 1 or not notice.events or self._is_doubtful:
            return [], notice.last > self.position
        return self._take(notice.events), False

    def loaded(self, page: Page, session_id: str = "") -> list[Event]:
        """Take a page that was read after `position`, now or earlier; return its new events, in order.

        Where retention removed something before them, the first is an event that says so.
        """
        fresh = []
        if self.position < page.first - 1 and not page.is_whole:
            fresh.append(pruned(session_id, page.first))
            self.position = page.first - 1
        fresh += self._take(page.events)
        if not page.full:
            # what the filter left out up to the head need never be read again
            self.position = max(self.position, page.head)
        self.known = max(self.known, page.head)
        self._is_doubtful = False
        return fresh

    def _take(self, events: Iterable[Event]) -> list[Event]:
        fresh = [event for event in events if event.sequence > self.position]
        if fresh:
            last = fresh[-1]
            self.position = last.sequence
            self.seen = Place(last.sequence, mark_of(last.event_id))
            self.known = max(self.known, last.sequence)
        return fresh


def begin_at(place: int | str, *, what: str) -> tuple[int, Place | None]:
    """Return the sequence behind which to begin, and the event that must stand there.

    Args:
        place: a count of sequences to leave out, or a cursor: what follows its event.

    Raises:
        ValidationError: neither.
    """
    if not isinstance(place, str):
        return check_count(place, what=what, minimum=0, maximum=1 << 62), None
    found = _CURSOR.match(place)
    if found is None:
        raise ValidationError(
            f"{what}={shown(place)} must be a sequence, or a cursor as `event.cursor` gives it ('17.9f86d081')",
            details={"field": what},
        )
    seen = Place(int(found[1]), found[2])
    return seen.sequence, seen


def refusal(session_id: str, seen: Place | None, known: int, page: Page) -> InvalidCursor | None:
    """Return why a reader cannot go on, if the log is not the one in which it saw an event; else None.

    Args:
        seen: the event it saw, about which the page was asked.
        known: how far it knew the log to go before the page was read.
    """
    if page.head == 0:
        return None
    details = {
        "session_id": session_id,
        "cursor": None if seen is None else str(seen),
        "first_sequence": page.first,
        "last_sequence": page.head,
    }
    if page.head < known:
        return CursorAhead(
            f"session {session_id!r} was followed up to #{known}, and its log ends at #{page.head}: its database "
            "was restored to an older copy; follow it anew from a sequence you trust",
            details=details,
        )
    if seen is not None and page.first <= seen.sequence and page.mark != seen.mark:
        return CursorMismatch(
            f"cursor {seen} is not of this log of session {session_id!r}, which has another event there: the "
            "cursor is of another session, or the database was restored; follow it anew",
            details=details,
        )
    return None


def removed(session_id: str, seen: Place, page: Page) -> CursorGone | None:
    """Return why a reader cannot resume behind an event, if what followed it was removed; else None."""
    if not page.head > 0 or seen.sequence >= page.first - 1:
        return None
    return CursorGone(
        f"what follows cursor {seen} in session {session_id!r} was removed by retention: its log begins at "
        f"#{page.first}; follow it from there, with from_sequence={page.first}",
        details={
            "session_id": session_id,
            "cursor": str(seen),
            "first_sequence": page.first,
            "last_sequence": page.head,
        },
    )


def pruned(session_id: str, first: int) -> Event:
    """Return the event that stands for all that retention removed below `first`; it is not stored."""
    return Event(
        type=EventType.SESSION_PRUNED,
        session_id=session_id,
        sequence=first - 1,
        event_id=f"pruned_{session_id}_{first - 1}",
        data={"first_sequence": first},
    )
