"""`AsyncAgentSessions`: the verbs of `AgentSessions` as coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from asm_celery.agent import AgentRegistry
from asm_celery.aio.operators import AsyncControlOperations, AsyncLimiter
from asm_celery.aio.server import AsyncSessionServer
from asm_celery.config import Config
from asm_celery.dispatch import CeleryApp
from asm_celery.model import Run, Session
from asm_celery.sessions import AgentSessions


class AsyncAgentSessions:
    """The verbs of `AgentSessions`; an async context manager.

    Args:
        sessions: an `AgentSessions` to wrap; None makes one from `config`.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        celery_app: CeleryApp | None = None,
        sessions: AgentSessions | None = None,
    ) -> None:
        self._sessions = sessions or AgentSessions(config, celery_app=celery_app)
        self.config = self._sessions.config
        self.limiter = AsyncLimiter(lambda: self._sessions.limiter)
        self.control = AsyncControlOperations(self._sessions.control)

    @classmethod
    def from_env(cls) -> Self:
        """See `AgentSessions.from_env`."""
        return cls(Config.from_env())

    @classmethod
    def local(cls, home: str | Path | None = None, *, concurrency: int = 8, **settings: Any) -> Self:
        """See `AgentSessions.local`; blocks for the moment the server takes to start."""
        return cls(sessions=AgentSessions.local(home, concurrency=concurrency, **settings))

    @property
    def registry(self) -> AgentRegistry:
        """The agents registered here."""
        return self._sessions.registry

    @property
    def celery_app(self) -> CeleryApp:
        """See `AgentSessions.celery_app`."""
        return self._sessions.celery_app

    def agent(self, name: Any = None, /, **options: Any) -> Any:
        """See `AgentSessions.agent`."""
        return self._sessions.agent(name, **options)

    def register(self, name: str, call: Callable[..., Any], **options: Any) -> None:
        """See `AgentSessions.register`."""
        self._sessions.register(name, call, **options)

    async def start_session(self, agent: str, **options: Any) -> AsyncSessionServer:
        """See `AgentSessions.start_session`."""
        return AsyncSessionServer(await asyncio.to_thread(self._sessions.start_session, agent, **options))

    async def attach(self, session_id: str) -> AsyncSessionServer:
        """See `AgentSessions.attach`."""
        return AsyncSessionServer(await asyncio.to_thread(self._sessions.attach, session_id))

    async def list_sessions(
        self, status: str | None = None, agent: str | None = None, after: str | None = None, limit: int = 50
    ) -> list[Session]:
        """See `AgentSessions.list_sessions`."""
        return await asyncio.to_thread(self._sessions.list_sessions, status, agent, after, limit)

    async def get_run(self, run_id: str) -> Run:
        """See `AgentSessions.get_run`."""
        return await asyncio.to_thread(self._sessions.get_run, run_id)

    async def delete_session(self, session_id: str) -> None:
        """See `AgentSessions.delete_session`."""
        await asyncio.to_thread(self._sessions.delete_session, session_id)

    async def prune(
        self, *, before: datetime | None = None, keep: int = 0, session_id: str | None = None
    ) -> int:
        """See `AgentSessions.prune`."""
        return await asyncio.to_thread(self._sessions.prune, before=before, keep=keep, session_id=session_id)

    async def close(self) -> None:
        """See `AgentSessions.close`."""
        await asyncio.to_thread(self._sessions.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
