"""The Python door under nonsense: every verb of every class, sync and async, on both databases."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asm_celery import AgentSessions, Config, errors
from asm_celery.aio import AsyncAgentSessions
from asm_celery.events.subscription import Subscription
from asm_celery.events.subscription_async import AsyncSubscription
from asm_celery.keys import Keys
from asm_celery.model import Event, Run, Session
from tests.conftest import environment
from tests.doors.nonsense import ASYNC, ODD, SYNC, Doors, Verb, calls

FULL = bool(os.environ.get("ASM_TEST_FULL"))
# on each of two databases
SIZES = {"sync": 4000, "async": 1000, "words": 2000} if FULL else {"sync": 200, "async": 60, "words": 100}


@pytest.fixture
def asm(config: Config) -> Iterator[AgentSessions]:
    """A process with one agent, three open runs and no worker."""
    with AgentSessions(config) as made:
        made.register("echo", lambda ctx, value: value)
        for session_id in ("chat-42", "chat-43"):
            made.start_session("echo", session_id=session_id, max_queued_runs=10)
        yield made


KNOWN = {"session_id": "s", "run_id": "r", "agent": "a", "type": "note", "schema_version": 1}


def odd_calls(count: int) -> Any:
    """Hypothesis settings: so many calls, the same ones at each run unless at full size."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=not FULL,
        suppress_health_check=list(HealthCheck),
    )


def ask(doors: Doors, verb: Verb, arguments: dict[str, Any]) -> Any:
    """Call a verb; a typed refusal is a good answer, and so is success; anything else is raised."""
    try:
        answer = getattr(doors[verb.door], verb.name)(**arguments)
    except errors.AsmError as refused:
        return teaches(refused)
    if isinstance(answer, Subscription):
        answer.close()
    return answer


def teaches(refused: errors.AsmError) -> None:
    """A refusal can be logged as it is: text of a sane length, in one line, with nothing that moves a cursor."""
    assert refused.code != "internal_error"
    assert 0 < len(refused.message) < 2000
    assert refused.message.isprintable(), repr(refused.message)
    refused.message.encode()
    json.dumps(refused.to_map())


def test_no_odd_value_makes_the_sync_door_crash(
    asm: AgentSessions, config: Config, start_worker: Any
) -> None:
    """Each call succeeds or is refused with an AsmError, and afterwards a good run is executed."""
    runs = [asm.attach("chat-42").submit_run(1), asm.attach("chat-43").submit_run(2)]
    doors = {"sessions": asm, "server": asm.attach("chat-42"), "control": asm.control, "limiter": asm.limiter}

    @odd_calls(SIZES["sync"])
    @given(calls(SYNC, runs))
    def every_call_is_answered(call: tuple[Verb, dict[str, Any]]) -> None:
        ask(doors, *call)

    every_call_is_answered()

    works_still(asm, config, start_worker)


def test_no_odd_value_makes_the_async_door_crash(asm: AgentSessions) -> None:
    """The same of the coroutines."""
    runs = [asm.attach("chat-42").submit_run(1), asm.attach("chat-43").submit_run(2)]
    own = AsyncAgentSessions(asm.config)

    async def answered(doors: Doors, verb: Verb, arguments: dict[str, Any]) -> None:
        answer = ask(doors, verb, arguments)
        try:
            answer = await answer if inspect.isawaitable(answer) else answer
        except errors.AsmError as refused:
            teaches(refused)
        if isinstance(answer, AsyncSubscription):
            await answer.close()

    with asyncio.Runner() as runner:
        doors = {
            "sessions": own,
            "server": runner.run(own.attach("chat-42")),
            "control": own.control,
            "limiter": own.limiter,
        }

        @odd_calls(SIZES["async"])
        @given(calls(ASYNC, runs))
        def every_call_is_answered(call: tuple[Verb, dict[str, Any]]) -> None:
            runner.run(answered(doors, *call))

        every_call_is_answered()
        runner.run(own.close())


def test_no_odd_value_makes_the_words_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, agents and records refuse what they cannot be, each with an AsmError."""
    monkeypatch.chdir("/")
    asm = AgentSessions(Config())
    settings_of = sorted(Config.model_fields)

    @odd_calls(SIZES["words"])
    @given(st.sampled_from(settings_of), ODD, ODD, ODD)
    def every_word_is_answered(setting: str, one: Any, other: Any, third: Any) -> None:
        attempts: list[Callable[[], object]] = [
            lambda: Config(**{setting: one}),
            lambda: Config.default(one),
            lambda: asm.register(one, other),
            lambda: asm.register("odd", lambda ctx, value: value, queue=one, max_attempts=other),
            lambda: asm.register("odd", lambda ctx, value: value, run_timeout=one, capabilities=other),
            lambda: Event.new(one, other, data=third),
            lambda: Keys(one),
        ]
        records = [
            one,
            {**KNOWN, "status": one, "code": other},
            {**KNOWN, "code": "timeout", "stop_requested": one},
            {**KNOWN, "code": "timeout", "timestamp": one, "created_at": other},
        ]
        kinds = (Event, Run, Session, errors.AsmError)
        attempts += [partial(kind.from_map, record) for kind in kinds for record in records]
        for attempt in attempts:
            try:
                attempt()
            except errors.AsmError as refused:
                teaches(refused)

    every_word_is_answered()


def works_still(asm: AgentSessions, config: Config, start_worker: Any) -> None:
    """Whatever was held, paused or limited is let go, and a fresh session runs."""
    asm.control.release()
    asm.limiter.set_limits(max_parallel_runs=50, max_parallel_sessions=100)
    start_worker("workers.app", pool="threads", env=environment(config))
    assert "good" == asm.start_session("echo").execute_run("good", timeout=60).output
