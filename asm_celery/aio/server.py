"""One session as coroutines; waiting is native."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

from asm_celery.awaiting import await_timeout, cancel_timeout, result_of
from asm_celery.checks import check_run_id, check_seconds
from asm_celery.errors import ValidationError
from asm_celery.events.cursor import Place, begin_at
from asm_celery.events.subscription_async import AsyncSubscription
from asm_celery.model import Event, Run, RunResult, SessionStatusReport, StopReceipt
from asm_celery.server import LOOK_AGAIN_S, SessionServer, check_types, drain_timeout
from asm_celery.showing import shown
from asm_celery.states import TERMINAL_EVENTS, StopKind


class AsyncSessionServer:
    """One session; the verbs of `SessionServer`."""

    def __init__(self, server: SessionServer) -> None:
        self._server = server
        self.session_id = server.session_id

    def __repr__(self) -> str:
        return f"Async{self._server!r}"

    @property
    def agent(self) -> str:
        """The name of the session's agent."""
        return self._server.agent

    async def submit_run(self, input: Any, **submit_options: Any) -> str:  # noqa: A002
        """See `SessionServer.submit_run`."""
        return await asyncio.to_thread(self._server.submit_run, input, **submit_options)

    async def await_run(self, run_id: str, timeout: float | None = 60.0) -> RunResult:
        """See `SessionServer.await_run`; holds no thread while it waits."""
        check_seconds(timeout, what="timeout")
        run = await self._ended(run_id, timeout)
        if run is None:
            raise await_timeout(run_id, timeout or 0.0)
        return result_of(run)

    async def execute_run(
        self,
        input: Any,  # noqa: A002
        timeout: float | None = 60.0,
        **submit_options: Any,
    ) -> RunResult:
        """See `SessionServer.execute_run`."""
        check_seconds(timeout, what="timeout")
        return await self.await_run(await self.submit_run(input, **submit_options), timeout)

    async def cancel_run(
        self, run_id: str, *, wait: bool = False, timeout: float | None = None
    ) -> StopReceipt:
        """See `SessionServer.cancel_run`."""
        return await self._stop(run_id, StopKind.CANCEL, wait, timeout)

    async def interrupt_run(
        self, run_id: str, *, wait: bool = False, timeout: float | None = None
    ) -> StopReceipt:
        """See `SessionServer.interrupt_run`."""
        return await self._stop(run_id, StopKind.INTERRUPT, wait, timeout)

    def subscribe(
        self,
        from_sequence: int | str = 0,
        run_id: str | None = None,
        type: str | Collection[str] | None = None,  # noqa: A002
    ) -> AsyncSubscription:
        """See `SessionServer.subscribe`; not awaited: ``async with server.subscribe(...) as events``.

        A run that this session does not have raises RunNotFound when listening begins, and so does a cursor
        that does not fit what it is refused with.
        """
        first, seen = begin_at(from_sequence, what="from_sequence")
        types = check_types(type)
        if run_id is not None:
            check_run_id(run_id)
        return self._subscription(
            first + 1 if seen else first,
            run_id,
            types,
            lambda: self._server.check_place(seen, run_id),
            seen=seen,
        )

    async def unsubscribe(self, subscription: AsyncSubscription) -> None:
        """Close a subscription; closed already is fine."""
        if not isinstance(subscription, AsyncSubscription):
            raise ValidationError(f"{shown(subscription)} is not what subscribe returned")
        await subscription.close()

    async def status(self) -> SessionStatusReport:
        """See `SessionServer.status`."""
        return await asyncio.to_thread(self._server.status)

    async def drain(self, timeout: float | None = 60.0, accept: bool = True) -> None:
        """See `SessionServer.drain`; holds no thread while it waits."""
        check_seconds(timeout, what="timeout")
        deadline = None if timeout is None else time.monotonic() + timeout
        head = await asyncio.to_thread(self._server.begin_drain, accept=accept)
        async with self._subscription(head + 1, None, TERMINAL_EVENTS, 0) as endings:
            while (report := await self.status()).in_flight_count or report.queued_count:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    why = await asyncio.to_thread(self._server.runtime.inspection.why_waiting, report)
                    raise drain_timeout(report, timeout or 0.0, why)
                await endings.get(LOOK_AGAIN_S if left is None else min(left, LOOK_AGAIN_S))

    async def get_run(self, run_id: str) -> Run:
        """See `SessionServer.get_run`."""
        return await asyncio.to_thread(self._server.get_run, run_id)

    async def list_runs(
        self, *, status: str | Collection[str] | None = None, after: str | None = None, limit: int = 50
    ) -> list[Run]:
        """See `SessionServer.list_runs`."""
        return await asyncio.to_thread(self._server.list_runs, status=status, after=after, limit=limit)

    async def get_events(
        self,
        after: int | str = 0,
        limit: int = 100,
        run_id: str | None = None,
        type: str | Collection[str] | None = None,  # noqa: A002
        *,
        before: int | None = None,
        since: datetime | None = None,
        wait_timeout: float = 0.0,
    ) -> list[Event]:
        """See `SessionServer.get_events`; holds no thread while it waits."""
        check_seconds(wait_timeout, what="wait_timeout", optional=False)

        async def page() -> list[Event]:
            return await asyncio.to_thread(
                self._server.get_events, after, limit, run_id, type, before=before, since=since
            )

        found = await page()
        if found or not wait_timeout:
            return found
        async with self.subscribe(after + 1 if isinstance(after, int) else after, run_id, type) as news:
            await news.get(wait_timeout)
        return await page()

    async def append_events(self, events: Collection[Event]) -> list[Event]:
        """See `SessionServer.append_events`."""
        return await asyncio.to_thread(self._server.append_events, events)

    async def pause(self) -> None:
        """See `SessionServer.pause`."""
        await asyncio.to_thread(self._server.pause)

    async def resume(self) -> None:
        """See `SessionServer.resume`."""
        await asyncio.to_thread(self._server.resume)

    async def complete(self) -> None:
        """See `SessionServer.complete`."""
        await asyncio.to_thread(self._server.complete)

    def _subscription(
        self,
        from_sequence: int,
        run_id: str | None,
        types: frozenset[str] | None,
        run_end: int | Callable[[], int],
        *,
        seen: Place | None = None,
    ) -> AsyncSubscription:
        runtime = self._server.runtime
        return AsyncSubscription(
            runtime.hub,
            runtime.log,
            runtime.config,
            self.session_id,
            from_sequence=from_sequence,
            run_id=run_id,
            types=types,
            seen=seen,
            run_end=run_end,
        )

    async def _ended(self, run_id: str, timeout: float | None) -> Run | None:
        run = await self.get_run(run_id)
        if run.is_terminal:
            return run
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Run] = loop.create_future()

        def on_end(terminal: Run) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: None if ended.done() else ended.set_result(terminal))

        # it may ring the hub's own channel, and Redis may hang
        hub = self._server.runtime.hub
        forget = await asyncio.to_thread(hub.wait_for, run_id, self.session_id, on_end)
        try:
            return await asyncio.wait_for(ended, timeout)
        except TimeoutError:
            return None
        finally:
            forget()

    async def _stop(self, run_id: str, kind: StopKind, wait: bool, timeout: float | None) -> StopReceipt:
        check_seconds(timeout, what="timeout")
        stop = self._server.cancel_run if kind is StopKind.CANCEL else self._server.interrupt_run
        receipt = await asyncio.to_thread(stop, run_id)
        if not wait or receipt.status.is_terminal:
            return receipt
        run = await self._ended(run_id, timeout) or await self.get_run(run_id)
        if not run.is_terminal:
            raise cancel_timeout(run, timeout or 0.0)
        return StopReceipt(run_id=run_id, state=receipt.state, status=run.status, kind=receipt.kind)
