"""An installation in one process, used through its public face, whose doorbells are answered by threads here."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

import psycopg

from asm_celery import AgentSessions, Config, Event, SessionServer
from asm_celery.dispatch import Dispatcher
from asm_celery.errors import AsmError
from asm_celery.model import Bell, Lease, Run
from asm_celery.runtime import Runtime
from asm_celery.worker.attempt import Attempts
from asm_celery.worker.host import ExecutorHost
from asm_celery.worker.pool import Retirement
from tests.waiting import wait_until

# Nobody listens there: connecting is refused at once.
_DEAD_DATABASE: Final = "postgresql+psycopg://nobody@127.0.0.1:1/nowhere"
_DEAD_REDIS: Final = "redis://127.0.0.1:1/0"


class Gates:
    """What test agents wait for: one gate a name, closed until it is opened."""

    def __init__(self) -> None:
        self._gates: dict[str, threading.Event] = {}
        self._are_gone = False
        self._lock = threading.Lock()

    def of(self, name: object) -> threading.Event:
        """Return the gate of a name."""
        with self._lock:
            gate = self._gates.setdefault(str(name), threading.Event())
            if self._are_gone:
                gate.set()
            return gate

    def open(self, *names: object) -> None:
        """Let those through that wait, or will wait, at these gates."""
        for name in names:
            self.of(name).set()

    def open_all(self) -> None:
        """Let everyone through, now and later."""
        with self._lock:
            self._are_gone = True
            for gate in self._gates.values():
                gate.set()


class Desk:
    """An AgentSessions with test agents; nothing executes until `work`.

    Agents: ``echo`` returns its input, ``boom`` raises it, ``gate`` waits for the gate its input names and
    leaves at once when stopped, ``stubborn`` waits likewise and ignores every stop.

    Attributes:
        asm: the installation.
        entered: the ids of runs whose agent was called, in order.
        rung: every doorbell.
    """

    # nothing is pushed by the scripts: doorbells come to `dispatch`
    bell = None

    def __init__(self, config: Config) -> None:
        self.config = config
        # as a dispatcher it is rung, and no script pushes
        self.bell: Bell | None = None
        self.gates = Gates()
        self.entered: list[str] = []
        self.rung: list[Lease] = []
        self._others: list[AgentSessions] = []
        self._threads: list[threading.Thread] = []
        self._host: ExecutorHost | None = None
        self.asm = self._made()

    def restart(self) -> None:
        """End the process, so to say, and begin anew; what it stored is all that is left."""
        self.asm.close()
        self.asm = self._made()

    def start(self, agent: str = "echo", **options: Any) -> SessionServer:
        """Start a session."""
        return self.asm.start_session(agent, **options)

    def work(self, slots: int = 10) -> None:
        """Execute from now on what is leased, at most `slots` runs at once."""
        self._host = ExecutorHost(self.asm._runtime)
        self._host.start(
            worker="desk@test",
            incarnation="1",
            slots=slots,
            queues=[self.config.default_queue],
            retirement=Retirement(),
        )

    @property
    def attempts(self) -> Attempts:
        """The attempts that execute here."""
        assert self._host is not None
        return self._host.executor._attempts

    def announce(self, slots: int = 10) -> None:
        """Have runs leased, without anybody who answers their doorbells."""
        self.asm._runtime().recovery.announce("nobody", "desk@test", slots, [self.config.default_queue])

    def ring(self, lease: Lease) -> None:
        """Answer a doorbell again, in this thread."""
        assert self._host is not None
        self._host.executor.execute(lease.run_id, lease.claim)

    def another(self, **changes: Any) -> AgentSessions:
        """Return the same installation as a second process sees it, without agents of its own."""
        other = self._installation(self.config.model_copy(update=changes), self)
        self._others.append(other)
        return other

    def without_database(self, server: SessionServer) -> SessionServer:
        """Return the session's handle in a process that cannot reach the database."""
        other = self.another(database_url=_DEAD_DATABASE, connect_timeout_s=1.0)
        return SessionServer(other._runtime, server._session)

    def without_redis(self, server: SessionServer) -> SessionServer:
        """Return the session's handle in a process that cannot reach Redis."""
        other = self.another(redis_url=_DEAD_REDIS, connect_timeout_s=0.5)
        return SessionServer(other._runtime, server._session)

    def running(self, server: SessionServer, count: int = 1) -> list[str]:
        """Wait until exactly so many runs of a session are in flight, and return their ids."""

        def look() -> list[str] | None:
            found = server.status().in_flight_runs
            return found if len(found) == count else None

        return wait_until(look, description=f"{count} runs of {server.session_id} are in flight")

    def ended(self, server: SessionServer, run_id: str) -> Run:
        """Wait until a run is terminal."""

        def look() -> Run | None:
            run = server.get_run(run_id)
            return run if run.is_terminal else None

        return wait_until(look, description=f"{run_id} has ended")

    def dispatch(self, leases: Sequence[Lease]) -> None:
        """Answer doorbells, each in a thread; nobody hears them before `work`."""
        self.rung.extend(leases)
        host = self._host
        if host is None:
            return
        for lease in leases:
            thread = threading.Thread(
                target=host.executor.execute, args=(lease.run_id, lease.claim), daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def terminate(self, lease_id: str, worker: str) -> None:
        """Nothing listens here."""

    def revoke(self, lease_id: str) -> None:
        """Nobody listens: a doorbell of a withdrawn run is spare."""

    def close(self) -> None:
        """Let everything end and stop it."""
        self.gates.open_all()
        for thread in self._threads:
            thread.join(10)
        if self._host is not None:
            self._host.stop()
        for asm in [self.asm, *self._others]:
            with contextlib.suppress(AsmError):
                asm.close()

    def _made(self) -> AgentSessions:
        asm = self._installation(self.config, self)
        for name in ("echo", "boom", "gate", "stubborn"):
            asm.register(name, getattr(self, f"_{name}"))
        return asm

    @staticmethod
    def _installation(config: Config, dispatcher: Dispatcher) -> AgentSessions:
        asm = AgentSessions(config)
        # What its first use would build, with the one fake there is below acceptance: the dispatcher.
        asm._built = Runtime(config, asm.registry, dispatcher)
        asm._pid = os.getpid()
        return asm

    def _echo(self, ctx: Any, given: Any) -> Any:
        self.entered.append(ctx.run.run_id)
        return given

    def _boom(self, ctx: Any, given: Any) -> Any:
        self.entered.append(ctx.run.run_id)
        raise ValueError(given)

    def _gate(self, ctx: Any, given: Any) -> Any:
        self.entered.append(ctx.run.run_id)
        gate = self.gates.of(given)
        while not gate.is_set():
            ctx.sleep(0.005)
        return given

    def _stubborn(self, ctx: Any, given: Any) -> Any:
        self.entered.append(ctx.run.run_id)
        self.gates.of(given).wait(20)
        return given


def all_events(server: SessionServer, **filters: Any) -> list[Event]:
    """Return the session's whole log."""
    found: list[Event] = []
    while page := server.get_events(after=found[-1].sequence if found else 0, limit=1000, **filters):
        found += page
    return found


def started(server: SessionServer) -> list[str | None]:
    """Return the runs of a session in the order of their starts."""
    return [event.run_id for event in all_events(server, type="run_started")]


@contextlib.contextmanager
def blocked_writers(config: Config, session_id: str) -> Iterator[None]:
    """Hold, from outside, the lock that every writer of the session needs."""
    if config.database_url.startswith("sqlite"):
        path = config.database_url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as lite:
            lite.execute("BEGIN IMMEDIATE")
            yield
            lite.execute("ROLLBACK")
    else:
        with psycopg.connect(config.database_url.replace("+psycopg", "", 1)) as post:
            post.execute("SELECT 1 FROM session_counters WHERE session_id = %s FOR UPDATE", [session_id])
            yield
            post.rollback()
