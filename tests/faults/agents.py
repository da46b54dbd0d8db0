"""The worker module of a chaos run: ``celery -A tests.faults.agents worker``.

One agent, whose input says what to do, so that any session can be given any kind of work.  It keeps the
ledger, and numbers what it says.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from asm_celery import AgentSessions
from asm_celery.worker.context import RunContext
from tests.acceptance.ledger import noted
from workers.shell import ShellAgent

asm = AgentSessions.from_env()
app = asm.celery_app
shell = ShellAgent()


@asm.agent("mix")
def mix(ctx: RunContext, given: dict[str, Any]) -> Any:
    """Do what the input's ``do`` says."""
    with noted(ctx):
        return VERBS[given["do"]](ctx, given)


def chat(ctx: RunContext, given: dict[str, Any]) -> int:
    """Say so many numbered words, with a breath now and then."""
    count = int(given["events"])
    for number in range(1, count + 1):
        ctx.emit("message_streamed", {"n": number, "content": "word " * int(given.get("words", 2))})
        if number % 20 == 0:
            ctx.sleep(float(given.get("breath_s", 0.02)))
    return count


def work(ctx: RunContext, given: dict[str, Any]) -> float:
    """Take some time."""
    ctx.sleep(float(given["seconds"]))
    return float(given["seconds"])


def fail(ctx: RunContext, given: dict[str, Any]) -> None:
    """Raise an error."""
    raise ValueError("as the input says")


def flaky(ctx: RunContext, given: dict[str, Any]) -> int:
    """Fail at the first attempt."""
    if ctx.attempt == 1:
        raise ValueError("as the first attempt does")
    return ctx.attempt


def poison(ctx: RunContext, given: dict[str, Any]) -> None:
    """Kill the process it runs in."""
    os.kill(os.getpid(), signal.SIGKILL)


def deaf(ctx: RunContext, given: dict[str, Any]) -> None:
    """Hear no stop, for longer than anybody should wait."""
    until = time.monotonic() + float(given.get("seconds", 120.0))
    while time.monotonic() < until:
        try:
            time.sleep(0.02)
        except BaseException:  # noqa: BLE001 - that is its nature
            continue


def hold_gil(ctx: RunContext, given: dict[str, Any]) -> int:
    """Hold the interpreter in C: about 25 ms for each million."""
    return sum(range(int(given["millions"]) * 1_000_000))


def huge(ctx: RunContext, given: dict[str, Any]) -> str:
    """Return so many bytes."""
    return "x" * int(given["bytes"])


def glutton(ctx: RunContext, given: dict[str, Any]) -> int:
    """Take memory until the kernel says no."""
    Path(given["group"]).write_text(str(os.getpid()))
    eaten = [bytearray(os.urandom(1 << 20)) for _ in range(int(given["megabytes"]))]
    return len(eaten)


def command(ctx: RunContext, given: dict[str, Any]) -> Any:
    """Run a command as the shipped shell agent does."""
    return shell(ctx, given["line"])


VERBS = {
    verb.__name__: verb for verb in (chat, work, fail, flaky, poison, deaf, hold_gil, huge, glutton, command)
}
