"""Agents of every kind and every misbehaviour, from doorbell to stored end, on real stores."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from asm_celery.config import Config
from asm_celery.errors import InvalidInput, InvalidOperation, StopRun, StorageConnectionFailed, of_code
from asm_celery.model import Event
from asm_celery.states import RunStatus, StopKind
from tests.integration.station import Station, station
from tests.waiting import wait_until


@pytest.fixture
def here(config: Config) -> Iterator[Station]:
    """An executing process on both databases."""
    with station(config) as made:
        yield made


@pytest.fixture
def lite(sqlite_config: Config) -> Iterator[Station]:
    """The same on SQLite only, for what does not depend on the database."""
    with station(sqlite_config) as made:
        yield made


def _function(ctx: Any, given: Any) -> Any:
    return {"got": given}


def _generator(ctx: Any, given: Any) -> Iterator[Any]:
    yield "a"
    yield {"type": "noted", "n": 1}
    yield "b"


def _returning_generator(ctx: Any, given: Any) -> Any:
    yield "a"
    return {"got": given}


async def _coroutine(ctx: Any, given: Any) -> Any:
    await ctx.asleep(0.001)
    return {"got": given}


async def _async_generator(ctx: Any, given: Any) -> AsyncIterator[Any]:
    yield "a"
    await asyncio.sleep(0)
    yield Event.new("noted", "elsewhere", data={"n": 1})
    yield "b"


class _Callable:
    def __call__(self, ctx: Any, given: Any) -> Any:
        return {"got": given}


class _AsyncCallable:
    async def __call__(self, ctx: Any, given: Any) -> Any:
        return {"got": given}


def _gives_a_coroutine(ctx: Any, given: Any) -> Any:
    return _coroutine(ctx, given)


KINDS: list[tuple[Any, Any]] = [
    (_function, {"got": 7}),
    (_generator, "ab"),
    (_returning_generator, {"got": 7}),
    (_coroutine, {"got": 7}),
    (_async_generator, "ab"),
    (_Callable(), {"got": 7}),
    (_AsyncCallable(), {"got": 7}),
    (_gives_a_coroutine, {"got": 7}),
    (functools.partial(_function), {"got": 7}),
    (lambda ctx, given: None, None),
]


@pytest.mark.parametrize(("agent", "output"), KINDS)
def test_agents_of_every_kind_complete(lite: Station, agent: Any, output: Any) -> None:
    """What an agent returns is the output; what a generator streams is, when it returns nothing."""
    server = lite.session(agent)

    result = server.execute_run(7, timeout=20)

    assert (RunStatus.COMPLETED, output) == (result.status, result.output)


def test_events_stand_between_start_and_end_in_their_order(here: Station) -> None:
    """Streamed words, an agent's own event, the terminal event last."""
    server = here.session(_generator)

    run_id = server.submit_run(None)
    here.ended(server, run_id)

    assert [
        "run_queued",
        "run_started",
        "message_streamed",
        "noted",
        "message_streamed",
        "run_completed",
    ] == [event.type for event in here.events(server, run_id)]


def test_ten_thousand_events_keep_their_order(lite: Station) -> None:
    """Batches, backpressure and the last transaction lose and repeat none."""

    def agent(ctx: Any, given: Any) -> None:
        for number in range(10_000):
            ctx.emit("n", {"n": number})

    server = lite.session(agent)
    run_id = server.submit_run(None)
    lite.ended(server, run_id)

    found: list[int] = []
    after = 0
    while page := server.get_events(after=after, limit=1000, run_id=run_id, type="n"):
        found += [event.data["n"] for event in page]
        after = page[-1].sequence
    assert list(range(10_000)) == found


class _Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("even my text fails")


def _raises(ctx: Any, given: Any) -> None:
    raise ValueError("no such thing")


def _raises_its_own(ctx: Any, given: Any) -> None:
    raise of_code("provider_rate_limited", "slow down", details={"retry_after": 3, "odd": object()})


