"""Waiting without sleeping: for a condition, with a name, and not for ever."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.01
# Of the time: a look that costs more is taken more rarely, or those who wait would starve what they wait for.
_SHARE = 0.25


def wait_until(condition: Callable[[], T], *, description: str, timeout: float = 20.0) -> T:
    """Return the condition's first truthy value.

    Args:
        description: what is waited for, as a claim: "the run is running".
        timeout: seconds; generous, because it is met only by a test that fails.

    Raises:
        AssertionError: the time has passed; says the description and the last value.
    """
    deadline = time.monotonic() + timeout
    while True:
        began = time.thread_time()
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain until {description}; last: {value!r}")
        threading.Event().wait(max(POLL_S, (time.thread_time() - began) / _SHARE))


async def await_until(
    condition: Callable[[], T | Awaitable[T]], *, description: str, timeout: float = 20.0
) -> T:
    """Do the same in a coroutine; the condition may be one too."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        value: T = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain until {description}; last: {value!r}")
        await asyncio.sleep(POLL_S)
