"""The words of a measurement: sizes, figures, quantiles, and a worker that stands still meanwhile."""

from __future__ import annotations

import os
import signal
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from tests.faults.system import is_stopped
from tests.waiting import wait_until
from tests.workers import WorkerProcess

# what one round of a measure gives: a line of the table -> its number
Figures = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much a measure does in a round.

    Attributes:
        submits: submits of all clients together.
        sessions, runs: of the end-to-end load; `runs` for each session.
        backlog: runs that wait in one session.
        times: repetitions of what is done one at a time.
        events: said in one burst; `paced` events at 200 a second.
        crowd: subscribers of one session.
        grown: the large number of sessions; `old_events` in the log.
        flushed: sessions that wait while Redis is emptied.
        waiting: runs that wait for I/O in one worker, `io_s` seconds each.
        idle_s: how long an idle worker is watched.
    """

    submits: int = 500
    sessions: int = 50
    runs: int = 40
    backlog: int = 150
    times: int = 25
    events: int = 2000
    paced: int = 200
    crowd: int = 100
    grown: int = 20_000
    old_events: int = 1_000_000
    flushed: int = 1000
    waiting: int = 500
    io_s: float = 2.0
    idle_s: float = 5.0


FULL = Size()
# each measure once, to see that it works; its figures say nothing
TINY = Size(
    submits=8,
    sessions=4,
    runs=2,
    backlog=6,
    times=3,
    events=100,
    paced=20,
    crowd=5,
    grown=100,
    old_events=1000,
    flushed=10,
    waiting=10,
    io_s=0.2,
    idle_s=0.5,
)


def timed(call: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


def median_ms(seconds: Sequence[float]) -> float:
    """Return the median in milliseconds."""
    return statistics.median(seconds) * 1000


def spread_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"p{place}": cuts[place - 1] * 1000 for place in (50, 95, 99)}


def named(name: str, spread: dict[str, float]) -> Figures:
    """Return the lines of the table for a spread of times."""
    return {f"{name} {word}, ms": value for word, value in spread.items()}


@contextmanager
def standing_still(worker: WorkerProcess, database_url: str = "") -> Iterator[None]:
    """Stop a worker in its tracks, so that what is measured has the machine for itself.

    Args:
        database_url: a SQLite file that others write meanwhile: the worker is not stopped while it does.
    """
    group = os.getpgid(worker.pid)
    try:
        while True:
            os.killpg(group, signal.SIGSTOP)
            wait_until(lambda: is_stopped(worker.pid), description="the worker stands still")
            if not _is_locked(database_url):
                break
            os.killpg(group, signal.SIGCONT)
        yield
    finally:
        os.killpg(group, signal.SIGCONT)


def _is_locked(database_url: str) -> bool:
    """Say whether somebody writes to a SQLite file now; whoever stood still in it would keep all others out."""
    if not database_url.startswith("sqlite:///"):
        return False
    path = database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        connection.execute("ROLLBACK")
        return False