def _raises_oddly(ctx: Any, given: Any) -> None:
    raise _Odd


def _exits(ctx: Any, given: Any) -> None:
    sys.exit(3)


def _interrupts_itself(ctx: Any, given: Any) -> None:
    raise KeyboardInterrupt


def _stops_itself(ctx: Any, given: Any) -> None:
    raise StopRun("cancel")


async def _cancels_itself(ctx: Any, given: Any) -> None:
    raise asyncio.CancelledError


async def _exits_in_a_coroutine(ctx: Any, given: Any) -> None:
    await asyncio.sleep(0)
    sys.exit(3)


def _is_not_json(ctx: Any, given: Any) -> Any:
    return {1, 2}


def _is_nan(ctx: Any, given: Any) -> Any:
    return float("nan")


def _is_too_large(ctx: Any, given: Any) -> Any:
    return "x" * (1 << 20)


def _emits_ten_megabytes(ctx: Any, given: Any) -> None:
    ctx.emit("big", {"text": "x" * 10_000_000})


def _streams_ten_megabytes(ctx: Any, given: Any) -> Iterator[Any]:
    yield "x" * 10_000_000


def _emits_not_json(ctx: Any, given: Any) -> None:
    ctx.emit("odd", {"o": object()})


def _emits_a_lifecycle_word(ctx: Any, given: Any) -> None:
    ctx.emit("run_completed")


def _yields_a_number(ctx: Any, given: Any) -> Iterator[Any]:
    yield 7


async def _async_yields_a_number(ctx: Any, given: Any) -> AsyncIterator[Any]:
    yield 7


def _repeats_an_event(ctx: Any, given: Any) -> Iterator[Any]:
    event = Event.new("twice", "elsewhere")
    yield event
    yield event


BAD: list[tuple[Any, str, str]] = [
    (_raises, "agent_error", "no such thing"),
    (_raises_its_own, "provider_rate_limited", "slow down"),
    (_raises_oddly, "agent_error", "_Odd"),
    (_exits, "agent_error", "3"),
    (_interrupts_itself, "agent_error", "KeyboardInterrupt"),
    (_stops_itself, "agent_error", "cancel"),
    (_cancels_itself, "agent_error", "CancelledError"),
    (_exits_in_a_coroutine, "agent_error", "3"),
    (_is_not_json, "invalid_output", "output of type set is not JSON"),
    (_is_nan, "invalid_output", "not JSON"),
    (_is_too_large, "invalid_output", "the limit is"),
    (_emits_ten_megabytes, "invalid_input", "the limit is"),
    (_streams_ten_megabytes, "invalid_input", "the limit is"),
    (_emits_not_json, "invalid_input", "event data"),
    (_emits_a_lifecycle_word, "invalid_event_type", "are the runtime's"),
    (_yields_a_number, "invalid_input", "yield a str"),
    (_async_yields_a_number, "invalid_input", "yield a str"),
    (_repeats_an_event, "storage_write_failed", ""),
]


@pytest.mark.parametrize(("agent", "code", "message"), BAD)
def test_a_bad_agent_fails_its_run_and_not_its_worker(
    lite: Station, agent: Any, code: str, message: str
) -> None:
    """The run ends failed with a code and a message, and the same executor runs the next."""
    server, other = lite.session(agent), lite.session(_function)

    run = lite.ended(server, server.submit_run(None))

    assert RunStatus.FAILED == run.status
    assert run.error is not None
    assert code == run.error["code"]
    assert message in run.error["message"]
    assert {"got": 1} == other.execute_run(1, timeout=20).output
    assert [] == lite.escaped


def test_an_exception_is_told_with_its_type_and_the_end_of_its_traceback(lite: Station) -> None:
    """Bounded, and JSON whatever the agent put into its details."""
    server = lite.session(_raises_its_own)

    error = lite.ended(server, server.submit_run(None)).error or {}

    assert "AsmError" == error["details"]["type"]
    assert "_raises_its_own" in error["details"]["traceback"]
    assert len(error["details"]["traceback"]) <= 4096
    assert 3 == error["details"]["retry_after"]
    assert "<object object" in error["details"]["odd"]


