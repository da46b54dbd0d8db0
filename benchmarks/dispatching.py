"""From the end of one run to the entry of the next in its session, and from a submit to an idle worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise

from benchmarks.figures import Figures, Size, named, spread_ms, standing_still
from benchmarks.plain_module import ALONE, locked, noop
from benchmarks.stage import Stage
from benchmarks.stamps import Stamp, Stamps
from tests.workers import WorkerProcess


def gap(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure a backlog in one session; plain Celery: in a worker of one slot, and of one key with its lock."""
    main, runs = stage.main, size.backlog
    server = main.asm.start_session("noop", max_queued_runs=10_000)

    def drained(worker: WorkerProcess, one: Callable[[], object]) -> tuple[list[float], float]:
        """Return the gaps of a backlog, and how many a second were done."""
        with standing_still(worker, main.config.database_url):
            for _ in range(runs):
                one()
        stamps = main.stamps.take(runs)
        return _gaps(stamps), (runs - 1) / (stamps[-1].left - stamps[0].left)

    while True:
        ours, ours_rate = drained(stage.ours, lambda: server.submit_run("g"))
        plain, plain_rate = drained(stage.alone, lambda: noop.apply_async(("g",), queue=ALONE))
        _, locked_rate = drained(stage.plain, lambda: locked.delay("g"))
        ours_ms, plain_ms = spread_ms(ours), spread_ms(plain)
        yield {
            **named("gap: ours", ours_ms),
            **named("gap: plain Celery", plain_ms),
            "gap: p50 ratio": ours_ms["p50"] / plain_ms["p50"],
            "gap: p99 of ours in its p50": ours_ms["p99"] / ours_ms["p50"],
            "one busy session: ours, /s": ours_rate,
            "one busy session: plain Celery, one slot, /s": plain_rate,
            "one busy session: lock and retry, /s": locked_rate,
            "one busy session: ratio to lock and retry": ours_rate / locked_rate,
        }


def pick_up(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure from the call of submit to the entry of the agent, nothing else under way."""
    stamps = stage.main.stamps
    for worker in (stage.ours, stage.plain):
        assert not worker.has_ended
    server = stage.main.asm.start_session("noop")
    while True:
        of_ours = spread_ms([_picked_up(stamps, lambda: server.submit_run("u")) for _ in range(size.times)])
        of_plain = spread_ms([_picked_up(stamps, lambda: noop.delay("u")) for _ in range(size.times)])
        yield {
            **named("pick up: ours", of_ours),
            **named("pick up: plain Celery", of_plain),
            "pick up: p50 ratio": of_ours["p50"] / of_plain["p50"],
        }


def _gaps(stamps: list[Stamp]) -> list[float]:
    return [later.entered - earlier.left for earlier, later in pairwise(stamps)]


def _picked_up(stamps: Stamps, call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    entered = stamps.take(1)[0].entered
    time.sleep(0.02)  # idle again
    return entered - began
