"""What the event log says, against itself and the rows: numbers, endings, order, fence, appends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from asm_celery.states import TERMINAL, TERMINAL_EVENT, TERMINAL_EVENTS, EventType, RunStatus
from tests.checkers.record import History, Logged
from tests.history import anomalies

_ENDS_AN_ATTEMPT = TERMINAL_EVENTS | {EventType.RUN_REQUEUED}


def sequences_with_holes(history: History) -> Iterator[str]:
    """P10: a session's events are numbered 1, 2, 3 ... up to its counter, its positions too, no id twice."""
    for session_id, session in history.sessions.items():
        events = history.events.get(session_id, [])
        for expected, event in enumerate(events, start=1):
            if event.sequence != expected:
                yield f"{session_id}: #{event.sequence} stands where #{expected} should"
                break
        if len(events) != session.last_sequence:
            yield f"{session_id}: {len(events)} events, its counter says {session.last_sequence}"
    positions: dict[str, list[int]] = defaultdict(list)
    for run in history.runs.values():
        positions[run.session_id].append(run.position)
    for session_id, found in positions.items():
        last = history.sessions[session_id].last_position if session_id in history.sessions else len(found)
        if sorted(found) != list(range(1, last + 1)):
            yield f"{session_id}: its runs' positions are not 1..{last}"
    ids = [event.event_id for events in history.events.values() for event in events if event.event_id]
    if len(ids) != len(set(ids)):
        yield f"{len(ids) - len(set(ids))} event ids stand in the log twice"


def endings_that_disagree(history: History) -> Iterator[str]:
    """P9: a terminal run has one terminal event, its last, of its status and result; an open run has none."""
    by_run = _by_run(history)
    for run_id, events in by_run.items():
        run = history.runs.get(run_id)
        if run is None:
            yield f"{run_id} has {len(events)} events and no row"
            continue
        ends = [event for event in events if event.type in TERMINAL_EVENTS]
        expected = [TERMINAL_EVENT[RunStatus(run.status)]] if run.status in TERMINAL else []
        if [event.type for event in ends] != expected:
            yield f"{run_id} is {run.status}, its terminal events are {[str(event.type) for event in ends]}"
            continue
        if not ends:
            continue
        if events[-1] is not ends[0]:
            yield f"{run_id}: #{events[-1].sequence} {events[-1].type} stands behind its end"
        told = ends[0].data
        if "output" in told and told["output"] != run.output:
            yield f"{run_id}: its end tells another output than its row"
        if told.get("error_code") != run.error_code:
            yield f"{run_id}: its end tells error {told.get('error_code')}, its row {run.error_code}"
    for run_id, run in history.runs.items():
        if run.status in TERMINAL and run_id not in by_run:
            yield f"{run_id} is {run.status} and has no events"


def starts_out_of_order(history: History) -> Iterator[str]:
    """P3, P4: order, slots and the life of each run, by the log's own order."""
    for session_id, session in history.sessions.items():
        for text in anomalies(history.events.get(session_id, []), slots=session.slots, complete=False):
            yield f"{session_id}: {text}"
    for session_id, events in history.events.items():
        queued = [event.run_id for event in events if event.type == EventType.RUN_QUEUED]
        positions = [history.runs[run_id].position for run_id in queued if run_id in history.runs]
        if positions != sorted(positions):
            yield f"{session_id}: its runs were queued in another order than their positions"


def stale_writes(history: History) -> Iterator[str]:
    """P8: what an attempt wrote lies between its own start and its own end."""
    for run_id, events in _by_run(history).items():
        attempt = 0
        for event in events:
            here = f"#{event.sequence} {event.type} of {run_id}"
            if event.type == EventType.RUN_STARTED:
                attempt = event.attempt
            elif event.type in _ENDS_AN_ATTEMPT:
                if event.type in (EventType.RUN_COMPLETED, EventType.RUN_FAILED) and (
                    attempt and event.attempt != attempt
                ):
                    yield f"{here}: written by attempt {event.attempt}, current is {attempt}"
                attempt = 0
            elif _is_of_an_attempt(event) and event.attempt != attempt:
                yield f"{here}: written by attempt {event.attempt}, current is {attempt or 'none'}"


def appends_lost_or_doubled(history: History) -> Iterator[str]:
    """P11: an attempt's events are as many as its row counts, and what it numbered is 1..m."""
    for run_id, events in _by_run(history).items():
        count, mark, has_started = 0, 0, False
        for event in events:
            if event.type == EventType.RUN_STARTED:
                count, mark, has_started = 0, 0, True
            elif _is_of_an_attempt(event):
                count += 1
                if event.mark is not None:
                    mark += 1
                    if event.mark != mark:
                        yield f"#{event.sequence} of {run_id}: its agent said {event.mark}, due was {mark}"
                        mark = event.mark
        run = history.runs.get(run_id)
        if run is not None and has_started and count != run.event_position:
            yield f"{run_id}: its last claim stored {count} events, its row counts {run.event_position}"


def _is_of_an_attempt(event: Logged) -> bool:
    # a caller's own events carry no attempt; the runtime's are no appends
    return event.attempt > 0 and not event.type.startswith("run_")


def _by_run(history: History) -> dict[str, list[Logged]]:
    found: dict[str, list[Logged]] = {}
    for events in history.events.values():
        for event in events:
            if event.run_id is not None:
                found.setdefault(event.run_id, []).append(event)
    return found
