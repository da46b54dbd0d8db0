"""The seams are played on SQLite, and at full size on PostgreSQL too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from asm_celery.config import Config
from tests.acceptance.conftest import FULL
from tests.seams.stage import STEPPED, Rescuer


@pytest.fixture(params=["sqlite", "postgresql"] if FULL else ["sqlite"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh migrated database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
    else:
        with request.getfixturevalue("postgresql_server").database() as url:
            yield url


@pytest.fixture
def rescuer(config: Config) -> Iterator[Rescuer]:
    """The other process."""
    made = Rescuer(config.model_copy(update=STEPPED))
    yield made
    made.close()
