"""The stage of a chaos run: servers, links, workers, clients, and the supervisor that keeps them up."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from asm_celery import AgentSessions, SessionServer
from asm_celery.config import Config
from asm_celery.errors import AsmError
from tests.acceptance.ledger import VARIABLE, Ledger
from tests.checkers import LimitChange
from tests.conftest import environment
from tests.faults import preset, system
from tests.faults.member import Member
from tests.faults.proxy import Network
from tests.faults.stores import PostgresServer, RedisServer, SqliteFile
from tests.workers import ROOT
from workers.process_group import MARK as COMMAND_MARK

MARK = "CHAOS_MARK"
# name, pool, how many runs at once, whether its ways to the stores are links of ours
WORKERS = (
    ("oak", "prefork", 3, False),
    ("elm", "threads", 4, False),
    ("ash", "prefork", 2, True),
    ("fir", "threads", 3, True),
)
CLIENTS = ("ann", "bob")
LOOK_S = 0.25
MEASURE_S = 3.0


class Stage:
    """All that a nemesis can break, and the client through which it looks.

    Attributes:
        asm: a client past all links.
        redis, sql: the servers; `sql` is a `SqliteFile` in a run on SQLite.
        links: the ways of the linked workers to Redis and, on PostgreSQL, to SQL.
        workers, clients: by name.
    """

    def __init__(self, folder: Path, database: str, seed: int, network: Network) -> None:
        self.folder = folder
        self.seed = seed
        self.database = database
        self.mark = f"chaos-{uuid4().hex}"
        self.redis = RedisServer(folder)
        self.redis.start()
        self.sql: Any = PostgresServer() if database == "postgresql" else SqliteFile(folder)
        self.links = {"redis": network.link(self.redis.socket)}
        if database == "postgresql":
            self.links["sql"] = network.link(self.sql.socket)
        self.config = preset.settings(self.redis.url, self.sql.url, folder)
        self.ledger = Ledger(folder / "ledger.txt")
        self.clock = Clock(folder)
        self.asm = AgentSessions(self.config)
        self.workers = {name: self._worker(name, pool, size, far) for name, pool, size, far in WORKERS}
        self.clients = {name: self._client(name) for name in CLIENTS}
        self.limits: list[LimitChange] = []
        self._engine = create_engine(self.sql.url, pool_size=2, isolation_level="AUTOCOMMIT")
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="chaos-supervisor", daemon=True)

    def open(self) -> None:
        """Start everybody; returns when all are ready."""
        self.set_limit(preset.LIMIT)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._start, self.workers.values()))
        for client in self.clients.values():
            client.start()
        self._keeper.start()

    def has_workers(self) -> bool:
        """Say whether there is a worker of each pool, and a linked one."""
        ready = [worker for worker in self.workers.values() if worker.is_ready]
        return len({worker.kind for worker in ready}) == 2 and any(worker.is_linked for worker in ready)

    def waited(self, condition: Callable[[], object], timeout: float) -> bool:
        """Wait for a condition; say whether it came."""
        until = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > until:
                return False
            threading.Event().wait(0.05)
        return True

    def rows(self, statement: str, **values: Any) -> list[Any]:
        """Read SQL past all of our own code, waiting for it where it is away."""
        until = time.monotonic() + 30.0
        while True:
            try:
                with self._engine.connect() as connection:
                    return list(connection.execute(text(statement), values))
            except SQLAlchemyError:
                if time.monotonic() > until:
                    raise
                threading.Event().wait(0.1)

    def running_at(self, pids: Iterable[int]) -> dict[str, int]:
        """Return the runs that these processes execute, with their claims."""
        wanted = {str(pid) for pid in pids}
        rows = self.rows("SELECT run_id, claims, executor FROM runs WHERE status = 'running'")
        return {run_id: claims for run_id, claims, executor in rows if executor.split(":")[-2] in wanted}

    def running_with_claims(self, runs: Iterable[str]) -> dict[str, int]:
        """Return those of the runs that are running, with their claims."""
        wanted = set(runs)
        rows = self.rows("SELECT run_id, claims FROM runs WHERE status = 'running'")
        return {run_id: claims for run_id, claims in rows if run_id in wanted}

    def running(self, run_id: str) -> bool:
        """Say whether a run is running."""
        return bool(self.running_with_claims([run_id]))

    def has_ended(self, run_id: str) -> bool:
        """Say whether a run is terminal."""
        rows = self.rows("SELECT 1 FROM runs WHERE run_id = :run AND ended_at IS NOT NULL", run=run_id)
        return bool(rows)

    def set_limit(self, limit: int) -> None:
        """Change the global limit, and take note of when it held."""
        self.patiently(lambda: self.asm.limiter.set_limits(max_parallel_runs=limit))
        self.limits.append(LimitChange(at=time.monotonic(), limit=limit))

    def undecided(self, runs: dict[str, int]) -> dict[str, int]:
        """Return those of the runs that still are as they were."""
        if not runs:
            return {}
        now = self.running_with_claims(runs)
        return {run_id: claims for run_id, claims in runs.items() if now.get(run_id) == claims}

    def session(self, **options: Any) -> SessionServer:
        """Start a session of the nemesis's own."""
        name = f"own-{uuid4().hex[:10]}"
        return self.patiently(
            lambda: self.asm.start_session("mix", session_id=name, if_exists="attach", **options)
        )

    def submit(self, server: SessionServer, given: dict[str, Any], **options: Any) -> str:
        """Submit a run that counts as acknowledged once."""
        key = uuid4().hex
        return self.patiently(lambda: server.submit_run(given, idempotency_key=key, **options))

    def patiently(self, what: Callable[[], Any], patience_s: float = 60.0) -> Any:
        """Do something again while it may be tried again."""
        until = time.monotonic() + patience_s
        while True:
            try:
                return what()
            except AsmError as error:
                if not error.retryable or time.monotonic() > until:
                    raise
                threading.Event().wait(0.1)

    def probe(self, patience_s: float) -> float | None:
        """Have a fresh session's run completed; return when it was, None if it was not."""
        until = time.monotonic() + patience_s
        with contextlib.suppress(AsmError):
            server = self.session()
            run_id = self.submit(server, {"do": "chat", "events": 1}, max_attempts=5)
            while time.monotonic() < until:
                with contextlib.suppress(AsmError):
                    server.await_run(run_id, timeout=max(0.1, min(2.0, until - time.monotonic())))
                    return time.monotonic()
        return None

    def living(self) -> list[int]:
        """Return who of this run is alive beside ourselves: by the mark that all of them inherit."""
        return system.carriers(f"{MARK}={self.mark}", beside=(os.getpid(),))

    def commands(self) -> list[int]:
        """Return the living processes of commands that runs have started."""
        commands = set(system.carriers(f"{COMMAND_MARK}="))
        return [pid for pid in self.living() if pid in commands]

    def stop_workers(self) -> None:
        """End the workers as a deploy does."""
        self._over.set()
        self._keeper.join(10)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(Member.stop, [*self.clients.values(), *self.workers.values()]))

    def close(self) -> None:
        """End everything that was started, frozen or not."""
        self._over.set()
        for member in [*self.workers.values(), *self.clients.values()]:
            member.is_wanted = False
        system.send(signal.SIGCONT, self.living())
        self.stop_workers()
        system.send(signal.SIGKILL, self.living())
        self.asm.close()
        self._engine.dispose()
        self.redis.stop()
        self.sql.stop()

    def _start(self, member: Member) -> None:
        member.start()
        if not self.waited(lambda: member.is_ready, 90.0):
            raise RuntimeError(f"worker {member.name} did not become ready:\n{member.log[-3000:]}")

    def _keep(self) -> None:
        members = [*self.workers.values(), *self.clients.values()]
        measured_at = 0.0
        while not self._over.wait(LOOK_S):
            for member in members:
                if member.has_ended and not (member.kind == "client" and self._may_end()):
                    member.start()
            if time.monotonic() - measured_at > MEASURE_S:
                measured_at = time.monotonic()
                table = system.Table()
                for member in members:
                    member.measure(table)
                self.redis.measure()

    def _may_end(self) -> bool:
        return (self.folder / "stop").exists()

    def _worker(self, name: str, pool: str, size: int, is_linked: bool) -> Member:
        # fmt: off
        command = [
            sys.executable, "-m", "celery", "-A", "tests.faults.agents", "worker", "-P", pool, "-c", str(size),
            "--loglevel", "INFO", "-n", f"{name}@%h", "--without-mingle", "--without-gossip",
        ]
        # fmt: on
        changes = {}
        if is_linked:
            changes["redis_url"] = f"redis://127.0.0.1:{self.links['redis'].port}/0"
            if "sql" in self.links:
                changes["database_url"] = self.sql.url_at(self.links["sql"].port)
        env = self._environment(self.config.model_copy(update=changes))
        # the linked threads worker is also the one whose wall clock is wrong
        if is_linked and pool == "threads":
            env |= self.clock.environment
        return Member(name, pool, command, env, self.folder, is_linked=is_linked)

    def _client(self, name: str) -> Member:
        seed = str(self.seed)
        command = [sys.executable, "-m", "tests.faults.clients", name, str(self.folder), seed]
        return Member(name, "client", command, self._environment(self.config), self.folder)

    def _environment(self, config: Config) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ASM_")}
        return {
            **inherited,
            **environment(config),
            "PYTHONPATH": str(ROOT),
            VARIABLE: str(self.ledger.path),
            MARK: self.mark,
        }


class Clock:
    """The wall clock of one worker, if this machine can compile what shifts it.

    libfaketime is not used: what it does to Python's sleep is no fault that happens.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.environment: dict[str, str] = {}
        self.set(0)
        compiler, library = shutil.which("cc"), folder / "clock.so"
        if compiler is None:
            return
        source = Path(__file__).with_name("clock.c")
        made = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"],
            capture_output=True,
            check=False,
        )
        if made.returncode == 0 and _loads(library):
            self.environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._file)}

    def set(self, seconds: int) -> None:
        """Set the clock so many seconds off, at once."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("q", seconds))


def _loads(library: Path) -> bool:
    with contextlib.suppress(OSError):
        ctypes.CDLL(str(library))
        return True
    return False


@contextlib.contextmanager
def stage(folder: Path, database: str, seed: int) -> Iterator[Stage]:
    """Open a stage, and end all of it, whatever happens."""
    with Network() as network:
        made = Stage(folder, database, seed, network)
        try:
            made.open()
            yield made
        finally:
            made.close()
