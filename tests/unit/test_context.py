"""What an agent may do with its `RunContext`, and what it is told."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from asm_celery.config import Config
from asm_celery.errors import InvalidEventType, InvalidInput, InvalidOperation, StopRun, ValidationError
from asm_celery.model import Event, Run
from tests.unit.attempts import held
from tests.waiting import wait_until


def test_an_agent_sees_its_session_run_and_attempt() -> None:
    """The context is the claim, as it was made."""
    with held() as it:
        assert it.claim.session == it.context.session
        assert it.claim.run == it.context.run
        assert 1 == it.context.attempt
        assert it.context.deadline is None


def test_an_emitted_event_belongs_to_the_attempt() -> None:
    """Ids, attempt and provider are the runtime's to fill in."""
    with held() as it:
        it.context.emit("thought", {"n": 1})

        wait_until(lambda: it.log.events, description="the event is stored")

        event = it.log.events[0]
        assert ("thought", {"n": 1}) == (event.type, event.data)
        assert (it.claim.run.run_id, it.claim.session.session_id) == (event.run_id, event.session_id)
        assert (1, "echo") == (event.attempt, event.provider)


def test_what_was_emitted_does_not_change_with_the_agents_object() -> None:
    """An event is a copy: it is stored later than it is emitted."""
    with held(is_open=False) as it:
        data = {"steps": [1]}

        it.context.emit("plan", data)
        data["steps"].append(2)
        it.log.is_open.set()

        wait_until(lambda: it.log.events, description="the event is stored")
        assert {"steps": [1]} == it.log.events[0].data


@pytest.mark.parametrize("event_type", ["run_started", "session_completed", "Not A Word", "", None, 7])
def test_an_event_type_is_a_word_that_is_not_the_runtimes(event_type: str) -> None:
    """The life-cycle events are written once each, by the runtime."""
    with held() as it, pytest.raises(InvalidEventType):
        it.context.emit(event_type)


@pytest.mark.parametrize("data", ["text", [1], {"n": float("nan")}, {"o": object()}, {1: 2}])
def test_an_events_data_is_a_json_object(data: dict[str, object]) -> None:
    """What is not JSON is refused in the agent, at the line that emits it."""
    with held() as it, pytest.raises(InvalidInput):
        it.context.emit("thought", data)


def test_an_event_of_more_than_max_event_bytes_is_refused() -> None:
    """The limit is named, and nothing of the event is stored."""
    with held(config=Config(max_event_bytes=100)) as it:
        with pytest.raises(InvalidInput, match="limit is 100"):
            it.context.emit("thought", {"text": "x" * 100})

        assert [] == it.log.events


def test_an_attempt_that_has_ended_emits_nothing() -> None:
    """A thread that an agent left behind is told so, and the log is not touched."""
    with held() as it:
        it.writer.close(it.outbox)

        with pytest.raises(InvalidOperation, match="has ended"):
            it.context.emit("late")


def test_emit_blocks_while_a_thousand_events_wait() -> None:
    """A slow database slows the agent instead of filling its memory, and loses no event."""
    with held(is_open=False) as it:
        counted: list[int] = []

        def emit() -> None:
            for number in range(1200):
                it.context.emit("n", {"n": number})
                counted.append(number)

        thread = threading.Thread(target=emit, daemon=True)
        thread.start()
        wait_until(lambda: len(counted) >= 1000, description="a thousand events wait")

        assert len(counted) <= 1000 + 64

        it.log.is_open.set()
        thread.join(10)
        wait_until(lambda: len(it.log.events) == 1200, description="all events are stored")
        assert list(range(1200)) == [event.data["n"] for event in it.log.events]


def test_an_emit_that_blocks_ends_when_the_claim_is_lost() -> None:
    """An attempt that another has taken over is not held by a database that is away."""
    with held(is_open=False) as it:
        raised: list[BaseException] = []

        def emit() -> None:
            try:
                for number in range(2000):
                    it.context.emit("n", {"n": number})
            except StopRun as stop:
                raised.append(stop)

        thread = threading.Thread(target=emit, daemon=True)
        thread.start()
        it.attempt.stop("lost")

        thread.join(10)
        assert ["lost"] == [str(stop) for stop in raised]


def test_check_raises_once_a_stop_was_asked_for() -> None:
    """The first kind decides."""
    with held() as it:
        it.context.check()
        assert not it.context.cancelled

        it.attempt.stop("interrupt")
        it.attempt.stop("cancel")

        assert it.context.cancelled
        with pytest.raises(StopRun) as raised:
            it.context.check()
        assert "interrupt" == raised.value.kind


def test_sleep_returns_true_and_ends_early_for_a_stop() -> None:
    """A sleeping agent is stopped at once."""
    with held() as it:
        assert it.context.sleep(0.001) is True

        threading.Timer(0.01, it.attempt.stop, ["cancel"]).start()

        with pytest.raises(StopRun):
            it.context.sleep(60)


async def test_asleep_returns_true_and_refuses_to_sleep_in_a_stopped_run() -> None:
    """The same in a coroutine."""
    with held() as it:
        assert await it.context.asleep(0.001) is True

        it.attempt.stop("cancel")

        with pytest.raises(StopRun):
            await it.context.asleep(60)


