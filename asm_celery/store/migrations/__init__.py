"""Alembic's environment and the numbered migrations, shipped in the package."""
