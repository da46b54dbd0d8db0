"""A stage: one installation with one worker of the zoo, on which many cells are played one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from asm_celery import AgentSessions, SessionServer
from asm_celery.config import Config
from tests import invariants
from tests.acceptance.conftest import Gate
from tests.acceptance.ledger import VARIABLE, Ledger
from tests.conftest import environment
from tests.waiting import wait_until
from tests.workers import WorkerProcess

ZOO = "tests.stops.zoo"
GRACE_S = 2.0
# what is promised: a stopped run has ended so long after the request, whatever its agent does
BOUND_S = GRACE_S + 5.0


def settings(redis_url: str, database_url: str, folder: Path) -> Config:
    """Return settings of an installation of its own: quick clocks, and leases that two busy cores can hold."""
    word = f"t{uuid4().hex[:12]}"
    return Config(
        redis_url=redis_url,
        database_url=database_url,
        namespace=word,
        default_queue=word,
        home=str(folder / "home"),
        beat_s=0.5,
        lease_s=3.0,
        repair_s=0.5,
        ring_s=1.0,
        poll_s=0.3,
        stop_grace_s=GRACE_S,
        shutdown_grace_s=2.0,
    )


class Stage:
    """One installation and its worker; made by `stage`.

    Attributes:
        asm: a web process.
        ledger: what the agents wrote.
    """

    def __init__(self, config: Config, pool: str, folder: Path, asm: AgentSessions) -> None:
        self.config = config
        self.asm = asm
        self.pool = pool
        self.ledger = Ledger(folder / "ledger.txt")
        self._folder = folder
        self._worker: WorkerProcess | None = None
        self._keeper: WorkerProcess | None = None

    @property
    def worker(self) -> WorkerProcess:
        """The worker; started anew where the last one has ended, as a supervisor does."""
        if self._worker is None or self._worker.has_ended:
            self.replace_worker()
        assert self._worker is not None
        return self._worker

    def replace_worker(self) -> None:
        """End the worker, if there is one, and start another."""
        if self._worker is not None:
            self._worker.kill()
        self._worker = self._start(pool=self.pool, concurrency=2 if self.pool == "prefork" else 4)

    def keep(self) -> None:
        """Have a second worker that executes nothing here: a worker that has died is found by others."""
        if self._keeper is None:
            queue = f"{self.config.default_queue}.elsewhere"
            self._keeper = self._start(pool="threads", concurrency=1, queues=[queue])

    def neighbour(self, gate: Gate) -> tuple[SessionServer, str]:
        """Have an innocent run in the worker, until the gate is open."""
        server = self.asm.start_session("neighbour")
        run_id = server.submit_run(str(gate))
        self.wait_until_entered(run_id)
        return server, run_id

    def wait_until_entered(self, run_id: str) -> None:
        """Wait until a run's agent was called."""
        wait_until(lambda: run_id in self.ledger.entered(), description=f"{run_id} is entered", timeout=30.0)

    def close(self) -> None:
        """End all that was started."""
        for worker in (self._worker, self._keeper):
            if worker is not None:
                worker.kill()

    def _start(self, **options: Any) -> WorkerProcess:
        env = {**environment(self.config), VARIABLE: str(self.ledger.path)}
        return WorkerProcess(ZOO, env=env, folder=self._folder, **options)


@contextlib.contextmanager
def stage(config: Config, pool: str, folder: Path) -> Iterator[Stage]:
    """Open a stage; when it is closed, the database must keep its promises."""
    with AgentSessions(config) as asm:
        made = Stage(config, pool, folder, asm)
        try:
            yield made
        finally:
            made.close()
    invariants.check(config)
