"""One process of an installation, with doorbells recorded instead of sent: for tests below acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from asm_celery.agent import AgentRegistry
from asm_celery.config import Config
from asm_celery.errors import AsmError, StorageConnectionFailed
from asm_celery.model import Lease, Run, Session, new_id
from asm_celery.moves.admission import SubmitOptions
from asm_celery.moves.coordinator import Claim
from asm_celery.moves.outcome import Outcome
from asm_celery.runtime import Runtime
from asm_celery.server import SessionServer
from asm_celery.states import RunStatus


class RecordingDispatcher:
    """Keeps doorbells in the order they were rung; the only fake in the tests."""

    bell = None

    def __init__(self) -> None:
        self.rung: list[Lease] = []
        self.revoked: list[str] = []

    def dispatch(self, leases: Sequence[Lease]) -> None:
        """Record."""
        self.rung.extend(leases)

    def terminate(self, lease_id: str, worker: str) -> None:
        """Nothing listens here."""

    def revoke(self, lease_id: str) -> None:
        """Record."""
        self.revoked.append(lease_id)


class World:
    """The parts of one process and short words for what tests do with them.

    Args:
        slots: capacity announced for the default queue; 0 leaves Redis without a worker.
    """

    def __init__(self, config: Config, *, slots: int = 8, agents: Sequence[str] = ("agent",)) -> None:
        self.config = config
        self.registry = AgentRegistry()
        for name in agents:
            self.registry.register(name, lambda ctx, value: value)
        self.bells = RecordingDispatcher()
        self.runtime = Runtime(config, self.registry, self.bells)
        self._slots = slots
        if slots:
            self.announce(slots)

    def announce(self, slots: int = 8, *, executor: str = "executor", queues: Sequence[str] = ()) -> None:
        """Announce capacity, restoring Redis first if it is cold."""
        self.runtime.recovery.announce(executor, "worker", slots, queues or [self.config.default_queue])

    def tick(self) -> bool:
        """What a living worker does all the time: announce, and look for what to mend."""
        self.announce()
        self.runtime.recovery.repair()
        return True

    def beat(self, executor: str, held: dict[str, int]) -> None:
        """Raise an executor's beats, as its heartbeat does."""
        self.runtime.recovery.beat(executor, held)
        self.runtime.recovery.record(self.runtime.recovery.renew(executor, held).unknown)

    def session(self, **values: Any) -> Session:
        """Start a session of agent ``agent``."""
        return self.runtime.submission.start_session(Session.new("agent", **values))

    def server(self, session: Session) -> SessionServer:
        """The session's public handle."""
        return SessionServer(lambda: self.runtime, session)

    def submit(self, session: Session, value: Any = None, **options: Any) -> str:
        """Submit a run."""
        return self.runtime.submission.submit(session, value, SubmitOptions(**options))

    def start(self, lease: Lease | None = None, *, executor: str = "executor") -> Claim:
        """Answer a doorbell (the oldest unanswered one), which must be granted."""
        claim = self.try_start(lease, executor=executor)
        assert claim is not None, "the claim was refused"
        return claim

    def try_start(self, lease: Lease | None = None, *, executor: str = "executor") -> Claim | None:
        """Answer a doorbell."""
        if lease is None and not self.bells.rung and self._slots:
            # a living worker announces all the time; on a slow machine the last word may have run out
            self.announce(self._slots)
        chosen = lease or self.bells.rung.pop(0)
        moves, what = self.runtime.coordinator, (chosen.run_id, chosen.claim, executor, new_id("clm"))
        try:
            return moves.start(*what, knows=self.registry.get)
        except StorageConnectionFailed:
            return moves.recall(*what)

    def finish(self, claim: Claim, status: RunStatus = RunStatus.COMPLETED, **values: Any) -> Run:
        """End an attempt."""
        return self.runtime.coordinator.finish(
            claim, Outcome(status=status, **values), [], claim.run.event_position
        )

    def run(self, run_id: str) -> Run:
        """Read a run."""
        with self.runtime.store.read() as tx:
            found = tx.runs.get(run_id)
        assert found is not None
        return found

    def types(self, session: Session, run_id: str | None = None) -> list[str]:
        """The types of a session's events, in order."""
        with self.runtime.store.read() as tx:
            return [event.type for event in tx.events.page(session.session_id, run_id=run_id)]

    def close(self) -> None:
        """Close the parts."""
        with suppress(AsmError):
            self.runtime.close()
