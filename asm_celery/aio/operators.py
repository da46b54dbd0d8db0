"""The limiter and the control operations as coroutines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from asm_celery.checks import check_seconds
from asm_celery.limiter import ConcurrencyLimiter, LimiterStatus, Limits
from asm_celery.model import Hold, PauseReceipt, StopReceipt
from asm_celery.operations import ControlOperations, OperationStatus
from asm_celery.store.operators import ControlOperation


class AsyncLimiter:
    """The verbs of `ConcurrencyLimiter`."""

    def __init__(self, limiter_of: Callable[[], ConcurrencyLimiter]) -> None:
        self._limiter_of = limiter_of

    async def acquire_session_slot(self, session_id: str, *, timeout: float | None = None) -> None:
        """See `ConcurrencyLimiter.acquire_session_slot`."""
        await self._call("acquire_session_slot", session_id, timeout=timeout)

    async def release_session_slot(self, session_id: str) -> None:
        """See `ConcurrencyLimiter.release_session_slot`."""
        await self._call("release_session_slot", session_id)

    async def acquire_run_slot(self, session_id: str, run_id: str, *, timeout: float | None = None) -> None:
        """See `ConcurrencyLimiter.acquire_run_slot`."""
        await self._call("acquire_run_slot", session_id, run_id, timeout=timeout)

    async def release_run_slot(self, run_id: str) -> None:
        """See `ConcurrencyLimiter.release_run_slot`."""
        await self._call("release_run_slot", run_id)

    async def get_status(self) -> LimiterStatus:
        """See `ConcurrencyLimiter.get_status`."""
        status: LimiterStatus = await self._call("get_status")
        return status

    async def get_limits(self) -> Limits:
        """See `ConcurrencyLimiter.get_limits`."""
        limits: Limits = await self._call("get_limits")
        return limits

    async def set_limits(self, **limits: float | None) -> Limits:
        """See `ConcurrencyLimiter.set_limits`."""
        now: Limits = await self._call("set_limits", **limits)
        return now

    def _call(self, verb: str, *arguments: Any, **options: Any) -> Awaitable[Any]:
        return asyncio.to_thread(lambda: getattr(self._limiter_of(), verb)(*arguments, **options))


class AsyncControlOperations:
    """The verbs of `ControlOperations`."""

    def __init__(self, operations: ControlOperations) -> None:
        self._operations = operations

    async def interrupt(self, run_id: str, *, by: str = "operator") -> StopReceipt:
        """See `ControlOperations.interrupt`."""
        return await asyncio.to_thread(self._operations.interrupt, run_id, by=by)

    async def cancel(self, run_id: str, *, by: str = "operator") -> StopReceipt:
        """See `ControlOperations.cancel`."""
        return await asyncio.to_thread(self._operations.cancel, run_id, by=by)

    async def pause(self, run_id: str, *, by: str = "operator") -> PauseReceipt:
        """See `ControlOperations.pause`."""
        return await asyncio.to_thread(self._operations.pause, run_id, by=by)

    async def resume(self, run_id: str, *, by: str = "operator") -> PauseReceipt:
        """See `ControlOperations.resume`."""
        return await asyncio.to_thread(self._operations.resume, run_id, by=by)

    async def cancel_all(self, run_ids: Collection[str], *, by: str = "operator") -> dict[str, Any]:
        """See `ControlOperations.cancel_all`."""
        return await asyncio.to_thread(self._operations.cancel_all, run_ids, by=by)

    async def interrupt_session(self, session_id: str, *, by: str = "operator") -> dict[str, StopReceipt]:
        """See `ControlOperations.interrupt_session`."""
        return await asyncio.to_thread(self._operations.interrupt_session, session_id, by=by)

    async def hold(self, *, by: str = "operator") -> Hold:
        """See `ControlOperations.hold`."""
        return await asyncio.to_thread(self._operations.hold, by=by)

    async def release(self, *, by: str = "operator") -> Hold:
        """See `ControlOperations.release`."""
        return await asyncio.to_thread(self._operations.release, by=by)

    async def get_hold(self) -> Hold:
        """See `ControlOperations.get_hold`."""
        return await asyncio.to_thread(self._operations.get_hold)

    async def drain(self, timeout: float | None = 60.0) -> None:
        """See `ControlOperations.drain`; holds no thread while it waits."""
        check_seconds(timeout, what="timeout")
        deadline = None if timeout is None else time.monotonic() + timeout
        look = self._operations.left_to_drain
        # the runs of other processes: there is nothing here to be woken by
        while (left := await asyncio.to_thread(look, deadline, timeout)) is not None:  # noqa: ASYNC110
            await asyncio.sleep(left)

    async def get_operation_status(self, run_id: str) -> OperationStatus:
        """See `ControlOperations.get_operation_status`."""
        return await asyncio.to_thread(self._operations.get_operation_status, run_id)

    async def get_operation_history(self, run_id: str) -> list[ControlOperation]:
        """See `ControlOperations.get_operation_history`."""
        return await asyncio.to_thread(self._operations.get_operation_history, run_id)
