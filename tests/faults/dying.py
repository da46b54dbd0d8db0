"""A worker's module whose agents die: ``celery -A tests.faults.dying worker``."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

from asm_celery.worker.context import RunContext
from tests.acceptance.agents_module import app, asm
from tests.acceptance.ledger import noted

__all__ = ["app", "asm"]


@asm.agent
def poison(ctx: RunContext, given: Any) -> None:
    """End the process that executes it, at once, each time."""
    with noted(ctx):
        os.kill(os.getpid(), signal.SIGKILL)


@asm.agent
def hungry(ctx: RunContext, mebibytes: int) -> int:
    """Take memory until the kernel says no; what the kernel does by SIGKILL, this does to itself."""
    with noted(ctx):
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        try:
            return len(bytearray(mebibytes << 20))
        except MemoryError:
            os.kill(os.getpid(), signal.SIGKILL)
            raise


@asm.agent
def hold(ctx: RunContext, given: Any) -> None:
    """Hold the interpreter for ever: nothing else of its process executes."""
    with noted(ctx):
        sum(range(10**13))
