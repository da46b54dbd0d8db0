"""An executing process without Celery: doorbells are answered by threads of this one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from asm_celery.agent import AgentRegistry
from asm_celery.config import Config
from asm_celery.model import Event, Lease, Run, Session
from asm_celery.runtime import Runtime
from asm_celery.server import SessionServer
from asm_celery.states import TERMINAL
from asm_celery.worker.host import ExecutorHost
from asm_celery.worker.pool import Retirement
from tests.waiting import wait_until


class Station:
    """A runtime whose dispatcher is its own executor."""

    bell = None

    def __init__(self, config: Config) -> None:
        self.registry = AgentRegistry()
        self.runtime = Runtime(config, self.registry, self)
        self.host = ExecutorHost(lambda: self.runtime)
        self.retirement = Retirement()
        self.leases: list[Lease] = []
        self.escaped: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def dispatch(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self.leases.append(lease)
            self.execute(lease.run_id, lease.claim)

    def terminate(self, lease_id: str, worker: str) -> None:
        """Nothing listens here."""

    def revoke(self, lease_id: str) -> None:
        """Nothing listens here."""

    def execute(self, run_id: str, claim: int) -> threading.Thread:
        def answer() -> None:
            try:
                self.host.executor.execute(run_id, claim)
            except BaseException as cause:  # noqa: BLE001 - the test asks for it
                self.escaped.append(cause)

        thread = threading.Thread(target=answer, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def session(self, agent: Callable[..., Any], **settings: Any) -> SessionServer:
        name = f"agent_{len(list(self.registry))}"
        self.registry.register(name, agent, **settings)
        return SessionServer(lambda: self.runtime, self.runtime.submission.start_session(Session.new(name)))

    def ended(self, server: SessionServer, run_id: str) -> Run:
        def look() -> Run | None:
            run = server.get_run(run_id)
            return run if run.status in TERMINAL else None

        return wait_until(look, description=f"{run_id} has ended")

    def events(self, server: SessionServer, run_id: str) -> list[Event]:
        return server.get_events(after=0, limit=1000, run_id=run_id)

    def close(self) -> None:
        for thread in self._threads:
            thread.join(10)
        self.host.stop()
        self.runtime.close()
        assert not self.escaped


@contextmanager
def station(config: Config) -> Iterator[Station]:
    """Run one until the block ends; every attempt must have ended by then."""
    made = Station(config)
    made.host.start(
        worker="w@test",
        incarnation="1",
        slots=10,
        queues=[config.default_queue],
        retirement=made.retirement,
    )
    try:
        yield made
    finally:
        made.close()
