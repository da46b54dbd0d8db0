"""A Redis that refuses commands: workers wait for it, and go on without being started again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asm_celery import AgentSessions
from asm_celery.config import Config
from asm_celery.queue.connection import connect
from tests.acceptance.conftest import MODULE
from tests.waiting import wait_until
from tests.workers import WorkerProcess


@contextlib.contextmanager
def read_only(redis: Any) -> Iterator[None]:
    """A primary that has become a replica of nobody, as after a failover."""
    redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        redis.execute_command("REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def full(redis: Any) -> Iterator[None]:
    """A server that has reached its maxmemory."""
    redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        redis.config_set("maxmemory", 0)


@pytest.mark.parametrize("refusing", [read_only, full])
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_outlives_a_redis_that_refuses(
    sqlite_config: Config,
    start_worker: Callable[..., WorkerProcess],
    refusing: Callable[[Any], contextlib.AbstractContextManager[None]],
    pool: str,
) -> None:
    """What Celery's consumer is refused is tried again; it is no reason to end, and to end all runs."""
    worker = start_worker(MODULE, pool=pool)
    pid = worker.pid
    with AgentSessions(sqlite_config) as asm, contextlib.closing(connect(sqlite_config)) as redis:
        server = asm.start_session("echo")
        server.execute_run("before")

        with refusing(redis):
            meanwhile = server.submit_run("meanwhile")
            wait_until(
                lambda: "Trying to re-establish" in worker.log or worker.log.count("cannot be used") > 1,
                description="the worker was refused",
            )

        assert "meanwhile" == server.await_run(meanwhile, timeout=60.0).output
        assert "after" == server.execute_run("after").output
        assert not worker.has_ended
        assert pid == worker.pid
