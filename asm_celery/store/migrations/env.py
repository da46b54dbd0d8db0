"""Run by Alembic: `store.schema` hands over a connection and this runs the migrations on it."""

from __future__ import annotations

from alembic import context

from asm_celery.store.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