def test_an_agent_may_catch_what_was_wrong_with_its_event(lite: Station) -> None:
    """The typed error is raised at the line, or the yield, that was wrong."""

    def agent(ctx: Any, given: Any) -> Any:
        try:
            yield 7
        except InvalidInput as refused:
            return refused.code

    server = lite.session(agent)

    assert "invalid_input" == server.execute_run(None, timeout=20).output


def test_an_emit_after_the_end_changes_nothing(here: Station) -> None:
    """A thread that the agent left behind is told, the log stays closed."""
    raised: list[BaseException] = []
    go = threading.Event()

    def agent(ctx: Any, given: Any) -> str:
        def later() -> None:
            go.wait(20)
            try:
                ctx.emit("late")
            except InvalidOperation as refused:
                raised.append(refused)

        threading.Thread(target=later, daemon=True).start()
        return "done"

    server = here.session(agent)
    run_id = server.submit_run(None)
    here.ended(server, run_id)
    go.set()

    wait_until(lambda: raised, description="the late emit was refused")
    assert "run_completed" == here.events(server, run_id)[-1].type


def _asks(ctx: Any, given: Any) -> str:
    ctx.emit("message_streamed", {"content": "begun"})
    while True:
        ctx.sleep(0.01)


def _ignores_until_it_ends(ctx: Any, given: Any) -> str:
    ctx.emit("message_streamed", {"content": "begun"})
    stopped = threading.Event()
    ctx.on_stop(stopped.set)
    stopped.wait(20)
    return "late result"


def _raises_when_stopped(ctx: Any, given: Any) -> None:
    ctx.emit("message_streamed", {"content": "begun"})
    try:
        ctx.sleep(20)
    except StopRun:
        raise ValueError("confused") from None


def _yields_for_ever(ctx: Any, given: Any) -> Iterator[Any]:
    yield "begun"
    while True:
        yield None


def _yields_last_words(ctx: Any, given: Any) -> Iterator[Any]:
    try:
        yield "begun"
        while True:
            yield None
    except StopRun:
        yield " and ended"
        raise


async def _waits(ctx: Any, given: Any) -> None:
    ctx.emit("message_streamed", {"content": "begun"})
    await asyncio.sleep(60)


async def _waits_in_a_group(ctx: Any, given: Any) -> None:
    ctx.emit("message_streamed", {"content": "begun"})
    async with asyncio.TaskGroup() as group:
        group.create_task(ctx.asleep(60))
        group.create_task(asyncio.sleep(60))


async def _cleans_up_slowly(ctx: Any, given: Any) -> AsyncIterator[Any]:
    try:
        yield "begun"
        while True:
            yield None
    finally:
        await asyncio.sleep(0.01)
        ctx.emit("message_streamed", {"content": " and cleaned up"})


STOPPED: list[tuple[Any, Any]] = [
    (_asks, "begun"),
    (_ignores_until_it_ends, "late result"),
    (_raises_when_stopped, "begun"),
    (_yields_for_ever, "begun"),
    (_yields_last_words, "begun and ended"),
    (_waits, "begun"),
    (_waits_in_a_group, "begun"),
    (_cleans_up_slowly, "begun and cleaned up"),
]


@pytest.mark.parametrize(("agent", "kept"), STOPPED)
@pytest.mark.parametrize("kind", [StopKind.CANCEL, StopKind.INTERRUPT])
def test_a_stopped_run_ends_as_asked_and_keeps_what_it_had(
    lite: Station, agent: Any, kept: Any, kind: StopKind
) -> None:
    """Whatever the agent does about it: the request decides, the partial output is kept."""
    server = lite.session(agent)
    run_id = server.submit_run(None)
    wait_until(
        lambda: any(event.type == "message_streamed" for event in lite.events(server, run_id)),
        description="the agent has begun",
    )

    lite.runtime.stopper.request(run_id, kind)

    run = lite.ended(server, run_id)
    expected = RunStatus.CANCELLED if kind is StopKind.CANCEL else RunStatus.INTERRUPTED
    assert (expected, kept) == (run.status, run.output)


