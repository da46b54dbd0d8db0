"""The desk: an installation of its own for each test, on SQLite or on both databases."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from asm_celery import Config
from tests.parity.desk import Desk


@pytest.fixture
def desk(sqlite_config: Config) -> Iterator[Desk]:
    """An installation on SQLite, for what does not depend on the database."""
    with contextlib.closing(Desk(sqlite_config)) as made:
        yield made


@pytest.fixture
def desk_on_each(config: Config) -> Iterator[Desk]:
    """An installation on SQLite, and again on PostgreSQL."""
    with contextlib.closing(Desk(config)) as made:
        yield made
