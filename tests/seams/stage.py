"""A process that may die in any of its moves, and another that finds what it left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import redis

from asm_celery.config import Config
from asm_celery.errors import AsmError
from asm_celery.model import Session
from asm_celery.moves.coordinator import Claim
from asm_celery.states import TERMINAL, SessionStatus
from asm_celery.store.database import Store
from asm_celery.testing import Seams
from tests.waiting import wait_until
from tests.world import World

# Clocks that no load can make run out by themselves.
STEPPED = {"lease_s": 30.0, "repair_s": 60.0, "retry_backoff_s": 0.0}
# longer than `lease_s`, and no gap in the observation: two looks judge an attempt
_STEP_S = 31.0
# of the process that dies; its id is in the executor's name
VICTIM_PID = 1
VICTIM = f"host:{VICTIM_PID}:00000001"
PAUSABLE = "pausable"
AGENTS = ("agent", PAUSABLE)


class Rescuer:
    """The other process: it lives on, and its clocks are stepped instead of waited for."""

    def __init__(self, config: Config) -> None:
        self.world = World(config, agents=AGENTS)
        self.config = config
        # of the processes that die, one after the other: its statements are compiled once
        self.victims_store = Store(config)
        self._at = 0.0
        self._redis = redis.Redis.from_url(config.redis_url)
        self.world.runtime.recovery._silence._clock = lambda: self._at

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self.victims_store.close()
        self.world.close()

    def wipe(self) -> None:
        """Lose everything in Redis, as a flush does."""
        for key in self._redis.scan_iter(match=f"{self.config.keys.root}*", count=1000):
            self._redis.delete(key)

    def finish_all(self, sessions: list[Session]) -> None:
        """Let time pass, repair, and execute what is rung for, until nothing is open and nothing is held."""
        if self.world.runtime.holding.read().is_held:
            self.world.runtime.holding.move(False, by="test")
        for session in sessions:
            self._open(session)

        def is_over() -> bool:
            self._tick()
            return not self._open_runs() and self.world.runtime.queue.limiter_status()[::2] == (0, 0)

        wait_until(is_over, description="every run has ended and no slot is taken")

    def _tick(self) -> None:
        self._at += _STEP_S
        self.pass_time()
        self.world.tick()
        bells, self.world.bells.rung = self.world.bells.rung, []
        for bell in bells:
            claim = self.world.try_start(bell, executor="rescuer")
            if claim is not None:
                self.world.finish(claim)

    def pass_time(self) -> None:
        """Make due in Redis what its clock would make due."""
        root = self.config.keys.root
        self._redis.delete(f"{root}restoring", f"{root}comparing")
        for name in ("dispatched", "delayed", "callers:runs", "callers:sessions"):
            for member in self._redis.zrange(f"{root}{name}", 0, -1):
                self._redis.zadd(f"{root}{name}", {member: 1})

    def _open(self, session: Session) -> None:
        with self.world.runtime.store.read() as tx:
            now = tx.sessions.get(session.session_id)
        if now is not None and now.status in (SessionStatus.PAUSED, SessionStatus.DRAINING):
            self.world.runtime.control.move_session(session.session_id, SessionStatus.ACTIVE)

    def _open_runs(self) -> list[str]:
        with self.world.runtime.store.read() as tx:
            return [run.run_id for run in tx.runs.open_page()]


class Stage:
    """One scene: the process under test, what it was told, and its rescuer.

    Attributes:
        accepted: ids that submits returned.
        afterwards: what callers do once the process is gone.
    """

    def __init__(self, config: Config, rescuer: Rescuer) -> None:
        self.seams = Seams()
        self.world = World(config, slots=0)
        self.world.registry.register(PAUSABLE, lambda ctx, value: value, capabilities={"pause"})
        self.world.runtime.__dict__["store"] = rescuer.victims_store
        self.seams.install(self.world.runtime)
        self.rescuer = rescuer
        self.sessions: list[Session] = []
        self.accepted: list[str] = []
        self.afterwards: list[Callable[[], object]] = []

    def session(self, **values: Any) -> Session:
        """Start a session."""
        made = self.world.session(**values)
        self.sessions.append(made)
        return made

    def submit(self, session: Session, **options: Any) -> str:
        """Submit a run, and note the answer."""
        run_id = self.world.submit(session, **options)
        self.accepted.append(run_id)
        return run_id

    def line(self, count: int = 2, **options: Any) -> tuple[Session, list[str]]:
        """Start a session with some runs; the first one's doorbell is rung."""
        session = self.session()
        return session, [self.submit(session, **options) for _ in range(count)]

    def running(self, **options: Any) -> tuple[Session, Claim]:
        """Start a session whose first run executes here, with another one behind it."""
        session, _ = self.line(**options)
        return session, self.world.start(executor=VICTIM)

    def rescue(self) -> None:
        """End the process, and have the other one find everything."""
        # its connections break with it; what it had rung for is lost on the way
        with contextlib.suppress(AsmError):
            self.world.runtime.close()
        for call in self.afterwards:
            call()
        self.rescuer.finish_all(self.sessions)
        self._check()

    def _check(self) -> None:
        with self.rescuer.world.runtime.store.read() as tx:
            for run_id in self.accepted:
                run = tx.runs.get(run_id)
                assert run is not None, f"{run_id} was accepted and is gone"
                assert run.status in TERMINAL, f"{run_id} is {run.status}"

    def stored(self, session: Session) -> set[str]:
        """Return the ids of the session's runs in SQL."""
        with self.rescuer.world.runtime.store.read() as tx:
            return {run.run_id for run in tx.runs.of_session(session_id=session.session_id, limit=100)}
