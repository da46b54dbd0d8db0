"""What was told to callers, against what SQL holds: acknowledged runs, keys, stops, results, transcripts."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator
from operator import attrgetter

from asm_celery.states import STOPPED_STATUS, TERMINAL, EventType, StopKind
from tests.checkers.record import History, Submit, Transcript


def lost(history: History) -> Iterator[str]:
    """P1: an acknowledged run is in SQL, and every run has ended."""
    acknowledged = {submit.run_id for submit in history.submits if submit.run_id is not None}
    for run_id in sorted(acknowledged - history.runs.keys()):
        yield f"{run_id} was acknowledged and is not in SQL"
    for run in history.runs.values():
        if run.status not in TERMINAL:
            yield f"{run.run_id} is still {run.status}"


def submits_out_of_order(history: History) -> Iterator[str]:
    """P3: a submit that returned before another was called has the lower position in their session."""
    by_session: dict[str, list[Submit]] = defaultdict(list)
    for submit in history.submits:
        if submit.run_id in history.runs and submit.key is None:
            by_session[submit.session_id].append(submit)
    for submits in by_session.values():
        yield from _inversions(history, submits)


def _inversions(history: History, submits: list[Submit]) -> Iterator[str]:
    highest, of = 0, ""
    ended: list[tuple[float, int, str]] = []
    for submit in sorted(submits, key=attrgetter("called")):
        while ended and ended[0][0] < submit.called:
            _, position, run_id = heapq.heappop(ended)
            highest, of = max((highest, of), (position, run_id))
        assert submit.run_id is not None
        own = history.runs[submit.run_id].position
        if own < highest:
            yield (
                f"{submit.run_id} was submitted after the submit of {of} had returned: its position is {own}, "
                f"and {highest} the other's"
            )
        heapq.heappush(ended, (submit.returned, own, submit.run_id))


def keys_with_two_runs(history: History) -> Iterator[str]:
    """P2: one idempotency key of a session is one run, in every answer and in SQL."""
    ids: dict[tuple[str, str], set[str]] = defaultdict(set)
    for submit in history.submits:
        if submit.key is not None and submit.run_id is not None:
            ids[submit.session_id, submit.key].add(submit.run_id)
    for run in history.runs.values():
        if run.idempotency_key is not None:
            ids[run.session_id, run.idempotency_key].add(run.run_id)
    for (session_id, key), found in ids.items():
        if len(found) > 1:
            yield f"key {key!r} of {session_id} names {sorted(found)}"


def stops_that_did_not_hold(history: History) -> Iterator[str]:
    """P16: a withdrawn run never starts afterwards, and a stopped one ends as its receipt says."""
    entered = {entry.run_id for entry in history.ledger if entry.what == "enter"}
    started = {
        event.run_id
        for events in history.events.values()
        for event in events
        if event.type == EventType.RUN_STARTED
    }
    for stop in history.stops:
        run = history.runs.get(stop.run_id)
        if run is None or stop.state not in ("withdrawn", "requested") or stop.kind is None:
            continue
        if run.status != STOPPED_STATUS[StopKind(stop.kind)]:
            yield f"{run.run_id} was asked to {stop.kind} ({stop.state}), and is {run.status}"
        # a run that waits for its second attempt can be withdrawn too
        if stop.state == "withdrawn" and run.claims == 0 and run.run_id in entered | started:
            yield f"{run.run_id} was withdrawn, and started"


def awaits_that_differ(history: History) -> Iterator[str]:
    """P20: every awaiter of a run gets what SQL holds."""
    for awaited in history.awaited:
        run = history.runs.get(awaited.run_id)
        if run is not None and (run.status, run.output) != (awaited.status, awaited.output):
            yield (
                f"an awaiter of {run.run_id} got {awaited.status} with {awaited.output!r:.80}, SQL has "
                f"{run.status} with {run.output!r:.80}"
            )


def transcripts_that_differ(history: History) -> Iterator[str]:
    """P12: a transcript is the log behind its cursor: no gap, no duplicate, no inversion."""
    for transcript in history.transcripts:
        log = _wanted(history, transcript)
        received = list(transcript.received)
        expected = log if transcript.is_whole else log[: len(received)]
        for at, (due, got) in enumerate(zip(expected, received, strict=False)):
            if due[0] != got[0] or (got[1] and due[1] != got[1]):
                yield f"{transcript.subscriber} of {transcript.session_id}: item {at} is {got}, not {due}"
                break
        else:
            if len(expected) != len(received):
                yield (
                    f"{transcript.subscriber} of {transcript.session_id}: {len(received)} items from behind "
                    f"{transcript.after}, the log has {len(log)}"
                )


def _wanted(history: History, transcript: Transcript) -> list[tuple[int, str]]:
    return [
        (event.sequence, event.event_id)
        for event in history.events.get(transcript.session_id, [])
        if event.sequence > transcript.after
        and (transcript.run_id is None or event.run_id == transcript.run_id)
        and (transcript.types is None or event.type in transcript.types)
    ]
