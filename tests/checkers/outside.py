"""What was seen outside of our stores: the agents' ledger, the faults, what is left when all has ended."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from asm_celery.states import EventType, RunStatus
from tests.acceptance.ledger import Entry
from tests.checkers.record import Fault, History, LimitChange

# Keys without a run or session in them: settings, announcements and counts that run out by themselves.
_MAY_STAY = ("gate", "settings", "turn", "executors", "capacity", "retired", "comparing", "queues")
_MAY_STAY_FOR = ("workers:", "subscribers:", "celery:_kombu.", "celery:unacked")


class _Span(NamedTuple):
    """User code of one attempt, from its entry to its exit or to what befell its process."""

    start: float
    end: float
    session_id: str
    run_id: str


def entries_beyond_the_policy(history: History) -> Iterator[str]:
    """P6, P7: user code is entered once a started attempt, at most `max_attempts` times but for hand-backs."""
    entered = Counter(entry.run_id for entry in history.ledger if entry.what == "enter")
    starts: Counter[str] = Counter()
    handed_back: Counter[str] = Counter()
    for events in history.events.values():
        for event in events:
            if event.run_id is not None and event.type == EventType.RUN_STARTED:
                starts[event.run_id] += 1
            elif event.run_id is not None and event.type == EventType.RUN_REQUEUED:
                handed_back[event.run_id] += event.data.get("error_code") == "worker_shutdown"
    for run_id, count in entered.items():
        run = history.runs.get(run_id)
        if run is None:
            yield f"{run_id} was entered and is not in SQL"
            continue
        if count > run.max_attempts + handed_back[run_id]:
            yield (
                f"{run_id} was entered {count} times, with max_attempts={run.max_attempts} and "
                f"{handed_back[run_id]} hand-backs"
            )
        if count > starts[run_id]:
            yield f"{run_id} was entered {count} times and started {starts[run_id]} times"
    for run_id, run in history.runs.items():
        if run.status == RunStatus.COMPLETED and history.ledger and not entered[run_id]:
            yield f"{run_id} is completed and was never entered"


def overlaps_in_a_session(history: History) -> Iterator[str]:
    """P4: no more agents of a session are inside at once than it has slots."""
    by_session: dict[str, list[_Span]] = defaultdict(list)
    for span in _spans(history):
        by_session[span.session_id].append(span)
    for session_id, spans in by_session.items():
        slots = history.sessions[session_id].slots if session_id in history.sessions else 1
        for at, inside in _beyond(spans, lambda _, slots=slots: slots):  # type: ignore[misc]
            yield f"{session_id}: at {at:.3f} inside were {inside}, with {slots} slots"


def limit_excess(history: History) -> Iterator[str]:
    """P5: no more agents are inside at once, over all sessions, than the limit allows."""
    if not history.limits:
        return
    changes = sorted(history.limits, key=lambda change: change.at)
    for at, inside in _beyond(_spans(history), lambda at: _limit_at(changes, at, history.limit_settles_s)):
        yield f"at {at:.3f} {len(inside)} runs were inside, beyond the limit: {inside}"


def false_deaths(history: History) -> Iterator[str]:
    """P15: `worker_lost` is said only of a process that was killed, frozen or cut off."""
    entered = {(entry.run_id, entry.attempt): entry for entry in history.ledger if entry.what == "enter"}
    for events in history.events.values():
        executors: dict[str, tuple[str, int]] = {}
        for event in events:
            if event.run_id is None:
                continue
            if event.type == EventType.RUN_STARTED:
                executors[event.run_id] = str(event.data.get("executor", "")), event.attempt
            elif event.data.get("error_code") == "worker_lost" and event.run_id in executors:
                executor, attempt = executors[event.run_id]
                since = entered.get((event.run_id, attempt))
                if not _is_excused(history.faults, event.run_id, _pid(executor), since):
                    yield (
                        f"#{event.sequence}: {event.run_id} is said to be lost with {executor}, which no fault "
                        "had touched"
                    )


def recoveries_too_slow(history: History) -> Iterator[str]:
    """P14: service is back within the bound of the fault."""
    for fault in history.faults:
        if fault.recovered_s is not None and fault.bound_s is not None and fault.recovered_s > fault.bound_s:
            yield (
                f"{fault.kind} at {fault.at:.3f}: {fault.recovered_s:.1f} s, the bound is {fault.bound_s:g} s"
            )


def leaks(history: History) -> Iterator[str]:
    """After the drain Redis holds no run, lease or slot, and no process of a run's group lives."""
    for key in history.keys:
        if key not in _MAY_STAY and not key.startswith(_MAY_STAY_FOR):
            yield f"Redis still holds {key}"
    for pid in history.processes:
        yield f"process {pid} of a run is still alive"


def _spans(history: History) -> list[_Span]:
    """Return when user code was inside; without an exit, until its process was hit, or for no time."""
    left: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    for entry in history.ledger:
        if entry.what == "leave":
            left[entry.run_id, entry.attempt, entry.pid].append(entry.at)
    hits = [(fault.at, fault.until, pid) for fault in history.faults for pid in fault.pids]
    spans = []
    for entry in history.ledger:
        if entry.what != "enter":
            continue
        ends = [at for at in left[entry.run_id, entry.attempt, entry.pid] if at >= entry.at]
        end = min(ends, default=entry.at)
        # a frozen process may overlap outside when it thaws, also in what it entered while it was being hit:
        # that is not promised
        struck = [max(at, entry.at) for at, until, pid in hits if pid == entry.pid and until >= entry.at]
        spans.append(_Span(entry.at, min([end, *struck]), entry.session_id, entry.run_id))
    return spans


def _beyond(spans: Iterable[_Span], allowed: Callable[[float], float]) -> Iterator[tuple[float, list[str]]]:
    """Sweep over the spans; yield each entry that brings more inside than is allowed then."""
    turns = [(span.start, 1, span.run_id) for span in spans] + [(span.end, 0, span.run_id) for span in spans]
    inside: Counter[str] = Counter()
    total = 0
    # at one instant exits come first, but for a span that begins and ends there
    for at, enters, run_id in sorted(turns):
        if enters:
            inside[run_id] += 1
            total += 1
            if total > allowed(at):
                yield at, sorted(name for name, count in inside.items() if count > 0)
        else:
            inside[run_id] -= 1
            total -= 1


def _limit_at(changes: list[LimitChange], at: float, settles_s: float) -> float:
    in_force = [change for change in changes if change.at <= at - settles_s][-1:]
    in_force += [change for change in changes if at - settles_s < change.at <= at + settles_s]
    limits = [float("inf") if change.limit is None else change.limit for change in in_force]
    return max(limits, default=float("inf"))


def _is_excused(faults: Iterable[Fault], run_id: str, pid: int | None, since: Entry | None) -> bool:
    return any(
        run_id in fault.runs or (pid in fault.pids and (since is None or fault.until >= since.at))
        for fault in faults
    )


def _pid(executor: str) -> int | None:
    """Return the process id in ``host:pid:digits``."""
    parts = executor.rsplit(":", 2)
    return int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else None