def test_a_stop_is_learnt_from_the_beat_when_its_message_was_lost(here: Station) -> None:
    """Pub/sub is a doorbell, too."""
    server = here.session(_asks)
    run_id = server.submit_run(None)
    wait_until(lambda: server.get_run(run_id).status is RunStatus.RUNNING, description="it runs")

    with here.runtime.log.transaction() as tx:
        tx.runs.request_stop(run_id, StopKind.CANCEL)

    assert RunStatus.CANCELLED == here.ended(server, run_id).status


def test_a_run_that_takes_longer_than_run_timeout_ends_as_timeout(here: Station) -> None:
    """A durable stop like any other, with the code that says why."""
    server = here.session(_asks)

    run = here.ended(server, server.submit_run(None, run_timeout=0.3))

    assert RunStatus.TIMEOUT == run.status
    assert "run_timeout" == (run.error or {})["code"]
    assert "run_stop_requested" in [event.type for event in here.events(server, run.run_id)]


def test_a_worker_that_goes_on_without_its_claim_writes_nothing(here: Station) -> None:
    """The fence refuses its events and its end; the run's fate is the taker's."""
    entered, go = threading.Event(), threading.Event()

    def agent(ctx: Any, given: Any) -> str:
        entered.set()
        go.wait(20)
        ctx.emit("from_the_dead")
        return "from the dead"

    server = here.session(agent)
    run_id = server.submit_run(None)
    assert entered.wait(20)
    running = server.get_run(run_id)
    assert running.executor
    here.runtime.coordinator.lose(run_id, running.claims, running.executor, message="taken over by the test")
    go.set()

    run = here.ended(server, run_id)
    here.close()
    assert (RunStatus.FAILED, "worker_lost") == (run.status, (run.error or {})["code"])
    assert "from_the_dead" not in [event.type for event in here.events(server, run_id)]


def test_a_failed_attempt_is_entered_again_while_attempts_are_left(here: Station) -> None:
    """Each attempt knows its number, and the last one decides."""

    def agent(ctx: Any, given: Any) -> int:
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return int(ctx.attempt)

    server = here.session(agent)

    result = server.execute_run(None, timeout=20, max_attempts=3)

    assert (3, 3) == (result.output, result.attempts)


def test_a_repeated_doorbell_enters_nothing_twice(here: Station) -> None:
    """Ten deliveries of the same message: one attempt."""
    entered: list[int] = []
    go = threading.Event()

    def agent(ctx: Any, given: Any) -> None:
        entered.append(ctx.attempt)
        go.wait(20)

    server = here.session(agent)
    run_id = server.submit_run(None)
    wait_until(lambda: entered, description="the agent was entered")

    spare = [here.execute(run_id, 1) for _ in range(10)]
    for thread in spare:
        thread.join(10)
    go.set()

    here.ended(server, run_id)
    assert [1] == entered


def test_an_agent_this_process_lacks_is_given_back(lite: Station) -> None:
    """Nothing is entered, and the run waits for a worker that has it."""
    server = lite.session(_function)
    name = server.agent
    lite.registry._specs.pop(name)

    run_id = server.submit_run(None)
    wait_until(lambda: lite.leases, description="a doorbell was rung")
    wait_until(lambda: server.get_run(run_id).status is RunStatus.PENDING, description="the run waits again")
    lite.registry.register(name, _function)

    assert RunStatus.COMPLETED == lite.ended(server, run_id).status


