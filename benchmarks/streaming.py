"""Events: appended by an agent, delivered to one subscriber and to a hundred; what these cost the writer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.elsewhere import Elsewhere
from benchmarks.figures import Figures, Size, named
from benchmarks.limits import PACE_S, raw_delivery_ms, rows_per_second
from benchmarks.machine import cpu_s
from benchmarks.raw import RawTable
from benchmarks.stage import Stage


@dataclass(frozen=True, slots=True)
class _Told:
    """Of one run that talked.

    Attributes:
        delivered_s: from its first event to the last delivery.
        stored_s: from its first event until all of them and its end are stored.
        late_ms: p50, p95 and p99 of an event's way.
        worker_s: CPU of the worker.
    """

    delivered_s: float
    stored_s: float
    late_ms: dict[str, float]
    worker_s: float


def events(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure a burst, and 200 a second, beside the same rows and messages written with nothing of ours."""
    main, crowd, count = stage.main, size.crowd, size.events
    assert not stage.ours.has_ended
    with main.elsewhere() as other, RawTable(main.config.database_url) as table:
        while True:
            one = _talk(stage, other, subscribers=1, count=count)
            many = _talk(stage, other, subscribers=crowd, count=count)
            raw_rate = rows_per_second(table, count)
            paced = _talk(stage, other, subscribers=1, count=size.paced, gap_s=PACE_S)
            paced_many = _talk(stage, other, subscribers=crowd, count=size.paced, gap_s=PACE_S)
            raw = raw_delivery_ms(main, other, size.paced)
            yield {
                "events to 1 subscriber, /s": count / one.delivered_s,
                "events: rows in commits of 100 with nothing of ours, /s": raw_rate,
                "events: ratio to such rows": count / one.delivered_s / raw_rate,
                **named("events to 1 subscriber, burst: delivery", one.late_ms),
                "events to the crowd, /s each": count / many.delivered_s,
                **named("events to the crowd, burst: delivery", many.late_ms),
                "events: writer's CPU with the crowd, ratio to 1": many.worker_s / one.worker_s,
                "events: writer's time with the crowd, ratio to 1": many.stored_s / one.stored_s,
                "events: writer's CPU µs an event": one.worker_s / count * 1e6,
                **named("events, 200/s: delivery to 1", paced.late_ms),
                **named("events, 200/s: delivery to the crowd", paced_many.late_ms),
                **named("events, 200/s: one commit and one delivery", raw),
                "events, 200/s: p50 ratio": paced.late_ms["p50"] / raw["p50"],
            }


def _talk(stage: Stage, other: Elsewhere, *, subscribers: int, count: int, gap_s: float = 0.0) -> _Told:
    main, worker = stage.main, stage.ours
    server = main.asm.start_session("chatter")
    other.ask("follow", session_id=server.session_id, subscribers=subscribers, count=count)
    used = cpu_s(worker.pid)
    run_id = server.submit_run({"count": count, "gap_s": gap_s})
    server.await_run(run_id, timeout=300)
    back, used = time.monotonic(), cpu_s(worker.pid) - used
    heard: dict[str, Any] = other.answer()
    main.stamps.take(1)
    return _Told(heard["took_s"], back - heard["first"], heard["late_ms"], used)
