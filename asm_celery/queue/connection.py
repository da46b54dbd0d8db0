"""One way to reach the coordination server: timeouts always set, errors always typed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from asm_celery.config import Config, mask
from asm_celery.errors import CoordinationUnavailable, DependencyNotAvailable

MINIMUM_REDIS: Final = (7, 0)


def connect(config: Config, *, blocking: bool = False) -> redis.Redis:
    """Return a client of the coordination server; it connects at first use.

    Args:
        blocking: for a reader that waits on pub/sub: no socket timeout, a health check instead.
    """
    timeout = config.connect_timeout_s
    # a Unix socket has no half-open peers, and redis-py refuses the option there
    tcp = {} if config.redis_url.startswith("unix://") else {"socket_keepalive": True}
    return redis.Redis.from_url(
        config.redis_url,
        socket_connect_timeout=timeout,
        socket_timeout=None if blocking else timeout,
        health_check_interval=25,
        # every script is idempotent, so one quick second try over a fresh connection is safe
        retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.1), 0 if blocking else 1),
        max_connections=1000,
        client_name="asm_celery",
        **tcp,
    )


@contextmanager
def reaching(config_url: str) -> Iterator[None]:
    """Turn what redis-py raises inside the block into CoordinationUnavailable."""
    try:
        yield
    except redis.RedisError as cause:
        raise CoordinationUnavailable(
            f"Redis at {mask(config_url)} cannot be used ({type(cause).__name__}: {cause}): accepted runs "
            "start when it is back"
        ) from cause


def check_version(client: redis.Redis) -> None:
    """Raise DependencyNotAvailable unless the server is Redis >= 7.0 or Valkey (whose first release is 7.2)."""
    about = client.info("server")
    assert isinstance(about, dict)
    version = str(about.get("redis_version", "0"))
    if "valkey_version" in about or _numbers(version) >= MINIMUM_REDIS:
        return
    raise DependencyNotAvailable(
        f"the coordination server is Redis {version}: asm_celery needs Redis >= 7.0 or Valkey >= 7.2",
        details={"redis_version": version},
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
