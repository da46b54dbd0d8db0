"""One reader's place in a session's log: merges pages of SQL with live notices, and finds gaps.

Pure: no lock, no clock, no IO.  Sequences are drawn under the lock of the session's counter row, so
commit order is number order and a hole below the head never fills later: one number is enough to know
what was seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from asm_celery.model import Event


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
        head: the session's last sequence, read before the events; 0 when there is no such session.
        full: True when the limit cut the page, so that more may follow.
    """

    events: tuple[Event, ...]
    head: int
    full: bool


class Cursor:
    """Where a reader is: everything up to `position` has been taken, nothing after it.

    Guarantee: over any mix of lost, repeated and reordered notices and pages, each event is returned
    at most once, in order, and none is skipped as long as pages are read after each gap.
    """

    def __init__(self, from_sequence: int) -> None:
        self.position = max(from_sequence, 1) - 1

    def offer(self, notice: Notice) -> tuple[list[Event], bool]:
        """Take a live notice.

        Returns:
            the events that are new, in order, and whether something before or in it must be read from SQL.
        """
        if notice.last <= self.position:
            return [], False
        if notice.first > self.position + 1 or not notice.events:
            return [], True
        return self._take(notice.events), False

    def loaded(self, page: Page) -> list[Event]:
        """Take a page that was read after `position`, now or earlier; return its new events, in order."""
        fresh = self._take(page.events)
        if not page.full:
            # what the filter left out up to the head need never be read again
            self.position = max(self.position, page.head)
        return fresh

    def _take(self, events: Iterable[Event]) -> list[Event]:
        fresh = [event for event in events if event.sequence > self.position]
        if fresh:
            self.position = fresh[-1].sequence
        return fresh
