"""The fixtures: a private Valkey and PostgreSQL, a fresh migrated database and namespace for each test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import pytest
import redis

from asm_celery.config import Config
from tests import invariants, report
from tests.servers import PostgreSQL, ServerUnavailable, postgresql, sqlite_template, valkey
from tests.workers import WorkerProcess


def pytest_configure(config: pytest.Config) -> None:
    """Forget the developer's own settings: a test says all that it needs."""
    report.register(config)
    # a shell starts what runs in the background with SIGINT ignored, which every program we start would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in list(os.environ):
        if name.startswith("ASM_") and not name.startswith(("ASM_TEST_", "ASM_EMBEDDED_")):
            del os.environ[name]
    # a program that may keep nothing compiled takes three times as long to start
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(sys.prefix, "pycache")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep every case of a test marked `either_database` once, on alternating databases; all at full size.

    Each of them starts worker processes, and their module as a whole is shown on both databases.
    """
    if os.environ.get("ASM_TEST_FULL"):
        return
    places: dict[tuple[str, str], int] = {}
    dropped = []
    for item in items:
        given = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        database = given.pop("database_url", None)
        if database is None or item.get_closest_marker("either_database") is None:
            continue
        place = places.setdefault((item.nodeid.partition("[")[0], repr(given)), len(places))
        if database != ("sqlite", "postgresql")[place % 2]:
            dropped.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        gone = set(dropped)
        items[:] = [item for item in items if item not in gone]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Coroutine tests run on asyncio, the loop our users have."""
    return "asyncio"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Valkey of this test process, or the one named by ASM_TEST_REDIS_URL."""
    given = os.environ.get("ASM_TEST_REDIS_URL")
    if given:
        yield given
        return
    with contextlib.ExitStack() as stack:
        yield _entered(stack, valkey())


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    """A PostgreSQL of this test process, or the one named by ASM_TEST_DATABASE_URL."""
    with contextlib.ExitStack() as stack:
        yield _entered(stack, postgresql())


@pytest.fixture(scope="session")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    return sqlite_template(tmp_path_factory.mktemp("sqlite") / "template.db")


@pytest.fixture
def sqlite_url(sqlite_file: Path, tmp_path: Path) -> str:
    """A fresh migrated SQLite database."""
    return f"sqlite:///{shutil.copy(sqlite_file, tmp_path / 'asm.db')}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh migrated database, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
    else:
        with request.getfixturevalue("postgresql_server").database() as url:
            yield url


@pytest.fixture
def config(
    request: pytest.FixtureRequest, redis_url: str, database_url: str, tmp_path: Path
) -> Iterator[Config]:
    """Settings of an installation of its own, with quick clocks; runs the invariants afterwards."""
    yield from _installation(request, redis_url, database_url, tmp_path)


@pytest.fixture
def sqlite_config(
    request: pytest.FixtureRequest, redis_url: str, sqlite_url: str, tmp_path: Path
) -> Iterator[Config]:
    """The same, on SQLite only: for what does not depend on the database."""
    yield from _installation(request, redis_url, sqlite_url, tmp_path)


@pytest.fixture
def postgresql_config(
    request: pytest.FixtureRequest, redis_url: str, postgresql_server: PostgreSQL, tmp_path: Path
) -> Iterator[Config]:
    """The same, on PostgreSQL only."""
    with postgresql_server.database() as url:
        yield from _installation(request, redis_url, url, tmp_path)


@pytest.fixture
def env(config: Config) -> dict[str, str]:
    """The variables that give a subprocess the same settings."""
    return environment(config)


@pytest.fixture
def sqlite_env(sqlite_config: Config) -> dict[str, str]:
    """The variables of `sqlite_config`."""
    return environment(sqlite_config)


@pytest.fixture
def start_worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Start Celery workers by ``start_worker(module, pool=..., concurrency=...)``; all end with the test.

    They get the settings of the test's `config` (or `sqlite_config`) unless `env` says otherwise.
    """
    uses_sqlite = "sqlite_config" in request.fixturenames
    settings = environment(request.getfixturevalue("sqlite_config" if uses_sqlite else "config"))
    started: list[WorkerProcess] = []

    def start(module: str = "workers.app", **options: Any) -> WorkerProcess:
        worker = WorkerProcess(module, **{"env": settings, "folder": tmp_path, **options})
        started.append(worker)
        return worker

    yield start
    # killed and not stopped: a test that cares how a worker ends has stopped it itself
    for worker in started:
        worker.kill()


def environment(config: Config) -> dict[str, str]:
    """Return the ASM_* variables that say what `config` says beyond the defaults."""
    return {
        f"ASM_{name.upper()}": str(value)
        for name, value in config.model_dump().items()
        if value is not None and value != Config.default(name)
    }


def _installation(
    request: pytest.FixtureRequest, redis_url: str, database_url: str, tmp_path: Path
) -> Iterator[Config]:
    word = f"t{uuid4().hex[:12]}"
    config = Config(
        redis_url=redis_url,
        database_url=database_url,
        namespace=word,
        # Celery's own keys know no namespace: two tests on one server must not share a queue
        default_queue=word,
        home=str(tmp_path / "home"),
        beat_s=0.2,
        lease_s=1.5,
        repair_s=0.2,
        ring_s=0.5,
        poll_s=0.3,
        stop_grace_s=1,
    )
    yield config
    _empty(config)
    if not request.node.get_closest_marker("breaks_invariants"):
        invariants.check(config)


def _empty(config: Config) -> None:
    with contextlib.closing(redis.Redis.from_url(config.redis_url)) as client:
        if not os.environ.get("ASM_TEST_REDIS_URL"):
            client.flushall()
            return
        queue = config.default_queue
        for pattern in (f"{config.keys.root}*", f"{queue}*", f"_kombu.binding.{queue}*"):
            # braces are plain in a Redis pattern, square brackets do not occur in a namespace
            for key in client.scan_iter(match=pattern, count=1000):
                client.delete(key)


def _entered(stack: contextlib.ExitStack, server: Any) -> Any:
    try:
        return stack.enter_context(server)
    except ServerUnavailable as cause:
        _missing(str(cause))


def _missing(reason: str) -> NoReturn:
    """A missing server is a failure in CI and a skip elsewhere."""
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
