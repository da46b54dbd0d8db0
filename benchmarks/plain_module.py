"""Plain Celery, as its users have it: ``celery -A benchmarks.plain_module worker``.

`noop` has no order and no log.  `locked` is the usual way to order the work of one key: a lock in Redis, and
another try when it is taken.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import redis
from celery import Celery, Task

from benchmarks.stamps import stamp

VARIABLE = "ASM_DEV_BROKER"
QUEUE, ALONE = "plain", "alone"

app = Celery("plain")
app.conf.update(task_ignore_result=True, task_default_queue=QUEUE, broker_connection_retry_on_startup=True)


def connect(url: str) -> None:
    """Use the broker at this URL."""
    app.conf.update(broker_url=url.replace("unix://", "redis+socket://").replace("?db=0", "?virtual_host=0"))


if VARIABLE in os.environ:
    connect(os.environ[VARIABLE])


@app.task
def noop(key: str) -> None:
    """Do nothing, and say when."""
    stamp(key)


@app.task(bind=True, max_retries=None)
def locked(self: Task[Any, Any], key: str) -> None:
    """Do nothing, one at a time of a key."""
    lock = _client(os.getpid()).lock(f"plain:lock:{key}", timeout=60, blocking=False)
    if not lock.acquire(blocking=False):
        raise self.retry(countdown=0.05)
    try:
        stamp(key)
    finally:
        lock.release()


@cache
def _client(_owner: int) -> redis.Redis:
    return redis.Redis.from_url(os.environ[VARIABLE])
