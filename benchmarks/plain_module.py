"""Plain Celery, as its users have it: ``celery -A benchmarks.plain_module worker``.

`noop` has no order and no log.  `locked` is the usual way to order the work of one key: a lock in Redis, and
another try when it is taken.
"""

from __future__ import annotations

import os
from typing import Any

import redis
from celery import Celery, Task

from benchmarks.stamps import stamp

URL = os.environ["ASM_DEV_BROKER"]
app = Celery("plain", broker=URL.replace("unix://", "redis+socket://").replace("?db=0", "?virtual_host=0"))
app.conf.update(
    task_ignore_result=True,
    task_default_queue=os.environ.get("ASM_DEV_QUEUE", "plain"),
    broker_connection_retry_on_startup=True,
)
client = redis.Redis.from_url(URL)


@app.task
def noop(key: str) -> None:
    """Do nothing, and say when."""
    stamp(key)


@app.task(bind=True, max_retries=None)
def locked(self: Task[Any, Any], key: str) -> None:
    """Do nothing, one at a time of a key."""
    lock = client.lock(f"plain:lock:{key}", timeout=60, blocking=False)
    if not lock.acquire(blocking=False):
        raise self.retry(countdown=0.05)
    try:
        stamp(key)
    finally:
        lock.release()
