"""What a session's event log says of order and slots: pure, from the events alone.

`anomalies` reads one session's log and names everything in it that breaks a promise.  It trusts neither
Redis nor our own guards: only which event stands before which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

from asm_celery.states import TERMINAL_EVENTS, EventType


class Said(Protocol):
    """What is read of an event: `model.Event` has it, and a row of the table."""

    @property
    def sequence(self) -> int:
        """Its place in the session's log."""

    @property
    def type(self) -> str:
        """What happened."""

    @property
    def run_id(self) -> str | None:
        """To which run."""


@dataclass(slots=True)
class _Line:
    """The session as far as its log was read; the runs in dicts, in the order in which they were queued."""

    slots: int
    order: dict[str, None] = field(default_factory=dict)
    unfinished: dict[str, None] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    starts: list[str] = field(default_factory=list)


def anomalies(
    events: Sequence[Said], *, slots: int, submitted: Sequence[str] | None = None, complete: bool = True
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
    order = list(line.order)
    if submitted is not None and list(submitted) != order:
        found.append(f"queued in the order {order}, submitted in the order {list(submitted)}")
    first_starts = list(dict.fromkeys(line.starts))
    started = set(first_starts)
    if slots == 1 and first_starts != [run for run in order if run in started]:
        found.append(f"started in the order {first_starts}, queued in the order {order}")
    if complete and line.unfinished:
        found.append(f"never ended: {list(line.unfinished)}")
    return found


def most_open(events: Sequence[Said]) -> int:
    """Return how many runs were accepted and not ended at once, at most."""
    open_now = most = 0
    for event in events:
        if event.type == EventType.RUN_QUEUED:
            open_now += 1
            most = max(most, open_now)
        elif event.type in TERMINAL_EVENTS:
            open_now -= 1
    return most


def most_running(events: Sequence[Said]) -> int:
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


def _sequence_holes(events: Sequence[Said]) -> Iterator[str]:
    sequences = [event.sequence for event in events]
    if sequences != list(range(1, len(events) + 1)):
        yield f"the sequences are {sequences}, not 1..{len(events)}"


def _take(line: _Line, event: Said, run_id: str) -> Iterator[str]:
    """Move the line on by one event of a run; yield what that event breaks."""
    here = f"#{event.sequence} {event.type} of {run_id}"
    if run_id in line.ended:
        yield f"{here}: it had ended"
    if event.type == EventType.RUN_QUEUED:
        if run_id in line.order:
            yield f"{here}: it was queued before"
        line.order[run_id] = line.unfinished[run_id] = None
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
        line.unfinished.pop(run_id, None)
        line.ended.add(run_id)


def _start(line: _Line, here: str, run_id: str) -> Iterator[str]:
    if run_id in line.running:
        yield f"{here}: it ran already"
    # the open runs are few, the ended ones are not
    unfinished = list(takewhile(lambda other: other != run_id, line.unfinished))
    if len(unfinished) >= line.slots:
        yield f"{here}: unfinished before it are {unfinished}, with {line.slots} slots"
    line.running.add(run_id)
    line.starts.append(run_id)
    if len(line.running) > line.slots:
        yield f"{here}: {len(line.running)} run at once, with {line.slots} slots"
