"""Recovery: Redis is emptied while many sessions have work waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import redis

from benchmarks.figures import Figures, Size
from benchmarks.stage import Stage
from tests.servers import valkey


def recovery(stage: Stage, size: Size) -> Iterator[Figures]:
    """Measure from FLUSHALL to the first run that starts afterwards, and to the end of the last."""
    count = size.flushed
    # not the others' Redis: plain Celery would not survive it
    with valkey() as url, stage.installation(url) as here, redis.Redis.from_url(url) as client:
        worker = here.worker()
        assert not worker.has_ended
        servers = [here.asm.start_session("noop") for _ in range(count)]
        while True:
            here.asm.control.hold()
            for server in servers:
                server.submit_run("r")
            began = time.monotonic()
            here.asm.control.release()
            client.flushall()
            flushed = time.monotonic()
            stamps = here.stamps.take(count)
            entered = [flushed, *(one.entered for one in stamps if one.entered > flushed)]
            # what was leased before goes on; then there is the pause of the restore
            pause_s, back = max((later - earlier, later) for earlier, later in pairwise(entered))
            yield {
                "FLUSHALL: first run after, s": back - flushed,
                "FLUSHALL: all done, s": stamps[-1].left - began,
                "FLUSHALL: longest pause, s": pause_s,
            }
