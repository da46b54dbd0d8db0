"""Waiting for the end of a run: of itself, and of one that is cancelled."""

from __future__ import annotations

import time
from collections.abc import Iterator

from asm_celery import SessionServer, errors
from benchmarks.figures import Figures, Size, named, spread_ms
from benchmarks.limits import raw_delivery_ms
from benchmarks.stage import Stage
from benchmarks.stamps import Stamps


def await_end(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure from the end of the agent to the return of `await_run`; the last event's commit is in between."""
    main, worker = stage.main, stage.ours
    assert not worker.has_ended
    server, times = main.asm.start_session("noop"), size.times * 2
    with main.elsewhere() as other:
        while True:
            ours = spread_ms([_awaited(server, main.stamps) for _ in range(times)])
            raw = raw_delivery_ms(main, other, times)
            yield {
                **named("await: ours", ours),
                "await: one commit and one delivery p50, ms": raw["p50"],
                "await: p50 ratio": ours["p50"] / raw["p50"],
            }


def cancel(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure from the call of `cancel_run`, of a coroutine agent at work, to the return of an awaiter."""
    main, worker = stage.main, stage.ours
    assert not worker.has_ended
    server = main.asm.start_session("waiter")
    while True:
        yield named("cancel", spread_ms([_cancelled(server, main.stamps) for _ in range(size.times)]))


def _awaited(server: SessionServer, stamps: Stamps) -> float:
    run_id = server.submit_run("a")
    server.await_run(run_id)
    back = time.monotonic()
    return back - stamps.take(1)[0].left


def _cancelled(server: SessionServer, stamps: Stamps) -> float:
    run_id = server.submit_run("c")
    stamps.take(1)
    began = time.monotonic()
    server.cancel_run(run_id)
    try:
        server.await_run(run_id)
    except errors.RunCancelled:
        return time.monotonic() - began
    raise AssertionError("a run that waits for ever has completed")
