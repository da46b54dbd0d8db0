"""A user's worker module, as the acceptance tests run it: ``celery -A tests.acceptance.agents_module worker``.

Its agents keep the ledger.  With ``ASM_TEST_NOISE`` in the environment its doorbells are repeated and mixed
up; that is done here, to this process, and no production code knows of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from asm_celery import AgentSessions
from asm_celery.worker.context import RunContext
from tests.acceptance import noise
from tests.acceptance.ledger import noted

if os.environ.get(noise.VARIABLE):
    noise.install()

asm = AgentSessions.from_env()
app = asm.celery_app
LOOK_S = 0.01


@asm.agent
def echo(ctx: RunContext, given: Any) -> Any:
    """Return the input."""
    with noted(ctx):
        return given


@asm.agent
def work(ctx: RunContext, seconds: float) -> float:
    """Take some seconds."""
    with noted(ctx):
        ctx.sleep(seconds)
        return seconds


@asm.agent
def gate(ctx: RunContext, given: dict[str, Any]) -> Any:
    """Wait until the file ``gate`` is there, and return ``value``."""
    with noted(ctx):
        _pass(ctx, given["gate"])
        return given.get("value")


@asm.agent
def stubborn(ctx: RunContext, given: dict[str, Any]) -> Any:
    """Wait until the file ``gate`` is there, whatever it is asked meanwhile."""
    with noted(ctx):
        while not Path(given["gate"]).exists():
            time.sleep(LOOK_S)
        return given.get("value")


@asm.agent("patient", capabilities={"pause"})
def patient(ctx: RunContext, given: dict[str, Any]) -> int:
    """Take steps until the file ``gate`` is there, and none while it is paused."""
    with noted(ctx):
        steps = 0
        while not Path(given["gate"]).exists():
            ctx.wait_if_paused()
            steps += 1
            ctx.emit("step", {"step": steps})
            ctx.sleep(LOOK_S)
        return steps


@asm.agent
def speak(ctx: RunContext, given: dict[str, Any]) -> Generator[str, None, None]:
    """Stream ``words``, then wait until the file ``gate`` is there."""
    with noted(ctx):
        yield from given["words"]
        _pass(ctx, given["gate"])


@asm.agent
def fail(ctx: RunContext, message: str) -> None:
    """Raise an error with the input as its message."""
    with noted(ctx):
        raise ValueError(message)


@asm.agent(queue=f"{asm.config.default_queue}.remote")
def remote(ctx: RunContext, given: Any) -> Any:
    """Return the input, on workers of another Celery queue."""
    with noted(ctx):
        return given


def _pass(ctx: RunContext, path: str) -> None:
    while not Path(path).exists():
        ctx.sleep(LOOK_S)
