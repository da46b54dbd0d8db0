"""The shipped agents: small real work to try the runtime with, and examples of each kind of agent."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

from asm_celery.errors import InvalidInput
from asm_celery.worker.context import RunContext
from workers.shell import ShellAgent


class Registering(Protocol):
    """What `register` needs of `AgentSessions`."""

    def register(self, name: str, call: Any, **settings: Any) -> object:
        """Register an agent under a name."""


def register(asm: Registering) -> None:
    """Register every shipped agent: echo, sleeper, stream, shell, fail."""
    asm.register("echo", echo)
    asm.register("sleeper", sleeper)
    asm.register("stream", stream)
    asm.register("shell", ShellAgent())
    asm.register("fail", fail)


def echo(_ctx: RunContext, given: Any) -> Any:
    """Return the input."""
    return given


def sleeper(ctx: RunContext, given: Any) -> float:
    """Sleep and return the seconds slept; the input is a number or ``{"seconds": s}``."""
    seconds = _number(given.get("seconds") if isinstance(given, dict) else given, what="seconds")
    ctx.sleep(seconds)
    return seconds


def stream(ctx: RunContext, given: Any) -> Generator[str, None, None]:
    """Stream a text word by word; the input is the text or ``{"text": ..., "delay": seconds}``."""
    text, delay = (given.get("text"), given.get("delay", 0)) if isinstance(given, dict) else (given, 0)
    if not isinstance(text, str):
        raise InvalidInput("stream takes a text, or a map with text and perhaps delay")
    pause = _number(delay, what="delay")
    words = text.split(" ")
    for at, word in enumerate(words):
        yield word if at == len(words) - 1 else f"{word} "
        ctx.sleep(pause)


def fail(_ctx: RunContext, given: Any) -> None:
    """Raise an exception with the input as its message."""
    raise RuntimeError(given if isinstance(given, str) else f"failed as asked: {given!r}")


def _number(value: Any, *, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e6:
        raise InvalidInput(f"{what} must be a number of seconds from 0 to a million, got {value!r:.80}")
    return float(value)
