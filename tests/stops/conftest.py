"""What the tests of stops have: stages that many cells share, and single workers of the zoo."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def shared_stage(
    request: pytest.FixtureRequest,
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stage]:
    """A stage for all the tests of a module that name the same pool and database."""
    pool, database = request.param
    folder = tmp_path_factory.mktemp(f"{pool}-{database}")
    with contextlib.ExitStack() as stack:
        if database == "sqlite":
            url = f"sqlite:///{shutil.copy(request.getfixturevalue('sqlite_file'), folder / 'asm.db')}"
        else:
            url = stack.enter_context(request.getfixturevalue("postgresql_server").database())
        yield stack.enter_context(stage(settings(redis_url, url, Path(folder)), pool, Path(folder)))
