"""Bring a database to the schema of this release, or say that it is not there.

`migrate` is `asm migrate`; embedded mode calls it by itself.  Alembic is imported only here, because it is
slow to import and only migrations need it.
"""

from __future__ import annotations

from pathlib import Path

import alembic.command
import alembic.config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, exc, inspect

from asm_celery.errors import StorageConnectionFailed
from asm_celery.showing import mask

VERSION_TABLE = "asm_alembic_version"
_MIGRATIONS = Path(__file__).with_name("migrations")


def migrate(database_url: str, revision: str = "head") -> str:
    """Run the migrations up to `revision`; does nothing when they have run.

    Guarantee: PostgreSQL migrates in one transaction; on SQLite a death half-way leaves a revision that
    was not stamped and is run again.  Concurrent calls wait for each other on PostgreSQL.

    Returns:
        The revision the database has now.

    Raises:
        StorageConnectionFailed: the database cannot be reached.
    """
    url = database_url.replace("postgresql://", "postgresql+psycopg://", 1)
    path = url.removeprefix("sqlite:///")
    if path != url:
        try:
            Path(path).expanduser().resolve().parent.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise StorageConnectionFailed(f"the folder of {url} cannot be made: {cause.strerror}") from cause
    engine = _engine(url)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                # two deploys at once: the second finds the work done
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(20260815)")
            settings = _settings()
            settings.attributes["connection"] = connection
            alembic.command.upgrade(settings, revision)
            return (
                MigrationContext.configure(
                    connection, opts={"version_table": VERSION_TABLE}
                ).get_current_revision()
                or ""
            )
    except exc.OperationalError as cause:
        raise StorageConnectionFailed(
            f"cannot migrate {mask(url)}: {str(cause.orig).strip().splitlines()[0]}"
        ) from cause
    finally:
        engine.dispose()


def revision_of(database_url: str) -> tuple[str | None, str]:
    """Return (the revision the database has, the newest this release knows); None: no schema at all."""
    engine = _engine(database_url)
    try:
        with engine.connect() as connection:
            newest = ScriptDirectory.from_config(_settings()).get_current_head() or ""
            if not inspect(connection).has_table(VERSION_TABLE):
                return None, newest
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            return context.get_current_revision(), newest
    except exc.OperationalError as cause:
        raise StorageConnectionFailed(f"cannot reach {mask(database_url)}: {cause.orig}") from cause
    finally:
        engine.dispose()


def _engine(url: str) -> Engine:
    # a host that drops packets is an error within seconds, not a hang
    limits = {"connect_timeout": 5} if url.startswith("postgresql") else {}
    return create_engine(url, connect_args=limits)


def _settings() -> alembic.config.Config:
    settings = alembic.config.Config()
    settings.set_main_option("script_location", str(_MIGRATIONS))
    settings.set_main_option("path_separator", "os")
    return settings