def test_on_stop_is_called_once_and_at_once_when_the_stop_came_first() -> None:
    """Registering late loses nothing, and an exception of one hook does not keep the others from running."""
    with held() as it:
        called: list[str] = []
        it.context.on_stop(lambda: called.append("first"))
        it.context.on_stop(lambda: called.append("second") or 1 / 0)
        it.context.on_stop(lambda: called.append("third"))

        it.attempt.stop("cancel")
        it.attempt.stop("cancel")
        wait_until(lambda: len(called) == 3, description="the hooks were called")
        it.context.on_stop(lambda: called.append("late"))

        assert ["first", "second", "third", "late"] == called


def test_a_hook_that_blocks_delays_nobody() -> None:
    """Hooks are the agent's code: the thread that delivers the stop does not wait for them."""
    with held() as it:
        blocked = threading.Event()
        it.context.on_stop(lambda: blocked.wait(10))

        it.attempt.stop("cancel")

        assert it.context.cancelled
        blocked.set()


def test_an_attempt_that_has_ended_takes_no_more_stops() -> None:
    """A stop that crosses with the end calls no hook of an agent that has left."""
    with held() as it:
        called: list[str] = []
        it.context.on_stop(lambda: called.append("hook"))

        it.attempt.end()
        it.attempt.stop("cancel")

        assert not it.context.cancelled
        assert [] == called


def test_a_log_line_names_session_run_and_attempt(caplog: pytest.LogCaptureFixture) -> None:
    """Also as fields, for formatters that take them."""
    with held() as it, caplog.at_level(logging.INFO, logger="asm_celery.agent"):
        it.context.log.info("halfway, %d%%", 50)

        record = caplog.records[0]
        run_id = it.claim.run.run_id
        assert f"halfway, 50% session={it.claim.session.session_id} run={run_id} attempt=1" == record.message
        assert run_id == record.__dict__["run_id"]


def test_history_is_read_through_the_callable_it_was_given() -> None:
    """Twenty runs unless told otherwise; a limit that is no count is refused."""
    earlier = [Run.new("ses_1", agent="echo")]
    with held(history=earlier) as it:
        assert earlier == it.context.history()
        assert earlier == it.context.history(limit=2)

        assert [(it.claim.run.run_id, 20), (it.claim.run.run_id, 2)] == it.asked
        with pytest.raises(ValidationError):
            it.context.history(limit=0)


def test_usage_cost_and_turns_are_added_up() -> None:
    """The run carries what its events said."""
    with held() as it:
        it.context.emit("token_usage_updated", {"input_tokens": 10, "output_tokens": 1, "cost_usd": 0.25})
        it.context.emit("token_usage_updated", {"input_tokens": 5, "model": "x", "is_cached": True})
        it.context.emit("turn_completed")

        assert {"input_tokens": 15, "output_tokens": 1} == it.tally.token_usage
        assert 0.25 == it.tally.cost_usd
        assert 1 == it.tally.turn_count


@pytest.mark.parametrize("text", ["abcdefghij", "äöüäöü", "\ud800\U0001f600x"])
def test_streamed_text_is_kept_up_to_the_limit_of_an_output(text: str) -> None:
    """What is kept is a beginning, and fits as JSON whatever its letters are."""
    with held(config=Config(max_output_bytes=24)) as it:
        for _ in range(5):
            it.context.emit("message_streamed", {"content": text})

        kept = it.tally.text or ""
        assert (text * 5).startswith(kept)
        assert 16 <= len(__import__("json").dumps(kept)) <= 24


def test_yielded_items_become_events() -> None:
    """A str, a map with a type, an Event, and nothing for None."""
    with held() as it:
        given = Event.new("noted", "elsewhere", data={"a": 1}, metadata={"b": 2}, correlation_id="c")
        for item in ["hi", {"type": "x", "n": 1}, {"type": "y", "data": {"n": 2}}, given, None]:
            it.emitter.emit_item(item)

        wait_until(lambda: len(it.log.events) == 4, description="the events are stored")

        streamed = ("message_streamed", {"content": "hi"})
        assert [streamed, ("x", {"n": 1}), ("y", {"n": 2}), ("noted", {"a": 1})] == it.log.told
        kept = it.log.events[3]
        assert (given.event_id, given.timestamp, {"b": 2}, "c") == (
            kept.event_id,
            kept.timestamp,
            kept.metadata,
            kept.correlation_id,
        )
        assert it.claim.session.session_id == kept.session_id


@pytest.mark.parametrize("item", [1, b"bytes", ["list"], {"no": "type"}])
def test_anything_else_yielded_is_refused(item: object) -> None:
    """The message says what may be yielded."""
    with held() as it, pytest.raises(InvalidInput, match="yield a str"):
        it.emitter.emit_item(item)


def test_a_coroutine_is_cancelled_by_the_stop_and_may_clean_up() -> None:
    """The cancellation arrives in its own loop, from another thread."""
    with held() as it:
        seen: list[str] = []

        async def agent() -> None:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None
            with it.attempt.cancelling(lambda: loop.call_soon_threadsafe(task.cancel)):
                try:
                    await it.context.asleep(60)
                except asyncio.CancelledError:
                    seen.append("cleaned up")
                    raise

        threading.Timer(0.01, it.attempt.stop, ["cancel"]).start()
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(agent())

        assert ["cleaned up"] == seen
