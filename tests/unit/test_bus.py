"""The message that announces events: small, versioned, and never trusted further than its numbers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asm_celery.events.bus import MAX_MESSAGE_BYTES, decode, encode
from asm_celery.events.cursor import Notice
from asm_celery.model import Event


def events(count: int, first: int = 5, **values: object) -> list[Event]:
    """Consecutive events of a session."""
    return [
        Event.new("message_streamed", "s", sequence=first + index, run_id="r", **values)
        for index in range(count)
    ]


def test_a_message_carries_its_events_as_they_are() -> None:
    """What is decoded equals what was published."""
    sent = events(3, data={"text": "ü \ud800", "n": 1.5})

    assert Notice(first=5, last=7, events=tuple(sent)) == decode(encode(sent))


def test_a_large_message_carries_only_numbers() -> None:
    """64 KiB is the limit; above it the reader finds the events in SQL."""
    sent = events(2, data={"text": "x" * MAX_MESSAGE_BYTES})

    assert len(encode(sent)) < 100
    assert Notice(first=5, last=6) == decode(encode(sent))


def test_events_with_a_hole_are_only_rung() -> None:
    """A message whose events are not all of first..last proves nothing about what lies between."""
    sent = [*events(1), *events(1, first=9)]

    assert Notice(first=5, last=9) == decode(encode(sent))


def test_a_message_of_another_format_only_rings() -> None:
    """A newer release may carry events in another way; its numbers still mean something."""
    body = json.loads(encode(events(1)))

    assert Notice(first=5, last=5) == decode(json.dumps({**body, "v": 2}).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"last": 10**12},
        {"first": 4},
        {"events": []},
        {"events": [{**events(1)[0].to_map(), "sequence": "5"}]},
        {"events": [{**events(1)[0].to_map(), "sequence": 6}]},
    ],
)
def test_events_that_do_not_fit_the_numbers_are_left_out(change: dict[str, object]) -> None:
    """A forged message costs a read of SQL and nothing else."""
    body = json.loads(encode(events(1)))

    notice = decode(json.dumps({**body, **change}).encode())

    assert notice is not None
    assert notice.events == ()


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"v":1,"first":0,"last":1}',
        b'{"v":1,"first":2,"last":1}',
        b'{"v":1,"first":true,"last":1}',
        b'{"v":1,"first":1e400,"last":1}',
        b'{"v":1,"first":1,"last":1,"events":7}',
        b'{"v":1,"first":1,"last":1,"events":[{}]}',
        b'{"v":1,"first":1,"last":1,"events":[[]]}',
        b"[" * 100_000,
    ],
)
def test_garbage_is_not_a_notice(garbage: bytes) -> None:
    """Anyone may write to a channel; it must not end the listening thread."""
    assert decode(garbage) is None


@given(
    st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_no_message_raises(message: bytes) -> None:
    """Whatever the bytes are, the answer is a notice or None."""
    decode(message)
