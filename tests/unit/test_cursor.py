"""The cursor: what is new in a notice or a page, and what is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asm_celery.events.cursor import Cursor, Notice, Page
from asm_celery.model import Event


def events(first: int, last: int) -> tuple[Event, ...]:
    """Events numbered first to last."""
    return tuple(
        Event(type="message_streamed", session_id="s", sequence=sequence, event_id=f"evt_{sequence}")
        for sequence in range(first, last + 1)
    )


def notice(first: int, last: int) -> Notice:
    """A message that carries the events first to last."""
    return Notice(first=first, last=last, events=events(first, last))


def numbers(taken: list[Event]) -> list[int]:
    """The sequences of events."""
    return [event.sequence for event in taken]


def test_zero_and_one_both_mean_from_the_beginning() -> None:
    """`from_sequence` is inclusive, and no event has the number 0."""
    assert Cursor(0).position == Cursor(1).position == 0
    assert Cursor(7).position == 6


def test_a_notice_that_follows_is_taken() -> None:
    """Live events that begin where the reader stands need no SQL."""
    cursor = Cursor(4)

    fresh, gap = cursor.offer(notice(4, 6))

    assert ([4, 5, 6], False, 6) == (numbers(fresh), gap, cursor.position)


def test_a_repeated_notice_gives_nothing() -> None:
    """What was taken is never taken again."""
    cursor = Cursor(1)
    cursor.offer(notice(1, 3))

    assert ([], False) == cursor.offer(notice(1, 3))


def test_an_overlapping_notice_gives_only_what_is_new() -> None:
    """A message may begin before the reader's place."""
    cursor = Cursor(3)

    fresh, gap = cursor.offer(notice(1, 4))

    assert ([3, 4], False) == (numbers(fresh), gap)


def test_a_notice_beyond_a_gap_is_not_taken() -> None:
    """What was missed must be read before what came later is delivered."""
    cursor = Cursor(1)

    fresh, gap = cursor.offer(notice(2, 3))

    assert ([], True, 0) == (fresh, gap, cursor.position)


def test_a_notice_without_events_is_a_gap_only_when_it_tells_news() -> None:
    """A message that was too large to carry its events only rings."""
    cursor = Cursor(1)

    assert ([], True) == cursor.offer(Notice(first=1, last=2))
    cursor.loaded(Page(events=events(1, 2), head=2, full=False))
    assert ([], False) == cursor.offer(Notice(first=1, last=2))


def test_a_short_page_moves_to_its_head_and_a_full_one_to_its_last_event() -> None:
    """What a filter left out is passed only when nothing that matches can be missing before it."""
    cursor = Cursor(1)

    cursor.loaded(Page(events=events(2, 2), head=9, full=True))
    assert cursor.position == 2
    cursor.loaded(Page(events=events(5, 5), head=9, full=False))
    assert cursor.position == 9


def test_a_page_older_than_the_live_news_takes_nothing_back() -> None:
    """A page that was on its way while live events were taken gives only what is new."""
    cursor = Cursor(1)
    cursor.offer(notice(1, 5))

    assert [] == cursor.loaded(Page(events=events(1, 3), head=3, full=False))
    assert cursor.position == 5


@given(st.integers(1, 20), st.lists(st.tuples(st.booleans(), st.integers(1, 30), st.integers(0, 8))))
def test_any_mix_gives_each_sequence_once_in_order(start: int, moves: list[tuple[bool, int, int]]) -> None:
    """Over any notices and pages the cursor gives start, start + 1, ... without a hole."""
    cursor = Cursor(start)
    taken: list[int] = []

    for is_page, first, length in moves:
        if is_page:
            page = events(cursor.position + 1, first + length)
            taken += numbers(cursor.loaded(Page(events=page, head=first + length, full=False)))
        else:
            taken += numbers(cursor.offer(notice(first, first + length))[0])

    assert list(range(start, start + len(taken))) == taken
