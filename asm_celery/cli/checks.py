"""What a doctor looks at: is all there that an installation needs?  It reads only."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from asm_celery import __version__
from asm_celery.cli.words import ago
from asm_celery.config import Config
from asm_celery.errors import AsmError
from asm_celery.moves.comparison import Comparison
from asm_celery.moves.holding import hold_in
from asm_celery.queue.connection import check_version, connect, reaching
from asm_celery.queue.run_queue import RunQueue
from asm_celery.runtime import Runtime
from asm_celery.showing import mask
from asm_celery.store.database import Store
from asm_celery.store.schema import revision_of

_PACKAGES: Final = ("celery", "kombu", "redis", "sqlalchemy", "psycopg")
_START_WORKER: Final = "start one with `asm worker`"


class Level(StrEnum):
    """What a check came to: it works, it works but, it does not."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at and found.

    Attributes:
        remedy: what to do; empty when ok.
        facts: JSON-ready details.
    """

    name: str
    level: Level
    message: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def check_all(runtime: Runtime) -> Iterator[Check]:
    """Do every check that the ones before it leave possible, in order."""
    config = runtime.config
    yield _versions()
    yield _settings(config)
    store, queue = runtime.store, runtime.queue
    try:
        database = _looked("database", lambda: _database(config, store), "start it, or set ASM_DATABASE_URL")
        yield database
        if database.level is Level.OK:
            database = _looked("schema", lambda: _schema(config))
            yield database
        has_database = database.level is Level.OK
        redis = _looked("redis", lambda: _redis(config), "start it, or set ASM_REDIS_URL")
        yield redis
        if redis.level is not Level.FAIL:
            yield _looked("memory", lambda: _memory(config))
            yield _looked("gate", lambda: _gate(queue))
        if has_database:
            yield _looked("hold", lambda: _hold(store))
            yield _looked("workers", lambda: _workers(config, store))
        if has_database and redis.level is not Level.FAIL:
            yield _looked("difference", lambda: _difference(runtime.comparison))
    finally:
        runtime.close()


def _looked(name: str, look: Callable[[], Check], remedy: str = "") -> Check:
    try:
        return look()
    except AsmError as error:
        facts = {"code": error.code}
        return Check(name=name, level=Level.FAIL, message=error.message, remedy=remedy, facts=facts)


def _versions() -> Check:
    found = {"asm_celery": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "-"
    said = ", ".join(f"{name} {number}" for name, number in found.items())
    return Check(name="versions", level=Level.OK, message=said, facts=found)


def _settings(config: Config) -> Check:
    shown = config.masked()
    changed = {name: value for name, value in shown.items() if value != Config.default(name)}
    said = ", ".join(f"{name}={value}" for name, value in changed.items()) or "all as by default"
    return Check(name="settings", level=Level.OK, message=said, facts=shown)


def _database(config: Config, store: Store) -> Check:
    url = mask(config.database_url)
    path = config.database_url.removeprefix("sqlite:///")
    if path != config.database_url and not Path(path).expanduser().exists():
        # looking would make an empty one
        return Check(
            name="database",
            level=Level.FAIL,
            message=f"{url} does not exist",
            remedy="set ASM_DATABASE_URL, or make it with `asm migrate`",
        )
    with store.read() as tx:
        sessions = tx.sessions.count()
    return Check(
        name="database", level=Level.OK, message=f"{url}, {sessions} sessions", facts={"sessions": sessions}
    )


def _schema(config: Config) -> Check:
    has, newest = revision_of(config.database_url)
    facts = {"revision": has, "newest": newest}
    if has == newest:
        return Check(name="schema", level=Level.OK, message=f"revision {has}", facts=facts)
    return Check(
        name="schema",
        level=Level.FAIL,
        message=f"revision {has or 'none'}, this release knows {newest}",
        remedy="run `asm migrate`",
        facts=facts,
    )


def _redis(config: Config) -> Check:
    client = connect(config)
    with reaching(config.redis_url):
        check_version(client)
        about: Any = client.info("server")
    name = "Valkey" if "valkey_version" in about else "Redis"
    number = str(about.get("valkey_version") or about.get("redis_version"))
    return Check(
        name="redis",
        level=Level.OK,
        message=f"{name} {number} at {mask(config.redis_url)}, namespace {config.namespace}",
        facts={"server": name, "version": number, "uptime_s": about.get("uptime_in_seconds")},
    )


def _memory(config: Config) -> Check:
    with reaching(config.redis_url):
        memory: Any = connect(config).info("memory")
    policy, limit = memory.get("maxmemory_policy"), memory.get("maxmemory")
    facts = {"maxmemory_policy": policy, "maxmemory": limit, "used_memory": memory.get("used_memory")}
    said = f"maxmemory-policy {policy}, {memory.get('used_memory_human')} used"
    if policy in (None, "noeviction"):
        return Check(name="memory", level=Level.OK, message=said, facts=facts)
    return Check(
        name="memory",
        level=Level.WARN,
        message=f"{said}: leases and waiting runs may be evicted, and come back from SQL",
        remedy="set maxmemory-policy noeviction",
        facts=facts,
    )


def _gate(queue: RunQueue) -> Check:
    # a cold Redis grants us the right to restore, which ends by itself in this millisecond
    word = queue.begin_restore("doctor", hold_s=0.001)
    if word == "open":
        return Check(name="gate", level=Level.OK, message="open: waiting runs may start")
    return Check(
        name="gate",
        level=Level.WARN,
        message="closed: Redis has not been restored from SQL, nothing starts",
        remedy=f"a running worker opens it within seconds; {_START_WORKER}",
    )


def _hold(store: Store) -> Check:
    hold = hold_in(store)
    if not hold.is_held:
        return Check(name="hold", level=Level.OK, message="none: what waits starts")
    return Check(
        name="hold",
        level=Level.WARN,
        message=f"held by {hold.by} {ago(hold.since)}: nothing new starts",
        remedy="release it with `asm resume --all`",
        facts={"by": hold.by, "since": hold.since, "version": hold.version},
    )


def _workers(config: Config, store: Store) -> Check:
    with store.read() as tx:
        seen = tx.executors.all()
    latest = max(seen.values(), default=None)
    quiet_s = max(config.lease_s, 3 * config.beat_s)
    living = [name for name, at in seen.items() if (datetime.now(UTC) - at).total_seconds() <= quiet_s]
    facts = {"living": sorted(living), "latest": latest.isoformat() if latest else None}
    if living:
        return Check(
            name="workers",
            level=Level.OK,
            message=f"{len(living)} executing processes announced",
            facts=facts,
        )
    last = f"the last was seen {ago(latest)}" if latest else "none was ever seen"
    return Check(
        name="workers", level=Level.FAIL, message=f"no worker: {last}", remedy=_START_WORKER, facts=facts
    )


def _difference(comparison: Comparison) -> Check:
    found = comparison.confirmed()
    facts = {"differences": [{"kind": one.kind, "subject": one.subject, "where": one.where} for one in found]}
    if not found:
        said = "SQL and Redis agree on every open run, session, slot and setting"
        return Check(name="difference", level=Level.OK, message=said, facts=facts)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(one.kind for one in found).items()))
    return Check(
        name="difference",
        level=Level.WARN,
        message=f"SQL and Redis differ: {kinds}",
        remedy="a running worker mends most of it in seconds; `asm doctor --fix` mends all",
        facts=facts,
    )
