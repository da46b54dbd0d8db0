"""`AgentSessions`: the one object users make; it knows the agents and opens sessions."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from asm_celery.agent import AgentRegistry, check_agent_name
from asm_celery.bell import bell_of
from asm_celery.checks import check_count, check_run_id, check_session_id
from asm_celery.config import Config
from asm_celery.dispatch import CeleryApp, CeleryDispatcher
from asm_celery.errors import (
    AlreadyExists,
    InvalidOperation,
    RunNotFound,
    SessionNotFound,
    ValidationError,
)
from asm_celery.limiter import ConcurrencyLimiter
from asm_celery.local import LocalParts
from asm_celery.model import Run, Session
from asm_celery.operations import ControlOperations
from asm_celery.runtime import Runtime
from asm_celery.server import MAX_PAGE, SessionServer
from asm_celery.showing import shown
from asm_celery.states import check_session_status
from asm_celery.worker.app import create_app, install

_Call = TypeVar("_Call", bound=Callable[..., Any])

MAX_SLOTS = 1000


class AgentSessions:
    """Sessions of runs on one Redis and one database.

    It connects and starts threads at first use only, and anew after a fork.  A context manager.

    Args:
        config: the settings; None reads the environment.
        celery_app: an existing application, on which the task is registered instead of on one of our own.
    """

    def __init__(self, config: Config | None = None, *, celery_app: CeleryApp | None = None) -> None:
        self.config = config or Config()
        self.registry = AgentRegistry()
        self.control = ControlOperations(self._runtime)
        self._given_app = celery_app
        self._app: CeleryApp | None = None
        self._built: Runtime | None = None
        self._pid = 0
        self._inherited: list[Runtime] = []
        self._lock = threading.RLock()
        self._local: LocalParts | None = None
        if celery_app is not None:
            install(celery_app, self._runtime)

    @classmethod
    def from_env(cls) -> Self:
        """Make one from ``ASM_REDIS_URL``, ``ASM_DATABASE_URL`` and the other variables of `Config`."""
        return cls(Config.from_env())

    @classmethod
    def local(cls, home: str | Path | None = None, *, concurrency: int = 8, **settings: Any) -> Self:
        """Make one with everything inside: an embedded Valkey, SQLite, and a worker in this process.

        The server starts now, the worker at the first use, with the agents registered by then.  `close`
        (or the end of the process) stops all it started; what was stored stays in `home`.

        Args:
            home: the folder; None: `Config.home`.
            concurrency: how many runs execute at once.
            settings: further settings of `Config`.

        Raises:
            DependencyNotAvailable: no server binary was found; the message says what to install.
        """
        check_count(concurrency, what="concurrency", minimum=1, maximum=10_000)
        parts = LocalParts.start(Path(home or Config(**settings).home), concurrency=concurrency)
        try:
            made = cls(Config(**{**settings, **parts.settings}))
        except BaseException:
            parts.stop_server()
            raise
        made._local = parts
        atexit.register(made.close)
        return made

    @overload
    def agent(self, name: _Call, /) -> _Call: ...

    @overload
    def agent(
        self,
        name: str | None = None,
        /,
        *,
        queue: str | None = None,
        stop_grace_s: float | None = None,
        run_timeout: float | None = None,
        max_attempts: int | None = None,
        resumable: bool = False,
        capabilities: Collection[str] = (),
    ) -> Callable[[_Call], _Call]: ...

    def agent(self, name: Any = None, /, **options: Any) -> Any:
        """Register the decorated callable, under its own name or the one given; returns it unchanged.

        ``@asm.agent`` or ``@asm.agent("name", queue=..., stop_grace_s=..., run_timeout=...,
        max_attempts=..., resumable=..., capabilities={"pause"})``; see `AgentSpec`.
        """
        if callable(name):
            self.register(name.__name__, name)
            return name

        def decorate(call: _Call) -> _Call:
            self.register(name or call.__name__, call, **options)
            return call

        return decorate

    def register(self, name: str, call: Callable[..., Any], **options: Any) -> None:
        """Register any callable ``(ctx, input)`` as an agent; options as in `agent`.

        Raises:
            ValidationError: the name, the callable or an option breaks a rule.
            AlreadyExists: the name belongs to another callable.
        """
        self.registry.register(name, call, **options)

    def start_session(
        self,
        agent: str,
        *,
        max_concurrent_runs: int = 1,
        max_queued_runs: int | None = None,
        metadata: dict[str, Any] | None = None,
        session_id: str | None = None,
        if_exists: str = "error",
    ) -> SessionServer:
        """Start a session, or attach to it.

        Args:
            agent: the name of its agent; checked against the registry where this process has one.
            max_concurrent_runs: slots, 1-1000; max_queued_runs: how many runs may wait, 0 or more.
            session_id: an id of your own, such as ``chat-42``.
            if_exists: ``error``, or ``attach`` to keep the stored settings.

        Raises:
            ValidationError, AgentNotFound: a value breaks a rule.
            AlreadyExists: the id is taken and `if_exists` is ``error``.
            InvalidOperation: attached to a session of another agent.
            StorageConnectionFailed, MigrationRequired: no database; nothing was written.
        """
        self.registry.check(agent)
        check_count(max_concurrent_runs, what="max_concurrent_runs", minimum=1, maximum=MAX_SLOTS)
        bound = self.config.max_queued_runs if max_queued_runs is None else max_queued_runs
        check_count(bound, what="max_queued_runs", minimum=0)
        if if_exists not in ("error", "attach"):
            raise ValidationError(f"if_exists={shown(if_exists)} must be 'error' or 'attach'")
        if metadata is not None and not isinstance(metadata, dict):
            raise ValidationError(f"metadata must be an object, got {shown(metadata)}")
        session = Session.new(
            agent,
            session_id=session_id,
            max_concurrent_runs=max_concurrent_runs,
            max_queued_runs=bound,
            metadata=metadata or {},
        )
        if if_exists == "attach" and session_id is not None and (known := self._find(session_id)):
            return self._attached(known, agent)
        try:
            return SessionServer(self._runtime, self._runtime().submission.start_session(session))
        except AlreadyExists:
            # another process may have been quicker
            known = self._find(session.session_id) if if_exists == "attach" else None
            if known is None:
                raise
            return self._attached(known, agent)

    def attach(self, session_id: str) -> SessionServer:
        """Return a handle of an existing session; raises SessionNotFound."""
        check_session_id(session_id)
        known = self._find(session_id)
        if known is None:
            raise SessionNotFound(
                f"there is no session {session_id!r}: start it with start_session",
                details={"session_id": session_id},
            )
        return SessionServer(self._runtime, known)

    def list_sessions(
        self,
        status: str | None = None,
        agent: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> list[Session]:
        """Return sessions by creation, oldest first, beginning behind the session `after`; limit 1-1000."""
        check_count(limit, what="limit", minimum=1, maximum=MAX_PAGE)
        wanted = None if status is None else check_session_status(status)
        agent = agent if agent is None else check_agent_name(agent)
        after = after if after is None else check_session_id(after)
        with self._runtime().store.read() as tx:
            return tx.sessions.page(status=wanted, agent=agent, after=after, limit=limit)

    def get_run(self, run_id: str) -> Run:
        """Return a run of any session; raises RunNotFound."""
        check_run_id(run_id)
        with self._runtime().store.read() as tx:
            run = tx.runs.get(run_id)
        if run is None:
            raise RunNotFound(f"there is no run {run_id!r}", details={"run_id": run_id})
        return run

    def delete_session(self, session_id: str) -> None:
        """Remove a completed or drained session with its runs and events; see `Control.delete_session`."""
        self._runtime().control.delete_session(check_session_id(session_id))

    def prune(self, *, before: datetime | None = None, keep: int = 0, session_id: str | None = None) -> int:
        """Remove the oldest events of every session, or of one; return how many.

        Runs and their results stay, and so does all of a log from its first open run on.  Who follows a log
        from a removed place gets one ``session_pruned`` event; a cursor there is refused with CursorGone.
        Where every session is pruned, the history of operations on a run goes with the run's last event.

        Args:
            before: only events older than this (aware datetime).
            keep: leave at least so many events of each session.

        Raises:
            ValidationError: neither was given.
            SessionNotFound: there is no such session.
        """
        return self._runtime().retention.prune(before=before, keep=keep, session_id=session_id)

    @property
    def limiter(self) -> ConcurrencyLimiter:
        """The global limiter, for a caller's own work and for the limits."""
        return self._runtime().limiter

    @property
    def celery_app(self) -> CeleryApp:
        """The Celery application: ``app = asm.celery_app`` makes a module a worker's module."""
        if self._app is None:
            with self._lock:
                if self._app is None:
                    self._app = self._given_app or create_app(self.config, self._runtime)
        # without the lock: who holds it may be waiting for a worker's thread, which asks for this
        return self._app

    def close(self) -> None:
        """Stop the threads, connections and whatever `local` started; a later use connects anew."""
        with self._lock:
            local, self._local = self._local, None
            is_here = self._pid in (0, os.getpid())
            try:
                if local is not None and is_here:
                    local.stop_worker()
                if self._built is not None and is_here:
                    self._built.close()
                    self._built = None
            finally:
                if local is not None and is_here:
                    local.stop_server()
                    atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _runtime(self) -> Runtime:
        if self._built is None or self._pid != os.getpid():
            self._build()
        assert self._built is not None
        return self._built

    def _build(self) -> None:
        # A fork may have copied the lock while another thread held it.
        if self._pid not in (0, os.getpid()):
            self._lock = threading.RLock()
        with self._lock:
            if self._built is not None and self._pid == os.getpid():
                return
            if self._built is not None:
                # the parent's sockets: kept referenced, so that no finalizer speaks on them
                self._inherited.append(self._built)
                self._local = None
            self._pid = os.getpid()
            # an application of the user's may have routers, signals and tracers that a script would pass by
            bell = None if self._given_app else lambda app: bell_of(app, self.config)
            dispatcher = CeleryDispatcher(lambda: self.celery_app, bell)
            self._built = Runtime(self.config, self.registry, dispatcher)
            if self._local is not None:
                self._local.start_worker(self.celery_app)

    def _find(self, session_id: str) -> Session | None:
        with self._runtime().store.read() as tx:
            return tx.sessions.get(session_id)

    def _attached(self, known: Session, agent: str) -> SessionServer:
        if known.agent != agent:
            raise InvalidOperation(
                f"session {known.session_id!r} belongs to agent {known.agent!r}, not {agent!r}: use its agent or "
                "another id",
                details={"session_id": known.session_id, "agent": known.agent},
            )
        return SessionServer(self._runtime, known)
