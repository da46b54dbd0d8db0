"""Runs from the first submit to the last end, beside plain Celery and beside its lock and retry."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from benchmarks.figures import Figures, Size, named, spread_ms
from benchmarks.machine import cpu_s, memory_mb
from benchmarks.plain_module import locked, noop
from benchmarks.stage import Stage
from benchmarks.stamps import Stamp
from tests.workers import WorkerProcess


def run(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure many sessions at once: ours with order and log, plain Celery without, then with a lock a key."""
    main, ours, plain = stage.main, stage.ours, stage.plain
    sessions, count = size.sessions, size.sessions * size.runs
    servers = [main.asm.start_session("noop", max_queued_runs=10_000) for _ in range(sessions)]

    def spanned(worker: WorkerProcess, one: Callable[[int], object]) -> tuple[float, float, list[Stamp]]:
        """Return how long all took, the worker's CPU, and the stamps."""
        used, began = cpu_s(worker.pid), time.monotonic()
        for number in range(count):
            one(number)
        stamps = main.stamps.take(count)
        return max(stamp.left for stamp in stamps) - began, cpu_s(worker.pid) - used, stamps

    while True:
        ours_s, ours_cpu_s, stamps = spanned(ours, lambda n: servers[n % sessions].submit_run(n % sessions))
        plain_s, plain_cpu_s, _ = spanned(plain, lambda n: noop.delay("p"))
        locked_s, _, _ = spanned(plain, lambda n: locked.delay(str(n % sessions)))
        yield {
            "end to end: ours, /s": count / ours_s,
            "end to end: plain Celery, /s": count / plain_s,
            "end to end: lock and retry, /s": count / locked_s,
            "end to end: ratio": plain_s / ours_s,
            "end to end: ratio to lock and retry": locked_s / ours_s,
            "end to end: ours, CPU µs of the worker a run": ours_cpu_s / count * 1e6,
            "end to end: plain Celery, CPU µs of the worker a task": plain_cpu_s / count * 1e6,
            **named("gap under load: ours", spread_ms(_gaps_by_key(stamps))),
            "memory after load: ours, MiB": memory_mb(ours.pid),
            "memory after load: plain Celery, MiB": memory_mb(plain.pid),
        }


def _gaps_by_key(stamps: list[Stamp]) -> list[float]:
    by_key: dict[str, list[Stamp]] = defaultdict(list)
    for stamp in stamps:
        by_key[stamp.key].append(stamp)
    return [later.entered - earlier.left for of_key in by_key.values() for earlier, later in pairwise(of_key)]
