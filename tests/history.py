"""What a session's event log says of order and slots: pure, from the events alone.

`anomalies` reads one session's log and names everything in it that breaks a promise.  It trusts neither
Redis nor our own guards: only which event stands before which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from asm_celery.model import Event
from asm_celery.states import TERMINAL_EVENTS, EventType


@dataclass(slots=True)
class _Line:
    """The session as far as its log was read."""

    slots: int
    order: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    starts: list[str] = field(default_factory=list)


def anomalies(
    events: Sequence[Event], *, slots: int, submitted: Sequence[str] | None = None, complete: bool = True
) -> list[str]:
    """Return what is wrong with a session's log, a sentence each; empty when nothing is.

    Args:
        events: the whole log, in the order it was read.
        slots: the session's `max_concurrent_runs`.
        submitted: the run ids in the order their submits returned; None: the log's own order is taken.
        complete: every run must have ended.
    """
    line = _Line(slots)
    found = list(_sequence_holes(events))
    for event in events:
        if event.run_id is not None:
            found += _take(line, event, event.run_id)
    if submitted is not None and list(submitted) != line.order:
        found.append(f"queued in the order {line.order}, submitted in the order {list(submitted)}")
    first_starts = list(dict.fromkeys(line.starts))
    if slots == 1 and first_starts != [run for run in line.order if run in line.starts]:
        found.append(f"started in the order {first_starts}, queued in the order {line.order}")
    if complete and len(line.ended) < len(line.order):
        found.append(f"never ended: {[run for run in line.order if run not in line.ended]}")
    return found


def most_open(events: Sequence[Event]) -> int:
    """Return how many runs were accepted and not ended at once, at most."""
    open_now = most = 0
    for event in events:
        if event.type == EventType.RUN_QUEUED:
            open_now += 1
            most = max(most, open_now)
        elif event.type in TERMINAL_EVENTS:
            open_now -= 1
    return most


def most_running(events: Sequence[Event]) -> int:
    """Return how many runs of the session were running at once, at most."""
    running: set[str | None] = set()
    most = 0
    for event in events:
        if event.type == EventType.RUN_STARTED:
            running.add(event.run_id)
            most = max(most, len(running))
        elif event.type in TERMINAL_EVENTS or event.type == EventType.RUN_REQUEUED:
            running.discard(event.run_id)
    return most


def _sequence_holes(events: Sequence[Event]) -> Iterator[str]:
    sequences = [event.sequence for event in events]
    if sequences != list(range(1, len(events) + 1)):
        yield f"the sequences are {sequences}, not 1..{len(events)}"


def _take(line: _Line, event: Event, run_id: str) -> Iterator[str]:
    """Move the line on by one event of a run; yield what that event breaks."""
    here = f"#{event.sequence} {event.type} of {run_id}"
    if run_id in line.ended:
        yield f"{here}: it had ended"
    if event.type == EventType.RUN_QUEUED:
        if run_id in line.order:
            yield f"{here}: it was queued before"
        line.order.append(run_id)
        return
    if run_id not in line.order:
        yield f"{here}: it was never queued"
        return
    if event.type == EventType.RUN_STARTED:
        yield from _start(line, here, run_id)
    elif event.type == EventType.RUN_REQUEUED:
        if run_id not in line.running:
            yield f"{here}: it did not run"
        line.running.discard(run_id)
    elif event.type in TERMINAL_EVENTS:
        if event.type == EventType.RUN_COMPLETED and run_id not in line.running:
            yield f"{here}: it did not run"
        line.running.discard(run_id)
        line.ended.add(run_id)


def _start(line: _Line, here: str, run_id: str) -> Iterator[str]:
    if run_id in line.running:
        yield f"{here}: it ran already"
    before = line.order[: line.order.index(run_id)]
    unfinished = [other for other in before if other not in line.ended]
    if len(unfinished) >= line.slots:
        yield f"{here}: unfinished before it are {unfinished}, with {line.slots} slots"
    line.running.add(run_id)
    line.starts.append(run_id)
    if len(line.running) > line.slots:
        yield f"{here}: {len(line.running)} run at once, with {line.slots} slots"
