"""Our worker's side: ``celery -A benchmarks.asm_module worker``."""

from __future__ import annotations

from asm_celery import AgentSessions
from asm_celery.worker.context import RunContext
from benchmarks.stamps import stamp

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