def test_history_holds_the_ended_runs_before_this_one(here: Station) -> None:
    """The last `limit`, oldest first, failed ones too, this one not."""

    def agent(ctx: Any, given: Any) -> Any:
        if given == 2:
            raise ValueError("two")
        return [[run.input, run.status] for run in ctx.history(limit=2)]

    server = here.session(agent)
    ids = [server.submit_run(number) for number in (1, 2, 3, 4)]

    assert [[2, "failed"], [3, "completed"]] == here.ended(server, ids[3]).output


def test_a_retiring_worker_asks_what_still_runs_to_leave_after_the_grace(sqlite_config: Config) -> None:
    """A run that may be entered once ends interrupted, one with attempts left waits for another worker."""
    config = Config(**{**sqlite_config.model_dump(), "shutdown_grace_s": 0.1})
    with station(config) as here:
        once, again = here.session(_asks), here.session(_asks)
        ends, waits = once.submit_run(None), again.submit_run(None, max_attempts=2)
        for server, run_id in ((once, ends), (again, waits)):
            wait_until(
                lambda server=server, run_id=run_id: server.get_run(run_id).status is RunStatus.RUNNING,
                description="it runs",
            )

        here.retirement.begin()

        run = here.ended(once, ends)
        assert (RunStatus.INTERRUPTED, "worker_shutdown") == (run.status, (run.error or {})["code"])
        wait_until(lambda: again.get_run(waits).status is RunStatus.PENDING, description="it waits again")
        again.cancel_run(waits)
        here.ended(again, waits)


@pytest.mark.parametrize("lost", ["commit", "answer"])
def test_a_database_that_goes_away_costs_no_event_and_doubles_none(
    here: Station, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Whether a transaction was lost or only its answer, each is tried until it is known to be stored."""
    store, is_away = here.runtime.store, threading.Event()
    real, failed = store.transaction, []

    @contextlib.contextmanager
    def failing(**options: bool) -> Iterator[Any]:
        fails = is_away.is_set() and threading.current_thread().name != "asm-beat" and len(failed) < 6
        if fails and len(failed) % 2 == (lost == "answer"):
            failed.append(lost)
            raise StorageConnectionFailed("it is away")
        with real(**options) as transaction:
            yield transaction
        if fails:
            failed.append(lost)
            raise StorageConnectionFailed("the answer was lost")

    def agent(ctx: Any, given: Any) -> str:
        is_away.set()
        for number in range(200):
            ctx.emit("n", {"n": number})
            ctx.sleep(0.001)
        return "done"

    monkeypatch.setattr(store, "transaction", failing)
    server = here.session(agent)
    run_id = server.submit_run(None)

    run = here.ended(server, run_id)

    assert (RunStatus.COMPLETED, "done") == (run.status, run.output)
    assert 6 == len(failed)
    told = [event.data["n"] for event in here.events(server, run_id) if event.type == "n"]
    assert list(range(200)) == told


def test_an_end_that_meets_an_absent_database_waits_for_it(
    here: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result of a long run is not thrown away for a short outage, and stored once."""
    store = here.runtime.store
    real, failed = store.transaction, []

    @contextlib.contextmanager
    def failing(**options: bool) -> Iterator[Any]:
        with real(**options) as transaction:
            yield transaction
        if threading.current_thread().name != "asm-beat" and len(failed) < 3:
            failed.append(1)
            raise StorageConnectionFailed("the answer was lost")

    def agent(ctx: Any, given: Any) -> str:
        ctx.emit("last")
        monkeypatch.setattr(store, "transaction", failing)
        return "done"

    server = here.session(agent)
    run_id = server.submit_run(None)

    run = here.ended(server, run_id)

    assert (RunStatus.COMPLETED, "done") == (run.status, run.output)
    assert ["run_queued", "run_started", "last", "run_completed"] == [
        event.type for event in here.events(server, run_id)
    ]


def test_signal_is_left_as_it_was(lite: Station) -> None:
    """An agent's own event loop leaves no handler behind."""
    before = signal.getsignal(signal.SIGINT)

    lite.session(_coroutine).execute_run(None, timeout=20)

    assert before == signal.getsignal(signal.SIGINT)
