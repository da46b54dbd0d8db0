"""One way to reach the coordination server: timeouts always set, errors always typed."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from asm_celery.config import Config
from asm_celery.errors import (
    CoordinationDamaged,
    CoordinationUnavailable,
    DependencyNotAvailable,
    EvictionAllowed,
)
from asm_celery.showing import mask

log = logging.getLogger(__name__)

MINIMUM_REDIS: Final = (7, 0)
# A peer that is gone without a word is noticed in 11 s, also by who only waits for it to speak.
KEEPALIVE: Final = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}
# A script that stumbled over what it read; what the server itself refuses begins with a word of its own.
_REFUSED: Final = re.compile(r"[A-Z]{3,} ")


def connect(config: Config, *, blocking: bool = False) -> redis.Redis:
    """Return a client of the coordination server; it connects at first use.

    Args:
        blocking: for a reader that waits on pub/sub: no socket timeout, a health check instead.
    """
    timeout = config.connect_timeout_s
    # a Unix socket has no half-open peers, and redis-py refuses the option there
    tcp: dict[str, Any] = {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
    if config.redis_url.startswith("unix://"):
        tcp = {}
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
    """Turn what redis-py raises inside the block into CoordinationUnavailable, or CoordinationDamaged."""
    try:
        yield
    except redis.RedisError as cause:
        if _is_damage(cause):
            raise damaged(str(cause)) from cause
        raise CoordinationUnavailable(
            f"Redis at {mask(config_url)} cannot be used ({type(cause).__name__}: {cause}): accepted runs "
            "start when it is back"
        ) from cause


def damaged(what: str) -> CoordinationDamaged:
    """Return the error that says what was found at our keys."""
    return CoordinationDamaged(
        f"Redis holds what is not ours at our keys ({what[:200]!r}): workers throw it away and restore it from SQL"
    )


def check_eviction(client: redis.Redis, config: Config) -> None:
    """Raise EvictionAllowed when the server may drop keys as it likes; a worker's first question.

    Nothing accepted would be lost, but leases would vanish under running runs, and limits with them.
    """
    with reaching(config.redis_url):
        policy = evicts(client)
    if policy is not None and not config.allow_eviction:
        raise EvictionAllowed(
            f"Redis at {mask(config.redis_url)} has maxmemory-policy {policy}: it would drop leases and waiting "
            "runs when its memory is full; set maxmemory-policy noeviction there, or ASM_ALLOW_EVICTION=true "
            "to start all the same",
            details={"maxmemory_policy": policy},
        )


def refuse_eviction(config: Config) -> None:
    """Do `check_eviction` on a connection of its own, which is closed again; a server that is away passes."""
    client = connect(config)
    try:
        check_eviction(client, config)
    except CoordinationUnavailable as cause:
        log.warning("whether Redis evicts is not known: %s", cause.message)
    finally:
        client.close()


def evicts(client: redis.Redis) -> str | None:
    """Return the server's maxmemory-policy if it evicts; None if it refuses writes instead, or tells none."""
    memory: Any = client.info("memory")
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    return None if policy == "noeviction" else policy


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


def _is_damage(cause: redis.RedisError) -> bool:
    if type(cause) is not redis.ResponseError:
        return False
    said = str(cause)
    return "WRONGTYPE" in said or ("user_script" in said and not _REFUSED.match(said))
