"""``asm tail``: a session's events, as lines."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from asm_celery.cli.call import Call
from asm_celery.cli.exits import Exit
from asm_celery.cli.reach import sessions_of
from asm_celery.cli.words import event_line
from asm_celery.model import Event
from asm_celery.server import SessionServer
from asm_celery.states import EventType, check_event_type

_PAGE = 500


def run(
    call: Call,
    *,
    session_id: str,
    after: int,
    cursor: str | None,
    run_id: str | None,
    types: tuple[str, ...],
    follow: bool,
) -> Exit:
    """Print events behind a sequence or cursor; with `follow` go on until the run or the session has ended.

    Raises:
        SessionNotFound, RunNotFound, InvalidEventType, InvalidCursor: what was asked for cannot be.
    """
    place = after if cursor is None else cursor
    for one in types:
        _doubt(call, check_event_type(one))
    with sessions_of(call) as asm:
        server = asm.attach(session_id)
        for event in _live(server, place, run_id, types) if follow else _stored(server, place, run_id, types):
            call.answer("event", {**event.to_map(), "cursor": event.cursor})
            call.text(event_line(event))
    return Exit.COMPLETED


def _live(
    server: SessionServer, after: int | str, run_id: str | None, types: tuple[str, ...]
) -> Iterator[Event]:
    begin = after + 1 if isinstance(after, int) else after
    with server.subscribe(from_sequence=begin, run_id=run_id, type=types or None) as events:
        yield from events


def _stored(
    server: SessionServer, after: int | str, run_id: str | None, types: tuple[str, ...]
) -> Iterator[Event]:
    if run_id is not None:
        server.get_run(run_id)
    while True:
        page = server.get_events(after, limit=_PAGE, run_id=run_id, type=types or None)
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].sequence


def _doubt(call: Call, event_type: str) -> None:
    # agents have words of their own, so it is no error; but nothing would ever come
    near = difflib.get_close_matches(event_type, list(EventType), n=1, cutoff=0.8)
    if near and event_type not in list(EventType):
        call.talk(f"{event_type} is no event of the runtime (an agent may have it): did you mean {near[0]}?")
