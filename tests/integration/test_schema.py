"""Migrations build what the tables say, and the tables hold what the states say."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError

from asm_celery.config import Config
from asm_celery.errors import MigrationRequired, StorageConnectionFailed
from asm_celery.store.database import Store
from asm_celery.store.schema import VERSION_TABLE, migrate, revision_of
from asm_celery.store.tables import metadata


def test_upgrading_builds_exactly_the_tables(database_url: str) -> None:
    """The chain of migrations equals the fresh schema (ST-42)."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": VERSION_TABLE,
                "include_name": lambda name, kind, _: not (kind == "table" and name == VERSION_TABLE),
            },
        )
        differences = compare_metadata(context, metadata)
    engine.dispose()

    assert [] == differences


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    """`asm migrate` may be run at every deploy (ST-42)."""
    before = revision_of(database_url)

    assert before == (migrate(database_url), before[1])


def test_a_database_without_the_schema_says_asm_migrate(tmp_path: Path) -> None:
    """A typed error with the remedy, not a driver's words (ST-42)."""
    store = Store(Config(database_url=f"sqlite:///{tmp_path / 'empty.db'}"))

    with pytest.raises(MigrationRequired, match="asm migrate"), store.read() as tx:
        tx.runs.get("run_x")
    store.close()


def test_a_database_that_is_not_there_is_typed_and_quick() -> None:
    """storage_connection_failed within the connect timeout."""
    store = Store(Config(database_url="postgresql://nobody@127.0.0.1:1/none", connect_timeout_s=1))

    with pytest.raises(StorageConnectionFailed) as refused, store.read() as tx:
        tx.runs.get("run_x")
    store.close()

    assert ("storage_connection_failed", True) == (refused.value.code, refused.value.retryable)


@pytest.mark.parametrize(
    "change",
    [
        "status = 'nonsense'",
        "status = 'completed'",
        "stop_requested = 'please'",
    ],
)
def test_the_database_itself_refuses_what_the_states_do_not_have(database_url: str, change: str) -> None:
    """CHECKs come from the state table: a terminal status needs its end, words are the legal ones (RN-4, RN-5)."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO sessions (session_id, agent, max_concurrent_runs, max_queued_runs, metadata,"
                " created_at, updated_at) VALUES ('s', 'a', 1, 1, '{}', 0, 0)"
            )
        )
        connection.execute(
            text(
                "INSERT INTO runs (run_id, session_id, position, agent, queue, status, input, input_digest,"
                " metadata, created_at) VALUES ('r', 's', 1, 'a', 'q', 'pending', 'null', '', '{}', 0)"
            )
        )

    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text(f"UPDATE runs SET {change} WHERE run_id = 'r'"))
    engine.dispose()
