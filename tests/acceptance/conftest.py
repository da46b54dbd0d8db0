"""What every acceptance test has: a web process, the ledger of the agents, workers that write it, a gate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asm_celery import AgentSessions
from asm_celery.config import Config
from tests.acceptance.ledger import VARIABLE, Ledger
from tests.conftest import environment
from tests.workers import WorkerProcess

MODULE = "tests.acceptance.agents_module"
FULL = bool(os.environ.get("ASM_TEST_FULL"))

StartWorker = Callable[..., WorkerProcess]


class Gate:
    """A file that agents wait for; its path is what their input names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> None:
        """Let all through that wait, and all that come."""
        self.path.touch()


@pytest.fixture
def asm(config: Config) -> Iterator[AgentSessions]:
    """A web process: it submits and waits, and knows no agents."""
    with AgentSessions(config) as sessions:
        yield sessions


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """The book in which the agents of this test's workers write."""
    return Ledger(tmp_path / "ledger.txt")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A closed gate."""
    return Gate(tmp_path / "gate")


@pytest.fixture
def worker(start_worker: StartWorker, config: Config, ledger: Ledger) -> StartWorker:
    """Start a worker of `agents_module`: ``worker(pool=..., concurrency=..., lease_s=...)``.

    Settings of `Config` and other variables (in capitals) may be given beside the options of a worker.
    """

    def start(module: str = MODULE, **options: Any) -> WorkerProcess:
        settings = {name: options.pop(name) for name in list(options) if name in Config.model_fields}
        variables = {name: str(options.pop(name)) for name in list(options) if name.isupper()}
        env = environment(config.model_copy(update=settings))
        return start_worker(module, env={**env, VARIABLE: str(ledger.path), **variables}, **options)

    return start
