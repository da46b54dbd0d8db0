"""Calling an agent, whatever kind of callable it is.

`run_body` returns what the agent returned, or raises what it raised; what that means for the run is
`outcome`'s concern.  Coroutines run in a loop of their own, in the thread that executes the attempt.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Generator
from typing import Any

from asm_celery.agent import Agent
from asm_celery.errors import AsmError, StopRun
from asm_celery.worker.attempt import Attempt
from asm_celery.worker.context import RunContext
from asm_celery.worker.emitter import Emitter


def run_body(call: Agent, context: RunContext, attempt: Attempt, emitter: Emitter) -> Any:
    """Call the agent and see it through; returns its output.

    The kind is told by what the call gives, so functions, methods, partials and objects with ``__call__``
    of every kind are one: a generator is iterated, a coroutine or async generator is run, anything else
    is the output.  A generator that returns nothing has streamed its output: the joined text.
    """
    given = call(context, context.run.input)
    if isinstance(given, Generator):
        value = _iterate(given, attempt, emitter)
        return emitter.text if value is None else value
    if isinstance(given, AsyncGenerator):
        _run(_aiterate(given, attempt, emitter), attempt)
        return emitter.text
    if inspect.isawaitable(given):
        return _run(given, attempt)
    return given


def _iterate(body: Generator[Any, None, Any], attempt: Attempt, emitter: Emitter) -> Any:
    is_told = False
    try:
        item = next(body)
        while True:
            refusal = _emit(attempt, emitter, item)
            if not is_told and (kind := attempt.hear()) is not None:
                # once, at a yield: in `except StopRun` a generator may still yield its last words
                is_told, refusal = True, StopRun(kind)
            item = next(body) if refusal is None else body.throw(refusal)
    except StopIteration as end:
        return end.value
    finally:
        body.close()


async def _aiterate(body: AsyncGenerator[Any, None], attempt: Attempt, emitter: Emitter) -> None:
    is_told = False
    try:
        item = await anext(body)
        while True:
            refusal = _emit(attempt, emitter, item)
            if not is_told and attempt.hear() is not None:
                is_told, refusal = True, await _cancellation()
            item = await (anext(body) if refusal is None else body.athrow(refusal))
    except StopAsyncIteration:
        return
    finally:
        await body.aclose()


def _emit(attempt: Attempt, emitter: Emitter, item: object) -> BaseException | None:
    """Emit what was yielded; returns what must be raised at that yield."""
    try:
        with attempt.reach:
            emitter.emit_item(item)
    except (AsmError, StopRun) as refusal:
        return refusal
    return None


async def _cancellation() -> asyncio.CancelledError:
    """Take the cancellation that a stop sends to this task, to be raised inside the generator.

    It is on its way already.  Left in the loop it would strike a second time, in the generator's clean-up,
    and a generator that never really waits would not meet it at all.
    """
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError as cancellation:
        return cancellation
    return asyncio.CancelledError()


def _run(given: Awaitable[Any], attempt: Attempt) -> Any:
    with asyncio.Runner() as runner:
        return runner.run(_stoppable(given, attempt))


async def _stoppable(given: Awaitable[Any], attempt: Attempt) -> Any:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def cancel_here() -> None:
        attempt.hear()
        if task is not None:  # it is: a Runner runs its coroutine as a task
            task.cancel()

    def cancel() -> None:
        loop.call_soon_threadsafe(cancel_here)

    with attempt.cancelling(cancel):
        return await given
