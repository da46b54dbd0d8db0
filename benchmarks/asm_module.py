"""Our worker's side: ``celery -A benchmarks.asm_module worker``."""

from __future__ import annotations

import time
from typing import Any

from asm_celery import AgentSessions
from asm_celery.worker.context import RunContext
from benchmarks.stamps import stamp

# what waits for I/O needs more threads than what computes: a worker of its own
IO_QUEUE = "io"
TEXT = "x" * 150

asm = AgentSessions.from_env()
app = asm.celery_app


@asm.agent
def noop(ctx: RunContext, given: object) -> None:
    """Do nothing, and say when."""
    stamp(str(given))


@asm.agent
async def waiter(ctx: RunContext, given: object) -> None:
    """Wait for a stop."""
    stamp(str(given))
    while True:
        await ctx.asleep(60)


@asm.agent
def chatter(ctx: RunContext, given: dict[str, Any]) -> None:
    """Say ``count`` events, one each ``gap_s``; each tells when."""
    entered = due = time.monotonic()
    for _ in range(given["count"]):
        ctx.emit("note", {"at": time.monotonic(), "text": TEXT})
        due += given["gap_s"]
        if due > time.monotonic():
            time.sleep(due - time.monotonic())
    stamp("chatter", entered)


@asm.agent(queue=IO_QUEUE)
async def sleeper(ctx: RunContext, seconds: float) -> None:
    """Wait as for a slow service."""
    entered = time.monotonic()
    await ctx.asleep(seconds)
    stamp("sleeper", entered)
