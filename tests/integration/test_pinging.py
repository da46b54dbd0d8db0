"""Connections of the pool: a dead one is never given out, and a live one is not asked each time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from asm_celery.config import Config
from asm_celery.store import pinging
from asm_celery.store.database import Store
from tests.waiting import wait_until


@pytest.fixture
def store(config: Config) -> Iterator[Store]:
    """A store on PostgreSQL that has used one connection."""
    if config.database_url.startswith("sqlite"):
        pytest.skip("a file has no connections that are cut")
    store = Store(config)
    with store.read() as tx:
        assert 0 == tx.sessions.count()
    yield store
    store.close()


def test_a_connection_that_was_cut_a_moment_ago_is_replaced_before_it_is_used(
    store: Store, config: Config
) -> None:
    """A restart of the database is met by no caller: a cut connection has its end to be read."""
    with store._engine.connect() as connection:
        victim = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    other = Store(config)
    with other._engine.connect() as admin:
        admin.exec_driver_sql(f"SELECT pg_terminate_backend({victim})")
        query = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {victim}"
        wait_until(lambda: admin.exec_driver_sql(query).scalar() == 0, description="the connection is cut")
    other.close()

    with store.read() as tx:
        counted = tx.sessions.count()

    assert 0 == counted


def test_only_a_connection_that_has_idled_is_asked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question costs a round trip, so one that was used a moment ago and is silent is taken as it is."""
    dialect, asked = store._engine.dialect, []
    ping = dialect.do_ping

    def counted(connection: Any) -> bool:
        asked.append(connection)
        return ping(connection)

    monkeypatch.setattr(dialect, "do_ping", counted)

    with store.read() as tx:
        tx.sessions.count()
    soon = len(asked)
    monkeypatch.setattr(pinging, "_IDLE_S", 0.0)
    with store.read() as tx:
        tx.sessions.count()

    assert (0, 1) == (soon, len(asked))
