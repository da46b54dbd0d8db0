"""The checkers of histories find every anomaly that is planted, and none in a sound history."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asm_celery.config import Config
from asm_celery.states import EventType
from asm_celery.worker.attempt import SHUTDOWN, Attempt
from asm_celery.worker.outcome import Ending, judge
from asm_celery.worker.tally import Tally
from tests.acceptance.conftest import FULL
from tests.acceptance.ledger import Entry
from tests.checkers import (
    CHECKERS,
    Awaited,
    Fault,
    History,
    LimitChange,
    Logged,
    RunRow,
    SessionRow,
    Stop,
    Submit,
    Transcript,
    check,
)
from tests.checkers.collect import collect
from tests.checkers.outside import entries_beyond_the_policy
from tests.world import World

EXECUTOR = "host:77:0badcafe"
Plant = Callable[[History, str, str], None]


def sound(sessions: int = 2, runs: int = 3, words: int = 2) -> History:
    """Make a history in which nothing is wrong: every second run is lost once, by a fault, and runs again."""
    history = History(limits=[LimitChange(at=0.0, limit=sessions)])
    ledger, submits, awaited, transcripts = [], [], [], []
    for number in range(sessions):
        session_id = f"ses_{number}"
        log: list[Logged] = []

        def say(kind: str, log: list[Logged] = log, session_id: str = session_id, **values: Any) -> None:
            sequence = len(log) + 1
            log.append(Logged(sequence=sequence, type=kind, event_id=f"{session_id}.{sequence}", **values))

        say("session_created")
        for place in range(runs):
            run_id = f"run_{number}_{place}"
            say("run_queued", run_id=run_id)
            submits.append(
                Submit(
                    session_id=session_id,
                    called=float(place),
                    returned=place + 0.5,
                    run_id=run_id,
                    key=f"key {place}" if place % 3 == 2 else None,
                )
            )
        for place in range(runs):
            run_id, attempts = f"run_{number}_{place}", 1 + place % 2
            for attempt in range(1, attempts + 1):
                at = 10.0 * place + attempt * 4
                say("run_started", run_id=run_id, attempt=attempt, data={"executor": EXECUTOR})
                enter = Entry(
                    at=at, what="enter", session_id=session_id, run_id=run_id, attempt=attempt, pid=77
                )
                ledger.append(enter)
                for mark in range(1, words + 1):
                    say("message_streamed", run_id=run_id, attempt=attempt, mark=mark)
                if attempt < attempts:
                    lost = {"error_code": "worker_lost"}
                    say("run_requeued", run_id=run_id, attempt=attempt, data=lost)
                else:
                    say("run_completed", run_id=run_id, attempt=attempt, data={"output": place})
                    ledger.append(replace(enter, at=at + 3, what="leave"))
            history.runs[run_id] = RunRow(
                run_id=run_id,
                session_id=session_id,
                position=place + 1,
                status="completed",
                attempt=attempts,
                max_attempts=2,
                claims=attempts,
                event_position=words,
                idempotency_key=f"key {place}" if place % 3 == 2 else None,
                output=place,
            )
            awaited.append(Awaited(run_id=run_id, status="completed", output=place))
        history.events[session_id] = log
        history.sessions[session_id] = SessionRow(
            session_id=session_id, slots=1, last_sequence=len(log), last_position=runs
        )
        for after in (0, 3):
            received = [(event.sequence, event.event_id) for event in log[after:]]
            transcripts.append(
                Transcript(
                    subscriber=f"sub from {after}",
                    session_id=session_id,
                    after=after,
                    received=received,
                    is_whole=True,
                )
            )
    history.ledger, history.submits, history.awaited = ledger, submits, awaited
    history.transcripts = transcripts
    # the process was frozen all the while, but is not cut from what it wrote into the ledger
    history.faults = [Fault(kind="freeze", at=1e6, pids=frozenset({77}), recovered_s=1.0, bound_s=5.0)]
    history.keys = ["gate", "settings", "workers:q"]
    return history


def _change_run(history: History, run_id: str, **values: Any) -> None:
    history.runs[run_id] = replace(history.runs[run_id], **values)


def _number(history: History, session_id: str) -> None:
    log = history.events[session_id]
    history.events[session_id] = [replace(event, sequence=at) for at, event in enumerate(log, start=1)]
    history.sessions[session_id] = replace(history.sessions[session_id], last_sequence=len(log))


def _insert(history: History, session_id: str, at: int, event: Logged) -> None:
    history.events[session_id].insert(at, replace(event, event_id=f"planted {at}"))
    _number(history, session_id)


def _place(history: History, session_id: str, run_id: str, kind: str) -> int:
    log = history.events[session_id]
    return next(at for at, event in enumerate(log) if (event.run_id, event.type) == (run_id, kind))


def _acknowledge_unknown(history: History, session_id: str, _: str) -> None:
    submit = Submit(session_id=session_id, called=90, returned=91, run_id="run_gone")
    history.submits = [*history.submits, submit]


def _leave_open(history: History, session_id: str, run_id: str) -> None:
    at = _place(history, session_id, run_id, "run_completed")
    del history.events[session_id][at]
    _number(history, session_id)
    _change_run(history, run_id, status="running")


def _end_twice(history: History, session_id: str, run_id: str) -> None:
    at = _place(history, session_id, run_id, "run_completed")
    _insert(history, session_id, at + 1, replace(history.events[session_id][at], type="run_failed"))


def _end_otherwise(history: History, session_id: str, run_id: str) -> None:
    at = _place(history, session_id, run_id, "run_completed")
    history.events[session_id][at] = replace(history.events[session_id][at], type="run_cancelled")


def _tell_another_output(history: History, session_id: str, run_id: str) -> None:
    _change_run(history, run_id, output="another")


def _write_behind_the_end(history: History, session_id: str, run_id: str) -> None:
    late = Logged(sequence=0, type="message_streamed", run_id=run_id)
    _insert(history, session_id, _place(history, session_id, run_id, "run_completed") + 1, late)


def _write_stale(history: History, session_id: str, run_id: str) -> None:
    at = _place(history, session_id, run_id, "run_started") + 1
    _insert(history, session_id, at, Logged(sequence=0, type="message_streamed", run_id=run_id, attempt=7))


def _write_before_the_start(history: History, session_id: str, run_id: str) -> None:
    at = _place(history, session_id, run_id, "run_started")
    _insert(history, session_id, at, Logged(sequence=0, type="message_streamed", run_id=run_id, attempt=1))


def _finish_stale(history: History, session_id: str, run_id: str) -> None:
    at = _place(history, session_id, run_id, "run_completed")
    history.events[session_id][at] = replace(history.events[session_id][at], attempt=9)


def _double_an_append(history: History, session_id: str, run_id: str) -> None:
    at = _place(history, session_id, run_id, "message_streamed")
    _insert(history, session_id, at, history.events[session_id][at])


def _lose_an_append(history: History, session_id: str, run_id: str) -> None:
    # the last claim's: of an earlier one only the numbers tell
    at = _place(history, session_id, run_id, "run_completed")
    del history.events[session_id][at - 1]
    _number(history, session_id)


def _leave_a_hole(history: History, session_id: str, run_id: str) -> None:
    del history.events[session_id][_place(history, session_id, run_id, "message_streamed")]


def _lose_the_tail(history: History, session_id: str, _: str) -> None:
    history.events[session_id].pop()


def _repeat_an_id(history: History, session_id: str, _: str) -> None:
    log = history.events[session_id]
    log[-1] = replace(log[-1], event_id=log[0].event_id)


def _start_early(history: History, session_id: str, run_id: str) -> None:
    # just behind the last admission: with one slot only the first run may start there
    log = history.events[session_id]
    first = next(at for at, event in enumerate(log) if event.type == EventType.RUN_STARTED)
    started = log.pop(_place(history, session_id, run_id, "run_started"))
    log.insert(first, started)
    if log[first + 1].run_id == run_id:
        log.insert(first, replace(started, run_id=log[1].run_id))
    _number(history, session_id)


def _swap_positions(history: History, session_id: str, run_id: str) -> None:
    other = next(
        one for one in history.runs.values() if one.session_id == session_id and one.run_id != run_id
    )
    own = history.runs[run_id]
    _change_run(history, run_id, position=other.position)
    _change_run(history, other.run_id, position=own.position)


def _submit_out_of_order(history: History, session_id: str, run_id: str) -> None:
    keyless = [replace(one, key=None) for one in history.submits]
    last = max(one.position for one in history.runs.values())
    # the run was submitted long before all others, or after them
    shift = -100.0 if history.runs[run_id].position == last else 100.0
    history.submits = [
        replace(one, called=one.called + shift, returned=one.returned + shift)
        if one.run_id == run_id
        else one
        for one in keyless
    ]


def _answer_a_key_twice(history: History, session_id: str, run_id: str) -> None:
    one = Submit(session_id=session_id, called=50, returned=51, run_id=run_id, key="k")
    other = replace(one, run_id="run_other")
    history.submits = [*history.submits, one, other]


def _store_a_key_twice(history: History, session_id: str, run_id: str) -> None:
    for run in list(history.runs.values()):
        if run.session_id == session_id:
            _change_run(history, run.run_id, idempotency_key="k")


def _enter_again(history: History, session_id: str, run_id: str) -> None:
    entry = next(one for one in history.ledger if one.run_id == run_id and one.what == "enter")
    history.ledger = [*history.ledger, *[replace(entry, at=entry.at + 500)] * 2]


def _never_enter(history: History, session_id: str, run_id: str) -> None:
    history.ledger = [entry for entry in history.ledger if entry.run_id != run_id]


def _overlap(history: History, session_id: str, run_id: str) -> None:
    ledger = [entry for entry in history.ledger if entry.session_id == session_id and entry.what == "leave"]
    inside = next(entry for entry in ledger if entry.run_id == run_id)
    other = next(entry for entry in ledger if entry.run_id != run_id)
    history.ledger = [
        *history.ledger,
        *[replace(other, pid=5, what="enter", at=inside.at - 1), replace(other, pid=5, at=inside.at - 0.5)],
    ]


def _lower_the_limit(history: History, session_id: str, run_id: str) -> None:
    history.limits, history.limit_settles_s = [LimitChange(at=-100.0, limit=1)], 1.0


def _declare_a_live_process_dead(history: History, session_id: str, run_id: str) -> None:
    history.faults = []


def _declare_a_thawed_process_dead(history: History, session_id: str, run_id: str) -> None:
    history.faults = [replace(fault, at=0.0, until=1.0) for fault in history.faults]


def _start_a_withdrawn_run(history: History, session_id: str, run_id: str) -> None:
    _change_run(history, run_id, status="cancelled", claims=0)
    history.stops = [Stop(run_id=run_id, state="withdrawn", kind="cancel")]


def _complete_a_stopped_run(history: History, session_id: str, run_id: str) -> None:
    history.stops = [Stop(run_id=run_id, state="requested", kind="interrupt")]


def _await_another(history: History, session_id: str, run_id: str) -> None:
    history.awaited = [*history.awaited, Awaited(run_id=run_id, status="completed", output="another")]


def _edit_transcript(history: History, session_id: str, edit: Callable[[list[Any]], Any]) -> None:
    edited = []
    for transcript in history.transcripts:
        received = list(transcript.received)
        if transcript.session_id == session_id:
            edit(received)
        edited.append(replace(transcript, received=received))
    history.transcripts = edited


def _skip_an_event(history: History, session_id: str, _: str) -> None:
    _edit_transcript(history, session_id, lambda received: received.pop(2))


def _miss_the_tail(history: History, session_id: str, _: str) -> None:
    _edit_transcript(history, session_id, lambda received: received.pop())


def _deliver_twice(history: History, session_id: str, _: str) -> None:
    _edit_transcript(history, session_id, lambda received: received.insert(2, received[1]))


def _deliver_inverted(history: History, session_id: str, _: str) -> None:
    _edit_transcript(history, session_id, lambda received: received.insert(1, received.pop(2)))


def _deliver_another_history(history: History, session_id: str, _: str) -> None:
    _edit_transcript(
        history, session_id, lambda received: received.__setitem__(2, (received[2][0], "evt_other"))
    )


def _recover_slowly(history: History, session_id: str, _: str) -> None:
    history.faults = [replace(fault, recovered_s=9.0) for fault in history.faults]


def _leak_a_lease(history: History, session_id: str, _: str) -> None:
    history.keys = [*history.keys, "leases"]


def _leak_a_process(history: History, session_id: str, _: str) -> None:
    history.processes = [4711]


PLANTED: dict[Plant, str] = {
    _acknowledge_unknown: "lost",
    _leave_open: "lost",
    _end_twice: "ending",
    _end_otherwise: "ending",
    _tell_another_output: "ending",
    _write_behind_the_end: "ending",
    _write_stale: "fence",
    _write_before_the_start: "fence",
    _finish_stale: "fence",
    _double_an_append: "append",
    _lose_an_append: "append",
    _leave_a_hole: "sequence",
    _lose_the_tail: "sequence",
    _repeat_an_id: "sequence",
    _start_early: "order",
    _swap_positions: "order",
    _submit_out_of_order: "submit order",
    _answer_a_key_twice: "idempotency",
    _store_a_key_twice: "idempotency",
    _enter_again: "entries",
    _never_enter: "entries",
    _overlap: "overlap",
    _lower_the_limit: "limit",
    _declare_a_live_process_dead: "false death",
    _declare_a_thawed_process_dead: "false death",
    _start_a_withdrawn_run: "stop",
    _complete_a_stopped_run: "stop",
    _await_another: "await",
    _skip_an_event: "transcript",
    _miss_the_tail: "transcript",
    _deliver_twice: "transcript",
    _deliver_inverted: "transcript",
    _deliver_another_history: "transcript",
    _recover_slowly: "recovery",
    _leak_a_lease: "leak",
    _leak_a_process: "leak",
}


def test_a_sound_history_has_no_anomaly() -> None:
    """What is as promised is not accused."""
    assert [] == check(sound())


@pytest.mark.parametrize(("plant", "kind"), PLANTED.items(), ids=lambda value: getattr(value, "__name__", ""))
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_planted_anomaly_is_found_by_its_checker(plant: Plant, kind: str, data: st.DataObject) -> None:
    """Wherever it is planted, the checker that is meant for it says so."""
    history = sound(sessions=2, runs=4)
    number, place = data.draw(st.integers(0, 1)), data.draw(st.integers(0, 3))

    plant(history, f"ses_{number}", f"run_{number}_{place}")

    assert kind in {anomaly.kind for anomaly in check(history)}


def test_every_checker_has_a_planted_anomaly() -> None:
    """A checker that nothing was planted for could be blind."""
    assert set(CHECKERS) == set(PLANTED.values())


def test_a_large_history_is_checked_in_seconds() -> None:
    """Five thousand runs with a quarter of a million events take less time than to read them."""
    history = sound(sessions=50, runs=100 if FULL else 20, words=40)
    began = time.process_time()

    found = check(history)

    assert [] == found
    assert time.process_time() - began < (15 if FULL else 3)


def test_a_real_installation_is_collected_whole(config: Config) -> None:
    """Rows, events, outputs and keys of a real database and Redis are read as the checkers need them."""
    world = World(config)
    session = world.session()
    submitted = [world.submit(session, idempotency_key=f"key {number}") for number in range(3)]
    for _ in submitted:
        world.finish(world.start(), output={"n": 1})

    history = collect(config)

    world.close()
    assert [] == check(history)
    assert submitted == sorted(history.runs, key=lambda run_id: history.runs[run_id].position)
    assert {"n": 1} == history.runs[submitted[0]].output
    assert len(history.events[session.session_id]) == history.sessions[session.session_id].last_sequence


def test_a_run_that_its_worker_handed_back_may_be_entered_once_more(config: Config) -> None:
    """It used up no attempt; one that was lost did."""
    world = World(config)
    world.submit(world.session(), max_attempts=1)
    first = world.start()
    ending = Attempt(first.run.run_id, first.number)
    ending.stop(SHUTDOWN)
    handed_back = judge(Ending(), ending, Tally(config.max_output_bytes), config, may_return=True)
    world.runtime.coordinator.finish(first, handed_back, [], 0)
    second = world.start()
    world.finish(second)
    history = collect(config)
    world.close()
    history.ledger = [
        Entry(at=at, what="enter", session_id=run.session_id, run_id=run.run_id, attempt=run.attempt, pid=77)
        for at, run in enumerate((first.run, second.run))
    ]

    assert [] == list(entries_beyond_the_policy(history))

    log = history.events[first.run.session_id]
    log[:] = [replace(event, data={**event.data, "error_code": "worker_lost"}) for event in log]
    assert list(entries_beyond_the_policy(history))
