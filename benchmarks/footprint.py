"""What is held: by an idle worker, by an idle session, by a worker full of runs that wait."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import redis

from asm_celery.config import Config
from benchmarks.figures import Figures, Size, standing_still
from benchmarks.machine import cpu_s, memory_mb
from benchmarks.plain_module import noop
from benchmarks.stage import Stage


def idle(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure workers that have done one run and wait for the next; first of all, before others have grown them."""
    main, ours, plain = stage.main, stage.ours, stage.plain
    main.asm.start_session("noop").submit_run("i")
    noop.delay("i")
    main.stamps.take(2)
    time.sleep(size.idle_s)
    while True:
        before, began = (cpu_s(ours.pid), cpu_s(plain.pid)), time.monotonic()
        time.sleep(size.idle_s)
        seconds = time.monotonic() - began
        memory = memory_mb(ours.pid), memory_mb(plain.pid)
        yield {
            "idle worker: ours, % of a core": (cpu_s(ours.pid) - before[0]) / seconds * 100,
            "idle worker: plain Celery, % of a core": (cpu_s(plain.pid) - before[1]) / seconds * 100,
            "idle worker: ours, MiB": memory[0],
            "idle worker: plain Celery, MiB": memory[1],
            "idle worker: ratio of memory": memory[0] / memory[1],
        }


def idle_sessions(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure what sessions leave that have had one run each and nothing to do."""
    main, ours, count = stage.main, stage.ours, size.submits
    with redis.Redis.from_url(main.config.redis_url) as client:

        def held() -> tuple[float, float, float]:
            used = int(client.info("memory")["used_memory"])
            return used, _stored_bytes(main.config), memory_mb(ours.pid) * (1 << 20)

        while True:
            before = held()
            for _ in range(count):
                main.asm.start_session("noop").submit_run("i")
            main.stamps.take(count)
            after = held()
            in_redis, in_sql, in_worker = (
                (more - less) / count for more, less in zip(after, before, strict=True)
            )
            yield {
                "idle session with one run: bytes in Redis": in_redis,
                "idle session with one run: bytes in SQL": in_sql,
                "idle session with one run: bytes in the worker": in_worker,
            }


def holding(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure one worker of threads with many runs that wait for a slow service."""
    with stage.installation() as here:
        worker = here.io_worker(size.waiting)
        servers = [here.asm.start_session("sleeper") for _ in range(size.waiting)]
        while True:
            with standing_still(worker, here.config.database_url):
                for server in servers:
                    server.submit_run(size.io_s)
                used, began = cpu_s(worker.pid), time.monotonic()
            stamps = here.stamps.take(size.waiting)
            took_s = max(stamp.left for stamp in stamps) - began
            yield {
                "runs that wait for I/O: all of them, s": took_s,
                "runs that wait for I/O: ratio to one of them": took_s / size.io_s,
                "runs that wait for I/O: worker, MiB": memory_mb(worker.pid),
                "runs that wait for I/O: worker, CPU µs a run": (cpu_s(worker.pid) - used)
                / size.waiting
                * 1e6,
            }


def _stored_bytes(config: Config) -> float:
    if config.database_url.startswith("sqlite:///"):
        path = Path(config.database_url.removeprefix("sqlite:///"))
        connection = sqlite3.connect(path)
        [pages], [page] = (
            connection.execute(f"pragma {word}").fetchone() for word in ("page_count", "page_size")
        )
        connection.close()
        return float(pages * page)
    with psycopg.connect(config.database_url.replace("postgresql+psycopg://", "postgresql://")) as asked:
        row = asked.execute("select pg_database_size(current_database())").fetchone()
    assert row is not None
    return float(row[0])
