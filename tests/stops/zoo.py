"""The zoo: agents of every temper, as a worker runs them: ``celery -A tests.stops.zoo worker``.

Every one goes on until it is stopped, except with the input ``next``, which it answers at once.  Each entry
leaves a line in the ledger, and a file that names the thread it is in.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asm_celery import AgentSessions
from asm_celery.worker.context import RunContext
from tests.acceptance.ledger import noted
from tests.stops.tracks import leave_beat, leave_footprint
from workers.shell import ShellAgent

NEXT = "next"
STEP_S = 0.01
SHELL = ShellAgent()

asm = AgentSessions.from_env()
app = asm.celery_app


@contextmanager
def entered(ctx: RunContext) -> Iterator[None]:
    """Write what a test reads afterwards: who was entered, where, and that it was left."""
    leave_footprint(ctx.run.run_id)
    with noted(ctx):
        yield


def animal(body: Callable[[RunContext, Any], Any]) -> None:
    """Register a body as the agent of its name; ``next`` is answered at once."""

    def call(ctx: RunContext, given: Any) -> Any:
        if given == NEXT:
            with entered(ctx):
                return NEXT
        return body(ctx, given)

    asm.register(body.__name__, call)


def blocking(body: Callable[[RunContext, Any], Any]) -> None:
    """Do the same for a plain function."""

    def call(ctx: RunContext, given: Any) -> Any:
        with entered(ctx):
            return body(ctx, given)

    call.__name__ = body.__name__
    animal(call)


# --- polite ones


@animal
async def polite_async(ctx: RunContext, given: Any) -> None:
    """Wait in a loop; its task is cancelled."""
    with entered(ctx):
        while True:  # noqa: ASYNC110 - nothing is waited for
            await asyncio.sleep(STEP_S)


@animal
async def polite_async_generator(ctx: RunContext, given: Any) -> AsyncGenerator[str, None]:
    """Stream a word now and then; its task is cancelled."""
    with entered(ctx):
        while True:
            yield "word "
            await asyncio.sleep(0.05)


@blocking
def polite_sync(ctx: RunContext, given: Any) -> None:
    """Ask at every turn whether to stop."""
    while True:
        ctx.check()
        threading.Event().wait(STEP_S)


@animal
def polite_generator(ctx: RunContext, given: Any) -> Generator[str, None, None]:
    """Stream a word now and then; a yield is a place to leave."""
    with entered(ctx):
        while True:
            yield "word "
            threading.Event().wait(0.05)


# --- those that do not listen


@blocking
def spin(ctx: RunContext, given: Any) -> None:
    """Compute in Python for ever."""
    while True:
        pass


@blocking
def socket_read(ctx: RunContext, given: Any) -> None:
    """Wait in a system call for what never comes."""
    here, there = socket.socketpair()
    with here, there:
        here.recv(1)


@blocking
def swallow_exception(ctx: RunContext, given: Any) -> None:
    """Catch every Exception, and never ask."""
    while True:
        with contextlib.suppress(Exception):
            time.sleep(STEP_S)


@blocking
def swallow_unheard(ctx: RunContext, given: Any) -> None:
    """Catch whatever is raised, and never ask."""
    while True:
        try:
            time.sleep(STEP_S)
        except BaseException:  # noqa: BLE001 - that is its nature
            continue


@blocking
def swallow_heard(ctx: RunContext, given: Any) -> None:
    """Ask whether to stop, and go on in spite of the answer."""
    while True:
        try:
            ctx.check()
            time.sleep(STEP_S)
        except BaseException:  # noqa: BLE001 - that is its nature
            time.sleep(STEP_S)


# --- those in C


@blocking
def hash_in_c(ctx: RunContext, given: Any) -> None:
    """Compute in C, without the GIL, for a quarter of an hour."""
    hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", (1 << 31) - 1)


@blocking
def regex_in_c(ctx: RunContext, given: Any) -> None:
    """Compute in C with the GIL, for days; looks at signals now and then (28 letters: 16 s; each doubles it)."""
    re.match(r"(a+)+$", "a" * 44 + "b")


@blocking
def sum_in_c(ctx: RunContext, given: Any) -> None:
    """Compute in C with the GIL, for days; looks at nothing (10 million: 0.3 s)."""
    sum(range(10**13))


# --- those with processes


@blocking
def shell(ctx: RunContext, given: Any) -> Any:
    """Run the shipped shell agent."""
    return SHELL(ctx, given)


# --- the others


@asm.agent
def neighbour(ctx: RunContext, gate: str) -> str:
    """Show at every turn that it lives, until the file `gate` is there."""
    with entered(ctx):
        while not Path(gate).exists():
            leave_beat(ctx.run.run_id)
            ctx.sleep(2 * STEP_S)
        return "unharmed"


@asm.agent
def linger(ctx: RunContext, seconds: float) -> float:
    """Take some time, and then end; stops at once when it is told."""
    with entered(ctx):
        ctx.sleep(seconds)
        return seconds


@asm.agent(stop_grace_s=0)
def brief(ctx: RunContext, seconds: float) -> int:
    """Take a few milliseconds without listening; has no grace."""
    with entered(ctx):
        time.sleep(seconds)
        return os.getpid()


@asm.agent
def fail(ctx: RunContext, message: str) -> None:
    """Raise an error."""
    with entered(ctx):
        raise ValueError(message)
