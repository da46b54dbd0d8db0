"""``asm migrate``: bring the database to the schema of this release."""

from __future__ import annotations

from asm_celery.cli.call import Call
from asm_celery.cli.exits import Exit
from asm_celery.cli.reach import config_of
from asm_celery.showing import mask
from asm_celery.store.schema import migrate


def run(call: Call) -> Exit:
    """Migrate; a database that is up to date is left as it is.  Raises StorageConnectionFailed."""
    config = config_of(call)
    revision = migrate(config.database_url)
    where = mask(config.database_url)
    call.answer("migration", {"database_url": where, "revision": revision})
    call.text(f"{where} is at revision {revision}")
    return Exit.COMPLETED
