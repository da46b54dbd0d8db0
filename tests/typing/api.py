"""The public API as users type it: checked by mypy, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from asm_celery import AgentSessions, Config, Event, Run, RunResult, SessionServer, errors
from asm_celery import Session as StoredSession
from asm_celery.aio import AsyncAgentSessions, AsyncSessionServer
from asm_celery.model import Hold, PauseReceipt, StopReceipt
from asm_celery.worker.context import RunContext

asm = AgentSessions(Config(namespace="typing"))


@asm.agent
def plain(ctx: RunContext, input: str) -> str:
    """A plain function keeps its type."""
    ctx.emit("progress", {"done": 1})
    ctx.check()
    return input


@asm.agent("words", queue="words", max_attempts=2)
def words(ctx: RunContext, input: str) -> Iterator[str]:
    """A generator streams."""
    yield from input.split()


@asm.agent("later", resumable=True, capabilities={"pause"})
async def later(ctx: RunContext, input: str) -> AsyncIterator[str]:
    """An async generator streams too, and rests while its run is paused."""
    await ctx.await_if_paused()
    yield input


def sync_face() -> None:
    """The sync verbs."""
    server = asm.start_session("plain", session_id="chat-42", if_exists="attach")
    assert_type(server, SessionServer)
    run_id = server.submit_run({"text": "hello"}, idempotency_key="k")
    assert_type(run_id, str)
    try:
        assert_type(server.await_run(run_id, timeout=1.0), RunResult)
    except errors.RunFailed as failed:
        assert_type(failed.code, str)
    with server.subscribe(run_id=run_id, type=["message_streamed"]) as events:
        for event in events:
            assert_type(event, Event)
        assert_type(events.get(timeout=0.1), Event | None)
    assert_type(asm.get_run(run_id), Run)
    assert_type(asm.control.pause(run_id, by="alice"), PauseReceipt)
    assert_type(asm.control.interrupt_session("chat-42"), dict[str, StopReceipt])
    assert_type(asm.control.hold(), Hold)
    assert_type(asm.list_sessions(), list[StoredSession])


async def async_face() -> None:
    """The async verbs."""
    async with AsyncAgentSessions.from_env() as sessions:
        server = await sessions.attach("chat-42")
        assert_type(server, AsyncSessionServer)
        run_id = await server.submit_run("hello")
        async with server.subscribe(run_id=run_id) as events:
            async for event in events:
                assert_type(event, Event)
        assert_type(await server.await_run(run_id), RunResult)
