"""What the tests of stops have: stages that many cells share, and single workers of the zoo."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import FULL, Gate, StartWorker, asm, gate, ledger, worker
from tests.stops import table
from tests.stops.stage import Stage, settings, stage

# fixtures of the acceptance tests that are the same here
__all__ = ["FULL", "Gate", "StartWorker", "asm", "gate", "ledger", "worker"]


def pytest_configure(config: pytest.Config) -> None:
    """Have the measured table written where ASM_TEST_STOPS_TABLE says."""
    table.register(config)


class Stages:
    """Gives the stage of a pool and a database: the one there is, or another after that was closed."""

    def __init__(self, request: pytest.FixtureRequest, redis_url: str, folder: Callable[[str], Path]) -> None:
        self._request = request
        self._redis_url = redis_url
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._present: tuple[str, str] | None = None
        self._stage: Stage | None = None

    def __call__(self, pool: str, database: str) -> Stage:
        """Return it."""
        if self._stage is None or self._present != (pool, database):
            self.close()
            self._stage, self._present = self._open(pool, database), (pool, database)
        return self._stage

    def close(self) -> None:
        """Close the present one; its invariants are checked then."""
        self._stage = None
        self._stack.close()

    def _open(self, pool: str, database: str) -> Stage:
        folder = self._folder(f"{pool}-{database}")
        if database == "sqlite":
            template = self._request.getfixturevalue("sqlite_file")
            url = f"sqlite:///{shutil.copy(template, folder / 'asm.db')}"
        else:
            url = self._stack.enter_context(self._request.getfixturevalue("postgresql_server").database())
        return self._stack.enter_context(stage(settings(self._redis_url, url, folder), pool, folder))


@pytest.fixture(scope="module")
def stages(
    request: pytest.FixtureRequest, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stages]:
    """Stages for many tests of a module, one at a time.

    Not a fixture with parameters: pytest ends those between two tests that differ in another parameter.
    """
    made = Stages(request, redis_url, tmp_path_factory.mktemp)
    yield made
    made.close()
