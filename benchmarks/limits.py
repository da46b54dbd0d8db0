"""The raw limits: what Redis and SQL cost by themselves, by their own clients, with nothing of ours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

import redis

from benchmarks.elsewhere import Elsewhere
from benchmarks.figures import Figures, Size, median_ms, spread_ms, timed
from benchmarks.raw import RawTable
from benchmarks.stage import Installation, Stage

_SCRIPT = (
    "redis.call('rpush', KEYS[1], ARGV[1]) redis.call('hset', KEYS[2], 'f', ARGV[1]) "
    "redis.call('hdel', KEYS[2], 'f') return redis.call('lpop', KEYS[1])"
)
PACE_S = 0.005


def limits(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure one round trip of a small script, one commit, and rows a second in commits of 100."""
    times = size.times * 4
    with (
        redis.Redis.from_url(stage.main.config.redis_url) as client,
        RawTable(stage.main.config.database_url) as table,
    ):
        script = client.register_script(_SCRIPT)
        while True:
            trips = [timed(lambda: script(keys=["raw:a", "raw:b"], args=["v"])) for _ in range(times)]
            commits = [timed(lambda: table.insert(1)) for _ in range(times)]
            yield {
                "raw: one script in Redis p50, ms": median_ms(trips),
                "raw: one row, one commit p50, ms": median_ms(commits),
                "raw: rows in commits of 100, /s": rows_per_second(table, size.events),
            }


def rows_per_second(table: RawTable, rows: int) -> float:
    """Insert so many rows, 100 to a commit; return how many a second."""
    batches = max(1, rows // 100)

    def insert() -> None:
        for _ in range(batches):
            table.insert(100)

    return batches * 100 / timed(insert)


def raw_delivery_ms(installation: Installation, other: Elsewhere, count: int) -> dict[str, float]:
    """Return p50, p95 and p99 of one commit and one delivery by pub/sub, from another process to this one."""
    channel, late = f"raw:{uuid4().hex}", []
    with redis.Redis.from_url(installation.config.redis_url) as client, client.pubsub() as heard:
        heard.subscribe(channel)
        heard.get_message(timeout=5.0)
        other.begin("publish", channel=channel, count=count, gap_s=PACE_S)
        for _ in range(count):
            message = heard.get_message(timeout=30.0)
            assert message is not None
            late.append(time.monotonic() - float(message["data"]))
    other.answer()
    return spread_ms(late)
