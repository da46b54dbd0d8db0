"""The measurements: each returns figures of ours and of plain Celery from the same moment."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

from asm_celery import errors
from benchmarks.plain_module import locked, noop
from benchmarks.stage import Stage
from tests.workers import WorkerProcess

Figures = dict[str, float]


def submit(stage: Stage, ours: WorkerProcess, plain: WorkerProcess, *, count: int = 500) -> Figures:
    """Submits a second by one client, its worker standing still: durable, ordered, dispatched."""
    servers = [stage.asm.start_session("noop", max_queued_runs=10_000) for _ in range(50)]
    with _standing_still(ours):
        ours_s = _timed(lambda: [servers[n % 50].submit_run("s") for n in range(count)])
    stage.stamps.wait_for(count)
    stage.stamps.clear()
    with _standing_still(plain):
        plain_s = _timed(lambda: [noop.delay("p") for _ in range(count)])
    stage.stamps.wait_for(count)
    stage.stamps.clear()
    return {
        "submit ours /s": count / ours_s,
        "submit plain /s": count / plain_s,
        "submit ratio": plain_s / ours_s,
    }


def end_to_end(stage: Stage, *, sessions: int = 50, runs: int = 40) -> Figures:
    """Runs a second from the first submit to the last end, the worker running."""
    count = sessions * runs
    servers = [stage.asm.start_session("noop", max_queued_runs=10_000) for _ in range(sessions)]
    ours_s = _spanned(stage, count, lambda: [servers[n % sessions].submit_run("e") for n in range(count)])
    plain_s = _spanned(stage, count, lambda: [noop.delay("p") for _ in range(count)])
    return {
        "end to end ours /s": count / ours_s,
        "end to end plain /s": count / plain_s,
        "end to end ratio": plain_s / ours_s,
    }


def gap(stage: Stage, ours: WorkerProcess, *, runs: int = 150) -> Figures:
    """The pause between two runs of one session with a backlog; plain: between two tasks of one thread."""
    server = stage.asm.start_session("noop", max_queued_runs=10_000)
    with _standing_still(ours):
        for _ in range(runs):
            server.submit_run("g")
    ours_gaps = _gaps(stage, runs)
    one = stage.plain(concurrency=1)
    try:
        with _standing_still(one):
            for _ in range(runs):
                noop.delay("g")
        plain_gaps = _gaps(stage, runs)
    finally:
        one.stop()
    return {
        **_quantiles("gap ours ms", ours_gaps),
        **_quantiles("gap plain ms", plain_gaps),
        "gap p50 ratio": statistics.median(ours_gaps) / statistics.median(plain_gaps),
    }


def gap_locked(stage: Stage, *, runs: int = 100) -> Figures:
    """The same for plain Celery with a lock and retry, all of one key."""
    for _ in range(runs):
        locked.delay("k")
    return _quantiles("gap lock and retry ms", _gaps(stage, runs))


def pick_up(stage: Stage, *, times: int = 25) -> Figures:
    """From the call of submit to the entry of the agent in an idle worker."""
    server = stage.asm.start_session("noop")
    ours = [_picked_up(stage, lambda: server.submit_run("u")) for _ in range(times)]
    plain = [_picked_up(stage, lambda: noop.delay("u")) for _ in range(times)]
    return {
        **_quantiles("pick up ours ms", ours),
        **_quantiles("pick up plain ms", plain),
        "pick up p50 ratio": statistics.median(ours) / statistics.median(plain),
    }


def awaiting(stage: Stage, *, times: int = 50) -> Figures:
    """From the end of the agent to the return of `await_run`; the terminal event's commit is in between."""
    server, waited = stage.asm.start_session("noop"), []
    for _ in range(times):
        run_id = server.submit_run("a")
        server.await_run(run_id)
        back = time.monotonic()
        waited.append(back - stage.stamps.wait_for(1)[-1].left)
        stage.stamps.clear()
    return _quantiles("await ms", waited)


def cancelling(stage: Stage, *, times: int = 25) -> Figures:
    """From the call of `cancel_run` on a coroutine agent to the return of an awaiter."""
    server, took = stage.asm.start_session("waiter"), []
    for _ in range(times):
        run_id = server.submit_run("c")
        stage.stamps.wait_for(1)
        stage.stamps.clear()
        began = time.monotonic()
        server.cancel_run(run_id)
        try:
            server.await_run(run_id)
        except errors.RunCancelled:
            took.append(time.monotonic() - began)
    return _quantiles("cancel ms", took)


def _gaps(stage: Stage, count: int) -> list[float]:
    stamps = stage.stamps.wait_for(count)
    stage.stamps.clear()
    return [later.entered - earlier.left for earlier, later in pairwise(stamps)]


def _picked_up(stage: Stage, call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    entered = stage.stamps.wait_for(1)[0].entered
    stage.stamps.clear()
    time.sleep(0.02)  # idle again
    return entered - began


def _spanned(stage: Stage, count: int, call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    stamps = stage.stamps.wait_for(count)
    stage.stamps.clear()
    return max(stamp.left for stamp in stamps) - began


def _timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _quantiles(name: str, seconds: list[float]) -> Figures:
    cuts = statistics.quantiles(seconds, n=100)
    return {f"{name} p50": cuts[49] * 1000, f"{name} p95": cuts[94] * 1000, f"{name} p99": cuts[98] * 1000}


@contextmanager
def _standing_still(worker: WorkerProcess) -> Iterator[None]:
    os.killpg(os.getpgid(worker.pid), signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(os.getpgid(worker.pid), signal.SIGCONT)
